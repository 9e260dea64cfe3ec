"""Whether a candidate is right."""

from __future__ import annotations

import pytest

from ledom.core.records import Candidate, Problem
from ledom.data.labels import is_right


@pytest.mark.parametrize(
    ("label", "known", "answer", "right"),
    [
        (True, "4", "5", True),
        (False, "4", "4", False),
        (True, None, None, True),
        (None, "4", "4.0", True),
        (None, "4", "5", False),
        (None, "4", None, False),
        (None, None, "4", None),
        (None, " ", "4", None),
    ],
)
def test_the_label_counts_before_the_answer(
    label: bool | None, known: str | None, answer: str | None, right: bool | None
) -> None:
    candidate = Candidate(problem_id="p", index=0, text="...", correct=label)
    problem = Problem(id="p", question="2 + 2?", answer=known)
    assert is_right(candidate, answer, problem) is right
