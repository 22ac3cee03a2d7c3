"""Picture files to RGB pictures, pictures to the pixels of the autoencoder, and back.

Sizes of arrays are (height, width), sizes of PIL pictures (width, height).
"""

import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageFile

from dim_jax.errors import InputError, check
from dim_jax.processing.png_texts import strip_png_texts

Item = TypeVar("Item")
Result = TypeVar("Result")

# Our limit: enough for a photograph of 108 megapixels, and at most about 2 GB while decoding.
MAX_PIXELS = 2**27
MIN_SIDE = 8
MAX_ASPECT_RATIO = 200  # Qwen2.5-VL's own limit

# Formats that are decoded. Not EPS (it would run Ghostscript), nor TGA (it has no signature, so any bytes may look like one).
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "ICO")
READABLE_FORMATS = "PNG, JPEG, WebP, BMP, TIFF, GIF"
# How files of a picture begin: a file that begins so and is of no format is damaged. HEIC is never read.
BEGINNINGS = re.compile(
    rb"(?P<PNG>\x89PNG)|(?P<JPEG>\xff\xd8\xff)|(?P<GIF>GIF8)|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<BMP>BM.{4}\0{4})|(?P<ICO>\0\0\x01\0[^\0])"
    rb"|(?P<WebP>RIFF.{4}WEBP)|(?P<AVIF>.{4}ftypavi[fs])|(?P<HEIC>.{4}ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1))|(?P<JPEG_2000>\0{3}\x0cjP)",
    re.DOTALL,
)
# Errors of Pillow's decoders for damaged files.
DECODE_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, RuntimeError, IndexError, KeyError, TypeError, ArithmeticError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

# EXIF orientation (tag 0x0112, CIPA DC-008) -> the transposition that brings the picture upright; 1 is upright.
ORIENTATION = 0x0112
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
UNKNOWN = 0  # an orientation that cannot be read; treated as 1

STRIP = 2**22  # pixels that are resized at once


class UnreadableError(Exception):
    """A picture of a format that is not read."""


class Header(NamedTuple):
    """Properties of a picture that need no decoding.

    Attributes:
        format: as Pillow names it, such as "PNG".
        size: width and height in pixels, upright.
        plain: stored upright, opaque, in 8-bit RGB or gray, so that every program shows it as it is read here.
    """

    format: str
    size: tuple[int, int]
    plain: bool


def open_picture(path: str | os.PathLike) -> Image.Image:
    """The picture in a file: upright by its EXIF orientation, 8-bit RGB, transparent pixels on white.

    Reads those of `FORMATS` that the installed Pillow decodes; of several frames or pages the first.
    Samples of 16 or 32 bits are scaled to 8 (`gray_to_8_bit`). Colour profiles are not applied, as in the published code.

    Raises:
        InputError: the file is missing, a directory, empty, damaged or not a picture; the picture has more than `MAX_PIXELS` pixels
            (refused before decoding), a side under `MIN_SIDE` pixels, or sides whose ratio exceeds `MAX_ASPECT_RATIO`.
    """
    path = Path(path)
    check(path.exists(), f"{path}: there is no such file. Check the path of the picture.")
    check(path.is_file(), f"{path}: a {'directory' if path.is_dir() else 'special file'}, not a picture. Give one picture file.")
    check(path.stat().st_size != 0, f"{path}: the file is empty (0 bytes). Export or download the picture again.")
    try:
        file = path.open("rb")
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read this file. Change its permissions or give another picture.") from error
    with file:
        return read_picture(file, str(path))


def read_picture(file: BufferedReader | BytesIO, name: str) -> Image.Image:
    """The picture in an open file, as `open_picture` reads it; `name` is for errors.

    Raises:
        InputError: as `open_picture`, once there is a file.
    """
    with _decoding(name):
        image = _open_header(file)
        check_size(*image.size, name)
        return as_rgb(image, name)


