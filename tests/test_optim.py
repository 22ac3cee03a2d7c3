"""AdamW after a clip, against torch's on the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana import SanaConfig
from dim_jax.training import optim
from dim_jax.weights.model_config import ModelConfig


def test_five_steps_equal_torch():
    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=5).astype(np.float32)}
    theirs = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in start.items()}
    torch_optimizer = torch.optim.AdamW(theirs.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-7, weight_decay=0.1)
    tx = optim.clipped_optimizer(1e-2, weight_decay=0.1, clip_global_norm=1.0, betas=(0.9, 0.95), eps=1e-7)
    ours = jax.tree.map(jnp.asarray, start)
    state = tx.init(ours)
    for step in range(5):
        scale = (0.01, 10)[step % 2]  # under the clip, and over it
        gradients = {name: (scale * rng.normal(size=x.shape)).astype(np.float32) for name, x in start.items()}
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        torch_optimizer.step()
        updates, state = tx.update(gradients, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_gradients_under_the_clip_are_left_alone():
    gradients = {"a": jnp.array([0.3, 0.4])}
    clip = optim.clipped_optimizer(1.0, weight_decay=0.0, clip_global_norm=0.5, betas=(0.0, 0.0), eps=1.0)
    updates, _ = clip.update(gradients, clip.init(gradients), gradients)
    np.testing.assert_allclose(updates["a"], [-0.3 / 1.3, -0.4 / 1.4], rtol=1e-5)  # Adam without memory: g / (|g| + eps)


def test_learning_rate_may_be_a_schedule():
    tx = optim.clipped_optimizer(optax.linear_schedule(0.0, 1.0, 2), weight_decay=0.0, clip_global_norm=1.0)
    parameters = {"a": jnp.ones(1)}
    state, sizes = tx.init(parameters), []
    for _ in range(3):
        updates, state = tx.update({"a": jnp.ones(1)}, state, parameters)
        sizes.append(float(-updates["a"][0]))
    np.testing.assert_allclose(sizes, [0, 0.5, 1], atol=1e-5)


def test_weight_decay_exclusions():
    """Without a gradient only kernels and embeddings move, in every part of the real model."""
    sizes = ModelConfig(QwenConfig.tiny(), SanaConfig.tiny(), DCAEConfig.tiny())
    parameters = {path: jnp.ones(2) for path in sizes.shapes()}
    tx = optim.clipped_optimizer(0.1, weight_decay=0.5, clip_global_norm=1.0)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, parameters), tx.init(parameters), parameters)
    moved = {path for path, update in updates.items() if np.any(np.asarray(update))}
    assert {path.rpartition(".")[2] for path in moved} == {"kernel", "embedding"}
    rest = {path.rpartition(".")[2] for path in parameters.keys() - moved}
    assert rest == {"scale", "bias", "scale_shift_table", "y_embedding"}


def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adam():
    """A step as large as Adam's, by arXiv 2502.16982; five iterations of Newton and Schulz bring singular values near to 1, not to it."""
    rng, options = np.random.default_rng(0), {"weight_decay": 0.0, "clip_global_norm": 1e9}
    shapes = {
        "sana.blocks.attn.qkv.kernel": (2, 8, 24), "connector.fc1.kernel": (16, 8), "sana.blocks.mlp.depth_conv.kernel": (2, 3, 3, 8),
        "sana.x_embedder.proj.kernel": (4, 8), "sana.blocks.attn.proj.bias": (2, 8),
    }  # fmt: skip
    start = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}
    muon, adam = optim.clipped_optimizer(1.0, name="muon", **options), optim.clipped_optimizer(1.0, **options)
    (ours, _), (theirs, _) = (tx.update(start, tx.init(start), start) for tx in (muon, adam))
    for path in shapes:
        if path in ("sana.blocks.attn.qkv.kernel", "connector.fc1.kernel"):
            update = np.asarray(ours[path])
            one = np.linalg.svd(update.reshape(-1, *update.shape[-2:]), compute_uv=False) / (optim.RMS * max(update.shape[-2:]) ** 0.5)
            assert np.all((one > 0.6) & (one < 1.3))
            assert optim.RMS * 0.6 < np.sqrt(np.mean(update**2)) < optim.RMS * 1.3
            assert np.sum(update * np.asarray(start[path])) < 0, "down the gradient"
        else:
            np.testing.assert_array_equal(ours[path], theirs[path])
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tx.init(start))) for tx in (adam, muon)]
    assert sizes[0] - sizes[1] == 2 * 8 * 24 + 16 * 8 - 4, "no second moments of matrices, but a count and three coefficients more"


def test_the_rate_of_matrices_goes_with_the_width():
    """Half of it at twice the base width, for those that read as many numbers as the network is wide; weight decay stays."""
    sizes = ModelConfig(QwenConfig.tiny(), SanaConfig.tiny().widened(128))
    params = {path: jnp.ones(shape) for path, shape in sizes.shapes().items() if path.split(".")[0] in ("sana", "connector")}
    moves = []
    for base in (0, 64):
        tx = optim.clipped_optimizer(1.0, weight_decay=0.5, clip_global_norm=1.0, mup_base_width=base)
        updates, _ = tx.update(params, tx.init(params), params)
        moves.append({path: float(update.ravel()[0]) for path, update in updates.items()})
    decayed = {path: 0.0 if path.rpartition(".")[2] in optim.UNDECAYED else 0.5 for path in params}
    slower = {path for path in params if moves[1][path] + decayed[path] > -0.75 > moves[0][path] + decayed[path]}
    for path in slower:
        np.testing.assert_allclose(moves[1][path] + decayed[path], (moves[0][path] + decayed[path]) / 2, rtol=1e-4)
    assert slower == {path for path, x in params.items() if path.endswith(".kernel") and path.startswith("sana.") and (
        x.ndim == 3 or path in ("sana.t_embedder.fc2.kernel", "sana.t_block.kernel", "sana.y_embedder.y_proj.fc2.kernel",
                                "sana.final_layer.linear.kernel")
    )}  # fmt: skip
    assert all(moves[1][path] == moves[0][path] for path in params.keys() - slower)


def test_first_moments_in_bfloat16_change_little():
    rng = np.random.default_rng(0)
    gradient = {"a.kernel": jnp.asarray(rng.normal(size=(8, 8)), jnp.float32)}
    moved = []
    for mu_dtype in ("float32", "bfloat16"):
        tx = optim.clipped_optimizer(1e-2, weight_decay=0.0, clip_global_norm=1.0, mu_dtype=mu_dtype)
        state, params = tx.init(gradient), gradient
        for _ in range(20):
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        moved.append(np.asarray(params["a.kernel"] - gradient["a.kernel"]))
        assert state[1][0].mu["a.kernel"].dtype == mu_dtype
        assert state[1][0].nu["a.kernel"].dtype == jnp.float32
    np.testing.assert_allclose(moved[1], moved[0], rtol=2**-9 / (1 - 0.9), err_msg="each rounding is forgotten as a gradient is")
    assert np.any(moved[0] != moved[1])


def test_the_state_is_that_of_optax():
    """Or runs that began with it could not go on."""
    parameters = {"a.kernel": jnp.ones(2), "a.bias": jnp.ones(2)}
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    ours = optim.clipped_optimizer(0.1, weight_decay=0.5, clip_global_norm=1.0)
    assert jax.tree.structure(ours.init(parameters)) == jax.tree.structure(theirs.init(parameters))
