"""Results from the JSON objects in reports: the inverse of `formatting.to_json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_json(kind: type[T], data: Any) -> T:
    """Build a result of this type; missing keys get their defaults."""
    return _read(kind, data)  # type: ignore[no-any-return]


def _read(kind: Any, data: Any) -> Any:
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        found = {f.name: f.name.rstrip("_") for f in fields(kind)}
        return kind(**{n: _read(hints[n], data[key]) for n, key in found.items() if key in data})
    if isinstance(data, dict) and get_origin(kind) is Mapping:
        return {key: _read(get_args(kind)[1], item) for key, item in data.items()}
    if isinstance(data, list) and get_origin(kind) is Sequence:
        return [_read(get_args(kind)[0], item) for item in data]
    options = [option for option in get_args(kind) if option is not NoneType]
    return _read(options[0], data) if len(options) == 1 and data is not None else data
