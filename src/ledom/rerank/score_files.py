"""Reads finished score files and checks their contents.

Each score must belong to a known candidate, occur once, and have numbers that agree with each
other. All scores by one model must have been computed in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.files import check_settings
from ledom.core.reading import JsonObject
from ledom.core.records import Candidate, Key, Problem, Score, read_records
from ledom.core.stage import read_finished, read_settings
from ledom.rerank.candidates import distinct_candidates, text_hashes

__all__ = [
    "CONTRAST",
    "FLIP",
    "SCORE_FILES",
    "read_scores",
    "score_check",
    "scored_problems",
    "scoring_models",
]

CONTRAST, FLIP = "contrast", "flip"
SCORE_FILES: dict[str, tuple[Direction, tuple[str, ...]]] = {
    "forward": (Direction.FORWARD, ("y|x",)),
    "reverse": (Direction.REVERSE, ("x|y", "y")),
    CONTRAST: (Direction.REVERSE, ("x'|y",)),
    FLIP: (Direction.REVERSE, ("x~|y",)),
}
"""Score files by name, in the order of their stages: (the direction of their model, targets)."""

_ROUNDING = 5e-6  # largest rounding error of a number in a score, in nats


def read_scores(
    folder: Path, problems: Sequence[Problem], candidates: Sequence[Candidate]
) -> list[Score]:
    """All scores in a reranked folder.

    Raises `InputError` if there are none, if they belong to other problems or candidates, if those
    by one model were computed in different ways, or if they are damaged.

    >>> read_scores(Path("no such folder"), [], [])
    Traceback (most recent call last):
    ledom.core.errors.InputError: no such folder: no scores here; make them with: ledom rerank
    """
    scores: list[Score] = []
    hashes = text_hashes(problems, candidates)
    files = _score_files(folder)
    for name, file in files.items():
        settings = read_settings(file)
        remedy = "give the problems and candidates that were scored"
        try:
            check_settings({key: settings.get(key) for key in hashes}, hashes, file, remedy)
        except InputError:
            # The problems may come from this file: if it lost some, the file is at fault.
            read_finished(file, Score, lambda: lambda score: None)
            raise
        if name in (CONTRAST, FLIP):
            _check_as_reverse(settings, file, files.get(str(Direction.REVERSE)))
        check = partial(score_check, problems, candidates, name)
        scores += read_finished(file, Score, check)
    return scores


def _check_as_reverse(settings: JsonObject, file: Path, reverse: Path | None) -> None:
    """Raise `InputError` unless these scores used the same model and reading as the reverse ones:
    an earlier run may have left them, and a contrast between two models is meaningless."""
    remedy = f"remove {file.name}, or make it again together with the reverse scores"
    if reverse is None:
        raise InputError(f"there are no reverse scores next to it; {remedy}", path=file)
    keys: tuple[str, ...] = ("model", "demonstrations", "mask_copies", "without_thoughts")
    own, wanted = (
        {key: made[key] for key in keys if key in made}
        for made in (settings, read_settings(reverse))
    )
    check_settings(own, wanted, file, remedy)


def scored_problems(folder: Path) -> set[str]:
    """The ids of the problems that have scores in a reranked folder.

    >>> scored_problems(Path("no such folder"))
    Traceback (most recent call last):
    ledom.core.errors.InputError: no such folder: no scores here; make them with: ledom rerank
    """
    first = next(iter(_score_files(folder).values()))  # forward or reverse: scores of all problems
    return {score.problem_id for score in read_records(first, Score)}


def scoring_models(folder: Path) -> dict[str, JsonObject]:
    """The forward and the reverse model behind the scores in a reranked folder, by direction.

    >>> scoring_models(Path("no such folder"))
    Traceback (most recent call last):
    ledom.core.errors.InputError: no such folder: no scores here; make them with: ledom rerank
    """
    files = _score_files(folder)
    return {str(way): read_settings(files[way])["model"] for way in Direction if way in files}


def _score_files(folder: Path) -> dict[str, Path]:
    """The existing score files by name; raises `InputError` if there are none."""
    files = {name: folder / f"scores.{name}.jsonl" for name in SCORE_FILES}
    found = {name: file for name, file in files.items() if file.is_file()}
    if not found.keys() & {*Direction}:
        raise InputError("no scores here; make them with: ledom rerank", path=folder)
    return found


def score_check(
    problems: Sequence[Problem], candidates: Sequence[Candidate], name: str
) -> Callable[[Score], None]:
    """A function that checks the scores in the file of this name one by one, for `read_records`.

    It raises `InputError` for a score that belongs to an unknown candidate, has another direction
    or target, is repeated, or has numbers that contradict each other.

    >>> drawn = [Candidate(problem_id="a", index=0, text="4")]
    >>> check = score_check([Problem(id="a", question="2 + 2?")], drawn, "forward")
    >>> check(Score(problem_id="a", index=1, model="m", direction="forward", target="y|x",
    ...             logprob=-0.5, num_tokens=1))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: the score of candidate 1 of problem 'a' belongs to no known ...
    """
    direction, targets = SCORE_FILES[name]
    questions = {problem.id: problem.question for problem in problems}
    texts = {c.key: c.text for c in distinct_candidates(candidates)}
    seen: set[Key] = set()

    def check(score: Score) -> None:
        whose = f"the score of candidate {score.index} of problem {score.problem_id!r}"
        own = score.problem_id, score.index
        if own not in texts:
            raise InputError(f"{whose} belongs to no known candidate")
        if score.direction != direction or score.target not in targets:
            raise InputError(
                f"{whose} is of log P({score.target}), {score.direction}, in a file of a "
                f"{direction} model"
            )
        if score.key in seen:
            raise InputError(f"{whose} for {score.target} occurs twice")
        seen.add(score.key)
        of_question = score.target == "x|y"
        text = questions[score.problem_id] if of_question else score.solution(texts[own])
        _check_numbers(score, whose, text)

    return check


def _check_numbers(score: Score, whose: str, text: str) -> None:
    """Raise `InputError` for numbers that contradict each other, or spans beyond the text."""
    if score.logprob > 0:
        raise InputError(f"{whose}: logprob is {score.logprob}, expected a number up to 0")
    count = score.num_tokens
    if count < 0:
        raise InputError(f"{whose}: num_tokens is {count}, expected 0 or more")
    if score.token_logprobs is not None:
        _check_tokens(score.token_logprobs, score, whose)
    if (spans := score.token_spans) is not None:
        if len(spans) != count:
            raise InputError(f"{whose}: num_tokens is {count}, but it has {len(spans)} spans")
        for span in spans:
            if len(span) != 2 or not 0 <= span[0] <= span[1] <= len(text):
                raise InputError(
                    f"{whose}: the span {span!r:.40} does not lie in its {len(text)} characters"
                )


def _check_tokens(logprobs: list[float], score: Score, whose: str) -> None:
    if (largest := max(logprobs, default=0)) > 0:
        raise InputError(f"{whose}: the logprob of a token is {largest}, expected a number up to 0")
    count = score.num_tokens
    if len(logprobs) != count:
        raise InputError(f"{whose}: num_tokens is {count}, but it has {len(logprobs)} tokens")
    total = math.fsum(logprobs)
    if abs(total - score.logprob) > _ROUNDING * (count + 1) + 1e-9:
        raise InputError(f"{whose}: logprob is {score.logprob}, but its tokens sum to {total:.5f}")
