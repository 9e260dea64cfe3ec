"""The contrastive premise score compares a question with copies that have one number changed.

log P(x|y) mixes how well y explains the numbers of x with how well it explains the words. A copy of
x with another number has the same words. So log P(x|y) minus the log of the mean P(copy|y) measures
the numbers alone. DuPO (2025), FOBAR and RCoT rebuild a hidden part of the question by sampling;
this score uses likelihoods instead. The copies depend only on the question. A question without
numbers has none, and every solution scores 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from ledom.core.files import fingerprint
from ledom.core.records import Candidate, Key, Problem, Score
from ledom.data.augment import other_number
from ledom.lm.language_model import LanguageModel
from ledom.rerank.score import (
    ScoredPair,
    ScoreFiles,
    make_score,
    read_solution,
    score_groups,
    score_pairs,
)
from ledom.rerank.score_files import CONTRAST
from ledom.text.copies import UNSPACED
from ledom.text.math.in_text import GROUP_SPACE

__all__ = ["ChangedNumber", "change_numbers", "changed_problems", "fill_contrast"]

_GROUPED = rf"[1-9]\d{{0,2}}({GROUP_SPACE})\d{{3}}(?:\1\d{{3}})*(?!\1?\d)"  # 12 000
_NUMBER = re.compile(
    rf"(?<![^\W{UNSPACED}])(?<![.,:/])(?:{_GROUPED}|\d+(?:,\d{{3}})*)(?:\.\d+)?"
    rf"(?![^\W{UNSPACED}]|[:/]|[.,]\d)"
)
_TRIES = 40  # attempts to draw a new number before giving up on a copy
_TOGETHER = 256  # pairs that are scored together, and lost together if the run is stopped


@dataclass(frozen=True)
class ChangedNumber:
    """A copy of a question, with question[start:end] replaced by `number`."""

    start: int
    end: int
    number: str

    def apply(self, question: str) -> str:
        """The copy.

        >>> ChangedNumber(start=8, end=9, number="5").apply("Ava has 3 pens.")
        'Ava has 5 pens.'
        """
        return f"{question[: self.start]}{self.number}{question[self.end :]}"


def change_numbers(question: str, num_copies: int) -> list[ChangedNumber]:
    """Up to `num_copies` different changes to a question; each replaces one number, in turn.

    A new number is as round as the old one, has as many decimals, and is at most about twice as
    large. There are fewer changes if few numbers qualify, and none without numbers.

    >>> [change.apply("Ava has 3 pens.") != "Ava has 3 pens." for change in
    ...  change_numbers("Ava has 3 pens.", 2)]
    [True, True]
    """
    rng = Random(question)
    numbers = list(_NUMBER.finditer(question))
    rng.shuffle(numbers)
    chosen: list[ChangedNumber] = []
    for turn in range(num_copies if numbers else 0):
        match = numbers[turn % len(numbers)]
        for _ in range(_TRIES):
            changed = ChangedNumber(match.start(), match.end(), _another(match, question, rng))
            if changed.number != match.group() and changed not in chosen:
                chosen.append(changed)
                break
    return chosen


def changed_problems(problems: Sequence[Problem], num_copies: int) -> list[Problem]:
    """The copies of all questions, each as a problem with the id of its original.

    >>> [copy.id for copy in changed_problems([Problem(id="p", question="Ava has 3 pens.")], 2)]
    ['p', 'p']
    """
    return [
        Problem(id=problem.id, question=change.apply(problem.question))
        for problem in problems
        for change in change_numbers(problem.question, num_copies)
    ]


def _another(match: re.Match[str], question: str, rng: Random) -> str:
    """A number of the same kind, with the same grouping of digits and digits of the same script."""
    separator = match[1] or ("," if "," in match[0] else "")
    plain = match[0].replace(separator, "")
    # The next character shows whether the number is a percentage.
    number = other_number(plain, f"{plain}{question[match.end() :][:1]}", rng)
    if separator:
        whole, point, decimals = number.partition(".")
        number = f"{int(whole):,}".replace(",", separator) + point + decimals
    zero = ord(plain[0]) - unicodedata.decimal(plain[0])
    return number.translate({ord(str(digit)): zero + digit for digit in range(10)})


def fill_contrast(files: ScoreFiles, num_copies: int) -> list[Score]:
    """A reverse model's scores of up to `num_copies` copies, kept in `scores.contrast.jsonl`.

    A record's `logprob` is the log of the mean P(copy|y) over the copies; `copies` lists each with
    its own log-probability. The tokens that copies share, y and the question after the number, are
    computed once.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from ledom.core.records import Problem
    >>> from ledom.core.stage import no_progress
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm, problem = FakeLanguageModel(direction="reverse"), Problem(id="p", question="2 + 2?")
    >>> drawn = [Candidate(problem_id="p", index=0, text="4")]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (score,) = fill_contrast(ScoreFiles(Path(folder), [problem], drawn, lm, no_progress), 3)
    >>> score.target, len(score.extra["copies"])
    ("x'|y", 3)
    """
    lm, questions = files.lm, {problem.id: problem.question for problem in files.problems}
    changes = {id_: change_numbers(question, num_copies) for id_, question in questions.items()}
    most = max(map(len, changes.values()))

    def contrasted(candidates: Sequence[Candidate]) -> Iterator[list[Score]]:
        for chunk in score_groups(candidates, max(1, _TOGETHER // most)):
            asked = []
            for candidate in chunk:
                question = questions[candidate.problem_id]
                solution = read_solution(candidate, question, lm, files.mask_copies)
                copies = changes[candidate.problem_id]
                asked += [(candidate, change.apply(question), solution) for change in copies]
            found: dict[Key, list[ScoredPair]] = {}
            for place, scored in score_pairs(lm, asked, files.demonstrations):
                candidate = asked[place][0]
                own = found.setdefault(candidate.key, [])
                own.append(scored)
                if len(own) == len(changes[candidate.problem_id]):
                    yield [_record(candidate, changes[candidate.problem_id], own, lm)]

    copies = ((i, str(c.start), str(c.end), c.number) for i in changes for c in changes[i])
    return files.fill(
        CONTRAST,
        contrasted,
        {"contrast": num_copies, "copies": fingerprint(copies)},
        wanted=lambda candidate: bool(changes[candidate.problem_id]),
    )


def _record(
    candidate: Candidate,
    changes: Sequence[ChangedNumber],
    scored: Sequence[ScoredPair],
    lm: LanguageModel,
) -> Score:
    parts = [pair.logprobs[: pair.pair.question[1]] for pair in scored]
    logprobs = [round(float(part.sum(dtype=np.float64)), 5) for part in parts]
    copies = [
        {"start": c.start, "end": c.end, "number": c.number, "logprob": value}
        for c, value in zip(changes, logprobs, strict=True)
    ]
    logprob = float(np.logaddexp.reduce(logprobs) - np.log(len(logprobs)))
    truncated = any(pair.truncated for pair in scored)
    record = make_score(candidate, lm, "x'|y", logprob, sum(map(len, parts)), truncated)
    record.extra["copies"] = copies
    return record
