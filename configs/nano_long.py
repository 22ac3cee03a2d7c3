"""The nano painter learns to edit in one run from nothing: emoji, emoji in other colours, and icons of what some of them show.

dim train --config configs/nano_long.py --workdir runs/nano_long
"""

from configs import nano_colours
from dim_jax.weights.bundled import bundled_checkpoint


def get_config():
    config = nano_colours.get_config()
    config.init.encoder = config.init.autoencoder = str(bundled_checkpoint())
    config.init.sana = config.init.connector = ""
    config.data.mix = {
        "edit": 0.5,
        "caption": 0.15,
        "edit:data/prepared/tints": 0.2,
        "edit:data/prepared/icons": 0.12,
        "caption:data/prepared/icons": 0.03,
    }
    config.flow.draw = "uniform"
    config.optim.name, config.optim.learning_rate = "muon", 1e-3
    config.train.steps, config.train.show_every, config.train.keep_every = 64_000, 0, 16_000
    config.train.save_every = 4000
    return config
