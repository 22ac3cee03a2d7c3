"""Upright is upright once: what a tag turns is edited, sent, stored and trained on as the upright picture, and carries no tag on."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dim_jax.data.example import LazyImage
from dim_jax.datasets.construction.pictures import store
from dim_jax.datasets.layouts.pairs import decode_webp
from dim_jax.designer.picture import encode_picture
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.pictures import ORIENTATION, as_rgb, autoencoder_pixels_uint8, open_picture, picture_size, read_picture
from dim_jax.processing.processor import resize_for_encoder
from dim_jax.session import EditSession
from tests.designer_answers import GOOD
from tests.painter_fixtures import QUICK, QUICKLY, dim, edit, painter, picture
from tests.test_session import Writer

UPRIGHT = picture(48, 32, 3)
# How the upright picture is stored so that the tag undoes it.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),  # shown turned clockwise, so stored turned anticlockwise
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}
LOSSLESS = {"png": {}, "webp": {"lossless": True}, "tif": {}, "lzw.tif": {"compression": "tiff_lzw"}}
LOSSY = {"jpg": {"quality": 95, "subsampling": 0}, "avif": {"quality": 95, "subsampling": "4:4:4"}}


def turned(kind: str, orientation: int, tag: str = "exif") -> bytes:
    """The bytes of a file of the picture that is upright by its tag only: of EXIF, or of XMP, as an attribute or an element."""
    file, options = io.BytesIO(), dict((LOSSLESS | LOSSY)[kind])
    xmp = {"attribute": f'<d tiff:Orientation="{orientation}"/>', "element": f"<tiff:Orientation>{orientation}</tiff:Orientation>"}
    if tag == "exif":
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = orientation
    elif kind == "png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp[tag], zip=tag == "element")
    elif kind.endswith("tif"):
        options["tiffinfo"] = {700: xmp[tag].encode()}
    else:
        options["xmp"] = xmp[tag].encode()
    name = {"jpg": "JPEG", "tif": "TIFF"}.get(kind.rpartition(".")[2], kind.upper())
    Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(UPRIGHT)))).save(file, name, **options)
    return file.getvalue()


def assert_upright(image: Image.Image, kind: str = "png") -> None:
    assert image.size == UPRIGHT.size
    difference = np.abs(np.asarray(image, int) - np.asarray(UPRIGHT, int)).max()
    assert difference <= (0 if kind in LOSSLESS else 12)


@pytest.mark.parametrize("tag", ["exif", "attribute", "element"])
@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied_for_every_input(orientation, kind, tag, tmp_path):
    """Files and PIL pictures: opened, copied, loaded before, converted with their metadata kept; however often it is asked for."""
    data = turned(kind, orientation, tag)
    (tmp_path / "a").write_bytes(data)
    ways = {"file": open_picture(tmp_path / "a"), "bytes": LazyImage("a", lambda: data).picture(), "record": decode_webp(data)}
    with Image.open(tmp_path / "a") as lazy:
        ways["lazy"] = as_rgb(lazy)
        ways["loaded"] = as_rgb(lazy)
        ways["copy"] = as_rgb(lazy.copy())
        ways["converted"] = as_rgb(lazy.convert("RGBA"))
    for image in ways.values():
        assert (image.mode, image.info, dict(image.getexif())) == ("RGB", {}, {})
        assert_upright(image, kind)
        assert as_rgb(image).tobytes() == image.tobytes()
    assert picture_size(io.BytesIO(data), "a") == UPRIGHT.size


@pytest.mark.parametrize("orientation", STORED)
def test_what_the_model_reads(orientation):
    image = read_picture(io.BytesIO(turned("png", orientation)), "a")
    upright = as_rgb(UPRIGHT)
    assert autoencoder_pixels_uint8(image, (32, 32)).tobytes() == autoencoder_pixels_uint8(upright, (32, 32)).tobytes()
    assert resize_for_encoder(image, "native", 56).tobytes() == resize_for_encoder(upright, "native", 56).tobytes()


@pytest.mark.parametrize("orientation", STORED)
def test_what_is_sent_and_stored(orientation, tmp_path):
    """What a server reads without looking at tags; a file that is stored as it is keeps its tag, one that is written anew has none."""
    for kind in ("png", "webp", "tif"):
        data = turned(kind, orientation)
        (tmp_path / f"a.{kind}").write_bytes(data)
        with Image.open(io.BytesIO(encode_picture(tmp_path / f"a.{kind}").data)) as image:
            assert image.getexif().get(ORIENTATION, 1) == 1
            assert_upright(image.convert("RGB"))
        assert_upright(open_picture(tmp_path / store(tmp_path, data, read_picture(io.BytesIO(data), "a"))))


@pytest.mark.parametrize("orientation", [6, 8, 5])
def test_pipelines_and_sessions(orientation):
    data = turned("png", orientation)
    pipeline = EditPipeline(painter())
    (wanted,) = pipeline(["red"], [UPRIGHT], settings=QUICK)
    with Image.open(io.BytesIO(data)) as lazy:
        (found,) = pipeline(["red"], [lazy], settings=QUICK)
    assert found.image.tobytes() == wanted.image.tobytes()
    ours = [EditSession(pipeline, one, settings=QUICK, keep_unchanged=True) for one in (UPRIGHT, Image.open(io.BytesIO(data)))]
    assert len({session.edit("red").image.tobytes() for session in ours}) == 1
    assert len({session.edit("cut").image.tobytes() for session in ours}) == 1
    writer = Writer(GOOD)
    EditSession(pipeline, Image.open(io.BytesIO(data)), settings=replace(QUICK, overflow="keep_last"), designer=writer).edit("red")
    with Image.open(io.BytesIO(writer.asked[0].pictures[0].data)) as image:
        assert_upright(image)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_edit_and_its_sheet(kind, loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    UPRIGHT.save("in.png")
    assert dim(*edit("--sheet", "--keep-unchanged", *QUICKLY, output="wanted.png"))[0] == 0
    for orientation in (3, 6, 8):
        (tmp_path / "in.png").write_bytes(turned(kind, orientation))
        assert dim(*edit("--sheet", "--keep-unchanged", *QUICKLY, "--overwrite", output="found.png"))[0] == 0
        for name in ("{}.png", "{}.sheet.png"):
            with Image.open(name.format("wanted")) as wanted, Image.open(name.format("found")) as found:
                assert wanted.tobytes() == found.tobytes()
                assert "exif" not in found.info
