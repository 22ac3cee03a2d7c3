"""Losses. Each is a function of modules, features and a key; its options are keys of the config.

To change a loss, change its function: its metrics are logged, and a new option takes its value from the key of that name.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dim_jax.data.batches import AnswerBatch, CachedBatch, PaintBatch
from dim_jax.diffusion import flow
from dim_jax.models import layers
from dim_jax.models.connector import Connector, select_user_turn
from dim_jax.models.dc_ae import DCAE
from dim_jax.models.qwen import Qwen
from dim_jax.models.sana import Remat, Sana
from dim_jax.processing.pictures import normalize_pixels
from dim_jax.training.repa import Alignment, picture_features

Metrics = dict[str, Float[Array, ""]]
Loss = tuple[Float[Array, ""], Metrics]  # the scalar to minimise, and metrics to log


class Features(NamedTuple):
    """Outputs of encoder and autoencoder for a batch: the painter's training input.

    Attributes:
        hidden: the encoder's states of the user turns, from the front on, zeros after them.
        mask: False at padding.
        target: latents of the picture to paint.
        source: latents of the picture to edit; None: the text alone is painted.
        target_features: of the picture to paint, by the encoder's vision tower (`training.repa`); None: not needed.
    """

    hidden: Float[Array, "b t d"]
    mask: Bool[Array, "b t"]
    target: Float[Array, "b h w c"]
    source: Float[Array, "b h w c"] | None
    target_features: Float[Array, "b rows columns d"] | None = None


def encode_batch(encoder: Qwen, autoencoder: DCAE, batch: PaintBatch, *, align: bool = False) -> Features:
    """The features of turns and pictures. `align`: with those that hidden states are aligned with, which get no gradient."""
    pictures = [normalize_pixels(picture) for picture in (batch.target, batch.source) if picture is not None]
    if layers.head_shards() > 1:  # nothing of the autoencoder is cut by heads: the devices of a row share its pictures instead
        shared = autoencoder.encode(layers.shard_pictures(layers.interleave(*pictures)))
        latents = layers.shard_batch(shared.reshape(len(batch.target), -1, *shared.shape[1:])).swapaxes(0, 1)
    else:
        latents = [autoencoder.encode(picture) for picture in pictures]
    target, *sources = latents
    hidden, mask = select_user_turn(encoder(batch.inputs), jnp.asarray(batch.inputs.user_turn), batch.condition_length)
    target_features = jax.lax.stop_gradient(picture_features(encoder, jnp.asarray(batch.target))) if align else None
    return Features(hidden, mask, target, sources[0] if sources else None, target_features)


def cached_features(batch: CachedBatch) -> Features:
    """The features that a cache stores, with hidden states in int8 scaled back."""
    hidden: Any = batch.hidden
    if batch.scale is not None:
        hidden = hidden.astype(jnp.float32) * batch.scale[:, None]
    return Features(hidden, batch.mask, batch.target, batch.source)


def painter_loss(
    connector: Connector,
    sana: Sana,
    features: Features,
    key: PRNGKeyArray,
    *,
    shift: float,
    draw: flow.Draw,
    condition_dropout: float,
    source_dropout: float = 0.0,
    std: float = 1.0,
    contrastive: float = 0.0,
    aligning: Alignment | None = None,
    remat: Remat = "none",
) -> Loss:
    """Flow matching: the squared error of SANA's velocity at a random time, from noise to the target.

    Options are config.flow, config.repa (`aligning`) and config.model.remat. A row loses its condition with probability
    `condition_dropout` and, drawn independently, its source's latents with probability `source_dropout`, as image guidance needs it
    (InstructPix2Pix, arXiv 2211.09800, section 3.2.1); the encoder reads the source all the same.

    The loss is less by `contrastive` times the distance to other rows' velocities (`flow.contrast`), and by a weight times the similarity
    of hidden states to features of the target (`training.repa`). Then the error itself is logged too: only it is comparable between runs.
    """
    target, source = features.target, features.source
    draws = flow.draw_noise(key, target.shape, draw, condition_dropout=condition_dropout, source_dropout=source_dropout, std=std)
    if source is not None and source_dropout:
        source = sana.drop_source(source, draws.drop_source)
    condition = jnp.where(features.mask[..., None], connector(features.hidden), 0)
    embedded = sana.embed_condition(sana.drop_condition(condition, draws.drop_condition), features.mask)
    sigma, timestep = flow.training_times(draws.s, shift)
    noise = layers.shard_batch(draws.noise)
    inputs = flow.interpolate(target, noise, sigma), timestep, embedded, source
    metrics: Metrics = {}
    if aligning is None:
        velocity, aligned = sana(*inputs, remat=remat), 0.0
    else:
        velocity, hidden = sana.with_hidden(*inputs, block=aligning.block, remat=remat)
        assert features.target_features is not None
        metrics["alignment"] = aligning.similarity(hidden, features.target_features)
        aligned = aligning.weight * metrics["alignment"]
    error = flow.loss(velocity, target, noise).mean()
    contrast = contrastive * flow.contrast(velocity, target, noise).mean() if contrastive else 0.0
    if contrastive or aligning is not None:
        metrics["flow_error"] = error
    return error - contrast - aligned, metrics


def autoencoder_loss(
    autoencoder: DCAE, pixels: Float[Array, "b h w 3"], key: PRNGKeyArray, *, latent_noise: float, spread_weight: float
) -> Loss:
    """Absolute plus squared error of reconstructed pixels, and a weight that holds the latents' spread near 1 (config.autoencoder).

    The latents are disturbed by noise of `latent_noise` times their spread before they are decoded, so that near latents show near
    pictures: a sampler never hits one exactly. Nothing else fixes their scale, since the decoder normalises what it reads; left alone it
    grows without end.
    """
    latents = autoencoder.encode(pixels)
    spread = latents.std()
    noise = latent_noise * jax.lax.stop_gradient(spread) * jax.random.normal(key, latents.shape)
    error = autoencoder.decode(latents + noise) - pixels
    squared = jnp.mean(error**2)
    loss = jnp.mean(jnp.abs(error)) + squared + spread_weight * jnp.log(spread) ** 2
    return loss, {"psnr": 10 * jnp.log10(4 / squared), "latent_std": spread}  # 4 is the squared range of pixels in [-1, 1]


def encoder_loss(encoder: Qwen, batch: AnswerBatch) -> Loss:
    """Cross-entropy of the answer's tokens, as the published encoder was trained before it was frozen."""
    hidden = encoder(batch.inputs)
    is_answer = jnp.asarray(batch.answer)[:, 1:]
    labels = jnp.asarray(batch.inputs.input_ids)[:, 1:]
    logits = encoder.logits(hidden[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = (logits.argmax(-1) == labels) & is_answer
    return (losses * is_answer).sum() / is_answer.sum(), {"accuracy": correct.sum() / is_answer.sum()}