def read_alpha(file: BufferedReader | BytesIO, name: str) -> UInt8[np.ndarray, "h w"]:
    """How opaque each pixel of the picture in an open file is, upright: 0 is transparent; `name` is for errors.

    Raises:
        InputError: as `read_picture`, or the picture has no transparency.
    """
    with _decoding(name):
        image = _open_header(file)
        check_size(*image.size, name)
        check(image.has_transparency_data, f"{name}: the picture has no transparency. Save it as a PNG with an alpha channel.")
        return np.asarray(_exif_transpose(image).convert("RGBA").getchannel("A"))


def picture_size(file: BufferedReader | BytesIO, name: str) -> tuple[int, int]:
    """`size` of `read_header`; raises the same."""
    return read_header(file, name).size


def read_header(file: BufferedReader | BytesIO, name: str) -> Header:
    """The header of a picture in an open file.

    Raises:
        InputError: it is not a picture, or one of a size that `open_picture` refuses.
    """
    with _decoding(name):
        image = _open_header(file)
        check_size(*image.size, name)
        # For a TIFF, Pillow swaps the size for some orientations and not for others.
        tags = getattr(image, "tag_v2", None)
        width, height = image.size if tags is None else (tags[256], tags[257])
        orientation = _orientation(image)
        plain = orientation == 1 and not image.has_transparency_data and image.mode in ("RGB", "L")
        return Header(image.format or "", (height, width) if orientation in SIDEWAYS else (width, height), plain)


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn errors of the decoders into an `InputError`. Damaged metadata (EXIF, TIFF tags) with intact pixels is not an error: Pillow
    warns and continues, and so do we."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")
            yield
    except InputError:
        raise
    except UnreadableError as error:
        raise InputError(f"{name}: {error} pictures cannot be read (readable: {READABLE_FORMATS}). Convert it to PNG or JPEG.") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{name}: not a picture that can be read (readable: {READABLE_FORMATS}). Convert it to PNG or JPEG.") from error
    except DECODE_ERRORS as error:
        raise InputError(f"{name}: the picture is damaged or cut off ({error}). Export or download it again.") from error


def _open_header(file: BufferedReader | BytesIO) -> ImageFile.ImageFile:
    """The picture with its size, nothing decoded yet. Raises an `UnidentifiedImageError` for what is no picture.

    `Image.open` has a limit of pixels of its own, which is global and whose error does not name the size.
    """
    data = file.read()
    if not data:
        raise OSError("the file is empty")
    file, prefix = BytesIO(strip_png_texts(data)), data[:16]
    Image.init()
    for factory, accepts in (Image.OPEN[name] for name in FORMATS if name in Image.OPEN):
        try:
            if accepts is None or accepts(prefix) is True:
                file.seek(0)
                return factory(file, "")
        # As `Image.open`: not of this format; or an ICO whose picture is not.
        except (SyntaxError, IndexError, TypeError, struct.error, Image.UnidentifiedImageError):
            continue
    if begins := BEGINNINGS.match(data):
        kind = str(begins.lastgroup).replace("_", " ")
        raise UnreadableError(kind) if kind == "HEIC" else OSError(f"it begins as {kind}, but no {kind} can be read from it")
    raise Image.UnidentifiedImageError("no format fits")


def check_size(width: int, height: int, name: str) -> None:
    """Refuse sizes (pixels) that are too large for memory, or too small or thin for the encoder.

    Raises:
        InputError: too many pixels, a side too short, or a picture too thin; `name` is for errors.
    """
    size = f"{name}: the picture is {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        side = int(MAX_PIXELS**0.5)
        raise InputError(f"{size}, more than the {MAX_PIXELS:,} that are accepted (such as {side} x {side}). Scale it down.")
    check(min(width, height) >= MIN_SIDE, f"{size}; each side needs at least {MIN_SIDE}. Scale it up or give another picture.")
    check(
        max(width, height) <= MAX_ASPECT_RATIO * min(width, height),
        f"{size}; the longer side may be at most {MAX_ASPECT_RATIO} times the shorter, "
        f"here it is {max(width, height) / min(width, height):.0f} times. Crop it.",
    )


