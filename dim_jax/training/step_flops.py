"""FLOPs of a training step, by the formulas of `models.flops`."""

from dim_jax.config import Config
from dim_jax.data.batches import AnswerBatch, Batch, CachedBatch, PictureBatch
from dim_jax.models import flops
from dim_jax.models.flops import StepFlops
from dim_jax.processing.processor import smart_resize
from dim_jax.training.objectives import dim_config
from dim_jax.training.remat import remat_choices
from dim_jax.weights.model_config import REPA, TEACHER, ModelConfig


def step_flops(config: Config, model_config: ModelConfig, batch: Batch) -> StepFlops:
    """FLOPs of a step on a batch; reads only shapes. A LoRA's own products, a percent or two, are left out.

    What is recomputed is of the first choice, where `config.model.remat` is "auto".
    """
    if isinstance(batch, PictureBatch):
        autoencoder, size = model_config.autoencoder, batch.pixels.shape[:3]
        assert autoencoder is not None
        work = flops.dc_ae_encoder(autoencoder, *size) + flops.dc_ae_decoder(autoencoder, *size)
        return StepFlops({"autoencoder": work.step(trainable=True)})
    if isinstance(batch, AnswerBatch):
        encoder, (b, t) = model_config.encoder, batch.inputs.input_ids.shape
        assert encoder is not None
        work = flops.encoder(encoder, batch.inputs) + flops.logits(encoder.text, b, t - 1)
        return StepFlops({"encoder": work.step(trainable=True)})

    sizes, parts = dim_config(model_config), dict[str, int]()
    trainable, adapted = set(config.trainable), set[str]()
    if config.lora.rank:
        trainable, adapted = adapted, trainable  # kernels are frozen
    encoder, sana, autoencoder = sizes.encoder, sizes.sana, sizes.autoencoder
    b, h, w, _ = batch.target.shape
    if isinstance(batch, CachedBatch):
        latents, t = h * w, batch.hidden.shape[1]
    else:
        latents, t = h * w // autoencoder.factor**2, batch.condition_length
        pictures = b if batch.source is None else 2 * b
        parts["encoder"] = flops.encoder(encoder, batch.inputs).step(trainable="encoder" in trainable)
        parts["autoencoder"] = flops.dc_ae_encoder(autoencoder, pictures, h, w).step(trainable="autoencoder" in trainable)
    connector = flops.connector(encoder.text.hidden_size, sana.caption_channels, b, t)
    parts["connector"] = connector.step(trainable="connector" in trainable, backprop="encoder" in trainable or "connector" in adapted)
    steps, reward, keys = config.distill.method == "steps", config.reward, None
    calls = config.sample.num_steps if steps else 1
    if reward.method != "none":
        calls, keys = reward.pictures * reward.times, 1
    work = flops.sana(sana, b, latents, t, calls, keys)
    parts["sana"] = work.step(trainable="sana" in trainable, backprop=bool(trainable - {"sana"} or adapted))
    if reward.method != "none":  # of the policy that paints, which then answers where the other one learns
        parts["sana"] += flops.sana(sana, b, latents, t, reward.pictures * config.sample.num_steps + calls, keys).forward
        parts["autoencoder"] += flops.dc_ae_decoder(autoencoder, reward.pictures * b, h, w).forward
    if (teacher := model_config.teacher) is not None:
        guided, times = config.distill.method != "none" and not teacher.guidance_embeds, config.distill.times if steps else 1
        parts[TEACHER] = flops.sana(teacher, 2 * b if guided else b, latents, t, calls * times, keys).forward
    if (widths := model_config.repa) is not None:
        layout = encoder.vision.layout
        height, width = smart_resize(h, w, layout.patch_size * layout.merge_size)
        patches, window = height * width // layout.patch_size**2, layout.window_units**2 * layout.group
        vision = flops.vision(encoder.vision, b, patches, windows=(-(-patches // window), window))
        parts[REPA] = vision.forward + flops.connector(*widths, b, latents).step(trainable=True)
    return StepFlops(parts, flops.sana_recomputed(sana, calls * b, latents, t, remat_choices(config.model.remat)[0]))
