"""The nano painter learns that colours and shapes combine: the edits of emoji, and as many of emoji in other colours.

dim train --config configs/nano_colours.py --workdir runs/nano_colours
"""

from configs import nano_edit


def get_config():
    config = nano_edit.get_config()
    config.init.sana = config.init.connector = "runs/nano_edit/model"
    config.data.mix = {"edit": 0.5, "edit:data/tints": 0.5}
    config.data.batch_size = 32
    config.optim.learning_rate, config.optim.warmup_steps, config.optim.ema_decay = 3e-4, 50, 0.99
    config.train.steps, config.train.save_every, config.train.show_every = 1000, 250, 1000
    return config
