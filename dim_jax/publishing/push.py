"""Pushes a checkpoint to the Hugging Face hub: conversion to a published layout, a card, and one commit."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dim_jax import __version__
from dim_jax.console import open_console
from dim_jax.errors import check
from dim_jax.markdown import markdown_table
from dim_jax.publishing.card import FOLDER, Subject, find_data, find_run, make_card
from dim_jax.storage import hub
from dim_jax.storage.paths import AnyPath, as_path, read_json
from dim_jax.weights.convert import convert
from dim_jax.weights.files import read_text
from dim_jax.weights.hub_files import FILES, locate_checkpoint
from dim_jax.weights.lora_files import is_lora, open_lora
from dim_jax.weights.opening import open_weights
from dim_jax.weights.published import Weights

MODEL_LAYOUTS = {"dim": "the published naming", "diffusers": "the folders of diffusers"}
LORA_LAYOUTS = {"dim": "PEFT's files", "peft": "PEFT's files, with the names of diffusers", "diffusers": "the file of diffusers"}
TITLES = {
    "image-to-image": "A model that edits pictures,",
    "text-to-image": "A model that paints pictures from text,",
    "": "Parts of a model",
}
DIFFUSERS_CLASSES = {
    "sana": {"transformer": "SanaTransformer2DModel", "scheduler": "DPMSolverMultistepScheduler"},
    "autoencoder": {"vae": "AutoencoderDC"},
}
CARD = "README.md"


def push_to_hub(
    checkpoint: AnyPath | str,
    name: str,
    *,
    to: str = "dim",
    revision: str | None = None,
    private: bool = False,
    message: str | None = None,
    license: str | None = None,  # noqa: A002 (as the hub calls it)
    card: AnyPath | str | None = None,
    run: AnyPath | str | None = None,
    evaluations: Sequence[AnyPath | str] = (),
    data: Sequence[AnyPath | str] = (),
    console: Console | None = None,
) -> str:
    """Push a checkpoint or a LoRA to the model ORG/NAME of the hub, with a card; return the address of the commit.

    The model is made if there is none. All files of an earlier push are replaced in one commit.

    Args:
        checkpoint: in any format, here or in a bucket.
        name: ORG/NAME.
        to: the layout: "dim" (the published naming) or "diffusers" (transformer/, vae/ and scheduler/); of a LoRA also "peft".
        revision: the branch, which is made if there is none; None: the main branch.
        private: make a new model private; one that is public is refused.
        message: of the commit.
        license: of the weights, as the hub names it, such as "apache-2.0".
        card: a README.md of your own, instead of one that is made of the following.
        run: the working directory of the training; None: the folder above RUN/model.
        evaluations: folders of `dim evaluate`, or the JSON of `dim evaluate emoji -o`.
        data: folders of data sets with a README.md; by default those that the run names.
        console: where the table of what is read is printed.

    Raises:
        InputError: as in `weights.convert.convert`, `card.make_card` and `storage.hub.push`.
    """
    console = console or open_console()
    hub.check_push(name)
    source = locate_checkpoint(checkpoint).path
    layouts = LORA_LAYOUTS if is_lora(source) else MODEL_LAYOUTS
    check(to in layouts, f"--to {to}: {source} is pushed as one of {', '.join(layouts)}. Choose one.")
    subject = _lora(source, name, to) if is_lora(source) else _model(open_weights(source), name, to)
    if card is None:
        folder = find_run(source) if run is None else as_path(run)
        sets = [as_path(path) for path in data] or (find_data(folder) if folder is not None else [])
        text, files = make_card(
            subject, run=folder, evaluations=[as_path(path) for path in evaluations], data=sets, license_id=license
        )  # fmt: skip
    else:
        own_card = as_path(card)
        check(own_card.is_file(), f"{own_card}: there is no such file. Check the path of your card.")
        text, files = read_text(own_card), {}
    with tempfile.TemporaryDirectory(prefix="dim_jax-") as scratch:
        pushed = Path(scratch) / name.split("/")[1]
        convert(source, pushed, to, console=console)
        for file, content in {CARD: text.encode(), **files}.items():
            path = pushed / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        message = message or f"Model by dim_jax {__version__}"
        return hub.push(pushed, name, message=message, revision=revision, private=private, replaced=(*FILES, f"{FOLDER}/*"))


def _model(weights: Weights, name: str, to: str) -> Subject:
    config, parameters = weights.config, {path: weights.tensors[path] for path in weights.parameters}
    rows = []
    for part in config.parts:
        infos = [info for path, info in parameters.items() if path.startswith(f"{part}.")]
        rows.append((part, f"{sum(info.size for info in infos):,}", ", ".join(sorted({info.dtype.name for info in infos}))))
    rows.append(("all", f"{sum(info.size for info in parameters.values()):,}", ""))
    edits = config.sana is not None and config.sana.is_edit
    task = "" if not config.is_whole else "image-to-image" if edits else "text-to-image"
    use = [_use_model(name, edits, bool(weights.tokenizer))] if task else []
    if to == "diffusers":
        use.append(_use_diffusers(name, config.parts))
    return Subject(
        name=name,
        title=f"{TITLES[task]} in {MODEL_LAYOUTS[to]}",
        task=task,
        sizes=markdown_table(("part", "parameters", "dtype"), rows),
        settings=read_json(weights.settings) if weights.settings else {},
        use="\n\n".join(use),
        tags=("image-editing",) if edits else (),
    )


def _lora(source: AnyPath, name: str, to: str) -> Subject:
    pairs = open_lora(source).pairs
    ranks = sorted({factors.rank for factors in pairs.values()})
    size = sum(factors.a.size + factors.b.size for factors in pairs.values())
    rows = [("adapted layers", len(pairs)), ("parameters", f"{size:,}"), ("rank", ", ".join(map(str, ranks)))]
    use = f'dim edit --checkpoint MODEL --lora {name}:1.0 --image photo.jpg --prompt "Make the cup blue." -o edited.png'
    return Subject(
        name=name,
        title=f"A LoRA in {LORA_LAYOUTS[to]}",
        task="image-to-image",
        sizes=markdown_table(("", ""), rows),
        settings={},
        use=f"```bash\n{use}\n```\n\nMODEL is the model that it was trained with, or one of the same sizes.",
        tags=("lora", "image-editing"),
    )


def _use_model(name: str, edits: bool, has_tokenizer: bool) -> str:
    prompt, command, call, pipeline, more = (
        ("Make the cup blue.", "edit --image photo.jpg", ', [open_picture("photo.jpg")]', "EditPipeline", ", open_picture")
        if edits
        else ("A blue cup.", "generate", "", "GeneratePipeline", "")
    )
    option, argument = ("", "") if has_tokenizer else (" --tokenizer FOLDER", ", tokenizer=FOLDER")
    return f"""```bash
dim {command} --checkpoint {name}{option} --prompt "{prompt}" -o out.png
```

```python
from dim_jax import {pipeline}{more}

pipeline = {pipeline}.from_pretrained("{name}"{argument})
pipeline(["{prompt}"]{call})[0].save("out.png")
```"""


def _use_diffusers(name: str, parts: Sequence[str]) -> str:
    loads = {folder: kind for part in parts for folder, kind in DIFFUSERS_CLASSES.get(part, {}).items()}
    lines = [f'{folder} = {kind}.from_pretrained("{name}", subfolder="{folder}")' for folder, kind in loads.items()]
    code = "\n".join([f"from diffusers import {', '.join(sorted(loads.values()))}", "", *lines])
    rest = "\n\nEncoder, connector and null table, for which diffusers has no class, are in `dim_extra.safetensors`."
    return f"```python\n{code}\n```{rest if 'encoder' in parts else ''}"
