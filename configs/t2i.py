"""Stage one: text to image, from three parents and a fresh connector. The paper's values are marked in common.py and here.

dim prepare data/DIM-T2I data/prepared/DIM-T2I --tokenizer weights/Qwen2.5-VL-3B-Instruct --workers 16
dim train --config configs/t2i.py --workdir runs/t2i
"""

from configs import common

PAIRS = 14_000_000 + 6_900_000  # (paper) DIM-T2I, and what other sets of captioned pictures it was mixed with
EPOCHS = 8  # (paper)


def get_config():
    config = common.get_config()
    config.init.encoder = "weights/Qwen2.5-VL-3B-Instruct"  # (paper) transformers' folder
    config.init.sana = "weights/SANA1.5_1.6B_1024px"  # (paper) NVlabs' folder or .pth; the connector is drawn anew
    config.init.autoencoder = "weights/dc-ae-f32c32-sana-1.1-diffusers"  # (paper)
    config.data.source = "data/prepared/DIM-T2I"
    config.data.mix = {"caption": 14.0, "caption:data/prepared/T2I-mix": 6.9}  # (paper) by their sizes; the second is yours to gather
    config.data.batch_size, config.data.workers = 256, 16  # (paper), ours
    config.data.lengths = (256, 512, 1024)  # captions come without a picture; the paper's mean is 147 words
    config.optim.learning_rate = 2e-5  # (paper)
    config.train.steps = PAIRS * EPOCHS // config.data.batch_size  # about 653,000
    config.train.keep_every, config.train.watchdog_minutes = 50_000, 30.0
    config.sharding.fsdp = -1
    return config
