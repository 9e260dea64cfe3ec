"""The report of `ledom explain`."""

from __future__ import annotations

import pytest

from ledom.core.errors import InputError
from ledom.core.records import Problem
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.rerank.explain import explain


def test_an_empty_question_is_refused() -> None:
    lm = FakeLanguageModel(direction="reverse")
    with pytest.raises(InputError, match="the question is empty"):
        explain(Problem(id="p", question=" \n"), ["4"], lm)
