"""The files of candidates and scores: makes their missing records, and checks the existing ones.

A record that is read back must belong to a known problem or candidate, occur once, and have numbers
that agree with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from ledom.core import processes as parallel
from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.files import check_settings, fingerprint
from ledom.core.reading import JsonObject
from ledom.core.records import Candidate, Key, Problem, Score, read_records, write_records
from ledom.core.stage import Make, Stage, Track, Work, at_once, read_finished, read_settings
from ledom.lm.language_model import LanguageModel
from ledom.rerank.candidates import candidate_check, distinct_candidates
from ledom.rerank.contrast import change_numbers, contrast_candidates
from ledom.rerank.flip import FlipSettings, flip_candidates, longest_question
from ledom.rerank.score import score_candidates, score_groups

__all__ = [
    "GIVEN",
    "TIMINGS",
    "Scoring",
    "fill_candidates",
    "fill_scores",
    "keep_inputs",
    "read_scores",
    "scored_problems",
    "scoring_models",
]

TIMINGS = "timings.json"
"""The file with the seconds that each other file took. Two runs with the same settings differ only
in this file and in the seconds of their reports."""
GIVEN = "candidates.given.jsonl"
"""The candidates of the last run, if they were given and not sampled."""
CONTRAST, FLIP = "contrast", "flip"
_CONTENTS: dict[str, tuple[Direction, tuple[str, ...]]] = {
    "forward": (Direction.FORWARD, ("y|x",)),
    "reverse": (Direction.REVERSE, ("x|y", "y")),
    CONTRAST: (Direction.REVERSE, ("x'|y",)),
    FLIP: (Direction.REVERSE, ("x~|y",)),
}
"""Score files by name: (the direction of their model, their targets)."""
_ROUNDING = 5e-6  # nats by which each number in a score may be rounded


def fill_candidates(
    path: Path,
    problems: Sequence[Problem],
    settings: JsonObject,
    make: Make[Problem, Candidate],
    groups: Callable[[Sequence[Problem]], Sequence[Sequence[Problem]]],
    together: bool,
    track: Track,
    name: str,
    is_done: Callable[[Sequence[Candidate]], bool] = bool,
) -> list[Candidate]:
    """The candidates in `path`, in the problems' order; missing ones are made, group by group.

    Once the settings match those of the file, the problems are written to problems.jsonl beside it.
    See `ledom.core.stage.Work` for the other parameters.

    >>> import tempfile
    >>> from ledom.core.stage import no_progress
    >>> def answered(problems):
    ...     return ([Candidate(problem_id=p.id, index=0, text="4")] for p in problems)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = fill_candidates(
    ...         Path(folder, "candidates.jsonl"), [Problem(id="p", question="2 + 2?")], {},
    ...         at_once(answered), groups=lambda items: [items], together=False,
    ...         track=no_progress, name="sampling")
    ...     made[0].text, sorted(file.name for file in Path(folder).iterdir())[0]
    ('4', 'candidates.jsonl')
    """
    settings = settings | {
        "problems": len(problems),
        "first_problem": problems[0].id,
        "questions": fingerprint((p.id, p.question) for p in problems),
    }
    stage = Stage(path, Candidate, settings, lambda: candidate_check(problems))
    if parallel.is_first():
        write_records(path.with_name("problems.jsonl"), problems)
    work = Work(items=problems, make=make, groups=groups, together=together, is_done=is_done)
    return stage.fill(work, track, name, path.with_name(TIMINGS))


@dataclass(frozen=True)
class Scoring:
    """The settings of scoring, apart from the model and the texts."""

    demonstrations: Sequence[Problem] = ()
    """Solved problems that the model reads first."""
    mask_copies: int = 0
    """A reverse model does not read passages of at least this many words that are copied from the
    question; 0: it reads everything."""
    contrast: int = 0
    """Copies of each question with one number changed; see `ledom.rerank.contrast`."""
    flip: FlipSettings | None = None
    """Questions to write backwards from each solution; see `ledom.rerank.flip`."""

    def settings(self, lm: LanguageModel) -> JsonObject:
        """The settings that change a model's scores, for the settings of their file.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> lm = FakeLanguageModel(direction="reverse")
        >>> Scoring(mask_copies=8).settings(lm), Scoring().settings(lm)
        ({'mask_copies': 8}, {})
        """
        settings: JsonObject = {}
        if self.demonstrations:
            settings["demonstrations"] = fingerprint(
                (d.question, d.solution or "", d.answer or "") for d in self.demonstrations
            )
        if self.mask_copies and lm.direction is Direction.REVERSE:
            settings["mask_copies"] = self.mask_copies
        return settings


def fill_scores(
    folder: Path,
    problems: Sequence[Problem],
    candidates: Sequence[Candidate],
    lm: LanguageModel,
    how: Scoring,
    track: Track,
) -> list[Score]:
    """The model's scores of all distinct candidates, kept in `scores.<direction>.jsonl`.

    For a reverse model, `how.contrast` adds its scores of changed questions, kept in
    `scores.contrast.jsonl`, and `how.flip` the overlap of the questions that it writes backwards,
    kept in `scores.flip.jsonl`.

    >>> import tempfile
    >>> from ledom.core.stage import no_progress
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm, problem = FakeLanguageModel(direction="reverse"), Problem(id="p", question="2 + 2?")
    >>> drawn = [Candidate(problem_id="p", index=0, text="4")]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scores = fill_scores(Path(folder), [problem], drawn, lm, Scoring(), no_progress)
    >>> [score.target for score in scores]
    ['x|y', 'y']
    """
    files = _ScoreFiles(folder, problems, candidates, lm, track)
    settings = {"model": lm.identity, **_text_hashes(problems, candidates), **how.settings(lm)}
    distinct = distinct_candidates(candidates)
    read = (how.demonstrations, how.mask_copies)
    scores = files.fill(
        str(lm.direction),
        distinct,
        settings,
        lambda some: score_candidates(problems, some, lm, *read),
    )
    if how.contrast and lm.direction is Direction.REVERSE:
        changes = {p.id: change_numbers(p.question, how.contrast) for p in problems}
        copies = ((i, str(c.start), str(c.end), c.number) for i in changes for c in changes[i])
        scores += files.fill(
            CONTRAST,
            [candidate for candidate in distinct if changes[candidate.problem_id]],
            settings | {"contrast": how.contrast, "copies": fingerprint(copies)},
            lambda some: contrast_candidates(problems, some, lm, changes, *read),
        )
    if (flip := how.flip) and lm.direction is Direction.REVERSE:
        longest = longest_question(problems, lm)
        scores += files.fill(
            FLIP,
            distinct,
            settings | {"flip": asdict(flip), "longest": longest},
            lambda some: flip_candidates(problems, some, lm, flip, longest, how.mask_copies),
        )
    return scores


@dataclass(frozen=True)
class _ScoreFiles:
    """The files of one model's scores in a folder."""

    folder: Path
    problems: Sequence[Problem]
    candidates: Sequence[Candidate]
    lm: LanguageModel
    track: Track

    def fill(
        self,
        name: str,
        items: Sequence[Candidate],
        settings: JsonObject,
        make: Callable[[Sequence[Candidate]], Iterable[list[Score]]],
    ) -> list[Score]:
        """The scores of `items` in the file of this name; missing ones are made."""
        check = partial(_score_check, self.problems, self.candidates, name)
        stage = Stage(self.folder / f"scores.{name}.jsonl", Score, settings, check)
        work: Work[Candidate, Score] = Work(
            items=items,
            make=at_once(make),
            groups=score_groups,
            together=self.lm.batches_requests,
        )
        return stage.fill(work, self.track, f"scoring, {name}", self.folder / TIMINGS)


