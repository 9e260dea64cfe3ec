"""For any documents, each token is in one window and each window in one batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledom.core.direction import Direction
from ledom.data.packing import Batches, Windows, pack
from ledom.data.store import write_store
from ledom.text.tokenizer import Tokenizer

Documents = list[list[int]]
DOCUMENTS = st.lists(st.lists(st.integers(1, 9), max_size=9), min_size=1, max_size=8)
few = settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def windows(documents: Documents, folder: str, tokenizer: Tokenizer, *layout: object) -> Windows:
    texts = (" ".join(map(str, document)) for document in documents)
    return Windows(write_store(Path(folder, "store"), texts, tokenizer), *layout)  # type: ignore[arg-type]


@pytest.mark.slow
@few
@given(documents=DOCUMENTS, seq_len=st.integers(1, 12))
def test_every_token_is_predicted_once(
    word_tokenizer: Callable[[int], Tokenizer], documents: Documents, seq_len: int
) -> None:
    """In reverse, every token but the last EOS; forward, every one but the first. EOS is 0."""
    stream = [0, *(token for document in documents for token in [*document, 0])]
    with TemporaryDirectory() as folder:
        made = [w.tolist() for w in windows(documents, folder, word_tokenizer(10), seq_len)]
    assert [token for window in made for token in window[1:]] == stream[1:]
    assert [token for window in made for token in window[:-1]] == stream[:-1]
    assert all(2 <= len(window) <= seq_len + 1 for window in made)
    assert len(made) == sum(-(-(len(document) + 1) // seq_len) for document in documents)


@pytest.mark.slow
@few
@given(documents=DOCUMENTS, seq_len=st.integers(1, 12))
def test_fixed_windows_drop_less_than_one_window(
    word_tokenizer: Callable[[int], Tokenizer], documents: Documents, seq_len: int
) -> None:
    stream = [token for document in documents for token in [*document, 0]]
    count = len(stream) // seq_len
    if count == 0:
        return  # refused, which another test covers
    with TemporaryDirectory() as folder:
        fixed = windows(documents, folder, word_tokenizer(10), seq_len, "fixed")
        made = [window.tolist() for window in fixed]
    assert [token for window in made for token in window[1:]] == stream[: count * seq_len]
    assert {len(window) for window in made} == {seq_len + 1}


@pytest.mark.slow
@few
@given(
    documents=DOCUMENTS, seq_len=st.integers(1, 12), size=st.integers(1, 5), seed=st.integers(0, 9)
)
def test_an_epoch_of_batches_contains_every_window_once(
    word_tokenizer: Callable[[int], Tokenizer],
    documents: Documents,
    seq_len: int,
    size: int,
    seed: int,
) -> None:
    with TemporaryDirectory() as folder:
        source = windows(documents, folder, word_tokenizer(10), seq_len)
        expected = Counter(tuple(window.tolist()) for window in source)
        batches = Batches([(source, 1)], batch_size=size, seed=seed)
        # `size` epochs fill whole batches, however many windows there are.
        seen = [
            tuple(window.tolist())
            for step in range(len(source))
            for window in batches[step].windows
        ]
    for number in range(size):
        assert Counter(seen[number * len(source) : (number + 1) * len(source)]) == expected


@few
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=5))
def test_packing_keeps_every_pair_of_neighbors(lengths: list[int]) -> None:
    """Each (read, predicted) pair of each window appears once, in the model's reading order."""
    starts = np.cumsum([0, *lengths]).tolist()
    rows = [
        list(range(1 + start, 1 + start + n)) for start, n in zip(starts, lengths, strict=False)
    ]
    arrays = [np.array(row) for row in rows]
    for direction, step in ((Direction.FORWARD, 1), (Direction.REVERSE, -1)):
        packed = pack(arrays, direction, eos_id=0)
        found = list(zip(packed.inputs.tolist(), packed.targets.tolist(), strict=True))
        ordered = [row[::step] for row in rows]
        assert found == [pair for row in ordered for pair in pairwise(row)]
        assert packed.boundaries.tolist() == np.cumsum([0, *(n - 1 for n in lengths)]).tolist()
