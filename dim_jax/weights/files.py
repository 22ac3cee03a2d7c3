"""safetensors files, read and written a tensor at a time.

Headers are read without data. Data of a local file is mapped, so a tensor takes memory only while it is used; in a bucket a tensor is read
by one request.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from dim_jax.checkpoint import TensorInfo
from dim_jax.errors import InputError, check, input_errors, listed
from dim_jax.storage.jsonl import json_loads
from dim_jax.storage.paths import AnyPath, entries, file_size, open_regular, read_errors, read_range
from dim_jax.weights.arrays import contiguous
from dim_jax.weights.lazy import LazyTensors, from_loader

DTypeName = Literal["F32", "BF16", "F16"]
DTYPES: dict[DTypeName, np.dtype] = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
NAMES: dict[np.dtype, DTypeName] = {dtype: name for name, dtype in DTYPES.items()}
INDEX = re.compile(r"\.safetensors\.index(\.[\w-]+)?\.json$")  # index of shards; of a variant .safetensors.index.fp16.json
SHARD = re.compile(r"-\d+-of-\d+(\.[\w-]+)?\.safetensors$")
EXTRA_FILE = "dim_extra.safetensors"  # beside the folders of diffusers: the tensors that they cannot hold
MAX_HEADER = 100_000_000  # bytes; the safetensors library has the same limit
CHUNK = 2**26  # bytes that are copied at once to change the layout
UNFINISHED = (".incomplete", ".aria2", ".crdownload", ".part", ".partial", ".download", ".tmp")  # endings of unfinished downloads
# First bytes of other files that often have these names.
OTHER_FILE_TYPES = (
    (b"version https://git-lfs", "a pointer of git LFS, not the file itself. Fetch it: git lfs pull"),
    (b"<!doctype", page := "a web page. Fetch the file itself: on the hub its address has /resolve/, and gated models need a login"),
    (b"<html", page),
    (b"gguf", "a GGUF file, which is not read. Fetch the safetensors"),
)
MALFORMED = (ValueError, KeyError, TypeError, AttributeError)  # errors of JSON that is not what it should be
PYTORCH_MAGIC = (b"pk\x03\x04", b"\x80\x02", b"\x80\x04")


def check_file_type(path: AnyPath) -> None:
    """Refuse a file that is empty, not fully downloaded, or of another kind than its name says.

    Raises:
        InputError: names the kind; or the file cannot be read.
    """
    if path.with_name(f"{path.name}.aria2").exists():
        raise InputError(f"{path}: its download is not finished ({path.name}.aria2 is beside it). Finish it.")
    # Opened as an ordinary file: a named pipe would wait for a writer for ever.
    with read_errors(path), open_regular(path) if isinstance(path, Path) else path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    check(start, f"{path}: is empty (0 bytes). Fetch it again.")
    for beginning, kind in OTHER_FILE_TYPES:
        check(not start.startswith(beginning), f"{path}: is {kind}.")
    if path.suffix == ".safetensors" and start.startswith(PYTORCH_MAGIC):
        raise InputError(f"{path}: is a file of PyTorch. Name it .pth, or fetch the safetensors.")


def no_weights_error(folder: AnyPath) -> InputError:
    """The error for a folder without weights: says what is there instead, and what to do."""
    names = [path.name for path in entries(folder)]
    if unfinished := [name for name in names if name.endswith(UNFINISHED)]:
        return InputError(f"{folder}: has no checkpoint, but unfinished downloads: {', '.join(unfinished)}. Finish them.")
    content = f"only {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}" if names else "nothing"
    return InputError(f"{folder}: has no checkpoint (*.safetensors), {content}. Fetch it, or save the weights as safetensors.")


def read_text(path: AnyPath) -> str:
    """The text of a JSON file in any encoding that JSON may have.

    Raises:
        InputError: it has another encoding.
    """
    data = path.read_bytes()
    with input_errors(lambda _: f"{path}: is not in UTF-8, UTF-16 or UTF-32. Save it in UTF-8, or fetch it again.", UnicodeDecodeError):
        return data.decode(json.detect_encoding(data))


def _no_duplicates(path: AnyPath):
    def build(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        if twice := sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []:
            raise InputError(f"{path}: names these twice: {listed(twice)}. The file is damaged; fetch it again.")
        return dict(pairs)

    return build


def open_safetensors(path: AnyPath) -> LazyTensors:
    """The tensors of a safetensors file, from its header; their data is not checked for finite values.

    Raises:
        InputError: the file is missing, empty, truncated, damaged, or holds a dtype that is not supported.
    """
    check_file_type(path)
    with read_errors(path), path.open("rb") as file:
        total, length = file_size(path), int.from_bytes(file.read(8), "little")
        if total < 8 or length > MAX_HEADER or 8 + length > total:
            raise InputError(f"{path}: {total} bytes are not a whole safetensors file (its header is larger). Fetch it again.")
        header = file.read(length)
    spans = _spans(path, header)
    start = 8 + length
    expected = start + sum(info.nbytes for info, _ in spans.values())
    if total != expected:
        raise InputError(f"{path}: its header says {expected} bytes, but the file has {total}. It is truncated or damaged; fetch it again.")

    def load(name: str) -> np.ndarray:
        info, offset = spans[name]
        if info.nbytes == 0:
            return np.zeros(info.shape, info.dtype)
        if isinstance(path, Path):
            return np.memmap(path, info.dtype, mode="r", offset=start + offset, shape=info.shape)
        return np.frombuffer(read_range(path, start + offset, info.nbytes), info.dtype).reshape(info.shape)

    return from_loader({name: info for name, (info, _) in spans.items()}, load)


def _spans(path: AnyPath, header: bytes) -> dict[str, tuple[TensorInfo, int]]:
    """Name -> (info, offset into the data) of the tensors in a header, in the order of the data."""
    no_text = f"{path}: its header is not text. This is not a safetensors file, or it is damaged; fetch it again."
    with (
        input_errors(lambda error: f"{path}: its header is damaged ({error}). Fetch the file again.", *MALFORMED),
        input_errors(lambda _: no_text, UnicodeDecodeError),
    ):
        tensors = json_loads(header.decode(), object_pairs_hook=_no_duplicates(path))
        tensors.pop("__metadata__", None)
        unsupported = [f"{name} ({entry['dtype']})" for name, entry in tensors.items() if entry["dtype"] not in DTYPES]
        if unsupported:
            raise InputError(f"{path}: dtypes other than {', '.join(DTYPES)} are not supported: {listed(unsupported)}. Convert them first.")
        spans, end = {}, 0
        for name, entry in sorted(tensors.items(), key=lambda item: tuple(item[1]["data_offsets"])):
            info, (start, stop) = TensorInfo(tuple(entry["shape"]), DTYPES[entry["dtype"]]), entry["data_offsets"]
            check(
                start == end and stop - start == info.nbytes,
                f"{path}: {name} {entry['dtype']} {info.shape} takes {info.nbytes} bytes from {end}, but the header puts it at "
                f"{start} to {stop}. The file is damaged; fetch it again.",
            )
            spans[name], end = (info, start), stop
        return spans


def find_safetensors(folder: AnyPath) -> dict[str, LazyTensors]:
    """The tensors in a folder (not below it) by file: one safetensors file, or the shards that an index names; or no file.

    Raises:
        InputError: an index names a missing shard or disagrees with the shards, a tensor is in two shards, shards have no index, or the
            folder has several checkpoints.
    """
    indices = [path for path in entries(folder) if INDEX.search(path.name)]
    files = [path.name for path in entries(folder, "*.safetensors") if path.name != EXTRA_FILE]
    if not indices:
        if any(SHARD.search(file) for file in files):
            raise InputError(f"{folder}: shards without their index ({files[0]} ...). Put the *.safetensors.index.json beside them.")
        check(len(files) <= 1, f"{folder}: several checkpoints ({', '.join(files)}). Name the file that you mean.")
        return {file: open_safetensors(folder / file) for file in files}
    check(len(indices) <= 1, f"{folder}: several indices ({', '.join(path.name for path in indices)}). Keep the one that you mean.")
    index = indices[0]
    weight_map = _read_index(index)
    names = sorted(set(weight_map.values()))
    if missing := [shard for shard in names if not (folder / shard).is_file()]:
        unfinished = [path.name for path in entries(folder) if path.name.endswith(UNFINISHED)]
        beside = f" (not finished: {', '.join(unfinished)})" if unfinished else ""
        raise InputError(f"{index} names shards that are missing: {listed(missing)}{beside}. Fetch them.")
    if unnamed := [file for file in files if file not in names]:
        raise InputError(f"{index} does not name {listed(unnamed)}. Remove what is not part of this checkpoint.")
    shards = {shard: open_safetensors(folder / shard) for shard in names}
    homes: dict[str, list[str]] = {}
    for shard, tensors in shards.items():
        for name in tensors:
            homes.setdefault(name, []).append(shard)
    problems = [f"{name} is in {' and in '.join(home)}" for name, home in homes.items() if len(home) > 1]
    problems += [
        f"{name} should be in {shard}, it is in {homes.get(name, ['no shard'])[0]}"
        for name, shard in weight_map.items()
        if homes.get(name) != [shard] and len(homes.get(name, ())) < 2
    ]
    problems += [f"{name} in {home[0]} is not in the index" for name, home in homes.items() if name not in weight_map]
    check(not problems, f"{index} and its shards disagree: {listed(problems, '; ')}. Fetch the checkpoint again.")
    return shards


def _read_index(index: AnyPath) -> dict[str, str]:
    """The shard of each tensor."""
    message = f'{index}: is not an index of shards (a JSON object whose "weight_map" has the file of each tensor). Fetch it again.'
    with input_errors(lambda _: message, *MALFORMED):
        weight_map = json_loads(read_text(index), object_pairs_hook=_no_duplicates(index))["weight_map"]
        check(weight_map and all(isinstance(shard, str) for shard in weight_map.values()), message)
    if outside := sorted({shard for shard in weight_map.values() if shard.startswith("/") or ".." in shard.split("/")}):
        raise InputError(f"{index}: names shards outside of its folder: {listed(outside)}. Fetch it again, and put them beside it.")
    return weight_map


class SafetensorsWriter:
    """A safetensors file of these tensors, as a context; `write` puts them in place, in any order. `metadata` goes into its header.

    The space of the file is reserved at once, so a full disk is noticed at the start.

    Raises:
        OSError: the disk is full.
        ValueError: at the end, tensors were never written.
    """

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None):
        self.path, self._spans, self._missing = path, {}, set(tensors)
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        end = 0
        for name, info in sorted(
            tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])
        ):  # larger dtypes first, so that all tensors are aligned
            header[name] = {"dtype": NAMES[info.dtype], "shape": info.shape, "data_offsets": (end, end + info.nbytes)}
            self._spans[name], end = (info, end), end + info.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        self._header = text + b" " * (-len(text) % 8)
        self._start, self._end = 8 + len(self._header), 8 + len(self._header) + end

    def __enter__(self) -> "SafetensorsWriter":
        self._file = self.path.open("wb", buffering=0)
        try:
            self._file.write(len(self._header).to_bytes(8, "little") + self._header)
            os.posix_fallocate(self._file.fileno(), 0, self._end)
        except OSError:
            self._file.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if kind is None and self._missing:
            raise ValueError(f"{self.path}: never written: {', '.join(sorted(self._missing))}")

    def write(self, name: str, tensor: np.ndarray) -> None:
        """Put one tensor in place, cast to its dtype in the file; a changed layout is copied in small chunks.

        Raises:
            ValueError: its shape is not the file's, or it was written before.
        """
        info, offset = self._spans[name]
        if tensor.shape != info.shape or name not in self._missing:
            raise ValueError(f"{name} {tensor.shape}: {self.path} has {info.shape}, once.")
        self._missing.remove(name)
        if info.nbytes == 0:
            return
        self._file.seek(self._start + offset)
        rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
        step = max(1, CHUNK * len(rows) // info.nbytes)
        for i in range(0, len(rows), step):
            chunk = contiguous(rows[i : i + step], info.dtype)
            remaining = chunk.reshape(-1).view(np.uint8).data
            while remaining:
                remaining = remaining[self._file.write(remaining) :]
