"""Records are read back exactly as they were written, whatever their texts and extra keys."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledom.core.records import Candidate, Document, Problem, Record, read_records, write_records

TEXT = st.text(max_size=30)  # any script, including all kinds of line ends; no surrogates
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OWN_KEYS = {"extra"}.union(*(kind.own_keys() for kind in (Candidate, Problem, Document)))
EXTRA = st.dictionaries(TEXT.filter(lambda key: key not in OWN_KEYS), JSON, max_size=3)
RECORDS = [
    st.builds(Document, id=TEXT, text=TEXT, source=st.none() | TEXT, extra=EXTRA),
    st.builds(
        Problem,
        id=TEXT,
        question=TEXT,
        answer=st.none() | TEXT,
        solution=st.none() | TEXT,
        extra=EXTRA,
    ),
    st.builds(
        Candidate,
        problem_id=TEXT,
        index=st.integers(0, 2**63 - 1),
        text=TEXT,
        model=st.none() | TEXT,
        finish_reason=st.sampled_from(["stop", "length"]),
        greedy=st.booleans(),
        sampling=st.none() | st.dictionaries(TEXT, JSON, max_size=2),
        correct=st.none() | st.booleans(),
        extra=EXTRA,
    ),
]


@pytest.mark.slow
@settings(max_examples=60)
@given(st.one_of([st.lists(records, min_size=1, max_size=4) for records in RECORDS]))
def test_records_survive_a_round_trip(records: list[Record]) -> None:
    with TemporaryDirectory() as root:
        first, second = Path(root, "a.jsonl"), Path(root, "b.jsonl")
        write_records(first, records)
        again = read_records(first, type(records[0]))
        assert again == records
        write_records(second, again)
        assert second.read_bytes() == first.read_bytes()
        assert first.read_bytes().count(b"\n") == len(records)
