"""Strict reading of YAML: bounded size, no tags, no duplicate keys, no octal, binary or base-60
numbers.

Every rejection is a one-line `InputError` that names the file and the line.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import yaml

from ledom.core.errors import InputError, in_one_line
from ledom.core.reading import DEEPEST, LONGEST_NUMBER, JsonObject, read_text

__all__ = ["parse_yaml", "read_yaml"]

_MOST_CHARACTERS = 1 << 20  # of a YAML text
_MOST_VALUES = 10_000  # of a YAML text, its aliases expanded
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_KEYS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
_OTHER_BASE = re.compile(r"[-+]?(0[\d_]+|0b.*|.*:.*)")  # YAML 1.1 reads 010 as 8 and 1:30 as 90


def read_yaml(path: str | Path) -> JsonObject:
    """Read the YAML mapping in a file (empty for an empty file); raises `InputError`.

    Its values are those of JSON: a date, which YAML also has, becomes text.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = Path(file.name).write_text("steps: 30")
    ...     read_yaml(file.name)
    {'steps': 30}
    """
    data, _ = parse_yaml(read_text(path), path)
    if data is not None and not isinstance(data, dict):
        raise InputError(f"expected keys and values, found {type(data).__name__}", path=path)
    return cast(JsonObject, json.loads(json.dumps(data or {}, default=str)))


def _refused(message: str, mark: Any) -> InputError:
    """An error at one of PyYAML's marks, which may be None."""
    return InputError(message, line=None if mark is None else mark.line + 1)


def parse_yaml(text: str, path: str | Path | None = None) -> tuple[Any, yaml.Node | None]:
    """Parse a YAML text; returns its value, and its tree of nodes with line numbers.

    Raises an `InputError` that names `path` (the text's file) and the line. Also rejected: tags,
    keys that are not text or occur twice, nesting more than 64 deep, octal, binary and sexagesimal
    numbers, and aliases that contain themselves or expand to more than 10,000 values.

    >>> parse_yaml("a: 1")[0]
    {'a': 1}
    """
    try:
        if len(text) > _MOST_CHARACTERS:
            raise InputError(f"it has {len(text)} characters; at most {_MOST_CHARACTERS} are read")
        _check_events(text)
        root = yaml.compose(text, yaml.SafeLoader)
        if root is None:
            return None, None
        _check_node(root, {})
        return yaml.safe_load(text), root
    except InputError as error:
        refused = error
    except yaml.MarkedYAMLError as error:
        refused = _refused(f"not YAML: {error.problem}", error.problem_mark)
    except (yaml.YAMLError, ValueError) as error:  # such as the date 2020-01-45
        refused = InputError(f"not YAML: {in_one_line(error)}")
    raise InputError(refused.reason, path=path, line=refused.line)


def _check_events(text: str) -> None:
    """Reject deep nesting and tags before any node is built."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise _refused(f"nested more than {DEEPEST} deep", event.start_mark)
        if (tag := getattr(event, "tag", None)) is not None:
            raise _refused(f"the tag {tag} is not allowed", event.start_mark)


def _check_node(node: yaml.Node, known: dict[int, int]) -> int:
    """Check a node and everything in it; returns the number of values with aliases expanded.

    `known` has these numbers for checked nodes, and 0 for a node that is being checked.
    """
    if (place := id(node)) in known:
        if not known[place]:
            raise _refused("an alias (*) contains itself", node.start_mark)
        return known[place]
    known[place] = 0
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys([key for key, _ in node.value])
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif node.tag in _NUMBERS:
        if _OTHER_BASE.fullmatch(node.value):
            raise _refused(f"the number {node.value:.40} is not decimal", node.start_mark)
        if len(node.value) > LONGEST_NUMBER:
            raise _refused(f"a number of {len(node.value)} digits is too large", node.start_mark)
    count = 1 + sum(_check_node(part, known) for part in parts)
    if count > _MOST_VALUES:
        raise _refused(f"its aliases (*) expand to over {_MOST_VALUES} values", node.start_mark)
    known[place] = count
    return count


def _check_keys(keys: list[yaml.Node]) -> None:
    """Reject keys that are not text, and duplicate keys (YAML would silently keep the last)."""
    lines: dict[str, int] = {}
    for key in keys:
        if key.tag not in _KEYS:
            shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "of several values"
            raise _refused(f"the key {shown} is not text; put it in quotes", key.start_mark)
        if key.value in lines:
            raise _refused(f"key {key.value} is already on line {lines[key.value]}", key.start_mark)
        lines[key.value] = key.start_mark.line + 1
