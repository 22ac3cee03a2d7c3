"""`dim push`: what lies on the hub afterwards, what its card says, that others load it, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel
from huggingface_hub import ModelCard

from dim_jax.errors import InputError
from dim_jax.publishing import card
from dim_jax.publishing.push import push_to_hub
from dim_jax.sampling import Sampler
from dim_jax.weights.convert import convert, open_weights
from dim_jax.weights.lora_files import open_lora
from tests import test_evals_emoji, test_evals_report
from tests.hub_server import READ_ONLY, HubServer, Repository, use
from tests.lora_fixtures import base_and_lora
from tests.lora_fixtures import same as same_lora
from tests.painter_fixtures import QUICK, build_data, dim, one_error, painter, tiny_checkpoint
from tests.published import quiet

NAME = "me/tiny"
pytestmark = [
    pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning"),  # of diffusers, as it downloads
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of a torch tensor, in diffusers
]


@pytest.fixture
def server(tmp_path, monkeypatch):
    with HubServer() as server:
        use(server, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library's, before it tries again
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With settings of its own."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    (folder / "settings.json").write_text('{"num_steps": 3, "resolution": 64}')
    return folder


def pushed(server: HubServer, *arguments: str, name: str = NAME) -> Repository:
    code, text = dim("push", *arguments)
    assert code == 0, text
    repository = server.repositories[name]
    assert text.splitlines()[-1].startswith(f"pushed {server.url}/{name}/commit/")
    assert text.rstrip().rpartition("/")[2] in repository.commits
    return repository


def same(a, b) -> bool:
    a, b = (dict(open_weights(path).stream()) for path in (a, b))
    return a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in a)


def test_a_push_and_the_way_back(server, model, tmp_path):
    repository = pushed(server, str(model), NAME, "--private", "--license", "apache-2.0", "--message", "The first")
    first = repository.branches["main"]
    assert (repository.private, repository.messages[-1]) == (True, "The first")
    tokenizer = {f"tokenizer/{file.name}" for file in Path("tests/tiny_tokenizer").glob("*.json")}
    configs = {"qwen.config.json", "dc_ae.config.json", "sana_edit.json", "settings.json"}
    assert repository.files().keys() == {".gitattributes", "README.md", "model.safetensors", *configs, *tokenizer}
    assert same(NAME, model)
    sampler = Sampler.from_pretrained(NAME, revision=first)
    assert (sampler.name, sampler.settings.num_steps) == (f"{NAME}@{first}", 3)

    # Another push to a branch: only what is new goes there, and what was there before goes.
    uploads = len([1 for method, *_ in server.requests if method == "PUT"])
    pushed(server, str(model), NAME, "--revision", "v2")
    assert len([1 for method, *_ in server.requests if method == "PUT"]) == uploads
    assert (repository.branches["main"], repository.messages[-1]) == (first, f"Model by dim_jax {card.__version__}")
    convert(model, tmp_path / "shards", "dim", max_shard_size=1_000_000, console=quiet())
    repository.commit(repository.files("v2") | {"notes.txt": b"mine", "card/old.png": b"old"}, branch="v2")
    pushed(server, str(tmp_path / "shards"), NAME, "--revision", "v2")
    names = repository.files("v2").keys()
    assert {"notes.txt", *(file.name for file in (tmp_path / "shards").glob("model*"))} <= names
    assert not {"model.safetensors", "card/old.png"} & names
    assert dim("convert", f"{NAME}@v2", str(tmp_path / "back"), "--to", "dim")[0] == 0
    assert same(tmp_path / "back", model)


def test_diffusers_loads_its_layout(server, model, tmp_path):
    repository = pushed(server, str(model), NAME, "--to", "diffusers")
    assert {name.split("/")[0] for name in repository.files() if "/" in name} == {"transformer", "vae", "scheduler", "tokenizer"}
    assert same(NAME, model)
    loaded = {
        folder: kind.from_pretrained(NAME, subfolder=folder, cache_dir=tmp_path / "theirs")
        for kind, folder in ((SanaTransformer2DModel, "transformer"), (AutoencoderDC, "vae"), (DPMSolverMultistepScheduler, "scheduler"))
    }
    tensors = dict(open_weights(model).stream())
    assert sum(x.numel() for x in loaded["vae"].state_dict().values()) == sum(
        x.size for path, x in tensors.items() if path.startswith("autoencoder.")
    )
    bias = loaded["transformer"].state_dict()["proj_out.bias"]
    assert torch.equal(bias, torch.from_numpy(np.array(tensors["sana.final_layer.linear.bias"])))
    assert loaded["scheduler"].config.flow_shift == 3.0
    text = repository.files()["README.md"].decode()
    assert f'SanaTransformer2DModel.from_pretrained("{NAME}", subfolder="transformer")' in text
    assert "DPMSolverMultistepScheduler" in text


def test_a_lora(server, tmp_path):
    _, folder = base_and_lora(tmp_path)
    repository = pushed(server, str(folder), "me/style", name="me/style")
    assert repository.files().keys() == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert same_lora(open_lora(folder), open_lora("me/style"))
    assert "lora" in ModelCard(repository.files()["README.md"].decode()).data.tags
    assert "pushed as one of dim, peft, diffusers" in refusal(folder, "me/style", to="qwen")


def refusal(*arguments, **options) -> str:
    with pytest.raises(InputError) as error:
        push_to_hub(*arguments, console=quiet(), **options)
    return str(error.value)


# The card


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory):
    """A folder with what an evaluation of pairs, a judged benchmark and a data set leave."""
    place = tmp_path_factory.mktemp("left_behind")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(painter(), "settings", QUICK)
        patch.setenv("OPENAI_API_KEY", "sk-mine")
        patch.delenv("OPENAI_BASE_URL", raising=False)
        test_evals_emoji.evaluate(data=f"{place}/emoji (test)")
        test_evals_report.write(test_evals_report.judged(Path("out")))
        build_data("text", Path("words"), "--scenes", "10")
    return place


def test_the_card_says_what_is_on_disk(server, model, left_behind):
    evaluations = ("--evaluation", str(left_behind / "out.json"), "--evaluation", str(left_behind / "out"))
    repository = pushed(server, str(model), NAME, *evaluations, "--data", str(left_behind / "words"), "--license", "mit")
    files = repository.files()
    read = ModelCard(files["README.md"].decode())
    assert (read.data.license, read.data.library_name, read.data.pipeline_tag) == ("mit", "dim_jax", "image-to-image")
    report = json.loads((left_behind / "out.json").read_text())
    results = {(result.dataset_name, result.metric_name): result.metric_value for result in read.data.eval_results or ()}
    assert results["emoji (test)", "PSNR"] == round(report["overall"]["psnr"], 4)
    judged = json.loads((left_behind / "out/report.json").read_text())
    score = judged["tracks"][0]["judges"]["openai:m"]["metrics"]["score"]["mean"]
    assert results[judged["title"], "score by openai:m, direct"] == round(score, 4)
    assert f"| all | {report['overall']['pairs']} | {report['overall']['nearer']:.0%} |" in read.text
    assert "\n#### Scores\n" in read.text  # below the benchmark's title
    assert "which its\nauthor has put into the public domain (CC0)" in read.text
    assert "| num_steps | 3 |" in read.text
    assert "| all | 1,902,435 |" in read.text
    assert str(left_behind) not in read.text
    assert files["card/evaluation-1.png"] == (left_behind / "out.png").read_bytes()
    assert files["card/data-words.md"] == (left_behind / "words/README.md").read_bytes()
    for name in ("card/evaluation-1.png", "card/data-words.md"):
        assert f"({name})" in read.text


def test_whole_paths_of_a_run_stay_at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {
        "objective": "painter", "init.encoder": "Qwen/Qwen2.5-VL-3B-Instruct@main", "init.sana": "/home/me/runs/t2i/model",
        "data.source": "gs://secret/data/emoji", "data.mix.edit:/home/me/tints": 0.3, "data.cache": "", "seed": 1,
    }  # fmt: skip
    run = Path("runs/mine")
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(config))
    (run / "log.jsonl").write_text("".join(f'{{"step": {step}, "loss": {1 / step}}}\n' for step in range(1, 101)) + '{"st')
    (run / "changes.jsonl").write_text('{"step": 7, "changed": {"seed": [0, 1]}}\n')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert card.describe_run(run).base_models == []  # it may be a folder elsewhere
    (tmp_path / "cache/models--Qwen--Qwen2.5-VL-3B-Instruct").mkdir(parents=True)
    section = card.describe_run(run)
    assert json.loads(section.files["card/training.json"]) == {
        "objective": "painter", "init.encoder": "Qwen/Qwen2.5-VL-3B-Instruct@main", "init.sana": "model", "data.source": "emoji",
        "data.mix.edit:tints": 0.3, "data.cache": "", "seed": 1,
    }  # fmt: skip
    assert not any(word in section.text for word in ("/home", "secret"))
    assert "| data.mix.edit:tints | 0.3 |" in section.text
    assert "From step 7 on with another seed." in section.text
    assert [line.split("|")[1].strip() for line in section.text.splitlines() if line.startswith("| 1")] == ["1", "15", "100"]
    assert section.base_models == ["Qwen/Qwen2.5-VL-3B-Instruct"]
    assert card.find_data(run) == []
    (tmp_path / "data").mkdir()
    (tmp_path / "data/README.md").write_text("---\nlicense: cc-by-4.0\n---\n\n# Data\n\nMine.\n\n## More\n\nUnder a LICENSE.\n\nOther.\n")
    (run / "config.json").write_text(json.dumps(config | {"data.source": str(tmp_path / "data")}))
    assert card.find_data(run) == [tmp_path / "data"]
    described = ["### Data", "Mine.", "Under a LICENSE.", "Licence: cc-by-4.0.", "[The whole card](card/data-data.md)."]
    assert card.describe_data(tmp_path / "data").text == "\n\n".join(described)
    assert card.find_run(run / "model") == run
    assert card.find_run(run / "checkpoints") is None


@pytest.mark.parametrize("what", ["run", "evaluations", "data"])
def test_what_is_no_run_evaluation_or_data_set(server, model, tmp_path, what):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "report.json").write_text("[]")
    given = tmp_path if what == "run" else [tmp_path]
    assert str(tmp_path) in refusal(model, NAME, **{what: given})
    assert NAME not in server.repositories


# What is refused


def test_who_may_not_push(server, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    message = one_error(dim("push", str(model), NAME))
    assert message.startswith(f"error: {NAME}: cannot be pushed to the Hugging Face hub (403, the token may not do that")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "401, the token is not known: log in (hf auth login" in refusal(model, NAME)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    assert "nobody is logged in" in refusal(model, NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    assert "HF_HUB_OFFLINE is set" in refusal(model, NAME)
    assert not server.repositories


def test_what_cannot_be_pushed(server, model, tmp_path):
    server.add("me/open", {"README.md": b"mine"})
    assert "is public on the hub. Make it private there first" in refusal(model, "me/open", private=True)
    for name in ("tiny", "me/tiny@v1", "a/b/c"):
        assert "name a model of the hub as ORG/NAME" in refusal(model, name)
    assert "pushed as one of dim, diffusers" in refusal(model, NAME, to="peft")
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])
    assert "truncated" in refusal(broken, NAME)
    bad_card = tmp_path / "card.md"
    bad_card.write_text("---\ntags: [\n---\n")
    assert "cannot be pushed" in refusal(model, "me/open", card=bad_card)
    assert dim("push", str(model), NAME, "--card", str(bad_card), "--run", "x")[0] == 2
    assert server.repositories["me/open"].files() == {"README.md": b"mine"}
    assert NAME not in server.repositories


@pytest.mark.parametrize(
    ("faults", "says"),
    [({"/commit/": [412]}, "somebody else pushed meanwhile"), ({"/lfs/": [500] * 9}, "the hub answers 500"),
     ({"/commit/": [429] * 9}, "wait some minutes")],
)  # fmt: skip
def test_faults_leave_the_branch_as_it_was_and_a_second_push_goes_on(server, model, faults, says):
    repository = server.add(NAME, {"README.md": b"mine"})
    server.faults |= faults
    message = refusal(model, NAME)
    assert says in message
    assert message.endswith("No file was changed there.")
    assert repository.files() == {"README.md": b"mine"}
    server.faults.clear()
    own = model.parent / "own.md"
    own.write_text("---\nlicense: mit\n---\n# Mine\n")
    push_to_hub(model, NAME, card=own, console=quiet())
    assert repository.files()["README.md"] == own.read_bytes()
    assert same(NAME, model)
