"""Errors for bad YAML name the line; YAML that is accepted means what it says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ledom.core.errors import InputError
from ledom.core.strict_yaml import parse_yaml, read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_YAML = {
    LAUGHS: "f:4: its aliases (*) expand to over 10000 values",
    "a: 1\nb: &b {<<: *b}": "f:2: an alias (*) contains itself",
    "a: &a [*a]": "f:1: an alias (*) contains itself",
    "a: 1\nb: !!python/object:os.system x": "f:2: the tag tag:yaml.org,2002:python/object:os.sys",
    "a: !mine 3": "f:1: the tag !mine is not allowed",
    "a: " + "[" * 100_000: "f:1: nested more than 64 deep",
    "a:\n" + "".join(" " * i + "b:\n" for i in range(1, 70)): "nested more than 64 deep",
    "a: 1\nb: 2\na: 3": "f:3: key a is already on line 1",
    "a: {b: 1,\n b: 2}": "f:2: key b is already on line 1",
    "1: x": "f:1: the key '1' is not text; put it in quotes",
    "a: 1\nyes: x": "f:2: the key 'yes' is not text",
    "? [a, b]\n: x": "f:1: the key of several values is not text",
    "a: 010": "f:1: the number 010 is not decimal",
    "a: 1:30": "f:1: the number 1:30 is not decimal",
    "a: " + "9" * 5000: "f:1: a number of 5000 digits is too large",
    "a: 2026-13-45": "f: not YAML: month must be in 1..12",
    "a: 1\n---\nb: 2": "f:2: not YAML: but found another document",
    "a: *b": "f:1: not YAML: found undefined alias 'b'",
    "a: \0": "f: not YAML: unacceptable character #x0000",
    "a: x\n" * 300_000: "f: it has 1500000 characters; at most 1048576 are read",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", BAD_YAML, ids=range(len(BAD_YAML)))
def test_the_error_for_bad_yaml_names_the_line_quickly(text: str) -> None:
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "f")
    assert BAD_YAML[text] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 3


def test_good_yaml_may_have_aliases_and_merges() -> None:
    text = "a: &a {x: 1, y: 0.5}\nb: {<<: *a, x: 2}\nc: [*a, 0, 0x10, 1_000, -7]\n"
    first = {"x": 1, "y": 0.5}
    assert parse_yaml(text)[0] == {
        "a": first,
        "b": {"x": 2, "y": 0.5},
        "c": [first, 0, 16, 1000, -7],
    }
    assert parse_yaml("# nothing\n") == (None, None)


def test_yaml_files_must_contain_keys_and_values(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("# nothing\n")
    assert read_yaml(file) == {}
    file.write_text("a: [1]\n")
    assert read_yaml(file) == {"a": [1]}
    for text, kind in (("- a\n", "list"), ("3\n", "int"), ("false\n", "bool")):
        file.write_text(text)
        with pytest.raises(InputError, match=f"f.yaml: expected keys and values, found {kind}"):
            read_yaml(file)
