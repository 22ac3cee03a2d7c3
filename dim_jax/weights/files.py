"""safetensors files, read and written a tensor at a time.

Headers come first and no data is read for them; the data is mapped, so that a tensor costs memory only while it is used. The writer
lays a file out as the library's own `save_file` does, or exactly as a header that it is given.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np

from dim_jax.errors import InputError
from dim_jax.paths import AnyPath, entries, read_span, size_of
from dim_jax.weights.arrays import contiguous

DTYPES: dict[str, np.dtype] = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
NAMES: dict[np.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}  # in the order in which the library writes them
INDEX = ".safetensors.index.json"  # ending of the file that says in which shard a tensor is; a variant's is .safetensors.index.fp16.json
SHARD = re.compile(r"-\d+-of-\d+(\.[\w-]+)?\.safetensors$")
MAX_HEADER = 100_000_000  # bytes; the library reads no larger one
CHUNK = 2**26  # bytes that are copied at once to change a layout
UNFINISHED = (".incomplete", ".aria2", ".crdownload", ".part", ".partial", ".download", ".tmp")  # endings that programs give to downloads
# How files begin that often have the names of others, and what they are.
OTHERS = (
    (b"version https://git-lfs", "a pointer of git LFS, not the file itself. Fetch it: git lfs pull"),
    (b"<!doctype", page := "a web page. Fetch the file itself: on the hub its address has /resolve/, and gated models need a login"),
    (b"<html", page),
    (b"gguf", "a GGUF file, which is not read. Fetch the safetensors"),
)
PYTORCH = (b"pk\x03\x04", b"\x80\x02", b"\x80\x04")


class Info(NamedTuple):
    """What a header says about a tensor; `dtype` is a key of DTYPES."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return self.size * DTYPES[self.dtype].itemsize


def check_beginning(path: AnyPath) -> None:
    """Refuse a file that is empty, still being fetched, or of another kind than its name says.

    Raises:
        InputError: naming the kind; or the file cannot be read.
    """
    if path.with_name(f"{path.name}.aria2").exists():
        raise InputError(f"{path}: its download is not finished ({path.name}.aria2 is beside it). Finish it.")
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if not start:
        raise InputError(f"{path}: is empty (0 bytes). Fetch it again.")
    for beginning, kind in OTHERS:
        if start.startswith(beginning):
            raise InputError(f"{path}: is {kind}.")
    if path.suffix == ".safetensors" and start.startswith(PYTORCH):
        raise InputError(f"{path}: is a file of PyTorch. Name it .pth, or fetch the safetensors.")


def no_weights(folder: AnyPath) -> InputError:
    """The error of a folder that should hold weights: what lies there instead, and what to do."""
    names = [path.name for path in entries(folder)]
    if unfinished := [name for name in names if name.endswith(UNFINISHED)]:
        return InputError(f"{folder}: no checkpoint in it, but downloads that are not finished: {', '.join(unfinished)}. Finish them.")
    there = f"only {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}" if names else "nothing"
    return InputError(f"{folder}: no checkpoint in it (*.safetensors), {there}. Fetch it, or save the weights as safetensors.")


def is_index(file: str) -> bool:
    """Whether a file of this name says in which shard a tensor is."""
    return re.search(r"\.safetensors\.index(\.[\w-]+)?\.json$", file) is not None


