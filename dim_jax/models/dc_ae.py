"""DC-AE, the deep compression autoencoder: pictures to latents that are 32 times smaller on each side, and back.

Source: DC-AE (arXiv 2410.10733) with the blocks of EfficientViT (arXiv 2205.14756), in the form that SANA uses (f32c32). Every change
of resolution is residual: a convolution learns what the plain regrouping of pixels into channels does not already carry.
Attributes are named as in the diffusers checkpoint (`AutoencoderDC`), except that q, k and v are one projection.
Parameters are created in float32; `dtype` is what the convolutions compute in, norms and attention compute in float32. In bfloat16
the root mean square error is 1.2 % of the latents and 0.9 % of the pixels with the goldens' random weights (tests/parity/test_dc_ae.py).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dim_jax.models import fused, layers
from dim_jax.models.dc_ae_config import RES_BLOCK, DCAEConfig, Stage
from dim_jax.models.dc_ae_tiling import Tiling, apply_tiled
from dim_jax.models.layers import DepthwiseConv, linear_attention
from dim_jax.models.precision import exact_products

EPS_NORM = 1e-5
EPS_ATTENTION = 1e-15
GLU_RATIO = 4
DEFAULT_TILING = Tiling()
ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu}


def pixel_unshuffle(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 4*c"]:
    """Space to channels by 2 x 2: output channel 4c + 2i + j is channel c at row i, column j of each square (PyTorch's order)."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(b, h // 2, w // 2, 4 * c)


def pixel_shuffle(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c//4"]:
    """Channels to space by 2 x 2, the inverse of `pixel_unshuffle`."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(b, 2 * h, 2 * w, c // 4)


def average_channels(x: Float[Array, "b h w c"], d: int) -> Float[Array, "b h w {d}"]:
    """Mean over each run of c / d neighbouring channels."""
    return x.reshape(*x.shape[:-1], d, -1).mean(-1)


def average_squares(x: Float[Array, "b h w c"], d: int) -> Float[Array, "b h//2 w//2 {d}"]:
    """`average_channels(pixel_unshuffle(x), d)` as a convolution with a constant kernel: for TPUs, whose compiler would store the
    regrouped picture twice and in float32."""
    c = x.shape[-1]
    kernel = np.eye(4 * c, dtype=np.float32).reshape(c, 2, 2, d, -1).mean(-1).transpose(1, 2, 0, 3)
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, jnp.asarray(kernel, x.dtype), (2, 2), "VALID", dimension_numbers=dimensions)


def repeat_channels(x: Float[Array, "b h w c"], d: int) -> Float[Array, "b h w {d}"]:
    """Every channel d / c times in a row."""
    return jnp.repeat(x, d // x.shape[-1], axis=-1)


def upsampled_conv(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], bias: Float[Array, " d"]) -> Float[Array, "b 2*h 2*w d"]:
    """A 3 x 3 convolution, padded by one, of `x` with every pixel repeated 2 x 2, from `x` itself with 4/9 of the products.

    A pixel's three rows are two rows of `x`, of which one counts twice: an even pixel's i - 1 and i (first tap; second and third), an odd
    one's i and i + 1 (first and second; third). So with columns: one 2 x 2 convolution with four results a pixel, taps added in float32.
    For GPUs: TPUs would move more, and a CPU takes up to ten times as long for the gradient.
    """
    (b, h, w, _), d = x.shape, kernel.shape[-1]
    taps = jnp.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], jnp.float32)  # parity, row of x, row of the kernel
    folded = jnp.einsum("pui,qvj,ijcd->uvcpqd", taps, taps, kernel.astype(jnp.float32)).astype(x.dtype)
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, folded.reshape(2, 2, -1, 4 * d), (1, 1), ((1, 1), (1, 1)), dimension_numbers=dimensions)
    y = y.reshape(b, h + 1, w + 1, 2, 2, d)
    rows = [jnp.stack([y[:, p : p + h, q : q + w, p, q] for q in range(2)], 3) for p in range(2)]
    return jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, d) + bias.astype(x.dtype)


def _conv(d_in: int, d_out: int, *, stride: int = 1, use_bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Conv:
    """3 x 3 convolution padded by one on every side: "SAME" would pad a strided one only on the right, unlike PyTorch."""
    return nnx.Conv(d_in, d_out, (3, 3), strides=stride, padding=((1, 1), (1, 1)), use_bias=use_bias, dtype=dtype, rngs=rngs)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + 1e-5) * scale + bias over the channels, in float32; the dtype of `x` out."""

    def __init__(self, d: int):
        self.scale, self.bias = nnx.Param(jnp.ones(d)), nnx.Param(jnp.zeros(d))

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + EPS_NORM)
        return (y * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class ResBlock(nnx.Module):
    """x + norm(conv2(silu(conv1(x))))."""

    def __init__(self, d: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv1 = _conv(d, d, dtype=dtype, rngs=rngs)
        self.conv2 = _conv(d, d, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = RMSNorm(d)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        return x + self.norm(self.conv2(jax.nn.silu(self.conv1(x))))


class GroupedPointwise(nnx.Module):
    """1 x 1 convolution in groups of k channels: each group is mixed by its own k x k matrix."""

    def __init__(self, d: int, k: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (k, d)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        k, d = self.kernel[...].shape
        kernel = self.kernel[...].astype(self.dtype).reshape(k, d // k, k)
        return jnp.einsum("bhwgi,igo->bhwgo", x.reshape(*x.shape[:-1], d // k, k), kernel).reshape(x.shape)


class QKVScale(nnx.Module):
    """q, k and v of a coarser scale: depthwise size x size convolution of the fine ones, then one matrix a head."""

    def __init__(self, d: int, k: int, size: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.proj_in = DepthwiseConv(d, size, use_bias=False, dtype=dtype, rngs=rngs)
        self.proj_out = GroupedPointwise(d, k, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        return self.proj_out(self.proj_in(x))


class MultiscaleAttention(nnx.Module):
    """x + norm(linear attention over the whole picture), with heads of every scale side by side (EfficientViT, figure 2).

    The published network cuts the channels of (q, k, v) into heads of 3k *after* concatenation, so a head's q, k and v are simply the
    first, second and third k of its 3k channels; the names to_q, to_k and to_v of the checkpoint do not tell which they become.
    """

    def __init__(self, d: int, k: int, scales: tuple[int, ...], *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.to_qkv = nnx.Linear(d, 3 * d, use_bias=False, dtype=dtype, rngs=rngs)
        self.to_qkv_multiscale = nnx.List([QKVScale(3 * d, k, size, dtype=dtype, rngs=rngs) for size in scales])
        self.to_out = nnx.Linear(d * (1 + len(scales)), d, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm_out = RMSNorm(d)
        self.k = k

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        qkv = self.to_qkv(x)
        scales = [qkv, *(scale(qkv) for scale in self.to_qkv_multiscale)]
        if layers.platform() != "tpu":
            scales = [jnp.concatenate(scales, axis=-1)]  # fewer kernels, while TPUs would move both copies
        y = jnp.concatenate([self._attend(qkv) for qkv in scales], axis=-1)
        return x + self.norm_out(self.to_out(y))

    def _attend(self, qkv: Float[Array, "b h w d3"]) -> Float[Array, "b h w d"]:
        """The heads of one scale, or of several beside each other: each head has its own sums."""
        b, h, w, _ = qkv.shape
        q, k, v = jnp.split(qkv.reshape(b, h * w, -1, 3 * self.k), 3, axis=-1)
        return linear_attention(q, k, v, eps=EPS_ATTENTION).reshape(b, h, w, -1)


class GLUConv(nnx.Module):
    """x + norm(point(a * silu(g))) with a, g = depthwise 3 x 3 of silu(inverted(x)): the gated MLP of SANA (arXiv 2410.10629)."""

    def __init__(self, d: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        f = GLU_RATIO * d
        self.conv_inverted = nnx.Linear(d, 2 * f, dtype=dtype, rngs=rngs)
        self.conv_depth = DepthwiseConv(2 * f, dtype=dtype, rngs=rngs)
        self.conv_point = nnx.Linear(f, d, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = RMSNorm(d)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        y = fused.inverted_gated_conv(x, self.conv_inverted, self.conv_depth)
        return x + self.norm(self.conv_point(y))


class EfficientViTBlock(nnx.Module):
    """Multi-scale linear attention for the context, gated depthwise convolution for the surroundings."""

    def __init__(self, d: int, k: int, scales: tuple[int, ...], *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attn = MultiscaleAttention(d, k, scales, dtype=dtype, rngs=rngs)
        self.conv_out = GLUConv(d, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        return self.conv_out(self.attn(x))


class Down(nnx.Module):
    """Half the side: strided convolution plus the pixels of each square averaged into channels (DC-AE, figure 4)."""

    def __init__(self, d: int, d_out: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = _conv(d, d_out, stride=2, dtype=dtype, rngs=rngs)
        self.d_out = d_out

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h//2 w//2 {self.d_out}"]:
        by_product = layers.platform() == "tpu"
        return self.conv(x) + (average_squares(x, self.d_out) if by_product else average_channels(pixel_unshuffle(x), self.d_out))


class Up(nnx.Module):
    """Twice the side: nearest pixel then convolution ("interpolate"), or convolution then channels to space ("pixel_shuffle").

    With `shortcut` the repeated channels, moved to space, are added (DC-AE, figure 4).
    """

    def __init__(self, d: int, d_out: int, kind: str, *, shortcut: bool = True, dtype: DTypeLike, rngs: nnx.Rngs):
        self.interpolate = kind == "interpolate"
        self.conv = _conv(d, d_out if self.interpolate else 4 * d_out, dtype=dtype, rngs=rngs)
        self.d_out, self.shortcut = d_out, shortcut

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b 2*h 2*w {self.d_out}"]:
        if not self.interpolate:
            y = pixel_shuffle(self.conv(x))
        elif layers.platform() == "gpu":
            assert self.conv.bias is not None
            y = upsampled_conv(x, self.conv.kernel[...], self.conv.bias[...])
        else:
            y = self.conv(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))
        return y + pixel_shuffle(repeat_channels(x, 4 * self.d_out)) if self.shortcut else y


def _blocks(stage: Stage, k: int, dtype: DTypeLike, rngs: nnx.Rngs) -> list[nnx.Module]:
    if stage.block == RES_BLOCK:
        return [ResBlock(stage.d, dtype=dtype, rngs=rngs) for _ in range(stage.depth)]
    return [EfficientViTBlock(stage.d, k, stage.scales, dtype=dtype, rngs=rngs) for _ in range(stage.depth)]


class Encoder(nnx.Module):
    """Pixels in [-1, 1] to latents before the scaling factor, in two parts: local convolutions, then what sees the whole picture."""

    def __init__(self, config: DCAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        stages = config.encoder
        self.conv_in = _conv(3, stages[0].d, dtype=dtype, rngs=rngs)
        self.down_blocks = nnx.List()
        for i, stage in enumerate(stages):
            blocks = _blocks(stage, config.attention_head_dim, dtype, rngs)
            if i + 1 < len(stages):
                blocks.append(Down(stage.d, stages[i + 1].d, dtype=dtype, rngs=rngs))
            self.down_blocks.append(nnx.List(blocks))
        self.conv_out = _conv(stages[-1].d, config.latent_channels, dtype=dtype, rngs=rngs)
        self.config, self.dtype = config, dtype

    @exact_products
    def fine(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b h//{self.config.cell} w//{self.config.cell} d"]:
        """The fine stages: convolutions alone."""
        x = self.conv_in(pixels.astype(self.dtype))
        for stage in self.down_blocks[: self.config.fine_stages]:
            for block in stage:
                x = block(layers.shard_pictures(x))
        return x

    @exact_products
    def coarse(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 c"]:
        """The coarse stages."""
        for stage in self.down_blocks[self.config.fine_stages :]:
            for block in stage:
                x = block(layers.shard_pictures(x))
        return self.conv_out(x) + average_channels(x, self.config.latent_channels)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        return self.coarse(self.fine(pixels))


class Decoder(nnx.Module):
    """Latents before the scaling factor to pixels, about [-1, 1] and not clipped, in two parts like the encoder."""

    def __init__(self, config: DCAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        stages, kind = config.decoder, config.upsample
        self.conv_in = _conv(config.latent_channels, stages[-1].d, dtype=dtype, rngs=rngs)
        self.up_blocks = nnx.List()  # finest first, as in the checkpoint; run from the last to the first
        for i, stage in enumerate(stages):
            blocks = _blocks(stage, config.attention_head_dim, dtype, rngs)
            if i + 1 < len(stages) and stage.depth:
                blocks.insert(0, Up(stages[i + 1].d, stage.d, kind, dtype=dtype, rngs=rngs))
            self.up_blocks.append(nnx.List(blocks))
        d = next(stage.d for stage in stages if stage.depth)
        self.norm_out = RMSNorm(d)
        # A decoder with an empty finest stage goes from half resolution to pixels in its last layer.
        full_resolution = stages[0].depth > 0
        self.conv_out = _conv(d, 3, dtype=dtype, rngs=rngs) if full_resolution else Up(d, 3, kind, shortcut=False, dtype=dtype, rngs=rngs)
        self.config, self.dtype = config, dtype

    @exact_products
    def coarse(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """The coarse stages."""
        latents = latents.astype(self.dtype)
        x = self.conv_in(latents) + repeat_channels(latents, self.config.decoder[-1].d)
        for stage in reversed(self.up_blocks[self.config.fine_stages :]):
            for block in stage:
                x = block(layers.shard_pictures(x))
        return x

    @exact_products
    def fine(self, x: Float[Array, "b h w d"]) -> Float[Array, "b {self.config.cell}*h {self.config.cell}*w 3"]:
        """The fine stages: convolutions alone."""
        for stage in reversed(self.up_blocks[: self.config.fine_stages]):
            for block in stage:
                x = block(layers.shard_pictures(x))
        return self.conv_out(ACTIVATIONS[self.config.decoder_activation](self.norm_out(x)))

    def __call__(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 3"]:
        return self.fine(self.coarse(latents))


class DCAE(nnx.Module):
    """Pixels to scaled latents and back; `encoder` and `decoder` alone work on latents before the scaling factor.

    Pictures above the area in `tiling` pass the fine stages in tiles, to save memory; the result is the same up to rounding
    (see `dc_ae_tiling`). Each picture size is one compiled program.
    """

    def __init__(self, config: DCAEConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)
        self.config = config

    def encode(
        self, pixels: Float[Array, "b h w 3"], tiling: Tiling = DEFAULT_TILING
    ) -> Float[Array, "b h//{self.config.factor} w//{self.config.factor} {self.config.latent_channels}"]:
        """Latents of about unit variance (multiplied by the scaling factor), float32, of pixels in [-1, 1].

        Raises:
            ValueError: height or width is not a multiple of the pixels per latent cell (32 in f32c32).
        """
        config = self.config
        if any(side % config.factor for side in pixels.shape[1:3]):
            raise ValueError(f"pixels {pixels.shape}: height and width must be multiples of {config.factor}. Resize or crop first.")
        if tiling.applies_to(*pixels.shape[1:3]):
            tile, halo = tiling.tile // config.cell, config.halo(config.encoder)
            x = apply_tiled(self.encoder.fine, pixels, tile=tile, halo=halo, scale_in=config.cell, scale_out=1)
        else:
            x = self.encoder.fine(pixels)
        return self.encoder.coarse(x).astype(jnp.float32) * config.scaling_factor

    def decode(
        self, latents: Float[Array, "b h w {self.config.latent_channels}"], tiling: Tiling = DEFAULT_TILING
    ) -> Float[Array, "b {self.config.factor}*h {self.config.factor}*w 3"]:
        """Pixels, about [-1, 1] and not clipped, float32, of latents that `encode` made or a sampler drew."""
        config = self.config
        x = self.decoder.coarse(latents.astype(jnp.float32) / config.scaling_factor)
        if tiling.applies_to(*(config.factor * side for side in latents.shape[1:3])):
            tile, halo = tiling.tile // config.cell, config.halo(config.decoder)
            return apply_tiled(self.decoder.fine, x, tile=tile, halo=halo, scale_in=1, scale_out=config.cell).astype(jnp.float32)
        return self.decoder.fine(x).astype(jnp.float32)
