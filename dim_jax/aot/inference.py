"""The programs of painting, with abstract arguments: encoder, source latents, sampler, picture.

They are those of `sampling.Sampler`, on the mesh, batch and settings of a config. Parameters are in the dtype of computation, or quantized.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from dim_jax.data.batches import PaintBatch
from dim_jax.models import flops
from dim_jax.models.dim import Dim
from dim_jax.models.flops import StepFlops
from dim_jax.models.layers import BATCH_AXES
from dim_jax.models.module import with_parameters
from dim_jax.models.precision import compute_dtype
from dim_jax.models.quantized import with_quantized
from dim_jax.models.sana import Condition
from dim_jax.processing.inputs import EncoderInputs
from dim_jax.settings import Settings
from dim_jax.sharding import Sharding
from dim_jax.training.objectives import COMPONENTS, Objective, dim_config, quantization
from dim_jax.training.state import abstract_params
from dim_jax.training.student import painter_sizes, sample_settings

Arrays = tuple[Any, ...]  # of a condition, which is checked when it is made, and then holds no abstract array
Program = tuple[str, Callable[[], Any], StepFlops]  # name; what lowers it; FLOPs of a call


def painting_programs(objective: Objective, sharding: Sharding, batch: PaintBatch) -> Iterator[Program]:
    """Each program of painting a batch: the encoder's (with connector and the condition's keys and values), the source's latents, all steps
    of the sampler, and the picture. The null condition, which a model computes once, is an argument of the sampler, and not read without
    guidance."""
    model_config, dtype = painter_sizes(objective.model_config), compute_dtype(objective.config.model.dtype)
    sizes, sample = dim_config(model_config), Settings(**sample_settings(objective.config))
    branches = sample.num_branches(guidance_embeds=sizes.sana.guidance_embeds, image_guidance=False)  # which is not compiled here
    quantize = quantization(objective.config)
    abstract_dim = with_quantized(nnx.eval_shape(lambda: Dim(sizes, dtype=dtype, rngs=nnx.Rngs(0))), quantize)
    dim = with_parameters(abstract_dim, abstract_params(model_config, sharding, COMPONENTS["painter"], dtype, quantize))
    rows, layers_of_rows = (NamedSharding(sharding.mesh, PartitionSpec(*axes)) for axes in ((BATCH_AXES,), (None, BATCH_AXES)))
    (b, height, width, _), tokens = batch.target.shape, batch.inputs.input_ids.shape[1]
    length = min(tokens, sizes.sana.condition_length)
    h, w, c = height // sizes.autoencoder.factor, width // sizes.autoencoder.factor, sizes.sana.latent_channels

    def array(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    def lower(function: Callable[..., Any], *arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
            return jax.jit(function, compiler_options=sharding.compiler_options).lower(dim, *arguments)

    def condition(dim: Dim, inputs: EncoderInputs) -> Arrays:
        return _arrays(dim.sana.encode_condition(*dim.condition(inputs, length)))

    def null_condition(dim: Dim) -> Arrays:
        return _arrays(dim.sana.null_condition(jnp.ones((1, length), bool)))

    def paint(
        dim: Dim, condition: Arrays, null: Arrays, seeds: Int[Array, " b"], source: Float[Array, "b h w c"] | None
    ) -> Float[Array, "b h w c"]:
        conditional, unconditional = Condition(*condition), Condition(*null).broadcast(condition[-1])
        return dim.paint(
            conditional, seeds, (h, w), source, unconditional=unconditional if branches > 1 else None, guidance_scale=sample.guidance_scale,
            num_steps=sample.num_steps, flow_shift=sample.flow_shift, solver=sample.solver,
        )  # fmt: skip

    connector = flops.connector(sizes.encoder.text.hidden_size, sizes.sana.caption_channels, b, length)
    parts = {
        "encoder": flops.encoder(sizes.encoder, batch.inputs),
        "connector": connector,
        "sana": flops.sana_condition(sizes.sana, b, length),
    }
    yield "encoder", partial(lower, condition, batch.inputs), _forward(parts)

    edits, pixels = batch.source is not None, array(b, height, width, 3, dtype=jnp.float32)
    if edits:
        work = flops.dc_ae_encoder(sizes.autoencoder, b, height, width)
        yield "source latents", partial(lower, lambda dim, x: dim.autoencoder.encode(x), pixels), _forward({"autoencoder": work})

    def abstract(arrays: Arrays, *shardings: NamedSharding) -> Arrays:
        return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for x, where in zip(arrays, shardings, strict=True))

    latents = array(b, h, w, c, dtype=jnp.float32)
    arguments = (
        abstract(jax.eval_shape(condition, dim, batch.inputs), layers_of_rows, layers_of_rows, rows),
        abstract(jax.eval_shape(null_condition, dim), *(sharding.replicated,) * 3),
    )
    step = flops.sana_blocks(sizes.sana, branches * b, h * w, length)
    yield (
        "sampler",
        partial(lower, paint, *arguments, array(b, dtype=np.int32), latents if edits else None),
        StepFlops({"sana": sample.num_steps * step.forward}),
    )

    work = flops.dc_ae_decoder(sizes.autoencoder, b, height, width)
    yield "picture", partial(lower, lambda dim, x: dim.autoencoder.decode(x), latents), _forward({"autoencoder": work})


def _arrays(condition: Condition) -> Arrays:
    return condition.keys, condition.values, condition.mask


def _forward(parts: dict[str, flops.ForwardFlops]) -> StepFlops:
    return StepFlops({name: work.forward for name, work in parts.items()})
