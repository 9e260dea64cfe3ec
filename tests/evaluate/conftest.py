"""Fake models of both directions, and questions with choices."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluated import QUESTIONS, write_rows
from ledom.core.direction import Direction
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.text.tokenizer import Tokenizer


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    """A file of questions that precede their choices: the task `mine`."""
    return write_rows(tmp_path / "mine.jsonl", QUESTIONS)


@pytest.fixture
def choices_in_front(tmp_path: Path) -> Path:
    """A file of the same questions after their choices: the task `front`."""
    return write_rows(tmp_path / "front.jsonl", [q | {"place": "before"} for q in QUESTIONS])


@pytest.fixture
def models(tokenizer: Tokenizer) -> dict[Direction, FakeLanguageModel]:
    return {direction: FakeLanguageModel(tokenizer, direction) for direction in Direction}


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself without its report on the environment: it runs pip, for 0.7 s each."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
