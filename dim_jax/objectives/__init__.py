"""What a run trains: the autoencoder, the encoder as a writer, or the painter.

An objective is a frozen dataclass that `train.py` asks for five things:

    PARTS                    the parts of Draw-In-Mind that it needs
    reader                   how examples become batches
    model                    the abstract module, its parameters named as in checkpoints ("sana.blocks. ...")
    loss(model, batch, key)  the scalar to minimise and what else to log
    show(model, examples, path)  what it makes of held-out examples, as a file to look at; returns its name
    finished(model, examples)    the sizes of the trained checkpoint
"""

from dim_jax.objectives.autoencoder import AutoencoderObjective
from dim_jax.objectives.encoder import EncoderObjective
from dim_jax.objectives.painter import PainterObjective

Objective = AutoencoderObjective | EncoderObjective | PainterObjective
OBJECTIVES: dict[str, type[Objective]] = {
    "autoencoder": AutoencoderObjective,
    "encoder": EncoderObjective,
    "painter": PainterObjective,
}