def as_rgb(image: Image.Image, name: str = "picture") -> Image.Image:
    """Any PIL picture as upright 8-bit RGB, transparent pixels on white; `name` is for errors.

    The result has no metadata, so nothing rotates it a second time. A picture that is so already is the result itself.

    Raises:
        InputError: it is damaged, its colour mode has no conversion to RGB, or its floating-point samples are not all finite.
    """
    if type(image) is Image.Image and image.mode == "RGB" and not image.info and not image.getexif():
        return image
    with _decoding(name):
        image = _exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            return _wide_gray_to_rgb(image, name)
        if image.has_transparency_data:
            return _composite_on_white(image)
        try:
            rgb = image.convert("RGB")
        except ValueError as error:
            raise InputError(f"{name}: pictures of colour mode {image.mode} cannot be read. Convert it to RGB first.") from error
        rgb.info = {}
        return rgb


def _exif_transpose(image: Image.Image) -> Image.Image:
    """The picture, decoded, as its orientation says it is meant."""
    if not isinstance(image.info.get("xmp", b""), bytes):
        del image.info["xmp"]  # of a TIFF; Pillow cannot search in this type
    image.load()
    turn = TRANSPOSITIONS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where the metadata has none, `UNKNOWN` if it cannot be read or is not in 1 to 8."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except DECODE_ERRORS:
        return UNKNOWN
    return int(orientation) if orientation in range(1, 9) else UNKNOWN


def _composite_on_white(image: Image.Image) -> Image.Image:
    """Alpha, or a transparent colour or palette entry, over white."""
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        # A 16-bit RGB PNG is decoded to its high bytes, but names its transparent colour in 16 bits.
        image = image.copy()
        image.info["transparency"] = tuple(sample >> 8 for sample in key)
    # Premultiplied and palette modes reach RGBA in two steps at most.
    rgba = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _wide_gray_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Gray of 16-bit, 32-bit or floating-point samples, white where a 16-bit PNG names that gray transparent."""
    samples = np.asarray(image)
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise InputError(f"{name}: {bad} of {samples.size} samples are not finite (NaN or infinite). Replace them first.")
    gray = gray_to_8_bit(samples)
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray = np.where(samples == key, np.uint8(255), gray)
    return Image.fromarray(gray).convert("RGB")


def gray_to_8_bit(samples: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Finite gray samples of a wider type as 0 to 255, scaled and rounded, never clipped.

    The file does not define white, so: integers in [0, 65535] are 16-bit; floating-point samples are a fraction in [0, 1],
    8-bit in [0, 255] or 16-bit in [0, 65535], the narrowest that holds them all; anything else is scaled from its least (black)
    to its greatest value (white), and is black if all are equal.
    """
    low, high = float(samples.min()), float(samples.max())
    ranges = (1.0, 255.0, 65535.0) if np.issubdtype(samples.dtype, np.floating) else (65535.0,)
    black, white = 0.0, next((top for top in ranges if low >= 0 and high <= top), None)
    if white is None:
        black, white = low, high
    span = (white - black) or 1.0
    # In float64, dividing last: exact for 16-bit samples, and white lands on 255 however small or large the span.
    return np.rint((samples.astype(np.float64) - black) / span * 255.0).astype(np.uint8)


