"""The nano autoencoder on emoji.

dim train --config configs/nano_autoencoder.py --workdir runs/nano_autoencoder

On one H100 in 230 seconds: 32.2 dB on pictures that were held out.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.objective, config.trainable, config.frozen = "autoencoder", ("autoencoder",), ()
    config.model.autoencoder, config.model.dtype = "nano", "float32"
    config.data.source, config.data.resolution, config.data.batch_size = "data/prepared/emoji", 64, 128
    config.data.shift = 4
    config.autoencoder.latent_noise = 0.05
    config.optim.learning_rate, config.optim.warmup_steps, config.optim.cosine = 1e-3, 200, True
    config.optim.betas, config.optim.ema_decay = (0.9, 0.99), 0.999
    config.train.steps, config.train.save_every, config.train.show_every = 9000, 1000, 3000
    return config
