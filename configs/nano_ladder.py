"""A run of the nano ladder: SANA and connector learn edits from nothing. launch/nano_ladder.sh makes all of them.

dim train --config configs/nano_ladder.py --workdir runs/ladder/seed0/adamw

Encoder and autoencoder are the bundled ones. The runs of the ladder differ in seed and in the keys of their tricks.
"""

from configs import nano_claim


def get_config():
    config = nano_claim.get_config()
    config.init.sana = config.init.connector = ""
    config.data.lengths = (88,)  # instructions and captions
    config.repa.block = 2
    config.train.keep_every = config.train.save_every
    return config
