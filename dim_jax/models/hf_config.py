"""Reads the JSON configs of Hugging Face libraries; every error names the file and the key."""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dim_jax.errors import InputError, check, prefix_errors
from dim_jax.storage.paths import AnyPath, as_path, read_json

Source = str | AnyPath | Mapping[str, Any]


class HFConfig:
    """The values of one JSON file (or of a mapping) by key. A null counts as a missing key, as it does in transformers."""

    def __init__(self, source: Source, name: str = "config"):
        self.name = name if isinstance(source, Mapping) else str(source)
        values = source if isinstance(source, Mapping) else read_json(as_path(source))
        check(isinstance(values, Mapping), f"{self.name} is not a JSON object.")
        self.values = {key: value for key, value in values.items() if value is not None}

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def child(self, key: str) -> "HFConfig":
        """The mapping under `key`; an empty one where the key is missing."""
        value = self.values.get(key, {})
        check(isinstance(value, Mapping), f"{self.name}: {key} is {value!r}, expected an object.")
        return HFConfig(value, f"{self.name}: {key}")

    def get(self, key: str, kind: Any, default: Any = MISSING) -> Any:
        """The value of `key` as `kind`, a type. Nothing is converted, but an integer is a float as well and a list a tuple.

        Raises:
            InputError: the key is missing and has no default, or its value is of another kind, or not finite.
        """
        if key not in self:
            if default is MISSING:
                raise InputError(f"{self.name}: the key '{key}' is missing.")
            return default
        value = self.values[key]
        if isinstance(value, float) and not math.isfinite(value):  # Python's JSON has NaN and Infinity
            raise InputError(f"{self.name}: {key} is {value}. Give a finite number.")
        try:
            return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            raise InputError(f"{self.name}: {key} is {value!r}. {error.errors()[0]['msg']}.") from error

    def only(self, key: str, *allowed: Any) -> None:
        """Check that a key is missing or has one of the `allowed` values, as in the published models.

        Raises:
            InputError: it has another value.
        """
        if key in self and self.values[key] not in allowed:
            raise InputError(f"{self.name}: {key} is {self.values[key]!r}, but only {' or '.join(map(repr, allowed))} is supported.")

    def build(self, cls: Any, **given: Any) -> Any:
        """The dataclass `cls` from the keys named like its fields, and from `given`; a field without a default is required.

        Raises:
            InputError: a key is missing or wrong, or the values contradict each other.
        """
        read = {field.name: self.get(field.name, field.type, field.default) for field in fields(cls) if field.name not in given}
        with prefix_errors(self.name):
            return cls(**read, **given)
