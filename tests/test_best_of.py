"""Several results of one request, of which the prompt chooses one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dim_jax.batching import Source
from dim_jax.errors import InputError
from dim_jax.models.dim import ALIGNMENT_SIGMAS
from dim_jax.pipeline import EditPipeline, GeneratePipeline
from dim_jax.processing.pictures import open_picture
from dim_jax.sampling import Sampler
from dim_jax.settings import Settings
from dim_jax.weights.bundled import bundled_checkpoint
from tests.painter_fixtures import QUICK, dim, largest_difference, one_error, painter, picture

PROMPTS = ["a red cat", "a blue dog"]


def test_a_results_own_prompt_explains_it_better_than_others():
    """The bundled model on its own edits: it tells which was made by which instruction."""
    pipeline = EditPipeline.from_pretrained(bundled_checkpoint())
    settings = replace(pipeline.sampler.settings, num_steps=6, batch_size=3)
    man = open_picture(bundled_checkpoint() / "samples" / "man.png")
    prompts = ["Make the man a cook.", "Give the man white hair.", "Change the skin tone to dark."]
    results = pipeline(prompts, [man] * 3, settings=settings)
    requests = [pipeline.request(prompt, Source(man), 0, settings) for prompt in prompts]
    latents = np.stack([result.latents for result in results])
    scores = np.stack([pipeline.sampler.prompt_alignment([request] * 3, latents, settings) for request in requests])
    np.testing.assert_array_equal(scores.argmax(0), range(3))
    assert (scores.diagonal() > 0).all()


def test_the_score_is_a_ratio_of_the_flows_errors():
    sampler, pipeline = painter(), EditPipeline(painter())
    request = pipeline.request(PROMPTS[0], Source(picture(64, 64)), 0, QUICK)
    latents = pipeline([PROMPTS[0]], [picture(64, 64)], settings=QUICK)[0].latents
    assert latents is not None
    condition, branches = sampler._conditions([request], QUICK, guided=True)
    noise = np.asarray(jax.random.normal(jax.random.key(0), (len(ALIGNMENT_SIGMAS), *latents.shape)))
    errors = np.zeros(2)
    for sigma, drawn in zip(ALIGNMENT_SIGMAS, noise, strict=True):
        x, timestep = ((1 - sigma) * latents + sigma * drawn)[None], np.float32([int(1000 * sigma)])
        for n, branch in enumerate((branches["null"].broadcast(condition.mask), condition)):
            velocity = np.asarray(sampler.dim.sana(jnp.asarray(x, jnp.float32), jnp.asarray(timestep), branch, branches["source"]))[0]
            errors[n] += np.mean((velocity - (drawn - latents)) ** 2)
    np.testing.assert_allclose(
        sampler.prompt_alignment([request], latents[None], QUICK), np.log(errors[0] / errors[1]), rtol=1e-3, atol=1e-5
    )


def test_the_best_of_several_is_one_of_them(monkeypatch):
    pipeline, sources, several = EditPipeline(painter()), [picture(64, 64), picture(96, 64)], replace(QUICK, best_of=3)
    compared = []

    def prompt_alignment(self, requests, latents, settings):
        compared.append([request.prompt for request in requests])
        return np.array([0.0, 2.0, 1.0] if requests[0].prompt == PROMPTS[0] else [0.0, 1.0, 2.0])

    monkeypatch.setattr(Sampler, "prompt_alignment", prompt_alignment)
    results = pipeline(PROMPTS, sources, seeds=[5, 7], settings=several)
    assert sorted(compared) == [[PROMPTS[1]] * 3, [PROMPTS[0]] * 3]
    for result, prompt, source, seed in zip(results, PROMPTS, sources, (6, 9), strict=True):
        alone = pipeline([prompt], [source], seeds=[seed], settings=QUICK)[0].image
        np.testing.assert_allclose(np.asarray(result.image, float), np.asarray(alone, float), atol=1)
    assert [(result.seed, result.settings["best_of"]) for result in results] == [(5, 3), (7, 3)]
    assert Settings(**results[0].settings).best_of == 3, "what makes it again"


def test_requests_that_differ_in_their_seeds_are_encoded_once(monkeypatch):
    sampler, source, read = painter(), picture(64, 64), []
    inputs = Sampler._inputs

    def counted(self, prompts, *args, **options):
        read.append(list(prompts))
        return inputs(self, prompts, *args, **options)

    monkeypatch.setattr(Sampler, "_inputs", counted)
    pipeline, negative = EditPipeline(sampler), replace(QUICK, negative_prompt="blurred", best_of=2)
    pipeline([PROMPTS[0]], [source], settings=negative)
    assert read == [[PROMPTS[0]], ["blurred"]] * 2, "to paint and to compare"
    read.clear()
    together = pipeline([PROMPTS[0]] * 3, [source] * 3, seeds=[1, 2, 3], settings=replace(QUICK, batch_size=3))
    assert read == [PROMPTS[:1]]
    alone = [pipeline(PROMPTS[:1], [source], seeds=[seed], settings=QUICK)[0] for seed in (1, 2, 3)]
    for one, other in zip(together, alone, strict=True):
        assert largest_difference(one.image, other.image) <= 1
    assert largest_difference(together[0].image, together[1].image) > 4
    read.clear()
    pipeline(PROMPTS, [source] * 2, settings=QUICK)
    assert read == [PROMPTS], "two prompts"
    read.clear()
    pipeline([*PROMPTS, "a boat"], [source] * 3, settings=replace(QUICK, batch_size=2))
    assert read == [PROMPTS, ["a boat"] * 2], "the last batch is filled up, and compiles nothing"


def test_pictures_from_text_too():
    pipeline = GeneratePipeline(painter())
    (result,) = pipeline(["a red cat"], settings=replace(QUICK, best_of=2))
    ones = [np.asarray(pipeline(["a red cat"], seeds=[seed], settings=QUICK)[0].image, float) for seed in (0, 1)]
    assert min(np.abs(np.asarray(result.image, float) - one).max() for one in ones) <= 1


def test_a_distilled_model_cannot_compare(monkeypatch):
    monkeypatch.setattr(painter(), "settings", replace(QUICK, distilled="steps", guidance_scale=1.0))
    pipeline, several = EditPipeline(painter()), replace(painter().settings, best_of=2)
    with pytest.raises(InputError, match=r"paints with best_of 1, not best_of 2: it has one branch"):
        pipeline(["a"], [picture(64, 64)], settings=several)
    with pytest.raises(InputError, match="it has one branch"):
        pipeline.sampler.prompt_alignment([pipeline.request("a", Source(picture(64, 64)), 0, several)], np.zeros((1, 8, 8, 8)), several)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(64, 64).save("in.png")
    command = ("edit", "--image", "in.png", "--prompt", "Make it red.", "--steps", "2", "-o", "out.png")
    code, text = dim(*command, "--best-of", "2")
    assert code == 0, text
    assert dim(*command, "--best-of", "0")[0] == 2
    assert "out.png exists" in one_error(dim(*command))