def read_text(path: AnyPath) -> str:
    """The text of a JSON file in any encoding that JSON may have.

    Raises:
        InputError: it has another one.
    """
    data = path.read_bytes()
    try:
        return data.decode(json.detect_encoding(data).removesuffix("-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not in UTF-8, UTF-16 or UTF-32 ({error.reason}). Save it in UTF-8, or fetch it again.") from error


class TensorFile(Protocol):
    """A file of named tensors: their headers, and each one's data when it is asked for."""

    path: AnyPath
    header: str | None  # the text of its header, where the format has one
    tensors: dict[str, Info]

    def read(self, name: str) -> np.ndarray:
        """One tensor, mapped from the file."""
        ...


def _no_duplicates(path: AnyPath):
    def build(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        if twice := sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []:
            raise InputError(f"{path}: it names these twice: {', '.join(twice)}. The file is damaged; fetch it again.")
        return dict(pairs)

    return build


def _spans(path: AnyPath, entries: Mapping[str, Mapping]) -> dict[str, tuple[Info, int]]:
    """Name -> (info, offset into the data) of a parsed header, in the order of the data.

    Raises:
        InputError: unsupported dtypes (all of them named), or spans that overlap or leave gaps.
    """
    unsupported = [f"{name} ({entry['dtype']})" for name, entry in entries.items() if entry["dtype"] not in DTYPES]
    if unsupported:
        raise InputError(f"{path}: dtypes other than {', '.join(DTYPES)} are not supported: {', '.join(unsupported)}. Convert them first.")
    spans, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        info, (start, stop) = Info(entry["dtype"], tuple(entry["shape"])), entry["data_offsets"]
        if start != end or stop - start != info.nbytes:
            raise InputError(
                f"{path}: {name} {info.dtype} {info.shape} takes {info.nbytes} bytes from {end}, but the header puts it at "
                f"{start} to {stop}. The file is damaged; fetch it again."
            )
        spans[name], end = (info, start), stop
    return spans


def parse_header(path: AnyPath, text: str) -> tuple[dict[str, tuple[Info, int]], dict[str, str] | None]:
    """The tensors of a header (name -> info and offset) in the order of the data, and its metadata.

    Raises:
        InputError: the text is no header of a safetensors file; `path` names it.
    """
    try:
        entries = json.loads(text, object_pairs_hook=_no_duplicates(path))
        metadata = entries.pop("__metadata__", None)
        return _spans(path, entries), metadata
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its header is damaged ({error}). Fetch the file again.") from error


class SafetensorsFile:
    """A safetensors file: `tensors` from its header, `read(name)` maps one, or reads its span of a file in a bucket.

    Raises:
        InputError: the file is missing, empty, truncated, damaged, or holds a dtype that is not supported.
    """

    def __init__(self, path: AnyPath):
        self.path = path
        check_beginning(path)
        try:
            total = size_of(path)
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if total < 8 or length > MAX_HEADER or 8 + length > total:
                    raise InputError(f"{path}: {total} bytes are no whole safetensors file (its header does not fit). Fetch it again.")
                text = file.read(length)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
        try:
            self.header: str | None = text.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: its header is no text. This is no safetensors file, or it is damaged; fetch it again.") from error
        self._spans, _ = parse_header(path, self.header)
        self.tensors = {name: info for name, (info, _) in self._spans.items()}
        self._start = 8 + length
        expected = self._start + sum(info.nbytes for info in self.tensors.values())
        if total != expected:
            raise InputError(
                f"{path}: its header announces {expected} bytes, the file has {total}. It is truncated or damaged; fetch it again."
            )

    def read(self, name: str) -> np.ndarray:
        """One tensor, mapped from the file or read from the bucket (read-only); not checked for finite values."""
        info, offset = self._spans[name]
        if info.nbytes == 0:
            return np.zeros(info.shape, DTYPES[info.dtype])
        if isinstance(self.path, Path):
            return np.memmap(self.path, DTYPES[info.dtype], mode="r", offset=self._start + offset, shape=info.shape)
        found = read_span(self.path, self._start + offset, info.nbytes)
        return np.frombuffer(found, DTYPES[info.dtype]).reshape(info.shape)


class ShardedFiles(NamedTuple):
    """Files that hold the tensors of one checkpoint together, and the text of the index beside them (name and content)."""

    files: tuple[TensorFile, ...]
    index: tuple[str, str] | None = None


def find_safetensors(folder: AnyPath) -> ShardedFiles | None:
    """The tensors in a folder (not below it): one safetensors file, or the shards that an index names; None if there are none.

    Raises:
        InputError: an index names a missing shard or disagrees with the shards, a tensor stands in two shards, shards have no index, or
            the folder holds several checkpoints.
    """
    indices = [path for path in entries(folder) if is_index(path.name)]
    singles = [path for path in entries(folder, "*.safetensors") if path.name != "dim_extra.safetensors"]
    if not indices:
        if not singles:
            return None
        if any(SHARD.search(path.name) for path in singles):
            raise InputError(f"{folder}: shards without their index ({singles[0].name} ...). Put the *.safetensors.index.json beside them.")
        if len(singles) > 1:
            raise InputError(f"{folder}: several checkpoints ({', '.join(path.name for path in singles)}). Name the file that you mean.")
        return ShardedFiles((SafetensorsFile(singles[0]),))
    if len(indices) > 1:
        raise InputError(f"{folder}: several indices ({', '.join(path.name for path in indices)}). Keep the one that you mean.")
    index = indices[0]
    text, weight_map = _read_index(index)
    shards = sorted(set(weight_map.values()))
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        unfinished = [path.name for path in entries(folder) if path.name.endswith(UNFINISHED)]
        beside = f" (not finished: {', '.join(unfinished)})" if unfinished else ""
        raise InputError(f"{index} names shards that are missing: {', '.join(missing)}{beside}. Fetch them.")
    if extra := [path.name for path in singles if path.name not in shards]:
        raise InputError(f"{index} does not name {', '.join(extra)}. Remove what is not part of this checkpoint.")
    files = tuple(SafetensorsFile(folder / shard) for shard in shards)
    homes: dict[str, list[str]] = {}
    for shard, file in zip(shards, files, strict=True):
        for name in file.tensors:
            homes.setdefault(name, []).append(shard)
    wrong = [f"{name} is in {' and in '.join(home)}" for name, home in homes.items() if len(home) > 1]
    wrong += [
        f"{name} should be in {shard}, it is in {homes.get(name, ['no shard'])[0]}"
        for name, shard in weight_map.items()
        if homes.get(name) != [shard] and len(homes.get(name, ())) < 2
    ]
    wrong += [f"{name} in {home[0]} is not in the index" for name, home in homes.items() if name not in weight_map]
    if wrong:
        raise InputError(f"{index} and its shards disagree: {'; '.join(wrong)}. Fetch the checkpoint again.")
    return ShardedFiles(files, (index.name, text))


def _read_index(index: AnyPath) -> tuple[str, dict[str, str]]:
    """The text of an index, and the shard of each tensor.

    Raises:
        InputError: it is damaged, or names shards outside its folder.
    """
    try:
        text = read_text(index)
        weight_map = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_no_duplicates(index))["weight_map"]
        if not weight_map or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise TypeError
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f'{index}: no index of shards (a JSON object whose "weight_map" has the file of each tensor is expected). Fetch it again.'
        ) from error
    if outside := sorted({shard for shard in weight_map.values() if shard.startswith("/") or ".." in shard.split("/")}):
        raise InputError(f"{index}: names shards outside of its folder: {', '.join(outside)}. Fetch it again, and put them beside it.")
    return text, weight_map


