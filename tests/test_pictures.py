"""Files of every kind, written by Pillow (or byte by byte where it cannot), read back as upright RGB; and files that are none."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, PngImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dim_jax.designer.picture import encode_picture
from dim_jax.errors import InputError
from dim_jax.processing import pictures
from dim_jax.processing.pictures import as_rgb, gray_to_8_bit, open_picture, picture_size, read_alpha

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def quarters(size: int = 32) -> Image.Image:
    """Red, green over blue, white: every turn and mirror image looks different."""
    image = Image.new("RGB", (size, size), WHITE)
    half = size // 2
    for colour, corner in ((RED, (0, 0)), (GREEN, (half, 0)), (BLUE, (0, half))):
        image.paste(colour, (*corner, corner[0] + half, corner[1] + half))
    return image


def corners(image: Image.Image) -> list[tuple[int, int, int]]:
    """Top left, top right, bottom left, bottom right, a little inside."""
    right, bottom = image.width - 3, image.height - 3
    return [image.getpixel(place) for place in ((2, 2), (right, 2), (2, bottom), (right, bottom))]


def close(pixel, wanted, tolerance=6) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, wanted, strict=True))


def chunk(name: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(colour_type: int, samples: np.ndarray, transparent: bytes = b"") -> bytes:
    """A 16-bit PNG of samples (h, w, channels), written byte by byte: Pillow writes only gray ones."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, colour_type, 0, 0, 0)
    key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.bmp", {}, 0),
        ("a.tif", {}, 0),
        ("a.tiff", {"compression": "tiff_lzw"}, 0),
        ("a.tif", {"compression": "tiff_deflate"}, 0),
        ("a.gif", {}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.webp", {"quality": 95}, 12),
        ("a.jpg", {"quality": 95, "subsampling": 0}, 6),
        ("a.jpeg", {"progressive": True, "quality": 95, "subsampling": 0}, 6),
        ("a.ppm", {}, 0),
        ("a.ico", {"sizes": [(32, 32)]}, 0),
        ("no_extension", {"format": "PNG"}, 0),
    ],
)
def test_formats(tmp_path, name, options, tolerance):
    quarters().save(tmp_path / name, **options)
    image = open_picture(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert all(close(*pair, tolerance) for pair in zip(corners(image), [RED, GREEN, BLUE, WHITE], strict=True))


# Blocks of EXIF as damaged files have them: of no TIFF, cut off, pointing outside, with an orientation of a strange type or value.
BROKEN = {
    "header": b"XX*\0\x08\0\0\0\0\0",
    "empty": b"",
    "short": b"II*\0",
    "noise": bytes(range(7, 71)),
    "outside": b"II*\0\x7f\x96\x98\0",
    "big": b"II+\0\x08\0\0\0\0\0\0\0",
    "count": b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\0",
    "type": b"II*\0\x08\0\0\0\x01\0\x12\x01\x63\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
    "text": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0",
    "value": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so when the test opens such a JPEG
def test_broken_exif_is_ignored(tmp_path, name, extension):
    """By whoever reads the picture, its size, or a PIL picture of it; and servers get a file without it."""
    file = tmp_path / f"a.{extension}"
    quarters().save(file, exif=b"Exif\0\0" + BROKEN[name], **({"lossless": True} if extension == "webp" else {"quality": 95}))
    assert close(open_picture(file).getpixel((2, 2)), RED)
    assert picture_size(io.BytesIO(file.read_bytes()), "a") == (32, 32)
    with Image.open(file) as image:
        assert close(as_rgb(image).getpixel((2, 2)), RED)
    with Image.open(io.BytesIO(encode_picture(file).data)) as image:
        assert close(image.convert("RGB").getpixel((2, 2)), RED)


@pytest.mark.parametrize("tags", [{700: "text"}, {700: 5}, {34675: 5}, {34665: 99_999}, {34853: 1}], ids=str)
def test_broken_tags_of_a_tiff_are_ignored(tmp_path, tags):
    info = ImageFileDirectory_v2()
    for tag, value in tags.items():
        info.tagtype[tag] = 2 if isinstance(value, str) else 4
        info[tag] = value
    quarters().save(tmp_path / "a.tif", tiffinfo=info)
    assert open_picture(tmp_path / "a.tif").getpixel((2, 2)) == RED
    with Image.open(tmp_path / "a.tif") as image:
        assert as_rgb(image).getpixel((2, 2)) == RED
    with Image.open(io.BytesIO(encode_picture(tmp_path / "a.tif").data)) as image:
        assert image.getpixel((2, 2)) == RED


LONG = zlib.compress(bytes(range(256)) * 2**13)  # 2 MiB
TEXTS = {
    "profile": chunk(b"iCCP", b"name\0\0" + LONG),
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + LONG),
    "iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "exif": chunk(b"zTXt", b"Raw profile type exif\0\0" + LONG),
    "many": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b" " * 2**20)) * 66,
    "damaged": chunk(b"zTXt", b"Raw profile type exif\0\0not packed"),
    "bomb": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**26))) * 3,
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", TEXTS)
def test_texts_and_profiles_of_a_png_may_be_large(tmp_path, kind, first):
    file = io.BytesIO()
    quarters().save(file, "PNG")
    data = file.getvalue()
    at = 33 if first else len(data) - 12  # after the header, or after the samples
    (tmp_path / "a.png").write_bytes(data[:at] + TEXTS[kind] + data[at:])
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    assert corners(open_picture(tmp_path / "a.png")) == [RED, GREEN, BLUE, WHITE]
    assert picture_size(io.BytesIO((tmp_path / "a.png").read_bytes()), "a") == (32, 32)
    assert encode_picture(tmp_path / "a.png").mime == "image/png"
    with Image.open(io.BytesIO(encode_picture(tmp_path / "a.png").data)) as image:  # as a server would
        assert corners(image.convert("RGB")) == [RED, GREEN, BLUE, WHITE]
    assert limits == (
        *(PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY),
        *(ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS),
    )


