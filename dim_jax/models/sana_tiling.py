"""Pictures that are larger than SANA was trained on, in tiles of a size that it knows.

At every step the network sees overlapping tiles of the noisy latents, and of the source's at the same place, one after the other and all
under the same condition. The velocities are blended where tiles overlap, and the solver steps on the whole (MultiDiffusion, arXiv
2302.08113). So there is one noise, and tiles agree at every step. A tile's weight falls off linearly over the least overlap, a quarter of
its side. Unlike those of the autoencoder (`dc_ae_tiling`) these tiles are not exact: SANA attends within a tile alone.

Tiles cost time and save memory: 2048 x 2048 pixels in tiles of 1024 are 9 evaluations in place of 1, of 2.25 times the pixels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dim_jax.models.dc_ae_tiling import tile_starts

MIN_TILE = 4  # latents of a side


def tile_weights(length: int, tile: int) -> tuple[list[int], Float[np.ndarray, "tiles size"]]:
    """First latent of each tile along an axis, and the weights of its latents: those of all tiles at one latent add up to 1."""
    overlap = 2 * max(1, tile // 8)
    starts, size = tile_starts(length, tile, overlap // 2), min(tile, length)
    ramp = np.minimum(np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)) / (overlap + 1), 1)
    total = np.zeros(length)
    for start in starts:
        total[start : start + size] += ramp
    return starts, np.stack([ramp / total[start : start + size] for start in starts]).astype(np.float32)


def blend_tiles(run: Callable[..., Array], *arrays: Float[Array, "b h w c"], tile: int) -> Float[Array, "b h w c"]:
    """`run` of tiles of the arrays, all cut at one place, put together; where one tile covers all, `run` of the arrays.

    Args:
        run: returns an array of the shape of a tile of the first array.
        tile: latents of a side, at least `MIN_TILE`.
    """
    x = arrays[0]
    height, width = x.shape[1:3]
    if max(height, width) <= tile:
        return run(*arrays)
    (tops, vertical), (lefts, horizontal) = tile_weights(height, tile), tile_weights(width, tile)
    corners = np.array([(top, left) for top in tops for left in lefts])
    weights = (vertical[:, None, :, None] * horizontal[None, :, None, :]).reshape(len(corners), vertical.shape[1], horizontal.shape[1], 1)

    def step(canvas: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        corner, weight = now
        at, shape = (0, *corner, 0), (len(x), *weight.shape[:2])
        tiles = [jax.lax.dynamic_slice(array, at, (*shape, array.shape[3])) for array in arrays]
        old = jax.lax.dynamic_slice(canvas, at, (*shape, canvas.shape[3]))
        return jax.lax.dynamic_update_slice(canvas, old + weight * run(*tiles), at), None

    return jax.lax.scan(step, jnp.zeros_like(x), (jnp.asarray(corners), jnp.asarray(weights)))[0]
