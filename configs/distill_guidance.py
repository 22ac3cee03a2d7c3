"""The full-size edit model in one branch: guidance distillation, with the scale as an input (docs/few_steps.md).

dim train --config configs/distill_guidance.py --workdir runs/distill_guidance
"""

from configs import edit_stage2


def get_config():
    config = edit_stage2.get_config()
    config.trainable, config.frozen = ("sana",), ("encoder", "connector", "autoencoder", "teacher")
    config.init = dict.fromkeys(config.init, "runs/edit_stage2/model")
    config.distill.method, config.distill.guidance_scales = "guidance", (1.0, 10.0)
    config.flow.condition_dropout = 0.0
    config.train.steps = 20_000
    return config
