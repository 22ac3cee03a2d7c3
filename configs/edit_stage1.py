"""Stage two: edits by their bare instructions, on UltraEdit; SANA grows channels for the source.

dim prepare data/UltraEdit data/prepared/UltraEdit --tokenizer weights/Qwen2.5-VL-3B-Instruct --workers 16
dim train --config configs/edit_stage1.py --workdir runs/edit_stage1
"""

from configs import common, t2i

PAIRS = 4_000_000  # about what UltraEdit holds; `dim prepare` counts yours
EPOCHS = 10  # (paper)


def get_config():
    config = t2i.get_config()
    config.model.edit = True
    config.init.encoder = config.init.connector = config.init.sana = config.init.autoencoder = "runs/t2i/model"
    config.data.source, config.data.text = "data/prepared/UltraEdit", "instruction"  # (paper)
    config.data.mix = {"edit": 1.0}
    config.data.batch_size = 32  # (paper)
    config.data.lengths = common.get_config().data.lengths
    config.optim.learning_rate = 1e-4  # (paper)
    config.train.steps = PAIRS * EPOCHS // config.data.batch_size
    return config
