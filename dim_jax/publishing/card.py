"""The card of a model, made of what lies on disk: its config, the run that trained it, evaluations, and cards of the data.

Nothing is written that no file says: what is not named is left out. Pictures and whole files go along in the folder `card/`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dim_jax import __version__
from dim_jax.errors import check, first_line, input_errors
from dim_jax.markdown import markdown_table
from dim_jax.storage.hub import NAME, is_cached
from dim_jax.storage.jsonl import read_objects
from dim_jax.storage.paths import AnyPath, entries, local_path, read_json

FOLDER = "card"  # of what goes along
LOSS_ROWS = 8
PAIR_COLUMNS = {"nearer": "nearer to target", "psnr": "PSNR", "psnr_copy": "source as it is", "psnr_autoencoder": "autoencoder"}
# Keys of a run's config that its reader asks for first; all of them are in a file beside the card.
KEYS = (
    "objective", "trainable", "init.", "data.source", "data.mix.", "data.text", "data.resolution", "data.batch_size", "train.steps",
    "optim.learning_rate", "optim.warmup_steps", "optim.weight_decay", "optim.ema_decay", "flow.", "lora.rank", "lora.alpha",
    "lora.targets", "model.dtype", "seed",
)  # fmt: skip


@dataclass
class Section:
    """A part of the card: its text without a heading, files that go along by name, and what goes into the card's first lines."""

    text: str = ""
    files: dict[str, AnyPath | bytes] = field(default_factory=dict)
    results: list[EvalResult] = field(default_factory=list)
    base_models: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """What a card is about.

    Attributes:
        name: ORG/NAME.
        title: the layout, for people.
        task: of the hub: "image-to-image", "text-to-image" or "" for a part of a model.
        sizes: a table of its parts, in Markdown.
        settings: how it paints, where that is its own.
        use: how to load it, in Markdown.
        tags: of the hub.
    """

    name: str
    title: str
    task: str
    sizes: str
    settings: Mapping[str, Any]
    use: str
    tags: tuple[str, ...]


def make_card(
    subject: Subject, *, run: AnyPath | None, evaluations: Sequence[AnyPath], data: Sequence[AnyPath], license_id: str | None
) -> tuple[str, dict[str, AnyPath | bytes]]:
    """The text of README.md, and the files that go along by their names in the repository.

    Args:
        run: the working directory of `dim train`.
        evaluations: folders of `dim evaluate`, or the JSON of `dim evaluate emoji -o`.
        data: folders of data sets with a README.md.
        license_id: of the weights, as the hub names it, such as "apache-2.0".

    Raises:
        InputError: a folder has no such files, or a file is damaged.
    """
    training = describe_run(run) if run is not None else Section()
    evaluated = [describe_evaluation(path, number, subject.task) for number, path in enumerate(evaluations, 1)]
    sets = [describe_data(path) for path in data]
    sections = {
        "Model": "\n\n".join(filter(None, [subject.sizes, _settings(subject.settings)])),
        "Use": subject.use,
        "Training": training.text,
        "Evaluation": "\n\n".join(part.text for part in evaluated),
        "Data": "\n\n".join(part.text for part in sets),
        "Licences": _licences(license_id, training.base_models),
    }
    results = [result for part in evaluated for result in part.results] if subject.task else []  # the hub knows none without a task
    front = ModelCardData(
        license=license_id, library_name="dim_jax", pipeline_tag=subject.task or None, tags=["draw-in-mind", "jax", *subject.tags],
        base_model=training.base_models or None, eval_results=results or None,
        model_name=subject.name.split("/")[1] if results else None,
    )  # fmt: skip
    head = (
        f"{subject.title}, made with dim_jax {__version__}. Draw-In-Mind ([arXiv 2509.01986](https://arxiv.org/abs/2509.01986)) edits "
        "pictures as a blueprint says, which a designer may write from an instruction."
    )
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    content = f"---\n{front.to_yaml()}\n---\n\n# {subject.name}\n\n{head}\n\n{body}\n"
    ModelCard(content)  # as everybody will read it: what it cannot, raises
    return content, {name: file for part in (training, *evaluated, *sets) for name, file in part.files.items()}


