"""Strict reading of user input: regular files, JSON of bounded depth, settings with known keys.

No value is silently taken for another. Every rejection is a one-line `InputError`. YAML is read by
`ledom.core.strict_yaml`. This module does not know about records or recipes.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Never, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from ledom.core.errors import CheckpointError, InputError

__all__ = [
    "DEEPEST",
    "LONGEST_NUMBER",
    "Config",
    "JsonObject",
    "as_type",
    "check_counts",
    "check_regular",
    "check_surrogates",
    "exists",
    "first_problem",
    "is_number",
    "not_utf8",
    "parse_json",
    "read_json",
    "read_json_object",
    "read_jsonl",
    "read_text",
    "require",
]

T = TypeVar("T")

JsonObject = dict[str, Any]
"""A JSON object as read from a file or to be written to one, with any keys."""

DEEPEST = 64
"""The deepest nesting of lists and objects; a recursive parser would fail at about 1000."""
LONGEST_NUMBER = 309
"""The maximum number of digits in an integer: that of the largest float."""

_LARGEST = 2**63 - 1  # the largest integer in torch and numpy
_FORMATS = {  # what a file is, and the remedy, by its first bytes
    b"\x1f\x8b": "it is compressed with gzip; unpack it first",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd; unpack it first",
    b"BZh": "it is compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "it is compressed with xz; unpack it first",
    b"PK\x03\x04": "it is a zip archive; unpack it first",
    b"PAR1": "it is a Parquet file; convert it to JSON Lines",
    b"\xff\xfe": "it is UTF-16; save it as UTF-8",
    b"\xfe\xff": "it is UTF-16; save it as UTF-8",
}
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def exists(path: str | Path) -> bool:
    """Whether a path exists, even as a broken link; `InputError` if this user may not find out."""
    try:
        return bool(os.lstat(path))
    except PermissionError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from None
    except (OSError, ValueError):
        return False


def check_regular(path: str | Path) -> None:
    """Raise `InputError` unless this is a readable file; a pipe may block, a device never end.

    >>> check_regular("/dev")
    Traceback (most recent call last):
    ledom.core.errors.InputError: /dev: this is a directory, expected a file
    """
    try:
        status = os.stat(path)
        start = b""
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                start = file.read(200)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise InputError("no such file", path=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError("this is a directory, expected a file", path=path)
    if not stat.S_ISREG(status.st_mode):
        raise InputError("this is a pipe or a device; write its contents to a file", path=path)
    if status.st_size < 200 and start.startswith(b"version https://git-lfs"):
        raise InputError("this is Git LFS's pointer to the file; run 'git lfs pull'", path=path)


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file, without a byte-order mark; raises `InputError`.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = Path(file.name).write_text("café", encoding="latin-1")
    ...     read_text(file.name)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: ...: not UTF-8 text: 'utf-8' codec can't decode byte 0xe9 ...
    """
    check_regular(path)
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(not_utf8(error), path=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """Why bytes are not text; a known format is named."""
    formats = (what for start, what in _FORMATS.items() if error.object.startswith(start))
    return f"not UTF-8 text: {next(formats, error)}"


def read_json(path: str | Path, non_finite: bool = False) -> JsonObject:
    """Read the JSON object in a file; raises an `InputError` that names it. See `parse_json`.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = Path(file.name).write_text('{"a": 1, "a": 2}')
    ...     read_json(file.name)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: ...: key 'a' occurs twice in one object
    """
    text = read_text(path)
    try:
        return parse_json(text.encode(), non_finite)
    except InputError as error:
        raise InputError(str(error), path=path) from None


def read_jsonl(path: str | Path, unfinished: bool = False) -> Iterator[tuple[int, JsonObject]]:
    """Read the objects in a JSONL file, with line numbers from 1; blank lines are skipped.

    In an `unfinished` file, to which a program appends, a last line without a newline is skipped (a
    kill or a full disk truncated it), and a blank line is an error. Raises an `InputError` that
    names the file and the line.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = Path(file.name).write_bytes(b'{"a": 1}%c%c{"a": 2}' % (10, 10))
    ...     list(read_jsonl(file.name))
    [(1, {'a': 1}), (3, {'a': 2})]
    """
    check_regular(path)
    try:
        with Path(path).open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                line = line.removeprefix(BOM_UTF8) if number == 1 else line
                if unfinished and not line.endswith(b"\n"):
                    return
                if not unfinished and not line.strip():
                    continue
                try:
                    data = parse_json(line)
                except InputError as error:
                    is_clear = number > 1 or "UTF-8" in error.reason or line.rstrip().endswith(b"}")
                    hint = "" if is_clear else "; write one JSON object on each line"
                    raise InputError(f"{error.reason}{hint}", path=path, line=number) from None
                yield number, data
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from None


def as_type(data: JsonObject, kind: type[T], path: str | Path | None = None) -> T:
    """Build a dataclass of type `kind` from a JSON or YAML object.

    Values must have the fields' types and are not converted; unknown keys are ignored. Raises an
    `InputError` that names the file, the key and the value.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Point:
    ...     x: float
    >>> as_type({"x": 2, "color": "red"}, Point)
    Point(x=2.0)
    >>> as_type({"x": "2"}, Point)
    Traceback (most recent call last):
    ledom.core.errors.InputError: key x: Input should be a valid number, found '2'
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise InputError(first_problem(error), path=path) from None


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's errors in one line: the key, the rule and the value.

    >>> class Speed(Config):
    ...     rate: float = 1.0
    >>> try:
    ...     Speed(rate="fast")
    ... except ValidationError as error:
    ...     print(first_problem(error))
    key rate: Input should be a valid number, unable to parse string as a number, found 'fast'
    """
    first = error.errors()[0]
    key = f"key {'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"unknown {key.rstrip(': ')}"
    found = "" if first["type"] == "missing" else f", found {first['input']!r:.60}"
    is_unquoted = first["type"] == "string_type" and isinstance(first["input"], int | float)
    message = first["msg"].removeprefix("Value error, ")  # pydantic's prefix to our own
    return f"{key}{message}{found}{'; put it in quotes' if is_unquoted else ''}"


def parse_json(text: bytes, non_finite: bool = False) -> JsonObject:
    """Parse a JSON object; raises an `InputError` without file and line.

    Also rejected: NaN, infinities and numbers outside a float's range (unless `non_finite`),
    duplicate keys, half a surrogate pair, and nesting more than 64 deep.

    >>> parse_json(b'{"a": NaN}')
    Traceback (most recent call last):
    ledom.core.errors.InputError: not JSON: NaN is not a number
    """
    try:
        data = json.loads(
            text.decode("utf-8"),
            parse_constant=float if non_finite else _refuse_constant,
            parse_int=_integer,
            parse_float=float if non_finite else _float,
            object_pairs_hook=_object,
        )
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(not_utf8(error)) from None
    except RecursionError:
        raise InputError(f"nested more than {DEEPEST} deep") from None
    except ValueError as error:
        hint = "; end its lines with LF, not CR alone" if b"\r" in text.strip() else ""
        raise InputError(f"not JSON: {error}{hint}") from None
    if not isinstance(data, dict):
        raise InputError(f"expected a JSON object, found {type(data).__name__}")
    _check_depth(text, data)
    if _ESCAPED_SURROGATE.search(text):
        for key, value in data.items():
            check_surrogates(json.dumps({key: value}, ensure_ascii=False), f"key {key!r}:")
    return data


def _refuse_constant(name: str) -> Never:
    """Reject NaN and Infinity: Python parses them, but they are neither JSON nor valid scores."""
    raise InputError(f"not JSON: {name} is not a number")


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise InputError(f"a number of {len(digits)} digits ({digits:.12}...) is too large")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise InputError(f"the number {digits:.40} is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    made = dict(pairs)
    if len(made) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise InputError(f"key {twice!r} occurs twice in one object")
    return made


def _check_depth(text: bytes, data: Any) -> None:
    if text.count(b"[") + text.count(b"{") <= DEEPEST:
        return
    level = [data]
    for _ in range(DEEPEST):
        inside = chain(*(group.values() if isinstance(group, dict) else group for group in level))
        level = [part for part in inside if isinstance(part, dict | list)]
    if level:
        raise InputError(f"nested more than {DEEPEST} deep")


def check_surrogates(text: str, what: str = "the text") -> str:
    r"""Return the text; raises `InputError` for half a surrogate pair, which UTF-8 cannot encode.

    `what` names the text in the message.

    >>> check_surrogates("5 \ud83d")
    Traceback (most recent call last):
    ledom.core.errors.InputError: the text '5 \ud83d' holds one half of a surrogate pair; remove it
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        part = text[max(0, error.start - 20) : error.start + 20]
        raise InputError(f"{what} {part!r} holds one half of a surrogate pair; remove it") from None
    return text


def read_json_object(file: Path) -> JsonObject:
    """Read the object in a JSON file of a model folder; raises `CheckpointError`.

    >>> read_json_object(Path("no-model/config.json"))
    Traceback (most recent call last):
    ledom.core.errors.CheckpointError: no-model/config.json: no such file
    """
    try:
        return read_json(file, non_finite=True)  # some models contain NaN and infinities
    except InputError as error:
        raise CheckpointError(str(error)) from None


def require(checks: Mapping[str, bool]) -> None:
    """Raise `InputError` with the first message whose condition is false.

    >>> top_p = 2
    >>> require({f"top_p is {top_p}; it must lie in (0, 1]": 0 < top_p <= 1})
    Traceback (most recent call last):
    ledom.core.errors.InputError: top_p is 2; it must lie in (0, 1]
    """
    for message, holds in checks.items():
        if not holds:
            raise InputError(message)


def check_counts(least: int = 0, /, **counts: Any) -> None:
    """Raise `InputError` for a count that is not a whole number or is below `least`.

    >>> check_counts(1, rows=0)
    Traceback (most recent call last):
    ledom.core.errors.InputError: rows is 0; it must be at least 1
    """
    for name, count in counts.items():
        is_whole = is_number(count) and isinstance(count, Integral)
        what = f"at least {least}" if is_whole else "a whole number"
        require({f"{name} is {count!r}; it must be {what}": is_whole and count >= least})


def is_number(value: Any) -> bool:
    """Whether a value is one real number, such as Python's, numpy's, a Fraction or a Decimal.

    >>> is_number(0.5), is_number("0.5"), is_number(True)
    (True, False, False)
    """
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


class Config(BaseModel):
    """The base class of a recipe's parts; an unknown key is an error, never silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(f"a number beyond {_LARGEST}")
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("expected a number or text, got true or false")  # true would be 1
        return value

    @classmethod
    def of(cls, given: Mapping[str, Any], what: str) -> Self:
        """Read settings from a mapping; raises an `InputError` that lists the known keys.

        >>> class Speed(Config):
        ...     rate: float = 1.0
        >>> Speed.of({"rat": 2}, "the speed")
        Traceback (most recent call last):
        ledom.core.errors.InputError: the speed: unknown key rat; the keys are rate
        """
        try:
            return cls(**given)
        except ValidationError as error:
            known = ", ".join(field.alias or name for name, field in cls.model_fields.items())
            raise InputError(f"{what}: {first_problem(error)}; the keys are {known}") from None
