"""The report of `ledom explain`."""

from __future__ import annotations

import numpy as np
import pytest

from ledom.core.errors import InputError
from ledom.core.records import Problem
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.rerank.explain import explain


def test_an_empty_question_is_refused() -> None:
    lm = FakeLanguageModel(direction="reverse")
    with pytest.raises(InputError, match="the question is empty"):
        explain(Problem(id="p", question=" \n"), ["4"], lm)


def test_only_empty_answers_are_refused() -> None:
    lm = FakeLanguageModel(direction="reverse")
    with pytest.raises(InputError, match="no answer has text after its thought"):
        explain(Problem(id="p", question="2 + 2?"), ["", "<think>4"], lm)


def test_an_empty_answer_is_neither_picked_nor_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it scores: nothing is read of it, as in a selection."""
    for sign in (1, -1):
        lm = FakeLanguageModel(direction="reverse")
        # The longer the text, the less likely (or the more likely) the question.
        monkeypatch.setattr(
            lm,
            "logprobs",
            lambda spans, s=sign: [
                np.full(o.end - o.start, -9 - s * len(o.ids) / 9) for o in spans
            ],
        )
        report = explain(Problem(id="p", question="2 + 2?"), ["", "4", "<think>4", "so 5"], lm)
        roles = {c.text: c.role for c in report.cases[0].candidates}
        assert sorted(roles.values(), key=str) == [None, None, "picked", "rejected"]
        assert roles[""] is None
        assert roles["<think>4"] is None
