"""Stage three: edits by blueprints, on DIM-Edit.

dim prepare data/DIM-Edit data/prepared/DIM-Edit --tokenizer weights/Qwen2.5-VL-3B-Instruct --workers 16
dim train --config configs/edit_stage2.py --workdir runs/edit_stage2
"""

from configs import edit_stage1

PAIRS = 233_000  # (paper) DIM-Edit
EPOCHS = 50  # (paper)


def get_config():
    config = edit_stage1.get_config()
    config.init.encoder = config.init.connector = config.init.sana = config.init.autoencoder = "runs/edit_stage1/model"
    config.data.source, config.data.text = "data/prepared/DIM-Edit", "blueprint"  # (paper)
    config.optim.learning_rate = 1e-5  # (paper)
    config.train.steps = PAIRS * EPOCHS // config.data.batch_size  # about 364,000
    config.train.keep_every = 20_000
    return config