def test_an_orientation_in_a_long_text_holds(tmp_path):
    file = io.BytesIO()
    quarters().transpose(Image.Transpose.ROTATE_90).save(file, "PNG")
    data, xmp = file.getvalue(), b'<d tiff:Orientation="6"/>' + b" " * 2**21
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp))
    (tmp_path / "a.png").write_bytes(data[:33] + text + data[33:])
    assert corners(open_picture(tmp_path / "a.png")) == [RED, GREEN, BLUE, WHITE]


def test_transparency_is_white(tmp_path):
    rgba = Image.new("RGBA", (16, 16), (*RED, 255))
    rgba.paste((*BLUE, 0), (0, 0, 8, 16))
    rgba.putpixel((15, 15), (0, 0, 0, 128))
    for name in ("a.png", "a.tif", "a.webp"):
        rgba.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        image = open_picture(tmp_path / name)
        assert [image.getpixel(p) for p in ((0, 0), (8, 0), (15, 15))] == [WHITE, RED, (127, 127, 127)]

    rgba.convert("LA").save(tmp_path / "la.png")
    image = open_picture(tmp_path / "la.png")
    assert [image.getpixel(p) for p in ((0, 0), (8, 0))] == [WHITE, (76, 76, 76)]


def test_palette(tmp_path):
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([*BLACK, *RED, *GREEN])
    palette.paste(2, (8, 0, 16, 16))
    palette.save(tmp_path / "plain.png")
    assert [open_picture(tmp_path / "plain.png").getpixel(p) for p in ((0, 0), (8, 0))] == [RED, GREEN]
    palette.save(tmp_path / "index.png", transparency=2)
    assert [open_picture(tmp_path / "index.png").getpixel(p) for p in ((0, 0), (8, 0))] == [RED, WHITE]
    palette.save(tmp_path / "alphas.png", transparency=bytes([255, 0, 255]))
    assert [open_picture(tmp_path / "alphas.png").getpixel(p) for p in ((0, 0), (8, 0))] == [WHITE, GREEN]
    palette.save(tmp_path / "index.gif", transparency=1)
    assert [open_picture(tmp_path / "index.gif").getpixel(p) for p in ((0, 0), (8, 0))] == [WHITE, GREEN]


