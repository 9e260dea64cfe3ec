"""Files in every format, divided into parts, and bad input reported by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from document_files import TEXTS, WRITERS, jsonl, parts, write_parquet, zstd
from ledom.core.errors import InputError
from ledom.data.documents import open_documents


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("count", [1, 2, 4, 7, 50])
def test_the_parts_together_are_all_documents_in_order(
    tmp_path: Path, name: str, count: int
) -> None:
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        WRITERS[name](tmp_path / str(number) / name, [*TEXTS, str(number)])
    documents = open_documents([str(tmp_path / "0"), str(tmp_path / "1" / name)])
    found = parts(documents, count)
    assert [text for part in found for text in part] == [*TEXTS, "0", *TEXTS, "1"]
    if count == 2:
        assert all(found)  # two equal files: one half each


def test_lines_can_be_divided_at_any_byte(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(jsonl(TEXTS))
    size = file.stat().st_size
    assert parts(open_documents([str(file)]), size) == [
        # A line belongs to the part that contains its first byte.
        [text for start, text in _line_starts() if start == byte]
        for byte in range(size)
    ]


def _line_starts() -> list[tuple[int, str]]:
    return [(len(jsonl(TEXTS[:number])), text) for number, text in enumerate(TEXTS)]


def test_no_part_is_much_larger_than_its_share(tmp_path: Path) -> None:
    rng = Random(0)
    file = tmp_path / "d.jsonl"
    file.write_bytes(jsonl(["x" * rng.randint(1, 100) for _ in range(1000)]))
    share = file.stat().st_size / 4
    for part in parts(open_documents([str(file)]), 4):
        assert abs(len(jsonl(part)) - share) < 130  # one line


def test_a_text_file_is_one_document_or_one_per_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("one é\r\n\n two \n".encode())
    (tmp_path / "b.txt").write_text("three")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "notes.md").write_text("no")
    assert list(open_documents([str(tmp_path)]).texts()) == ["one é\r\n\n two \n", "three"]
    lines = open_documents([str(file)], "lines")
    assert parts(lines, 2) == [["one é"], [" two "]]
    assert parts(open_documents([str(file)], "text"), 2) == [["one é\r\n\n two \n"], []]


GOOD = json.dumps({"text": "fine " * 9}).encode()
BAD_LINES = {
    b'{"txt": "a", "id": 1}': r"no key 'text', only txt, id",
    b"{}": "no key 'text', only nothing",
    b'{"text": NaN}': "key 'text' is nan, expected a text",
    b'{"text": null}': "key 'text' is None, expected a text",
    b'{"text": ["a"]}': r"key 'text' is \['a'\], expected a text",
    b'{"text": "\\ud800"}': "one half of a surrogate pair",
    b'{"text": "a"': "not JSON",
    b'{"text": "\xff"}': "not UTF-8 text",
    b"[1]": "expected a JSON object, found list",
}


def test_other_keys_may_hold_numbers_that_are_not_finite(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a", "score": NaN}\n{"text": "b", "x": -Infinity}')
    assert list(open_documents([str(tmp_path)]).texts()) == ["a", "b"]


@pytest.mark.parametrize("bad", BAD_LINES)
@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zst"])
def test_the_error_for_a_bad_line_names_it(tmp_path: Path, bad: bytes, name: str) -> None:
    content = b"\n".join([GOOD, b"", GOOD, GOOD, bad, GOOD])
    pack = {".gz": gzip.compress, ".zst": zstd}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(content))
    documents = open_documents([str(tmp_path)])
    with pytest.raises(InputError, match=rf"{name}:5: .*{BAD_LINES[bad]}"):
        list(documents.texts())
    if name == "d.jsonl":  # the line number in the file, even when reading from the middle
        with pytest.raises(InputError, match=rf"{name}:5: .*{BAD_LINES[bad]}"):
            parts(documents, 3)


def test_the_error_for_bad_text_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_bytes(b"fine\nfine\n\xff\nfine")
    for format in ("text", "lines"):
        with pytest.raises(InputError, match=r"d\.txt:3: not UTF-8 text"):
            list(open_documents([str(tmp_path / "d.txt")], format).texts())
    (tmp_path / "d.txt").write_text("fine", encoding="utf-16")
    with pytest.raises(InputError, match=r"d\.txt:1: not UTF-8 text: it is UTF-16; save it as"):
        list(open_documents([str(tmp_path / "d.txt")]).texts())


def test_the_error_for_bad_parquet_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "d.parquet"
    write_parquet(file, ["a", "b", "c", None, "e"])
    for count in (1, 3):
        with pytest.raises(InputError, match=r"d\.parquet: row 4: key 'text' is None"):
            parts(open_documents([str(file)]), count)
    write_parquet(file, ["a"], key="content")
    with pytest.raises(InputError, match=r"d\.parquet: no key 'text', only id, content"):
        list(open_documents([str(file)]).texts())
    parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), file)
    with pytest.raises(InputError, match=r"d\.parquet: several columns are called 'text'"):
        open_documents([str(file)]).check()
    write_parquet(file, ["a" * 99] * 9, rows_a_group=3)
    damaged = bytearray(file.read_bytes())
    damaged[4 : len(damaged) // 2] = b"\xff" * (len(damaged) // 2 - 4)
    file.write_bytes(damaged)
    with pytest.raises(InputError, match=r"d\.parquet: cannot be read[^\n]*\Z"):  # one line
        list(open_documents([str(file)]).texts())
    file.write_bytes(b"not Parquet at all")
    with pytest.raises(InputError, match=r"d\.parquet: cannot be read as Parquet"):
        list(open_documents([str(file)]).texts())


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.jsonl.zst"])
def test_the_error_for_a_damaged_archive_names_it(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, [str(number) * 50 for number in range(500)])
    whole = (tmp_path / name).read_bytes()
    for content in (whole[:-5], whole[: len(whole) // 2], b"no archive at all"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: cannot be read: "):
            list(open_documents([str(tmp_path)]).texts())


@pytest.mark.slow
def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    for name, content in {"a.jsonl": jsonl(TEXTS), "b.txt": b"text", "c.txt": mark}.items():
        (tmp_path / name).write_bytes(mark + content)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(mark + jsonl(["packed"])))
    documents = open_documents([str(tmp_path)])
    wanted = [*TEXTS, "text", "\ufeff", "packed"]  # only at the start of a file is it a mark
    for count in range(1, 60):
        assert [text for part in parts(documents, count) for text in part] == wanted


@pytest.mark.parametrize(("key", "expected"), [("text", "b"), ("source", None)])
def test_a_document_has_the_source_in_its_row(tmp_path: Path, key: str, expected: Any) -> None:
    row = {"text": "a", "source": "b"}
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps(row))
    documents = open_documents([str(file)], text_key=key)
    assert list(documents.read()) == [(row[key], expected)]
