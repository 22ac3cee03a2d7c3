"""The bundled nano model in four steps of one branch, by imitation of its policy's path (docs/few_steps.md).

dim train --config configs/nano_few_steps.py --workdir runs/nano_few_steps
"""

from configs import nano_guided


def get_config():
    config = nano_guided.get_config()
    config.distill.method, config.distill.guidance_scales = "steps", (2.0, 2.0)
    config.sample.num_steps, config.sample.guidance_scale = 4, 1.0
    config.data.batch_size = 128  # each row passes through all four steps
    config.optim.learning_rate = 5e-4
    config.train.steps, config.train.show_every = 3000, 3000
    return config