def test_transparent_colour(tmp_path):
    quarters().save(tmp_path / "rgb.png", transparency=RED)
    assert corners(open_picture(tmp_path / "rgb.png")) == [WHITE, GREEN, BLUE, WHITE]
    Image.new("L", (16, 16), 7).save(tmp_path / "gray.png", transparency=7)
    assert open_picture(tmp_path / "gray.png").getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_every_alpha_mode_of_pillow(mode):
    assert as_rgb(Image.new(mode, (9, 9))).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "HSV", "I", "I;16", "I;16B", "I;16L", "F"])
def test_every_opaque_mode_of_pillow(mode):
    image = as_rgb(Image.new(mode, (9, 9)))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", BLACK)


def test_first_frame(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("a.gif", "a.webp", "a.tif", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert close(open_picture(tmp_path / name).getpixel((5, 5)), RED)


def test_cmyk(tmp_path):
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    cmyk.save(tmp_path / "a.tif")
    assert open_picture(tmp_path / "a.tif").getpixel((0, 0)) == RED
    cmyk.save(tmp_path / "a.jpg", quality=95)
    assert close(open_picture(tmp_path / "a.jpg").getpixel((0, 0)), RED)


def test_gray_and_one_bit(tmp_path):
    for name in ("a.png", "a.jpg", "a.bmp", "a.tif", "a.pgm"):
        Image.new("L", (16, 16), 77).save(tmp_path / name)
        assert open_picture(tmp_path / name).getpixel((0, 0)) == (77, 77, 77)
    bits = Image.new("1", (16, 16), 0)
    bits.paste(1, (8, 0, 16, 16))
    for name in ("b.png", "b.bmp", "b.tif", "b.gif", "b.pbm"):
        bits.save(tmp_path / name)
        assert [open_picture(tmp_path / name).getpixel(p) for p in ((0, 0), (8, 0))] == [BLACK, WHITE]


def test_16_bit_gray_is_scaled(tmp_path):
    samples = np.full((16, 16), 32896, np.uint16)  # 128 * 257
    samples[0, :3] = 0, 300, 65535
    for name in ("a.png", "a.tif"):
        Image.fromarray(samples).save(tmp_path / name)
        image = open_picture(tmp_path / name)
        assert [image.getpixel((x, 0))[1] for x in range(4)] == [0, 1, 255, 128]
    Image.fromarray(samples.astype(np.int32)).save(tmp_path / "i.tif")
    assert [open_picture(tmp_path / "i.tif").getpixel((x, 0))[1] for x in range(4)] == [0, 1, 255, 128]


def test_16_bit_png(tmp_path):
    colour = np.broadcast_to(np.array([0x1234, 0x5678, 0x9ABC], np.uint16), (8, 8, 3))
    (tmp_path / "rgb.png").write_bytes(png(2, colour))
    assert open_picture(tmp_path / "rgb.png").getpixel((0, 0)) == (0x12, 0x56, 0x9A)
    (tmp_path / "key.png").write_bytes(png(2, colour, struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)))
    assert open_picture(tmp_path / "key.png").getpixel((0, 0)) == WHITE
    (tmp_path / "gray.png").write_bytes(png(0, colour[:, :, :1], struct.pack(">H", 0x1234)))
    assert open_picture(tmp_path / "gray.png").getpixel((0, 0)) == WHITE


def test_floating_point_tiff(tmp_path):
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for scale in (1, 255, 65535):
        Image.fromarray(ramp * np.float32(scale)).save(tmp_path / "a.tif")
        image = np.asarray(open_picture(tmp_path / "a.tif"))
        np.testing.assert_array_equal(image[:, :, 0], np.rint(ramp.astype(np.float64) * 255))
    ramp[3, 3] = np.nan
    Image.fromarray(ramp).save(tmp_path / "nan.tif")
    with pytest.raises(InputError, match=r"nan\.tif: 1 of 64 samples are not finite"):
        open_picture(tmp_path / "nan.tif")


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1))
def test_wide_integers_are_never_clipped(low, high):
    low, high = sorted((low, high))
    values = np.linspace(low, high, 9).astype(np.int32).reshape(3, 3)
    gray = gray_to_8_bit(values).ravel()
    assert (np.diff(gray.astype(int)) >= 0).all()
    if low < 0 or high > 65535:
        assert gray[0] == 0
        assert gray[-1] == (255 if high > low else 0)


