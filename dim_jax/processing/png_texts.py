"""Texts and colour profiles of PNG files: Pillow refuses large ones, and only an orientation is of use here."""

import struct
import zlib

PNG = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
ORIENTATION_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")  # texts in which Pillow looks for an orientation
MAX_TEXT = 2**23  # bytes of all of these together, decompressed


def strip_png_texts(data: bytes) -> bytes:
    """The bytes of a picture's file; a PNG without its colour profile and texts, which are not used here.

    Pillow refuses a picture if one of them has more than 1 MiB. Texts that may have an orientation stay, decompressed.
    """
    if not data.startswith(PNG):
        return data
    view, offset, budget, chunks = memoryview(data), len(PNG), MAX_TEXT, [memoryview(PNG)]
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        chunk = view[offset : offset + 12 + length]
        offset += len(chunk)
        if kind in PNG_TEXTS:
            chunk = memoryview(_orientation_text(kind, bytes(chunk[8:-4]), budget))
            budget -= len(chunk)
        chunks.append(chunk)
    return b"".join((*chunks, view[offset:]))


def _orientation_text(kind: bytes, body: bytes, budget: int) -> bytes:
    """A text of a PNG that may have an orientation, as an uncompressed chunk of at most about `budget` bytes; else b""."""
    name, _, text = body.partition(b"\0")
    if kind == b"iCCP" or name not in ORIENTATION_TEXTS or budget <= 0:
        return b""
    compressed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    text = {b"tEXt": text, b"zTXt": text[1:], b"iTXt": text[2:].split(b"\0", 2)[-1]}[kind]
    try:
        text = zlib.decompressobj().decompress(text, budget) if compressed else text[:budget]
    except zlib.error:
        return b""
    chunk = b"tEXt" + name + b"\0" + text
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
