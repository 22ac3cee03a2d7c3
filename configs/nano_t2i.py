"""The nano painter learns emoji from their captions.

dim train --config configs/nano_t2i.py --workdir runs/nano_t2i

On one H100 in 170 seconds, 2,900 steps: loss 0.65.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.model.encoder = config.model.sana = config.model.autoencoder = "nano"
    config.model.dtype, config.model.condition_length, config.model.remat = "float32", 256, "none"
    config.init.encoder, config.init.autoencoder = "runs/nano_encoder/model", "runs/nano_autoencoder/model"
    config.data.source, config.data.resolution, config.data.batch_size = "data/prepared/emoji", 64, 256
    config.data.text, config.data.lengths, config.data.shift = "instruction", (88,), 4
    config.flow.shift = 1.0
    config.optim.learning_rate, config.optim.warmup_steps = 1e-3, 200
    config.optim.betas, config.optim.ema_decay = (0.9, 0.99), 0.999
    config.train.steps, config.train.save_every, config.train.show_every = 3000, 500, 3000
    config.sample.num_steps, config.sample.guidance_scale, config.sample.flow_shift = 20, 2.0, 1.0
    config.sample.blueprint_from = "instruction"  # as the nano encoder learns it
    return config
