"""The nano painter learns to paint and to edit emoji, in one run from nothing over the bundled encoder and autoencoder.

dim train --config configs/nano_speedrun.py --workdir runs/nano_speedrun

On one H200 in 1,057 seconds, 54,000 steps: loss 0.36; 77.8 % of 496 unseen edits nearer to their target than to their source. It is the
bundled painter. Beside emoji it sees emoji in colours that nobody drew them in, icons of what some emoji show, and older drawings; what
no set holds are emoji mirrored and with other hues (docs/nano.md).
"""

from configs import nano_edit
from dim_jax.weights.bundled import bundled_checkpoint

PEOPLE = ("hair", "occupation_on", "occupation_off", "occupation_swap", "skin_tone")
FACES = ("expression", "cat_expression", "accessory_on", "accessory_off", "face_to_cat", "cat_to_face", "animal_face", "animal_whole")
SIDED = ("facing", "hand_direction", "arrow", "clock", "moon", "keycap", "zodiac", "state")  # mirrored they would say something else
OTHER_SETS = {
    "edit:data/prepared/tints": 0.12, "edit:data/prepared/icons": 0.13, "caption:data/prepared/icons": 0.03,
    "edit:data/prepared/older": 0.09, "caption:data/prepared/older": 0.03,
}  # fmt: skip


def get_config():
    config = nano_edit.get_config()
    config.model.dtype = "bfloat16"
    config.init.encoder = config.init.autoencoder = str(bundled_checkpoint())
    config.init.sana = config.init.connector = ""
    config.data.mix = {"edit": 0.47, "caption": 0.13} | OTHER_SETS
    config.data.mirrored = (*PEOPLE, *FACES, "gender", "colour", "tint", "shape", "style")
    config.data.recoloured = (*FACES, *SIDED, "gender")
    config.flow.draw = "uniform"
    config.optim.name, config.optim.learning_rate = "muon", 1e-3
    config.train.steps, config.train.save_every, config.train.show_every = 54_000, 4000, 18_000
    return config
