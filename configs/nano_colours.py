"""The nano painter goes on with edits that no set holds: things in other colours, and the edits of emoji mirrored and with other hues.

dim train --config configs/nano_colours.py --workdir runs/nano_colours

On one H200 in 1,635 seconds, 53,500 steps: loss 0.26; 70.2 % of 496 unseen edits, 98 % of 88 colours. docs/nano.md has the rest.
"""

from configs import nano_edit

PEOPLE = ("hair", "occupation_on", "occupation_off", "occupation_swap", "skin_tone")
FACES = ("expression", "cat_expression", "accessory_on", "accessory_off", "face_to_cat", "cat_to_face", "animal_face", "animal_whole")
SIDED = ("facing", "hand_direction", "arrow", "clock", "moon", "keycap", "zodiac", "state")  # mirrored they would say something else


def get_config():
    config = nano_edit.get_config()
    config.model.dtype = "bfloat16"
    config.init.sana = config.init.connector = "runs/nano_edit/model"
    config.data.mix = {"edit": 0.6, "caption": 0.1, "edit:data/prepared/tints": 0.3}
    config.data.mirrored = (*PEOPLE, *FACES, "gender", "colour", "tint", "shape", "style")
    config.data.recoloured = (*FACES, *SIDED, "gender")
    config.optim.learning_rate = 5e-4
    config.train.steps = 54_500
    return config
