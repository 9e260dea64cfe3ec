"""Synthesizes problems from solutions or bare answers: a reverse model writes the questions.

    out/proposals.jsonl    the questions that the reverse model wrote for each seed
    out/answers.jsonl      the forward model's answers to each question
    out/problems.jsonl     the problems that are kept
    out/removed.jsonl      the rest, each with its `reason`

A question is kept if the forward model's answers agree with the seed's (a round trip), and if it is
not a near duplicate of a known or another new question (`ledom.text.duplicates`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ledom.core.errors import InputError
from ledom.core.files import write_json
from ledom.core.records import Problem, Record, write_records
from ledom.core.stage import Track
from ledom.data.problems import equations, is_true
from ledom.evaluate.proposals import (
    Prompt,
    Proposal,
    check_directions,
    check_prompts,
    fitting,
    propose,
)
from ledom.lm.language_model import LanguageModel, Sampling
from ledom.report.intervals import share_interval
from ledom.text.answers import equal_answers, extract_answer
from ledom.text.duplicates import NearDuplicates
from ledom.text.pair_format import ANSWER_MARK, PairFormat

__all__ = [
    "REASON",
    "Seed",
    "SynthesisSettings",
    "Synthesized",
    "seed_prompt",
    "sift",
    "synthesize",
]

AGREEMENT = "agreement"
"""Key of a synthesized problem: the share of the forward model's answers that equal its answer."""
REASON = "reason"
"""Key of a removed problem: why it was removed."""
_DECIMALS = 5
"""Of an agreement."""


@dataclass(kw_only=True)
class Seed(Record):
    """A solution, or an answer alone, for which a question is written; a blank one becomes None.

    Raises `InputError` if there is no final answer.

    >>> Seed(id="a")
    Traceback (most recent call last):
    ledom.core.errors.InputError: seed 'a' has no solution and no answer; add the key 'answer'
    """

    id: str
    solution: str | None = None
    answer: str | None = None
    question: str | None = None

    def __post_init__(self) -> None:
        self.answer = (self.answer or "").strip() or None
        self.solution = self.solution if (self.solution or "").strip() else None
        if not self.final_answer:
            lack = (
                "a solution that states no answer" if self.solution else "no solution and no answer"
            )
            raise InputError(f"seed {self.id!r} has {lack}; add the key 'answer'")

    @property
    def final_answer(self) -> str:
        """The answer, given or stated by the solution."""
        return (self.answer or extract_answer(self.solution or "") or "").strip()


