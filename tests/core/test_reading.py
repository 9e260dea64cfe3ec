"""JSON, YAML and files that would hang, crash or be silently misread: one line each."""

from __future__ import annotations

import gzip
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import ledom
from ledom.core import reading
from ledom.core.errors import InputError
from ledom.core.reading import (
    as_type,
    check_regular,
    exists,
    parse_json,
    read_json,
    read_jsonl,
    read_text,
)

SOURCE = Path(ledom.__file__).parent
OTHER_READERS = re.compile(
    r"json\.loads?\((?!json\.dumps)|\.validate_json\(|yaml\.\w*load\w*\(|\.model_validate_json\("
)

BAD_JSON = {
    b'{"a": ' * 3000 + b"1" + b"}" * 3000: "nested more than 64 deep",
    b'{"a": ' * 65 + b"1" + b"}" * 65: "nested more than 64 deep",
    b'{"a": ' + b"[" * 100_000: "nested more than 64 deep",
    b'{"a": ' + b"1" * 5000 + b"}": "a number of 5000 digits (111111111111...) is too large",
    b'{"a": 1e999}': "the number 1e999 is too large",
    b'{"a": [-1E+400]}': "the number -1E+400 is too large",
    b'{"a": NaN}': "NaN is not a number",
    b'{"a": -Infinity}': "-Infinity is not a number",
    b'{"a": 1, "b": {"c": 1, "c": 2}}': "key 'c' occurs twice in one object",
    b'{"a": "\\ud83d"}': "key 'a': '{\"a\": \"\\ud83d\"}' holds one half of a surrogate pair",
    b'{"a": {"\\udc00": 1}}': "key 'a': '{\"a\": {\"\\udc00\": 1}}' holds one half of a surrogate",
    b'{"a": 1}\r{"a": 2}': "end its lines with LF, not CR alone",
    b'{"a": "\0"}': "not JSON: Invalid control character",
    b'\xff\xfe{\0"\0': "not UTF-8 text",
    b"[1]": "expected a JSON object, found list",
    b"": "not JSON: ",
}


@pytest.mark.parametrize("text", BAD_JSON, ids=range(len(BAD_JSON)))
def test_bad_json_gives_one_line_quickly(text: bytes) -> None:
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        parse_json(text)
    assert BAD_JSON[text] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert time.process_time() - started < 1


def test_good_json_is_read_as_python_reads_it() -> None:
    row = {
        "pair": "\U0001f34e",
        "number": 1.5e300,
        "large": 10**308,
        "deep": json.loads("[" * 63 + "]" * 63),
        "wide": [[i] for i in range(100)],
        "zero": "\0",
    }
    assert parse_json(json.dumps(row).encode()) == row  # the apple as a surrogate pair
    assert parse_json(json.dumps(row, ensure_ascii=False).encode()) == row


@pytest.mark.parametrize("text", ['[{"a": 1}]', '{\n "a": 1\n}', "a,b\n1,2"])
def test_the_error_for_a_non_jsonl_file_says_what_lines_contain(tmp_path: Path, text: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=r"p.jsonl:1: .*; write one JSON object on each line$"):
        list(read_jsonl(file))
    file.write_text('{"a": NaN}')
    with pytest.raises(InputError, match=r"p.jsonl:1: not JSON: NaN is not a number$"):
        list(read_jsonl(file))
    file.write_text('{"a": 1}\n' + text)
    with pytest.raises(InputError, match=r"p.jsonl:2: (not JSON: [^;]*|expected [^;]*)$"):
        list(read_jsonl(file))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "lost").symlink_to(tmp_path / "nothing")
    oid = "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    (tmp_path / "lfs").write_text(
        f"version https://git-lfs.github.com/spec/v1\n{oid}\nsize 12345\n"
    )
    places = {
        tmp_path / "pipe": "this is a pipe or a device",
        Path("/dev/zero"): "this is a pipe or a device",
        tmp_path: "this is a directory",
        tmp_path / "lfs": "this is Git LFS's pointer to the file; run 'git lfs pull'",
        tmp_path / "loop": "cannot be read: Too many levels of symbolic links",
        tmp_path / "lost": "no such file",
        tmp_path / "none" / "x": "no such file",
        Path("a\0b"): "no such file",
        tmp_path / ("x" * 5000): "cannot be read: File name too long",
    }
    for place, message in places.items():
        with pytest.raises(InputError) as caught:
            check_regular(place)
        assert str(caught.value).startswith(f"{place}: {message}")
    assert not exists("a\0b")
    assert not exists("x" * 5000)
    assert exists(tmp_path)
    assert exists(tmp_path / "lost")


def test_what_this_user_may_not_read_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, who can read everything."""

    def refuse(path: str | Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    file = tmp_path / "theirs"
    file.write_text("a text")
    monkeypatch.setattr(os, "lstat", refuse)  # a folder that only others may enter
    monkeypatch.setattr(reading, "open", refuse, raising=False)
    for check in (exists, check_regular):
        with pytest.raises(InputError, match=f"^{re.escape(str(file))}: cannot be read: Perm"):
            check(file)


def test_errors_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(file) == {"a": 1}
    file.write_bytes(b'{"a": 1')
    with pytest.raises(InputError, match=r"f\.json: not JSON: Expecting"):
        read_json(file)
    file.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"f\.json: not UTF-8 text"):
        read_text(file)


@dataclass(frozen=True)
class Part:
    count: int


@dataclass(frozen=True)
class Whole:
    name: str
    parts: list[Part] = field(default_factory=list)


def test_an_object_is_read_as_a_dataclass() -> None:
    data = {"name": "a", "parts": [{"count": 2, "more": 1}], "else": None}
    assert as_type(data, Whole, "f") == Whole("a", [Part(2)])
    assert as_type({"name": "a"}, Whole, "f") == Whole("a", [])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "f: key name: Field required"),
        ({"name": 3}, "f: key name: Input should be a valid string, found 3; put it in quotes"),
        ({"name": "a", "parts": {}}, "f: key parts: Input should be a valid array, found {}"),
        (
            {"name": "a", "parts": [{"count": "2"}]},
            "f: key parts.0.count: Input should be a valid integer, found '2'",
        ),
        (
            {"name": "a", "parts": [{"count": True}]},
            "f: key parts.0.count: Input should be a valid integer, found True",
        ),
    ],
)
def test_a_missing_or_mistyped_key_is_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        as_type(data, Whole, "f")
    assert str(caught.value) == message


def test_non_finite_numbers_are_accepted_only_on_request(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"limit": Infinity}')
    assert read_json(file, non_finite=True) == {"limit": float("inf")}
    with pytest.raises(InputError, match="Infinity is not a number"):
        read_json(file)


def test_all_files_are_read_through_the_same_functions() -> None:
    """Any other line that parses JSON or YAML must say that it does not read a file."""
    others = [
        f"{file.relative_to(SOURCE)}: {line.strip()}"
        for file in SOURCE.rglob("*.py")
        if file.name not in ("reading.py", "strict_yaml.py")
        for line in file.read_text().splitlines()
        if OTHER_READERS.search(line) and "# no file" not in line
    ]
    assert others == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            gzip.compress(b'{"id": "a"}', mtime=0),
            "it is compressed with gzip; unpack it first",
        ),
        ('{"id": "a"}\n'.encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        (b"PK\x03\x04\xff", "it is a zip archive; unpack it first"),
    ],
)
def test_the_error_names_another_format(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_text(file)
    with pytest.raises(InputError, match=f"jsonl:1: not UTF-8 text: {message}"):
        list(read_jsonl(file))
