"""Edit pairs of a drawing style for a LoRA (docs/lora.md): emoji, and the same as pencil sketches that a filter draws.

python examples/sketch_pairs.py data/emoji data/sketch

The first is a folder of `dim build-data emoji`: 20 of its training pictures make pairs to learn from, 24 of its test pictures others.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from dim_jax.data.example import Split
from dim_jax.datasets.layouts.pairs import Pair, Picture, decode_webp, encode_webp, read_pictures, write_pairs

COUNTS: dict[Split, int] = {"train": 20, "test": 24}
INSTRUCTION = "Redraw it as a pencil sketch."


def sketch(picture: Image.Image) -> Image.Image:
    """Grey outlines where neighbouring pixels differ, and a pale shade of what was dark, on warm paper."""
    grey = ImageOps.grayscale(picture)
    edges = ImageChops.difference(grey.filter(ImageFilter.MaxFilter(3)), grey.filter(ImageFilter.MinFilter(3)))
    lines = np.asarray(edges, float) / 255
    shade = 1 - np.asarray(grey, float) / 255
    ink = np.clip(1.6 * lines + 0.25 * shade, 0, 1)[..., None]
    paper, pencil = np.array([250, 244, 230]), np.array([60, 60, 70])
    return Image.fromarray(np.round(paper + ink * (pencil - paper)).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("emoji", type=Path, help="folder of dim build-data emoji")
    parser.add_argument("out", type=Path, help="folder to make")
    arguments = parser.parse_args()
    known, rng = read_pictures(arguments.emoji), np.random.default_rng(0)
    pictures, pairs = [], []
    for split, count in COUNTS.items():
        of_split = [picture for picture in known if picture.split == split and "-1f3f" not in picture.code]  # no skin tones
        for number in rng.choice(len(of_split), count, replace=False):
            source = of_split[number]
            drawn = encode_webp(np.asarray(sketch(decode_webp(source.webp))))
            pairs.append(Pair(len(pictures), len(pictures) + 1, "sketch", (INSTRUCTION,), INSTRUCTION))
            pictures += [source, Picture("sketch", f"{source.set}-{source.code}", source.name, split, source.captions, drawn)]
    arguments.out.mkdir(parents=True)
    write_pairs(arguments.out, pictures, pairs)
    print(f"wrote {arguments.out}: {len(pairs)} pairs")


if __name__ == "__main__":
    main()