def find_run(checkpoint: AnyPath) -> AnyPath | None:
    """The run whose result a checkpoint is: the folder above RUN/model and RUN/lora; None: there is none."""
    run = checkpoint.parent
    return run if checkpoint.name in ("model", "lora") and (run / "config.json").is_file() and (run / "log.jsonl").is_file() else None


def find_data(run: AnyPath) -> list[AnyPath]:
    """The data sets of a run, as far as they lie where its config says and have a card."""
    config = _read_config(run)
    mixed = [source for key in config if key.startswith("data.mix.") and (source := key.partition(":")[2])]
    sources = [source for source in dict.fromkeys([str(config.get("data.source", "")), *mixed]) if source]
    folders = [run.__class__(source) for source in sources if "://" not in source]
    return [folder for folder in folders if (folder / "README.md").is_file()]


def describe_run(run: AnyPath) -> Section:
    """What a working directory says: the config, the loss, the last sheet of held-out examples.

    Raises:
        InputError: it is not a working directory, or a file in it is damaged.
    """
    config = {_without_folders(key): _without_folders(value) for key, value in _read_config(run).items()}
    rows = [(key, _shown(value)) for key, value in config.items() if key.startswith(KEYS) and value not in ("", [], None)]
    text = ["By `dim train`, with this config among others ([all of it](card/training.json)):", markdown_table(("key", "value"), rows)]
    files: dict[str, AnyPath | bytes] = {f"{FOLDER}/training.json": (json.dumps(config, indent=1) + "\n").encode()}
    changes = [row for _, row in read_objects(local_path(run / "changes.jsonl"))] if (run / "changes.jsonl").is_file() else []
    text += [f"From step {row['step']} on with another {', '.join(row['changed'])}." for row in changes]
    log = [row for _, row in read_objects(local_path(run / "log.jsonl"), skip_torn=True)]
    if log:
        chosen = sorted({round(i * (len(log) - 1) / (LOSS_ROWS - 1)) for i in range(LOSS_ROWS)})
        columns = sorted(log[-1], key=lambda key: (key != "step", key != "loss"))
        text += ["Means over the steps since the line before:"]
        text += [markdown_table(columns, [[_number(log[i].get(key)) for key in columns] for i in chosen])]
    sheets = entries(run / "sheets", "*.png") if (run / "sheets").is_dir() else []
    if sheets:
        files[f"{FOLDER}/training.png"] = sheets[-1]
        text += [f"Held-out examples after step {int(sheets[-1].stem)}:", f"![held-out examples]({FOLDER}/training.png)"]
    named = [found["id"] for key in config if key.startswith("init.") and (found := NAME.fullmatch(str(config[key])))]
    bases = [name for name in dict.fromkeys(named) if is_cached(name)]  # and not a folder "weights/start"
    return Section("\n\n".join(text), files, base_models=bases)


def describe_evaluation(path: AnyPath, number: int, task: str) -> Section:
    """The tables of an evaluation: a folder with report.json and report.md, or the report of emoji with the sheet beside it.

    Raises:
        InputError: it is neither, or damaged.
    """
    name = path / "report.json" if path.is_dir() else path
    remedy = "Name the folder of an evaluation with its report, or the JSON of `dim evaluate emoji -o`."
    with input_errors(lambda error: f"{name}: is not a report ({first_line(error)}). {remedy}", KeyError, TypeError, AttributeError):
        report = read_json(name)
        if not isinstance(report, dict):
            raise TypeError("no object")
        return _benchmark(path, report, task) if path.is_dir() else _pairs(path, report, number, task)


def _benchmark(folder: AnyPath, report: Mapping[str, Any], task: str) -> Section:
    """Its own Markdown; a result for the main metric of each track and judge, and for each mean that was measured."""
    results = []
    for track in report["tracks"]:
        for judge, summary in track["judges"].items():
            main = report["protocol"]["main"]
            if main in summary["metrics"]:
                mean = summary["metrics"][main]["mean"]
                results.append(_result(task, report["title"], main, f"{main} by {judge}, {track['track']}", mean))
        for metric, value in track["measures"].get("mean", {}).items():
            results.append(_result(task, report["title"], metric, f"{metric}, {track['track']}", value))
    path = folder / "report.md"
    check(path.is_file(), f"{path}: is missing. Write it: --stage report.")
    return Section(re.sub(r"^(#+) ", r"##\1 ", path.read_text(encoding="utf-8").strip(), flags=re.MULTILINE), results=results)


