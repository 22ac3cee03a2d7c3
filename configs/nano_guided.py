"""The bundled nano model in one branch: guidance distillation, with the scale as an input (docs/few_steps.md).

dim train --config configs/nano_guided.py --workdir runs/nano_guided
"""

from configs import nano_speedrun
from dim_jax.weights.bundled import bundled_checkpoint


def get_config():
    config = nano_speedrun.get_config()
    config.trainable, config.frozen = ("sana",), ("encoder", "connector", "autoencoder", "teacher")
    config.init = dict.fromkeys(config.init, str(bundled_checkpoint()))
    config.distill.method, config.distill.guidance_scales = "guidance", (1.0, 4.0)
    config.flow.condition_dropout = 0.0
    config.optim.name, config.optim.learning_rate, config.optim.warmup_steps = "adamw", 3e-4, 100
    config.train.steps, config.train.save_every, config.train.show_every = 6000, 1000, 6000
    return config