@dataclass(frozen=True)
class SynthesisSettings:
    """How questions are sampled, and which of them are kept."""

    sampling: Sampling
    """How both models sample: questions and answers."""
    num_samples: int = 2
    """Questions per seed."""
    num_answers: int = 4
    """Answers per question."""
    min_agreement: float = 0.5
    """The minimum share of answers that must equal the seed's."""
    similarity: float = 0.8
    """The minimum Jaccard similarity of near duplicates."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_agreement <= 1:
            raise InputError(f"the agreement is {self.min_agreement}; it must lie in [0, 1]")
        NearDuplicates(self.similarity)  # raises for a bad value, before any work


@dataclass(frozen=True)
class Synthesized:
    """The problems that were written for some seeds: those that are kept, and those removed."""

    problems: list[Problem]
    removed: list[Problem]
    num_answers: int = 0
    """How many answers the forward model gave."""
    num_cut: int = 0
    """How many of them reached `max_tokens`, so that they may not state their final answer."""

    @property
    def reasons(self) -> dict[str, int]:
        """The number of problems removed for each reason."""
        reasons = [problem.extra[REASON] for problem in self.removed]
        return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}

    @property
    def by_seed(self) -> dict[str, float]:
        """For each seed with a question that was answered, the mean agreement of its questions."""
        found = defaultdict[str, list[float]](list)
        for problem in (*self.problems, *self.removed):
            if AGREEMENT in problem.extra:
                found[problem.extra["seed"]].append(problem.extra[AGREEMENT])
        return {seed: float(np.mean(found[seed])) for seed in sorted(found)}

    @property
    def agreements(self) -> NDArray[np.float64]:
        """The values of `by_seed`."""
        return np.array([*self.by_seed.values()])


def synthesize(
    seeds: Sequence[Seed],
    reverse: LanguageModel,
    forward: LanguageModel,
    how: SynthesisSettings,
    known: Sequence[str],
    out: Path,
    track: Track,
) -> Synthesized:
    """Write questions for the seeds, and keep those that pass the checks of this module.

    The seeds' own questions count as `known` ones, too. A seed that leaves no room for a question
    counts as a removed problem. Before any work, raises `InputError` if no seed leaves room, and
    `DirectionError` for models of the wrong direction.

    >>> import tempfile
    >>> from ledom.core.stage import no_progress
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> reverse = FakeLanguageModel(direction="reverse", answers=["How many is 2 + 2?"])
    >>> forward = FakeLanguageModel(answers=["2 + 2 = 4\\n#### 4"])
    >>> seed, how = Seed(id="s", solution="#### 4"), SynthesisSettings(Sampling(), 1, 1)
    >>> with tempfile.TemporaryDirectory() as out:
    ...     found = synthesize([seed], reverse, forward, how, [], Path(out), no_progress)
    >>> [(problem.question, problem.answer) for problem in found.problems]
    [('How many is 2 + 2?', '4')]
    """
    check_directions(reverse, forward)
    every = [Prompt(seed.id, seed_prompt(seed, reverse.pair_format)) for seed in seeds]
    prompts = fitting(every, lambda one: check_prompts([one], reverse, how.sampling))
    path = out / "proposals.jsonl"
    samples = how.num_samples
    written = propose(reverse, prompts, how.sampling, samples, path, track, "writing questions")
    by_id = {seed.id: seed for seed in seeds}
    read = [_read(by_id[one.item_id], one, reverse.pair_format) for one in written]
    kept = {prompt.id for prompt in prompts}
    too_long = (seed for seed in seeds if seed.id not in kept)
    read += [_problem(s, 0, s.question or "", s.solution, "too long") for s in too_long]
    own = [seed.question for seed in seeds if seed.question]
    return sift(read, forward, how, [*known, *own], out, track)


def sift(
    problems: Sequence[Problem],
    forward: LanguageModel,
    how: SynthesisSettings,
    known: Sequence[str],
    out: Path,
    track: Track,
) -> Synthesized:
    """Split problems, from any source, into kept and removed ones.

    A problem that already has a `REASON` is removed. See `synthesize` for the other parameters.
    """
    seen = NearDuplicates(how.similarity)
    for question in known:
        seen.add(question)
    first = _screened(problems, seen, forward, how.sampling)
    asked = [problem for problem in first if REASON not in problem.extra]
    answers: list[Proposal] = []
    if asked:
        prompts = [_answer_prompt(problem, forward) for problem in asked]
        path, count = out / "answers.jsonl", how.num_answers
        answers = propose(forward, prompts, how.sampling, count, path, track, "answering questions")
    answered = _with_agreement(asked, answers, forward.pair_format)
    found = _sorted_out(first, answered, seen, how.min_agreement)
    num_cut = sum(one.finish_reason != "stop" for one in answers)
    found = replace(found, num_answers=len(answers), num_cut=num_cut)
    write_records(out / "problems.jsonl", found.problems)
    write_records(out / "removed.jsonl", found.removed)
    agreements = found.agreements
    interval = share_interval(agreements) if len(agreements) else None
    write_json(
        out / "synthesis.json",
        {
            "num_questions": len(found.problems) + len(found.removed),
            "num_problems": len(found.problems),
            "removed": found.reasons,
            "num_answers": found.num_answers,
            "num_cut": found.num_cut,
            "agreement": interval and asdict(interval),
        },
    )
    return found


def seed_prompt(seed: Seed | Problem, pair_format: PairFormat) -> str:
    """The prompt of the reverse model: a whole solution, or only its last line for a bare answer.

    >>> seed_prompt(Seed(id="a", answer="7"), PairFormat())
    '#### 7'
    """
    if seed.solution is not None:
        return pair_format.after_question(pair_format.restyle(seed.solution, seed.answer))
    return f"{ANSWER_MARK} {seed.answer}{pair_format.literals[2]}"


def _read(seed: Seed, proposal: Proposal, pair_format: PairFormat) -> Problem:
    """The problem in a proposal for a seed, with a reason for removal if it fails a check."""
    between = pair_format.literals[1]
    text = pair_format.written_question(proposal.text)
    question, mark, steps = text.partition(between) if between else (text, "", "")
    question = question.strip()
    if seed.solution is not None:
        solution, whole = seed.solution, not mark
    else:
        solution, whole = f"{steps}{ANSWER_MARK} {seed.answer}", bool(mark and steps.strip())
    reason = None
    if proposal.finish_reason != "stop":
        reason = "unfinished"
    elif not whole or not question:
        reason = "not one question"
    elif seed.solution is None and not all(map(is_true, equations(steps))):
        reason = "false equation"
    return _problem(seed, proposal.index, question, solution, reason)


def _problem(
    seed: Seed, index: int, question: str, solution: str | None, reason: str | None
) -> Problem:
    return Problem(
        id=f"{seed.id}/{index}",
        question=question,
        answer=seed.final_answer,
        solution=solution,
        extra={"seed": seed.id} | ({} if reason is None else {REASON: reason}),
    )


def _screened(
    problems: Sequence[Problem], known: NearDuplicates, forward: LanguageModel, sampling: Sampling
) -> list[Problem]:
    """The problems; those that are repeated, known or too long to be answered get a reason."""
    asked: set[str] = set()
    screened = []
    for problem in problems:
        if REASON not in problem.extra:
            repeated = problem.question in asked
            asked.add(problem.question)
            if repeated:
                problem = _removed(problem, "duplicate")
            elif known.find(problem.question):
                problem = _removed(problem, "known")
            else:
                try:
                    check_prompts([_answer_prompt(problem, forward)], forward, sampling)
                except InputError:
                    problem = _removed(problem, "too long")
        screened.append(problem)
    return screened


def _removed(problem: Problem, reason: str) -> Problem:
    return replace(problem, extra=problem.extra | {REASON: reason})


def _answer_prompt(problem: Problem, forward: LanguageModel) -> Prompt:
    return Prompt(problem.id, forward.pair_format.before_solution(problem.question))


def _with_agreement(
    problems: Sequence[Problem], answers: Sequence[Proposal], pair_format: PairFormat
) -> dict[str, Problem]:
    """The problems by id, each with the share of its answers that agree."""
    right: dict[str, list[bool]] = {problem.id: [] for problem in problems}
    expected = {problem.id: problem.answer for problem in problems}
    for one in answers:
        text = pair_format.written_solution(one.text)
        right[one.item_id].append(equal_answers(extract_answer(text), expected[one.item_id]))
    return {
        p.id: replace(p, extra=p.extra | {AGREEMENT: round(float(np.mean(right[p.id])), _DECIMALS)})
        for p in problems
    }


def _sorted_out(
    problems: Sequence[Problem],
    answered: dict[str, Problem],
    seen: NearDuplicates,
    min_agreement: float,
) -> Synthesized:
    """Kept and removed problems; of near duplicates, the one with the best agreement is kept."""
    final: dict[str, Problem] = {}
    for problem in sorted(answered.values(), key=lambda p: -p.extra[AGREEMENT]):
        if problem.extra[AGREEMENT] < round(min_agreement, _DECIMALS):
            final[problem.id] = _removed(problem, "other answer")
        elif seen.find(problem.question):
            final[problem.id] = _removed(problem, "near duplicate")
        else:
            final[problem.id] = problem
            seen.add(problem.question)
    whole = [final.get(problem.id, problem) for problem in problems]
    return Synthesized(
        [problem for problem in whole if REASON not in problem.extra],
        [problem for problem in whole if REASON in problem.extra],
    )