def keep_inputs(
    folder: Path, problems: Sequence[Problem], given: Sequence[Candidate] | None
) -> None:
    """Leave in `folder` what the last run measured, with its labels, for `ledom tune`.

    `given` are its candidates if they were not sampled. Their scores may be those of an earlier
    run, whose problems and candidates may have other labels.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     keep_inputs(Path(folder), [Problem(id="p", question="2 + 2?")], None)
    ...     [file.name for file in Path(folder).iterdir()]
    ['problems.jsonl']
    """
    write_records(folder / "problems.jsonl", problems)
    if given is None:
        (folder / GIVEN).unlink(missing_ok=True)
    else:
        write_records(folder / GIVEN, given)


def read_scores(
    folder: Path, problems: Sequence[Problem], candidates: Sequence[Candidate]
) -> list[Score]:
    """All scores in a reranked folder.

    Raises `InputError` if there are none, if they are of other problems or candidates, if those of
    one model were made in different ways, and if they are damaged.

    >>> read_scores(Path("no such folder"), [], [])
    Traceback (most recent call last):
    ledom.core.errors.InputError: no such folder: no scores here; make them with: ledom rerank
    """
    scores: list[Score] = []
    hashes = _text_hashes(problems, candidates)
    files = _score_files(folder)
    for name, file in files.items():
        settings = read_settings(file)
        check_settings({key: settings.get(key) for key in hashes}, hashes, file)
        if name in (CONTRAST, FLIP):
            _check_as_reverse(settings, file, files.get(str(Direction.REVERSE)))
        check = partial(_score_check, problems, candidates, name)
        scores += read_finished(file, Score, check)
    return scores


