"""By how many pixels an edit shifts its picture: sources of odd sizes and aspect ratios, and what comes back of them.

    python benchmarks/alignment.py -o alignment.json
    python benchmarks/alignment.py --checkpoint CHECKPOINT --resolution 1024 photo.jpg another.jpg -o alignment.json

The autoencoder encodes and decodes parts of photographs, through the geometry of an edit: what a painter that changes nothing would give.
Measured is the peak of the cross-correlation of both pictures' luminance under a Hann window, to a twentieth of a pixel of the source:
scikit-image's `phase_cross_correlation`, not whitened, since a small autoencoder loses fine detail. To show that it sees a shift, pictures
that are moved by one painted pixel on purpose are measured as well.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage.filters import window
from skimage.registration import phase_cross_correlation

from dim_jax.batching import Source, edit_request
from dim_jax.processing.pictures import open_picture
from dim_jax.sampling import Sampler
from dim_jax.weights.bundled import bundled_checkpoint


def shift(before: Image.Image, after: Image.Image) -> float:
    """How far `after` is moved, in pixels of `before`."""
    luminance = [np.asarray(picture.convert("L"), float) for picture in (before, after)]
    windowed = [(pixels - pixels.mean()) * window("hann", pixels.shape) for pixels in luminance]
    options: dict[str, Any] = {"upsample_factor": 20, "normalization": None}
    moved, _, _ = phase_cross_correlation(*windowed, **options)
    return float(np.hypot(*moved))


def sources(pictures: list[Image.Image], count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Parts of the pictures, with sides of 48 to 1500 pixels, up to 4 times as wide as high and the reverse."""
    made = []
    for i in range(count):
        picture, ratio = pictures[i % len(pictures)], 4 ** rng.uniform(-1, 1)
        scale = min(picture.width / ratio**0.5, picture.height * ratio**0.5)
        width, height = int(scale * ratio**0.5), int(scale / ratio**0.5)
        left, top = (int(rng.integers(0, total - side + 1)) for total, side in ((picture.width, width), (picture.height, height)))
        part, short = picture.crop((left, top, left + width, top + height)), int(rng.integers(48, 376))
        size = (max(short, round(short * ratio)), max(short, round(short / ratio)))
        made.append(part.resize(size, Image.Resampling.LANCZOS))
    return made


def identity(painter: Sampler, picture: Image.Image, resolution: int) -> tuple[float, float]:
    """The shift of what the autoencoder makes of a picture; and that of the same moved by a painted pixel, in painted pixels."""
    settings = replace(painter.settings, resolution=resolution)
    request = edit_request("-", Source(picture), 0, settings, painter.dim.config.autoencoder.factor)
    (decoded,) = painter.decode(painter.encode([request.canvas], request.size))
    moved = decoded.transform(decoded.size, Image.Transform.AFFINE, (1, 0, -1, 0, 1, 0))
    assert request.frame is not None
    return shift(picture, request.result(decoded)), shift(picture, request.result(moved)) / request.frame.scale


def summary(values: Sequence[float]) -> dict[str, float]:
    numbers = {"mean": np.mean(values), "least": np.min(values), "largest": np.max(values)}
    return {"pictures": len(values)} | {name: round(float(number), 3) for name, number in numbers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="By how many pixels an edit shifts its picture.")
    parser.add_argument("pictures", nargs="*", type=Path, help="default: those of scikit-image")
    parser.add_argument("--checkpoint", default=bundled_checkpoint())
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    paths = args.pictures or _bundled()
    painter = Sampler.from_pretrained(args.checkpoint)
    rng = np.random.default_rng(0)
    made = sources([open_picture(path) for path in paths], args.count, rng)
    shifts, known = zip(*(identity(painter, picture, args.resolution) for picture in made), strict=True)
    report: dict[str, Any] = {"resolution": args.resolution, "identity": summary(shifts), "moved by 1": summary(known)}
    lists = {"sizes": [picture.size for picture in made], "shifts": shifts}
    args.output.write_text(json.dumps(report | lists, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def _bundled() -> list[Path]:
    from skimage import data

    folder = Path(data.__file__).parent
    names = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "motorcycle_left.png", "page.png", "rocket.jpg")
    return [folder / name for name in names]


if __name__ == "__main__":
    main()
