"""How far pictures drift over rounds that should change nothing, when every round encodes the last picture, and when it keeps the latents.

    python benchmarks/drift.py --checkpoint CHECKPOINT --data data/emoji -o drift.json
    python benchmarks/drift.py --checkpoint CHECKPOINT photo.jpg another.jpg -o drift.json

Two ways twice: the autoencoder alone, encoding and decoding; and edits that ask for nothing, by the whole painter with the settings of its
checkpoint. A fifth column composites what each edit left alone (`--keep-unchanged` of `dim edit`). Numbers are PSNR in dB against the
first picture, as large as the painter paints, means over the pictures.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from dim_jax.batching import Source
from dim_jax.datasets.layouts.pairs import Pairs
from dim_jax.evals.metrics import mse, psnr, unit_pixels
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.pictures import cover_crop, open_picture
from dim_jax.sampling import Sampler
from dim_jax.session import EditSession
from dim_jax.settings import Settings

Pictures = list[Image.Image]
COLUMNS = {
    "autoencoder_pictures": "autoencoder, encoded again",
    "autoencoder_latents": "autoencoder, latents kept",
    "edit_pictures": "edits, encoded again",
    "edit_latents": "edits, latents kept",
    "edit_unchanged": "edits, --keep-unchanged",
}


def autoencoder(painter: Sampler, pictures: Pictures, *, keep: bool) -> Iterator[Pictures]:
    """Decoded pictures of each round."""
    size = pictures[0].height, pictures[0].width
    latents = painter.encode(pictures, size)
    while True:
        yield (decoded := painter.decode(latents))
        if not keep:
            latents = painter.encode(decoded, size)


def edits(pipeline: EditPipeline, pictures: Pictures, prompt: str, settings: Settings, *, keep: bool) -> Iterator[Pictures]:
    """Painted pictures of each round; every picture has noise of its own, the same in all rounds, as `dim edit` has."""
    prompts, seeds, sources = [prompt] * len(pictures), list(range(len(pictures))), list[Image.Image | Source](pictures)
    while True:
        paintings = pipeline(prompts, sources, seeds=seeds, settings=settings)
        yield [painting.image for painting in paintings]
        sources = [Source(painting.image, painting.latents if keep else None) for painting in paintings]


def composited(pipeline: EditPipeline, pictures: Pictures, prompt: str, settings: Settings) -> Iterator[Pictures]:
    """The same by sessions that keep latents and what a round left alone."""
    sessions = [EditSession(pipeline, picture, settings=settings, keep_unchanged=True) for picture in pictures]
    while True:
        yield [session.edit(prompt, seed=seed).image for seed, session in enumerate(sessions)]


def main() -> None:
    """Measure, print a table, write a JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="*", help="files to begin with")
    parser.add_argument("--data", type=Path, help="a data set instead: pictures of its test split")
    parser.add_argument("--number", type=int, default=24, help="of pictures of the data set")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--prompt", default="Keep everything as it is.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--resolution", type=int, help="default: as the checkpoint says")
    parser.add_argument("-o", "--output", type=Path, help="JSON with every picture's numbers")
    args = parser.parse_args()
    if bool(args.pictures) == bool(args.data):
        parser.error("give pictures, or --data")
    pipeline = EditPipeline.from_pretrained(args.checkpoint)
    painter = pipeline.sampler
    side = args.resolution or painter.settings.resolution
    settings = replace(painter.settings, resolution=side)
    if args.data:
        captions = Pairs(args.data, "test", "caption")
        chosen = np.random.default_rng(0).permutation(len(captions))[: args.number]
        images = [captions[int(i)].target for i in chosen]
    else:
        images = [open_picture(path) for path in args.pictures]
    pictures = [cover_crop(picture, (side, side)) for picture in images]
    first = [unit_pixels(picture, (side, side)) for picture in pictures]
    ways = (
        autoencoder(painter, pictures, keep=False), autoencoder(painter, pictures, keep=True),
        edits(pipeline, pictures, args.prompt, settings, keep=False), edits(pipeline, pictures, args.prompt, settings, keep=True),
        composited(pipeline, pictures, args.prompt, settings),
    )  # fmt: skip
    table, numbers = Table("round", *COLUMNS.values()), {name: [] for name in COLUMNS}
    for number in range(1, args.rounds + 1):
        for name, way in zip(COLUMNS, ways, strict=True):
            numbers[name].append([psnr(mse(unit_pixels(now, (side, side)), then)) for now, then in zip(next(way), first, strict=True)])
        table.add_row(str(number), *(f"{np.mean(numbers[name][-1]):.2f}" for name in COLUMNS))
    Console(width=140).print(table)
    if args.output:
        about = {"checkpoint": str(args.checkpoint), "prompt": args.prompt, "pictures": len(pictures), "side": side}
        args.output.write_text(json.dumps(about | {"psnr": numbers}, indent=1) + "\n")


if __name__ == "__main__":
    main()
