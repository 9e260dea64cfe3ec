"""Whether a candidate is right, by its label or by its answer."""

from __future__ import annotations

from ledom.core.records import Candidate, Problem
from ledom.text.math.equality import equal_answers

__all__ = ["is_right"]


def is_right(candidate: Candidate, answer: str | None, problem: Problem) -> bool | None:
    """Whether a candidate is right; None if neither its label nor the problem's answer tells.

    The candidate's label counts first. Without one, its final `answer` (`extract_answer` of its
    text) is compared with the problem's.

    >>> problem = Problem(id="p", question="2 + 2?", answer="4")
    >>> is_right(Candidate(problem_id="p", index=0, text="#### 5"), "5", problem)
    False
    >>> is_right(Candidate(problem_id="p", index=0, text="#### 5", correct=True), "5", problem)
    True
    """
    if candidate.correct is not None:
        return candidate.correct
    return equal_answers(problem.answer, answer) if problem.is_labeled else None
