"""FLIP: questions written backwards from a solution, and how much they overlap with the real one.

The reverse model reads y and writes some questions for it, whatever x is. The score is the F1 of
their words and the words of x, which FLIP (2026) uses as a reward. Like log P(x|y), it measures how
well y explains x, but it samples and needs no log-probabilities.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import log

from ledom.core.errors import InputError
from ledom.core.files import fingerprint
from ledom.core.records import Candidate, Problem, Score
from ledom.lm.language_model import Generation, LanguageModel, Sampling
from ledom.rerank.score import ScoreFiles, make_score, read_solution
from ledom.rerank.score_files import FLIP
from ledom.text.copies import WORD

__all__ = ["FlipSettings", "fill_flip", "longest_question", "word_overlap"]

_WORD = re.compile(WORD)
_LEAST = 0.01
"""Smaller overlaps are raised to this one, so that the log is finite."""
_ROOM = 16  # tokens by which a written question may exceed the longest real one


@dataclass(frozen=True)
class FlipSettings:
    """How questions are written."""

    questions: int
    """Questions per solution."""
    temperature: float = 1.0
    seed: int = 0


def word_overlap(written: str, real: str) -> float:
    """F1 of the words of two texts; repetitions count, letter case does not.

    Where words are written without spaces (`text.copies.UNSPACED`), each character is a word.

    >>> word_overlap("Ava has 3 pens", "ava has 4 red pens")
    0.6666666666666666
    """
    one, other = _words(written), _words(real)
    return 2 * (one & other).total() / max(1, one.total() + other.total())


def _words(text: str) -> Counter[str]:
    return Counter(word.casefold() for word in _WORD.findall(text))


def longest_question(problems: Sequence[Problem], lm: LanguageModel) -> int:
    """The most tokens that a written question may have; `fill_flip` writes no longer ones.

    Raises `InputError` if so many leave no room for a solution in the model's context.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> longest_question([Problem(id="p", question="2 + 2?")], FakeLanguageModel())
    22
    """
    encoded = lm.tokenizer.encode_ids([problem.question for problem in problems])
    num_tokens, problem = max(zip(map(len, encoded), problems, strict=True), key=lambda one: one[0])
    longest = num_tokens + _ROOM
    if longest + len(lm.bos_ids) >= lm.context:
        raise InputError(
            f"{lm.name}: the question of problem {problem.id!r} has {num_tokens} tokens; a written "
            f"one may have {_ROOM} more, which leaves no room for a solution in the model's "
            f"context of {lm.context}; leave out the problem, or FLIP (--flip 0)"
        )
    return longest


def fill_flip(files: ScoreFiles, settings: FlipSettings) -> list[Score]:
    """The overlap of a reverse model's questions with the real ones, kept in `scores.flip.jsonl`.

    A record's `logprob` is the log of the mean overlap. `questions` lists the written questions,
    each with its `overlap`; `num_tokens` counts their tokens. If a solution leaves no room for a
    question, its end is cut (`truncated`).

    >>> import tempfile
    >>> from pathlib import Path
    >>> from ledom.core.records import Problem
    >>> from ledom.core.stage import no_progress
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm, problem = FakeLanguageModel(direction="reverse"), Problem(id="p", question="2 + 2?")
    >>> files = [[problem], [Candidate(problem_id="p", index=0, text="4")], lm, no_progress]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (score,) = fill_flip(ScoreFiles(Path(folder), *files), FlipSettings(questions=2))
    >>> score.target, len(score.extra["questions"])
    ('x~|y', 2)
    """
    lm, real = files.lm, {problem.id: problem.question for problem in files.problems}
    longest = longest_question(files.problems, lm)
    sampling = Sampling(settings.temperature, max_tokens=longest, seed=settings.seed)
    room = lm.context - longest - len(lm.bos_ids)

    def flipped(candidates: Sequence[Candidate]) -> Iterator[list[Score]]:
        prompts = []
        for candidate in candidates:
            question = real[candidate.problem_id]
            solution = read_solution(candidate, question, lm, files.mask_copies)
            prompts.append(lm.shortened_prompt(lm.pair_format.after_question(solution), room))
        texts = [prompt for prompt, _ in prompts]
        for place, written in lm.generate(texts, sampling, settings.questions):
            candidate, num_lost = candidates[place], prompts[place][1]
            yield [_record(candidate, real[candidate.problem_id], written, lm, num_lost > 0)]

    words = fingerprint([(WORD,)])
    made_with = {"flip": asdict(settings), "longest": longest, "words": words}
    return files.fill(FLIP, flipped, made_with)


def _record(
    candidate: Candidate,
    question: str,
    written: Sequence[Generation],
    lm: LanguageModel,
    truncated: bool,
) -> Score:
    texts = [lm.pair_format.written_question(one.text) for one in written]
    overlaps = [round(word_overlap(text, question), 5) for text in texts]
    mean = sum(overlaps) / len(overlaps)
    num_tokens = sum(len(one.ids) + (one.finish_reason == "stop") for one in written)
    record = make_score(candidate, lm, "x~|y", log(max(mean, _LEAST)), num_tokens, truncated)
    record.extra["questions"] = [
        {"text": text, "overlap": overlap} for text, overlap in zip(texts, overlaps, strict=True)
    ]
    return record
