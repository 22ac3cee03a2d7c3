"""The bundled nano encoder learns to judge what its painter makes of an edit, and still writes captions and blueprints (docs/nano.md).

dim train --config configs/nano_reflect.py --workdir runs/nano_reflect

What it writes is a checkpoint of the encoder alone: the painter keeps the one that it was trained over.
"""

from configs import nano_encoder
from dim_jax.weights.bundled import bundled_checkpoint


def get_config():
    config = nano_encoder.get_config()
    config.init.encoder = str(bundled_checkpoint())
    config.data.mix = {"edit": 0.2, "caption": 0.1, "judgement:data/prepared/judgements": 0.7}
    config.data.lengths = (112, 272)  # a turn with two pictures has at most 110 tokens
    config.optim.learning_rate = 3e-4
    config.train.steps, config.train.save_every, config.train.show_every = 3000, 1000, 1000
    return config
