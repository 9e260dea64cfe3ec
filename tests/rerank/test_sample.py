"""Sampling behavior that is the same at once and in rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledom.core.direction import Direction
from ledom.core.errors import DirectionError, InputError, OutputError
from ledom.core.files import lock_folder
from ledom.core.records import Problem, read_records, write_records
from ledom.core.stage import Work, at_once, no_progress
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Sampling
from ledom.rerank.sample import fill_candidates, sample_candidates, sample_until_decided
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

PROBLEMS = [Problem(id=f"p{i}", question=f"What is {i} + 1?") for i in range(40)]
SAMPLING = Sampling(temperature=0.7, seed=1)
N = 16


def test_a_reverse_model_cannot_sample_answers(tokenizer: Tokenizer) -> None:
    reverse = FakeLanguageModel(tokenizer, Direction.REVERSE)
    with pytest.raises(DirectionError, match="give a forward one to sample solutions"):
        next(sample_until_decided(PROBLEMS, reverse, SAMPLING, N, {}))
    with pytest.raises(DirectionError, match="give a forward one to sample solutions"):
        next(sample_candidates(PROBLEMS, reverse, SAMPLING, N))


def test_an_unsure_sample_is_recognized_by_its_confidence_only(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"stop_unsure needs .*; set Sampling.confidence"):
        next(sample_candidates(PROBLEMS, FakeLanguageModel(tokenizer), SAMPLING, N, 0.9))


@pytest.mark.parametrize("early", [False, True])
def test_the_formats_ending_is_not_part_of_an_answer(tokenizer: Tokenizer, early: bool) -> None:
    """A model trained on `...</a>` writes it; it would be scored twice and read as the answer."""
    lm = FakeLanguageModel(tokenizer, answers=["1 + 1 = 2\n#### 2</a>"])
    lm.pair_format = PairFormat("<q>{question}</q>\n<a>{solution}</a>")
    drawn = (
        [own for own, _ in sample_until_decided(PROBLEMS[:1], lm, SAMPLING, 2, {})]
        if early
        else [*sample_candidates(PROBLEMS[:1], lm, SAMPLING, 2)]
    )
    assert {c.text for own in drawn for c in own} == {"1 + 1 = 2\n#### 2"}


def test_a_run_that_is_refused_does_not_replace_the_problems_of_another(tmp_path: Path) -> None:
    write_records(tmp_path / "problems.jsonl", PROBLEMS)
    file, make = tmp_path / "candidates.jsonl", at_once(lambda problems: ([] for _ in problems))
    work = Work(PROBLEMS[:1], make, lambda some: [some], together=False)
    with (
        lock_folder(tmp_path, "samples", name=f".{file.name}.lock"),  # as another run does
        pytest.raises(OutputError, match="in use by process .*; stop it, or write to another"),
    ):
        fill_candidates(file, work, {}, no_progress, "sampling")
    assert read_records(tmp_path / "problems.jsonl", Problem) == PROBLEMS