def make_header(tensors: Mapping[str, Info], metadata: Mapping[str, str] | None) -> str:
    """The header that `safetensors.numpy.save_file` writes: wide dtypes first, then by name."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    order, end = list(DTYPES), 0
    for name, info in sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0].encode())):
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [end, end + info.nbytes]}
        end += info.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False)
    return text + " " * (-len(text.encode()) % 8)


def index_of(shards: Mapping[str, Mapping[str, Info]]) -> str:
    """The text of the index beside these shards (file -> its tensors), as transformers writes it."""
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    total = sum(total_bytes(tensors.values()) for tensors in shards.values())
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2) + "\n"


class SafetensorsWriter:
    """A safetensors file with the given header, as a context; `write` puts its tensors in place, in any order.

    The whole file is reserved at once, so that a full disk is noticed before hours of work.

    Raises:
        OSError: the disk is full.
        ValueError: at the end, tensors were never written.
    """

    def __init__(self, path: Path, header: str):
        self.path = path
        self._spans, _ = parse_header(path, header)
        self._missing = set(self._spans)
        self._header = header.encode()
        self._start = 8 + len(self._header)

    def __enter__(self) -> "SafetensorsWriter":
        self._file = self.path.open("wb", buffering=0)
        try:
            self._file.write(len(self._header).to_bytes(8, "little") + self._header)
            os.posix_fallocate(self._file.fileno(), 0, self._start + sum(info.nbytes for info, _ in self._spans.values()))
        except OSError:
            self._file.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if kind is None and self._missing:
            raise ValueError(f"{self.path}: never written: {', '.join(sorted(self._missing))}")

    def write(self, name: str, tensor: np.ndarray) -> None:
        """Put one tensor in place, cast to the header's dtype; a changed layout is copied in small pieces.

        Raises:
            ValueError: its shape is not the header's, or it was written before.
        """
        info, offset = self._spans[name]
        if tensor.shape != info.shape or name not in self._missing:
            raise ValueError(f"{name} {tensor.shape}: the header of {self.path} has {info.shape}, once.")
        self._missing.remove(name)
        if info.nbytes == 0:
            return
        self._file.seek(self._start + offset)
        rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
        step = max(1, CHUNK * len(rows) // info.nbytes)
        for i in range(0, len(rows), step):
            piece = contiguous(rows[i : i + step], DTYPES[info.dtype])
            left = piece.reshape(-1).view(np.uint8).data
            while left:
                left = left[self._file.write(left) :]


def total_bytes(tensors: Iterable[Info]) -> int:
    """Bytes of the data of these tensors."""
    return sum(info.nbytes for info in tensors)