def test_16_bit_scale_is_exact():
    values = np.arange(65536, dtype=np.uint16)[None]
    np.testing.assert_array_equal(gray_to_8_bit(values), (values.astype(int) + 128) // 257)


def test_metadata_does_not_follow(tmp_path):
    quarters().save(tmp_path / "a.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert corners(open_picture(tmp_path / "a.png")) == [RED, GREEN, BLUE, WHITE]


def test_non_picture_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png: there is no such file"):
        open_picture(tmp_path / "gone.png")
    with pytest.raises(InputError, match="a directory, not a picture"):
        open_picture(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match=r"empty\.png: the file is empty"):
        open_picture(tmp_path / "empty.png")
    for text in (b"hello", b"%PDF-1.7\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", np.random.default_rng(0).bytes(4096)):
        (tmp_path / "not.png").write_bytes(text)
        with pytest.raises(InputError, match=r"not\.png: (not a picture|the picture is damaged)"):
            open_picture(tmp_path / "not.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "a.gif", "a.avif", "a.ico", "a.jp2"])
def test_truncated(tmp_path, name):
    """Whatever begins as a picture is told to be damaged."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for kept in (16, 40, len(data) // 20, len(data) // 2, len(data) * 9 // 10):
        (tmp_path / name).write_bytes(data[:kept])
        with pytest.raises(InputError, match=f"{name}: the picture is damaged or cut off"):
            open_picture(tmp_path / name)


def test_heic_is_named(tmp_path):
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(InputError, match=r"IMG_1\.HEIC: HEIC pictures cannot be read \(readable: PNG, .*Convert it to PNG or JPEG"):
        open_picture(tmp_path / "IMG_1.HEIC")


def test_too_large_is_refused_before_decoding(tmp_path):
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    data = zlib.compress(b"\0" * 100)
    chunk += struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError, match=r"large\.png: the picture is 20000 x 20000 pixels, more than the 134,217,728"):
        open_picture(tmp_path / "large.png")
    assert limit == Image.MAX_IMAGE_PIXELS


def test_limits_of_pillow_are_never_touched(tmp_path, monkeypatch):
    """Another thread that opens a picture meanwhile keeps its protection."""
    quarters().save(tmp_path / "a.png")
    found = []
    accept = Image.OPEN["PNG"]
    monkeypatch.setitem(Image.OPEN, "PNG", (lambda *given: (found.append(Image.MAX_IMAGE_PIXELS), accept[0](*given))[1], accept[1]))
    open_picture(tmp_path / "a.png")
    assert found == [Image.MAX_IMAGE_PIXELS] != [None]


def test_larger_than_pillow_likes_is_fine(tmp_path):
    """100 megapixels: Pillow alone would warn, and warnings are errors here."""
    assert pictures.MAX_PIXELS > 10_000**2
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png")
    Image.MAX_IMAGE_PIXELS = limit
    assert open_picture(tmp_path / "a.png").size == (10_000, 10_000)


def test_too_thin_and_too_small(tmp_path):
    for size, message in (((1, 5000), "at least 8"), ((10, 5000), "at most 200 times the shorter, here it is 500"), ((7, 7), "at least 8")):
        Image.new("RGB", size).save(tmp_path / "thin.png")
        with pytest.raises(InputError, match=rf"thin\.png: the picture is {size[0]} x {size[1]} pixels; .*{message}"):
            open_picture(tmp_path / "thin.png")


def test_alpha_is_upright():
    alpha = np.arange(8 * 12, dtype=np.uint8).reshape(8, 12)
    image = Image.fromarray(np.dstack([alpha] * 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    for options, expected in (({}, alpha), ({"exif": exif}, np.rot90(alpha, -1))):
        file = io.BytesIO()
        image.save(file, "PNG", **options)
        file.seek(0)
        np.testing.assert_array_equal(read_alpha(file, "mask"), expected)
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG")
    file.seek(0)
    with pytest.raises(InputError, match=r"mask: the picture has no transparency\. Save it as a PNG with an alpha channel"):
        read_alpha(file, "mask")
