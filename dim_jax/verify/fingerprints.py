"""Fingerprints of a computation, to compare it elsewhere: a few hundred values of each stage, two of each tensor, and norms."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dim_jax.errors import InputError, input_errors
from dim_jax.weights.arrays import CHUNK, contiguous
from dim_jax.weights.formats import DIM
from dim_jax.weights.table import tensor_mappings, to_hf

FORMAT, VALUES, TENSOR_VALUES = 1, 512, 2
SETTINGS = {"resolution": 1, "num_steps": 1, "guidance_scale": 1.0, "flow_shift": 1.0}  # keys, with a value of their types


@dataclass(frozen=True)
class Fingerprint:
    """Values at fixed random positions (all values if there are at most `limit`), and the norm."""

    shape: tuple[int, ...]
    norm: float
    values: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, limit: int | None = VALUES) -> "Fingerprint":
        """`limit` None keeps all values."""
        flat = x.ravel(order="K")  # in the order of memory, so that a transposed tensor is not copied
        norm = sum(float(np.sum(np.square(flat[i : i + CHUNK], dtype=np.float64))) for i in range(0, flat.size, CHUNK)) ** 0.5
        if limit is None or x.size <= limit:
            return cls(x.shape, norm, x.ravel())
        indices = np.random.RandomState(0).randint(0, x.size, limit)
        return cls(x.shape, norm, x[np.unravel_index(indices, x.shape)])

    def error(self, other: "Fingerprint | np.ndarray") -> float:
        """Relative error of another: the root mean square of the differences, or the difference of the norms if it is larger."""
        if isinstance(other, np.ndarray):
            other = Fingerprint.of(other, len(self.values))
        if self.shape != other.shape or self.values.shape != other.values.shape or not np.isfinite([other.norm, self.norm]).all():
            return float("inf")
        if not self.norm:
            return float("inf") if other.norm else 0.0
        # The sampled values may be far larger than the mean; their rounding is relative to their own size.
        size = max(self.norm / math.prod(self.shape) ** 0.5, _rms(self.values))
        return max(_rms(other.values - self.values.astype(np.float64)) / size, abs(other.norm - self.norm) / self.norm)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads; nine digits hold a float32."""
        return {"shape": list(self.shape), "norm": self.norm, "values": [float(f"{float(value):.9g}") for value in self.values]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Fingerprint":
        return cls(tuple(map(int, data["shape"])), float(data["norm"]), np.array(data["values"], np.float64))


@dataclass
class TensorFingerprints:
    """Collects tensors: a fingerprint of each by its published name, and a digest of all that does not depend on dtype or format."""

    tensors: dict[str, Fingerprint] = field(default_factory=dict)
    _parts: dict[str, str] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, tensor: np.ndarray) -> None:
        """`path` is ours."""
        data: Any = contiguous(tensor, np.dtype(np.float32))
        self._hashes[path] = hashlib.sha256(data).hexdigest()
        for name, part in to_hf(tensor_mappings(DIM.rows, {path: tensor.shape}), {path: tensor}.__getitem__):
            self.tensors[name], self._parts[name] = Fingerprint.of(part, TENSOR_VALUES), path.split(".")[0]

    def differences(self, recorded: Mapping[str, Fingerprint], tolerance: float) -> dict[str, float]:
        """Error of each tensor that differs from the recorded one."""
        errors = {
            name: recorded[name].error(fingerprint) if name in recorded else float("inf") for name, fingerprint in self.tensors.items()
        }
        return {name: error for name, error in errors.items() if not error <= tolerance}

    def parts_of(self, names: Iterable[str]) -> list[str]:
        """The parts that tensors belong to."""
        return sorted({self._parts[name] for name in names})

    @property
    def digest(self) -> str:
        """Of all values as float32."""
        return hashlib.sha256(json.dumps(self._hashes, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Recording:
    """A run on a machine with PyTorch: the settings of the edit, fingerprints of weights and stages, and the versions of the libraries."""

    settings: Mapping[str, Any]
    digest: str
    tensors: Mapping[str, Fingerprint]
    stages: Mapping[str, Fingerprint]
    made_by: str

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        tensors = {name: fingerprint.to_json() for name, fingerprint in sorted(self.tensors.items())}
        stages = {name: fingerprint.to_json() for name, fingerprint in self.stages.items()}
        return {
            "format": FORMAT, "made by": self.made_by, "settings": dict(self.settings), "digest": self.digest, "stages": stages,
            "tensors": tensors,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Any, where: object) -> "Recording":
        """Read what `to_json` returns.

        Raises:
            InputError: it is something else; `where` is for the error.
        """
        with input_errors(
            lambda error: f"{where}: is not a file of `dim verify --record` ({type(error).__name__}: {error}). Record it again.",
            *(KeyError, TypeError, ValueError, AttributeError),
        ):
            if data["format"] != FORMAT:
                raise InputError(f"{where}: fingerprints of format {data['format']}, but this version reads {FORMAT}. Record them again.")
            settings = {key: type(kind)(data["settings"][key]) for key, kind in SETTINGS.items()}
            tensors, stages = (
                {name: Fingerprint.from_json(fingerprint) for name, fingerprint in data[key].items()} for key in ("tensors", "stages")
            )
            return cls(settings, str(data["digest"]), tensors, stages, str(data["made by"]))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
