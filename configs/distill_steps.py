"""The full-size edit model in four steps of one branch (docs/few_steps.md).

dim train --config configs/distill_steps.py --workdir runs/distill_steps
"""

from configs import distill_guidance


def get_config():
    config = distill_guidance.get_config()
    config.distill.method, config.distill.guidance_scales = "steps", (7.5, 7.5)
    config.sample.num_steps, config.sample.guidance_scale = 4, 1.0
    config.data.batch_size = 16  # each row passes through all four steps
    return config
