"""Documents of numbers; with the word tokenizer, the text shows the ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ledom.data.store import TokenStore

__all__ = ["EXPECTED", "NUMBERS", "Make", "ids_of", "write_numbers"]

NUMBERS = [[number, number + 1] for number in range(2, 42)]
"""The documents' ids."""
EXPECTED = [[*ids, 0] for ids in NUMBERS]
"""The ids in their store."""
Make = Callable[..., TokenStore | None]


def write_numbers(file: Path, documents: list[list[int]]) -> None:
    texts = (" ".join(map(str, ids)) for ids in documents)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def ids_of(store: TokenStore | None) -> list[list[int]]:
    """The documents of a complete store, including EOS."""
    assert store is not None
    store.verify()
    return [
        ids.tolist()
        for shard in store.shards
        for ids in np.split(shard.tokens, shard.ends[:-1].astype(int))
    ]
