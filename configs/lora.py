"""A LoRA of an edit model: connector and SANA stay as they are, and adapters beside their layers learn from a few pairs.

dim prepare data/style data/prepared/style --tokenizer weights/DIM
dim train --config configs/lora.py --workdir runs/style
dim edit --checkpoint weights/DIM --lora runs/style/lora --image IN.png --prompt "..." -o OUT.png
"""

from configs import common


def get_config():
    config = common.get_config()
    config.lora.rank, config.lora.alpha = 16, 16.0
    config.model.edit = True
    config.init.encoder = config.init.connector = config.init.sana = config.init.autoencoder = "weights/DIM"
    config.data.source, config.data.text = "data/prepared/style", "instruction"
    config.data.mix.edit, config.data.mix.caption = 1.0, 0.0
    config.data.batch_size = 4
    config.optim.learning_rate, config.optim.warmup_steps, config.optim.ema_decay = 1e-4, 50, 0.99
    config.train.steps, config.train.save_every, config.train.show_every = 1000, 250, 500
    return config
