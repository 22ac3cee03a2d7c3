"""An edit run of the nano laboratory: does a blueprint beat the bare instruction at equal compute? launch/nano_claim.sh makes all of them.

dim train --config configs/nano_claim.py --workdir runs/claim/seed0/stage1 --set data.text=instruction

Encoder and autoencoder are the bundled ones. The runs of the laboratory differ in seed, steps, what they begin with, and `data.text`.
"""

from configs import nano_edit
from dim_jax.weights.bundled import bundled_checkpoint


def get_config():
    config = nano_edit.get_config()
    config.model.dtype = "bfloat16"
    config.init.encoder = config.init.autoencoder = str(bundled_checkpoint())
    config.init.sana = config.init.connector = "runs/claim/t2i/model"
    config.data.lengths = (88, 240)  # instructions and captions; blueprints, of at most 236 tokens with picture and template
    config.train.steps, config.train.save_every, config.train.show_every, config.train.keep = 3000, 1000, 0, 1
    return config
