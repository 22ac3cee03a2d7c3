"""The nano painter learns to edit in one run from nothing, over the bundled encoder and autoencoder.

dim train --config configs/nano_speedrun.py --workdir runs/nano_speedrun

Beside emoji and their colours it sees icons of what some emoji show, and older drawings (docs/nano.md).
"""

from configs import nano_colours
from dim_jax.weights.bundled import bundled_checkpoint

OTHER_SETS = {
    "edit:data/prepared/tints": 0.15, "edit:data/prepared/icons": 0.1, "caption:data/prepared/icons": 0.03, "edit:data/prepared/older": 0.1,
}  # fmt: skip


def get_config():
    config = nano_colours.get_config()
    config.init.encoder = config.init.autoencoder = str(bundled_checkpoint())
    config.init.sana = config.init.connector = ""
    config.data.mix = {"edit": 0.5, "caption": 0.12} | OTHER_SETS
    config.flow.draw = "uniform"
    config.optim.name, config.optim.learning_rate = "muon", 1e-3
    config.train.steps, config.train.save_every, config.train.show_every = 60_000, 4000, 20_000
    return config
