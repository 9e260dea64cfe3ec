"""Files with documents, in every format that has keys or columns."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

TEXTS = ["one", "", "zwei Wörter", 'a "quote"\nand a line', "三 🍎", " x " * 40, "end"]


def jsonl(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text, "id": 3}).encode() + b"\n" for text in texts)


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def write_parquet(file: Path, texts: list[Any], rows_a_group: int = 2, key: str = "text") -> None:
    table = pyarrow.table({"id": list(range(len(texts))), key: texts})
    parquet.write_table(table, file, row_group_size=rows_a_group)


WRITERS: dict[str, Callable[[Path, list[str]], object]] = {
    "d.jsonl": lambda file, texts: file.write_bytes(jsonl(texts)),
    "d.ndjson": lambda file, texts: file.write_bytes(b"\n" + jsonl(texts).rstrip(b"\n")),
    "D.JSONL.GZ": lambda file, texts: file.write_bytes(gzip.compress(jsonl(texts))),
    "d.jsonl.gz": lambda file, texts: file.write_bytes(gzip.compress(jsonl(texts))),
    "d.jsonl.zst": lambda file, texts: file.write_bytes(
        zstd(jsonl(texts[:2])) + zstd(jsonl(texts[2:]))  # as parallel compressors write it
    ),
    "d.parquet": write_parquet,
}


def parts(documents: Any, count: int) -> list[list[str]]:
    return [list(documents.texts(part, count)) for part in range(count)]
