"""Samples candidates from a forward model and saves them: from problems to candidates.jsonl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from ledom.core import processes as parallel
from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.files import fingerprint
from ledom.core.reading import JsonObject
from ledom.core.records import (
    CONFIDENCE,
    EARLY_STOP,
    NUM_TOKENS,
    SELF_CERTAINTY,
    Candidate,
    Key,
    Problem,
    write_records,
)
from ledom.core.stage import Stage, Track, Work, even_groups
from ledom.lm.language_model import Generation, LanguageModel, Sampling
from ledom.rerank.candidates import AnswerClasses, candidate_check
from ledom.rerank.strategies import is_decided
from ledom.text.answers import extract_answer

__all__ = [
    "check_prompts",
    "fill_candidates",
    "is_finished",
    "prompts_of",
    "sample_candidates",
    "sample_until_decided",
    "sampling_groups",
]

ItemT = TypeVar("ItemT")

_WARM_UP = 4  # one in this many samples is completed before any is broken off
_TOGETHER = 512  # texts that are drawn together, and lost together if the run is stopped


def sampling_groups(items: Sequence[ItemT], num_samples: int) -> list[Sequence[ItemT]]:
    """The groups of problems or prompts whose texts are drawn together, the same when resumed.

    >>> [len(group) for group in sampling_groups(range(100), num_samples=8)]
    [50, 50]
    """
    return even_groups(items, max(1, _TOGETHER // num_samples))


def check_prompts(problems: Sequence[Problem], lm: LanguageModel, sampling: Sampling) -> None:
    """Raise, before any work, the errors that sampling for these problems would raise.

    These are `DirectionError` for a reverse model, and `InputError` for temperature 0 or for
    questions that leave no room for a solution.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(context=8)
    >>> check_prompts([Problem(id="p", question="2 + 2?")], lm, Sampling())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: 1 of 1 problems cannot be sampled for, the first is 'p': ...
    """
    Direction.FORWARD.require(lm.direction, lm.name, "to sample solutions")
    if sampling.temperature == 0:
        raise InputError(
            "the temperature is 0, so all candidates of a problem would have the same text; give "
            "one above 0 (the greedy solution is always written too)"
        )
    too_long: list[tuple[Problem, InputError]] = []
    for problem, prompt in zip(problems, prompts_of(problems, lm), strict=True):
        try:
            lm.prompt_ids(prompt, sampling.max_tokens)
        except InputError as error:
            too_long.append((problem, error))
    if too_long:
        problem, reason = too_long[0]
        raise InputError(
            f"{len(too_long)} of {len(problems)} problems cannot be sampled for, the first is "
            f"{problem.id!r}: {reason}, or remove these problems"
        )


def sample_candidates(
    problems: Sequence[Problem],
    lm: LanguageModel,
    sampling: Sampling,
    num_samples: int,
    stop_unsure: float = 0.0,
) -> Iterator[list[Candidate]]:
    """Yield each problem's candidates once they are ready: `num_samples` samples and a greedy one.

    The greedy candidate comes last, with the index `num_samples`. With `stop_unsure`, the first
    quarter of the samples is completed; each later one is broken off where its confidence falls
    below a threshold that this share of the first never falls below (DeepConf's online stop).
    Raises `DirectionError` for a reverse model.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> drawn = sample_candidates([Problem(id="p", question="2 + 2?")], lm, Sampling(), 2)
    >>> [(candidate.index, candidate.greedy) for own in drawn for candidate in own]
    [(0, False), (1, False), (2, True)]
    """
    Direction.FORWARD.require(lm.direction, lm.name, "to sample solutions")
    greedy = sampling.greedy
    for together in sampling_groups(problems, num_samples):
        prompts = prompts_of(together, lm)
        if stop_unsure:
            written = _stopped_samples(prompts, lm, sampling, num_samples, stop_unsure)
        else:
            written = lm.generate_with_greedy(prompts, sampling, num_samples)
        for place, texts in written:
            problem_id = together[place].id
            yield [
                _as_candidate(
                    problem_id, index, text, lm, sampling if index < num_samples else greedy
                )
                for index, text in enumerate(texts)
            ]


def _stopped_samples(
    prompts: Sequence[str], lm: LanguageModel, sampling: Sampling, num_samples: int, share: float
) -> Iterator[tuple[int, list[Generation]]]:
    """Each prompt's samples, with later ones broken off where unsure, and then its greedy text."""
    if sampling.confidence is None:
        raise InputError("stop_unsure needs the confidence of samples; set Sampling.confidence")
    first = max(1, num_samples // _WARM_UP)
    written = dict(lm.generate_with_greedy(prompts, sampling, first))
    lowest = (
        [text.confidence.lowest for text in written[place][:-1] if text.confidence is not None]
        for place in range(len(prompts))
    )
    least = tuple(float(np.quantile(own, 1 - share, method="lower")) for own in lowest)
    strict = replace(sampling, confidence=replace(sampling.confidence, least=least))
    rest = num_samples - first
    later = lm.generate(prompts, strict, rest, first_sample=first) if rest else ()
    for place, texts in later or ((place, []) for place in written):
        *drawn, greedy = written[place]
        yield place, [*drawn, *texts, greedy]


def rounds(num_samples: int) -> list[int]:
    """The total number of candidates after each round of sampling; the last is `num_samples`.

    Half of the candidates or fewer cannot decide a vote, so the first round draws more than half.
    Each later round draws an eighth, as rounds of one sample would leave a batch almost empty.

    >>> rounds(16)
    [9, 11, 13, 15, 16]
    """
    step = max(1, num_samples // 8)
    return [*range(num_samples // 2 + 1, num_samples, step), num_samples]


def sample_until_decided(
    problems: Sequence[Problem],
    lm: LanguageModel,
    sampling: Sampling,
    num_samples: int,
    have: Mapping[Key, Sequence[Candidate]],
) -> Iterator[tuple[list[Candidate], bool]]:
    """Draw each problem's candidates in rounds until its majority vote is decided.

    Yields (new candidates of a problem, whether they are its last). A problem's greedy candidate
    comes first. The rest are the first ones that `sample_candidates` would draw; their `sampling`
    records the planned number (`early_stop_of`). To resume, pass the candidates yielded before as
    `have`, by the problem's key. Raises `DirectionError` as `sample_candidates` does.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(answers=["#### 4"])
    >>> drawn = sample_until_decided([Problem(id="p", question="2 + 2?")], lm, Sampling(), 8, {})
    >>> [([c.index for c in some], last) for some, last in drawn]  # the greedy one, then 5 of 8
    [([8], False), ([0, 1, 2, 3, 4], True)]
    """
    Direction.FORWARD.require(lm.direction, lm.name, "to sample solutions")
    for together in sampling_groups(problems, num_samples):
        drawn = {problem.id: [*have.get(problem.key, ())] for problem in together}
        waiting = [p for p in together if not any(c.greedy for c in drawn[p.id])]
        for place, texts in lm.generate(prompts_of(waiting, lm), sampling.greedy):
            problem_id = waiting[place].id
            greedy = _as_candidate(problem_id, num_samples, texts[0], lm, sampling.greedy)
            drawn[problem_id].append(greedy)
            yield [greedy], False
        for before, total in pairwise([0, *rounds(num_samples)]):
            waiting = [
                problem
                for problem, own in zip(together, drawn.values(), strict=True)
                if len(own) == before + 1 and not is_finished(own, num_samples)
            ]
            for place, texts in lm.generate(
                prompts_of(waiting, lm), sampling, total - before, first_sample=before
            ):
                problem_id = waiting[place].id
                new = [
                    _as_candidate(problem_id, index, text, lm, sampling, num_samples)
                    for index, text in enumerate(texts, start=before)
                ]
                drawn[problem_id] += new
                yield new, is_finished(drawn[problem_id], num_samples)


def is_finished(candidates: Sequence[Candidate], num_samples: int) -> bool:
    """Whether these are all the candidates that `sample_until_decided` draws for their problem.

    >>> same = [Candidate(problem_id="p", index=i, text="4") for i in range(5)]
    >>> greedy = Candidate(problem_id="p", index=8, text="4", greedy=True)
    >>> is_finished([*same, greedy], num_samples=8), is_finished(same, num_samples=8)
    (True, False)
    """
    drawn = [candidate for candidate in candidates if not candidate.greedy]
    if len(drawn) == len(candidates):
        return False
    classes = AnswerClasses()
    votes = Counter(classes.number(extract_answer(candidate.text)) for candidate in drawn)
    del votes[-1]  # those without an answer
    remaining = num_samples - len(drawn)
    return remaining <= 0 or is_decided(votes.values(), remaining)


def fill_candidates(
    path: Path, work: Work[Problem, Candidate], settings: JsonObject, track: Track, name: str
) -> list[Candidate]:
    """The candidates in `path`, in the problems' order; `work` adds the missing ones.

    Once the file is complete, the problems are written to problems.jsonl next to it.

    >>> import tempfile
    >>> from ledom.core.stage import at_once, no_progress
    >>> make = at_once(lambda some: ([Candidate(problem_id=p.id, index=0, text="4")] for p in some))
    >>> work = Work([Problem(id="p", question="2 + 2?")], make, lambda items: [items], False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "candidates.jsonl")
    ...     made = fill_candidates(path, work, {}, no_progress, "sampling")
    ...     made[0].text, path.with_name("problems.jsonl").exists()
    ('4', True)
    """
    problems = work.items
    settings = settings | {
        "problems": len(problems),
        "first_problem": problems[0].id,
        "questions": fingerprint((p.id, p.question) for p in problems),
    }
    stage = Stage(path, Candidate, settings, lambda: candidate_check(problems))
    candidates = stage.fill(work, track, name, timed=True)
    if parallel.is_first():  # only now: another run that fills this file has other problems
        write_records(path.with_name("problems.jsonl"), problems)
    return candidates


def prompts_of(problems: Sequence[Problem], lm: LanguageModel) -> list[str]:
    """The prompt for each problem: its question, and the words that precede a solution."""
    return [lm.pair_format.before_solution(problem.question) for problem in problems]


def _as_candidate(
    problem_id: str,
    index: int,
    text: Generation,
    lm: LanguageModel,
    sampling: Sampling,
    early_stop_of: int | None = None,
) -> Candidate:
    """A written text as a candidate; `early_stop_of` is the planned number, if it may be fewer."""
    candidate = Candidate(
        problem_id=problem_id,
        index=index,
        text=lm.pair_format.written_solution(text.text),
        model=lm.name,
        finish_reason="length" if text.finish_reason == "pattern" else text.finish_reason,
        greedy=sampling.temperature == 0,
        sampling=_settings(sampling, early_stop_of),
    )
    candidate.extra[NUM_TOKENS] = len(text.ids) + (text.finish_reason == "stop")
    if text.self_certainty is not None:
        candidate.extra[SELF_CERTAINTY] = round(text.self_certainty, 5)
    if (found := text.confidence) is not None:
        values = (found.mean, found.tail, found.lowest)
        candidate.extra |= {k: round(v, 5) for k, v in zip(CONFIDENCE, values, strict=True)}
    return candidate


@lru_cache(maxsize=16)
def _settings(sampling: Sampling, early_stop_of: int | None) -> JsonObject:
    """The sampling settings that candidates record: one object per run, which saves memory."""
    planned = {} if early_stop_of is None else {EARLY_STOP: early_stop_of}
    return asdict(sampling) | planned
