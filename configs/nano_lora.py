"""A LoRA of the bundled nano model: a drawing style from 20 pairs (docs/lora.md).

python examples/sketch_pairs.py data/emoji data/sketch
dim prepare data/sketch data/prepared/sketch
dim cache --config configs/nano_lora.py --into data/cache/sketch
dim train --config configs/nano_lora.py --workdir runs/sketch --set data.cache=data/cache/sketch

On one H200 in 3 minutes, on two busy CPU cores in 15: loss 0.12; 96 % of 24 unseen drawings nearer to their sketch, 25 % without.
"""

from configs import nano_edit
from dim_jax.weights.bundled import bundled_checkpoint


def get_config():
    config = nano_edit.get_config()
    config.lora.rank, config.lora.alpha = 16, 16.0
    config.init.encoder = config.init.connector = config.init.sana = config.init.autoencoder = str(bundled_checkpoint())
    config.data.source, config.data.batch_size, config.data.shift = "data/prepared/sketch", 10, 0
    config.data.mix.edit, config.data.mix.caption, config.data.balance = 1.0, 0.0, 0.0
    config.optim.learning_rate, config.optim.warmup_steps, config.optim.ema_decay = 2e-3, 20, 0.98
    config.train.steps, config.train.save_every, config.train.show_every, config.train.log_every = 300, 100, 300, 20
    return config
