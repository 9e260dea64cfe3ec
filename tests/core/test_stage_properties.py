"""A stage's file is byte-identical after any stops, whatever they cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledom.core.records import Candidate, Key, Problem
from ledom.core.stage import Stage, Work, even_groups


class StoppedError(Exception):
    """Stands for the death of the process: nothing runs after it."""


def work(names: Sequence[str], size: int, together: bool) -> Work[Problem, Candidate]:
    """Two records per name, created in groups of at most `size`."""

    def make(
        waiting: Sequence[Problem], have: Mapping[Key, Sequence[Candidate]]
    ) -> Iterable[tuple[Sequence[Candidate], bool]]:
        for problem in waiting:
            done = len(have[problem.key])
            for index in range(done, 2):
                # If a result depends on the rest of its group, the group is part of the text.
                text = f"é{problem.id} {index} " + "".join(p.id for p in waiting) * together
                yield [Candidate(problem_id=problem.id, index=index, text=text)], index == 1

    return Work(
        items=[Problem(id=name, question="") for name in names],
        make=make,
        groups=lambda items: even_groups(items, size),
        together=together,
        is_done=lambda records: len(records) == 2,
    )


def stopped_after(count: int) -> Callable[..., Iterator[Any]]:
    def track(chunks: Iterable[Any], *_: Any) -> Iterator[Any]:
        for number, chunk in enumerate(chunks):
            if number == count:
                raise StoppedError
            yield chunk

    return track


@pytest.mark.slow
@settings(max_examples=25)
@given(
    count=st.integers(1, 7),
    size=st.integers(1, 4),
    together=st.booleans(),
    stops=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 200)), max_size=4),
)
def test_any_stops_leave_the_same_bytes(
    count: int, size: int, together: bool, stops: list[tuple[int, int]]
) -> None:
    """Each stop comes after some items; it may cut the last line, like a kill during a write."""
    names = [str(number) for number in range(count)]
    asked = work(names, size, together)
    with TemporaryDirectory() as root:
        whole, path = Path(root, "whole.jsonl"), Path(root, "out.jsonl")
        Stage(whole, Candidate, {"seed": 1}).fill(asked, stopped_after(10**9), "")
        part = path.with_name("out.jsonl.part")
        for after, lost in stops:
            try:
                Stage(path, Candidate, {"seed": 1}).fill(asked, stopped_after(after), "")
            except StoppedError:
                cut_last_line(part, lost)
        Stage(path, Candidate, {"seed": 1}).fill(asked, stopped_after(10**9), "")
        assert path.read_bytes() == whole.read_bytes()
        assert not part.exists()


def cut_last_line(part: Path, lost: int) -> None:
    """Remove up to `lost` bytes from the end of a file's last line, if the file exists."""
    if part.exists():
        data = part.read_bytes()
        last = len(data.splitlines(keepends=True)[-1]) if data else 0
        part.write_bytes(data[: len(data) - min(lost, last)])