def _pairs(path: AnyPath, report: Mapping[str, Any], number: int, task: str) -> Section:
    """A row for each rule, and the sheet beside the report."""
    rows = [*report["rules"].items(), ("all", report["overall"])]
    ratios = [name for name in PAIR_COLUMNS if name != "nearer"]
    lines = [(rule, row["pairs"], f"{row['nearer']:.0%}", *(f"{row[name]:.2f}" for name in ratios)) for rule, row in rows]
    data = _without_folders(report["data"])
    text = [f"### {data}", f"Held-out pairs, seed {report['seed']}, in {report['dtype']}; ratios in dB."]
    text += [markdown_table(("rule", "pairs", *PAIR_COLUMNS.values()), lines)]
    sheet, files = path.with_suffix(".png"), {}
    if sheet.is_file():
        files[f"{FOLDER}/evaluation-{number}.png"] = sheet
        text += [f"![source, result, target]({FOLDER}/evaluation-{number}.png)"]
    results = [_result(task, data, name, PAIR_COLUMNS[name], report["overall"][name]) for name in ("nearer", "psnr")]
    return Section("\n\n".join(text), files, results)


def describe_data(folder: AnyPath) -> Section:
    """The first words of a data set's card and all that it says of licences; the whole card goes along.

    Raises:
        InputError: the folder has no README.md.
    """
    path = folder / "README.md"
    check(path.is_file(), f"{path}: is missing. Name a data set with its card, as `dim build-data` writes it.")
    text = path.read_text(encoding="utf-8")
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    stated = re.search(r"^license: *(.+)$", front[1], re.MULTILINE) if front else None
    card = text[front.end() if front else 0 :].strip()
    blocks = [block for block in re.split(r"\n{2,}", card) if not block.startswith("#")]
    title = next((line.removeprefix("# ") for line in card.splitlines() if line.startswith("# ")), folder.name)
    licences = [block for block in blocks[1:] if re.search(r"licen[cs]e|attribution|copyright|public domain", block, re.IGNORECASE)]
    name = f"{FOLDER}/data-{folder.name}.md"
    licences += [f"Licence: {stated[1]}."] if stated else []
    return Section("\n\n".join([f"### {title}", *blocks[:1], *licences, f"[The whole card]({name})."]), {name: path})


def _result(task: str, data: str, metric: str, name: str, value: float) -> EvalResult:
    """A line of the card's first ones, as the hub shows it."""
    return EvalResult(
        task_type=task, dataset_type=re.sub(r"\W+", "-", data.lower()).strip("-"), dataset_name=data, metric_type=metric, metric_name=name,
        metric_value=round(float(value), 4),
    )  # fmt: skip


def _settings(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    return "It paints with these settings unless others are named:\n\n" + markdown_table(("setting", "value"), settings.items())


def _licences(license_id: str | None, base_models: Sequence[str]) -> str:
    lines = [f"The weights: {license_id}." if license_id else "No licence is named for these weights: ask before you use them."]
    if base_models:
        lines.append(f"They come from {', '.join(base_models)}, whose licences hold too.")
    return " ".join([*lines, "Pictures and texts that they were trained on have licences of their own."])


def _read_config(run: AnyPath) -> dict[str, Any]:
    """Dotted key -> value."""
    config = read_json(run / "config.json")
    check(isinstance(config, dict) and "objective" in config, f"{run / 'config.json'}: is not the config of a run. Name its folder.")
    return config


def _without_folders(value: Any) -> Any:
    """A value without the folders of whole paths in it, such as "/home/me/data/emoji" or "edit:gs://bucket/emoji": they are private."""
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return re.sub(r"(?:(?<![\w.])[/~]|\b\w+://)[^\s,]*/", "", value) if isinstance(value, str) else value


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
