"""The bundled nano model learns from rewards: of the pictures that it paints of an edit, which are nearer to the target (docs/reward.md)?

dim train --config configs/nano_reward.py --workdir runs/nano_reward
"""

from configs import nano_edit
from dim_jax.weights.bundled import bundled_checkpoint


def get_config():
    config = nano_edit.get_config()
    config.trainable, config.frozen = ("sana",), ("encoder", "connector", "autoencoder")
    config.init = dict.fromkeys(config.init, str(bundled_checkpoint()))
    config.reward.method = "target"
    config.data.mix.edit, config.data.mix.caption, config.data.batch_size = 1.0, 0.0, 8
    config.flow.condition_dropout = 0.0
    config.optim.learning_rate, config.optim.warmup_steps, config.optim.cosine = 1e-4, 10, False
    config.optim.ema_decay = 0.9  # of the policy that paints, which follows the one that learns
    config.sample.num_steps, config.sample.guidance_scale = 8, 1.0
    config.train.steps, config.train.log_every, config.train.save_every, config.train.show_every = 1000, 10, 50, 1000
    return config