def _check_as_reverse(settings: JsonObject, file: Path, reverse: Path | None) -> None:
    """Raise `InputError` for scores of another model, or read otherwise, than the reverse ones.

    An earlier run may have left them; a contrast of two models means nothing.
    """
    remedy = f"remove {file.name}, or make it again beside the reverse scores"
    if reverse is None:
        raise InputError(f"there are no reverse scores beside it; {remedy}", path=file)
    keys: tuple[str, ...] = ("model", "demonstrations", "mask_copies")
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
    files = _score_files(folder).values()
    return {score.problem_id for file in files for score in read_records(file, Score)}


def scoring_models(folder: Path) -> dict[str, JsonObject]:
    """The forward and the reverse model that made the scores in a reranked folder, by direction.

    >>> scoring_models(Path("no such folder"))
    Traceback (most recent call last):
    ledom.core.errors.InputError: no such folder: no scores here; make them with: ledom rerank
    """
    files = _score_files(folder)
    return {str(way): read_settings(files[way])["model"] for way in Direction if way in files}


def _score_files(folder: Path) -> dict[str, Path]:
    """The existing score files by name; raises `InputError` if there is none."""
    files = {name: folder / f"scores.{name}.jsonl" for name in _CONTENTS}
    found = {name: file for name, file in files.items() if file.is_file()}
    if not found.keys() & {*Direction}:
        raise InputError("no scores here; make them with: ledom rerank", path=folder)
    return found


def _text_hashes(problems: Sequence[Problem], candidates: Sequence[Candidate]) -> JsonObject:
    """Hashes of questions and solutions, for the settings of score files."""
    distinct = distinct_candidates(candidates)
    return {
        "questions": fingerprint(sorted((p.id, p.question) for p in problems)),
        "candidates": len(distinct),
        "texts": fingerprint((c.problem_id, str(c.index), c.text) for c in distinct),
    }


def _score_check(
    problems: Sequence[Problem], candidates: Sequence[Candidate], name: str
) -> Callable[[Score], None]:
    """A function that checks the scores in the file of this name one by one, for `read_records`.

    It raises `InputError` for a score of an unknown candidate, of another direction or target, that
    is repeated, or whose numbers contradict each other.

    >>> drawn = [Candidate(problem_id="a", index=0, text="4")]
    >>> check = _score_check([Problem(id="a", question="2 + 2?")], drawn, "forward")
    >>> check(Score(problem_id="a", index=1, model="m", direction="forward", target="y|x",
    ...             logprob=-0.5, num_tokens=1))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: the score of candidate 1 of problem 'a' belongs to no known ...
    """
    direction, targets = _CONTENTS[name]
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
    if not _is_logprob(score.logprob):
        raise InputError(f"{whose}: logprob is {score.logprob!r:.40}, expected a number up to 0")
    count = score.num_tokens
    if count < 0:
        raise InputError(f"{whose}: num_tokens is {count}, expected 0 or more")
    if (values := score.token_logprobs) is not None:
        bad = next((value for value in values if not _is_logprob(value)), None)
        if bad is not None or None in values:
            raise InputError(
                f"{whose}: the logprob of a token is {bad!r:.40}, expected a number up to 0"
            )
        if len(values) != count:
            raise InputError(f"{whose}: num_tokens is {count}, but it has {len(values)} tokens")
        total = math.fsum(values)
        if abs(total - score.logprob) > _ROUNDING * (count + 1) + 1e-9:
            raise InputError(
                f"{whose}: logprob is {score.logprob}, but its tokens sum to {total:.5f}"
            )
    if (spans := score.token_spans) is not None:
        if len(spans) != count:
            raise InputError(f"{whose}: num_tokens is {count}, but it has {len(spans)} spans")
        for span in spans:
            if not _is_span(span, len(text)):
                raise InputError(
                    f"{whose}: the span {span!r:.40} does not lie in its {len(text)} characters"
                )


def _is_logprob(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -math.inf < value <= 0  # type: ignore[operator]


def _is_span(span: object, length: int) -> bool:
    if not isinstance(span, list) or [type(at) for at in span] != [int, int]:
        return False
    return bool(0 <= span[0] <= span[1] <= length)