def cover_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture scaled (bilinear, antialiased) until it just covers `size` (height, width) and cropped around its centre.

    Source: torchvision's Resize(n) and CenterCrop(n), which the published code applies to PIL pictures, for any target: the covering
    side is exact, the other is rounded down, the crop starts at the rounded half of the excess. Samples are rounded to 8 bits.
    """
    height, width = size
    if height * image.width >= width * image.height:
        scaled = (height * image.width // image.height, height)
    else:
        scaled = (width, width * image.height // image.width)
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    box = (left, top, left + width, top + height)
    if scaled[1] < image.height or scaled[0] * scaled[1] <= STRIP:
        image = resize(image, scaled, Image.Resampling.BILINEAR)
        return image if image.size == (width, height) else image.crop(box)
    # A long picture would grow far beyond the crop. Pillow enlarges rows first, so we crop between the two steps.
    image = _resize_columns(image, scaled[0], box[0], box[2])
    flip = Image.Transpose.TRANSPOSE
    return _resize_columns(image.transpose(flip), scaled[1], box[1], box[3]).transpose(flip)


def resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """The picture at `size` (width, height), the same with every version of Pillow.

    It resizes one side, rounds to 8 bits, and resizes the other: the height first if it shrinks by more than twice as many pixels as the
    width, else the width. Pillow does so from version 13 on; before, the width always came first, and one sample in ten differed.
    """
    (old_width, old_height), (width, height) = image.size, size
    if image.size == size:
        return image  # Pillow would copy it, twice
    height_first = old_height - height > max(0, 2 * (old_width - width))
    between = (old_width, height) if height_first else (width, old_height)
    return image.resize(between, resample).resize(size, resample)


def _resize_columns(image: Image.Image, length: int, start: int, stop: int) -> Image.Image:
    """Columns `start` to `stop` of the picture scaled to `length` columns, a strip of rows at a time."""
    canvas, step = Image.new(image.mode, (stop - start, image.height)), max(1, STRIP // length)
    for y in range(0, image.height, step):
        strip = image.crop((0, y, image.width, min(y + step, image.height)))
        canvas.paste(strip.resize((length, strip.height), Image.Resampling.BILINEAR).crop((start, 0, stop, strip.height)), (0, y))
    return canvas


def translate(image: Image.Image, right: int, down: int) -> Image.Image:
    """The picture moved by whole pixels within its frame; what enters is white."""
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, -right, 0, 1, -down), fillcolor="white")


def max_filter(levels: UInt8[np.ndarray, "h w"], radius: int) -> UInt8[np.ndarray, "h w"]:
    """At every pixel the largest level at most `radius` rows and columns away."""
    for axis in (0, 1):
        padded = np.pad(levels, [(radius, radius) if axis == other else (0, 0) for other in (0, 1)])
        levels = sliding_window_view(padded, 2 * radius + 1, axis).max(-1)
    return levels


def autoencoder_pixels_uint8(image: Image.Image, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The autoencoder's input in 8 bits: `cover_crop` to `size` (height, width) in pixels.

    Raises:
        InputError: the picture cannot become RGB (`as_rgb`).
    """
    return np.array(cover_crop(as_rgb(image), size))


def autoencoder_pixels(image: Image.Image, size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """`autoencoder_pixels_uint8` as float32 in [-1, 1]; raises the same."""
    return normalize_pixels(autoencoder_pixels_uint8(image, size))


def normalize_pixels(samples: UInt8[Any, "*b h w 3"]) -> Float[Any, "*b h w 3"]:
    """8-bit samples as float32 in [-1, 1]; numpy or JAX, as the input."""
    return (samples.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of each item, several at a time: Pillow and NumPy let other threads work while they do."""
    if len(items) < 2:
        return [*map(function, items)]
    share = -(-len(items) // (os.cpu_count() or 1))  # of a thread; handing over one small picture takes as long as its work
    parts = [items[start : start + share] for start in range(0, len(items), share)]
    with ThreadPoolExecutor(len(parts)) as threads:
        return [*chain.from_iterable(threads.map(lambda part: [*map(function, part)], parts))]


def to_picture(pixels: Float[np.ndarray, "h w 3"]) -> Image.Image:
    """Pixels in [-1, 1] as an RGB picture: values outside are clipped, 8-bit values rounded half up (as torchvision's save_image).

    Raises:
        InputError: a value is not finite.
    """
    if not np.isfinite(pixels).all():
        bad = int((~np.isfinite(pixels)).sum())
        raise InputError(
            f"{bad} of {pixels.size} pixel values are not finite: a bad checkpoint, or an overflow. Try float32, or less guidance."
        )
    unit = (np.clip(pixels.astype(np.float32), -1, 1) + 1) / 2
    return Image.fromarray(np.floor(unit * 255 + 0.5).astype(np.uint8))
