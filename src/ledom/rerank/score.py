"""Scores candidates with a model's log-probabilities: from candidates.jsonl to scores.*.jsonl.

This module does not know about strategies, or how a model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction
from ledom.core.errors import InputError, ServerError
from ledom.core.files import fingerprint
from ledom.core.reading import JsonObject
from ledom.core.records import DECIMALS, Candidate, Problem, Score, Target
from ledom.core.stage import Stage, Track, Work, at_once, even_groups
from ledom.lm.language_model import LanguageModel, TokenSpan
from ledom.rerank.candidates import distinct_candidates, text_hashes
from ledom.rerank.score_files import score_check
from ledom.text.answers import split_thought
from ledom.text.copies import WORD, without_copies
from ledom.text.pair_format import EncodedPair

__all__ = [
    "ScoreFiles",
    "ScoredPair",
    "check_finite",
    "check_room",
    "check_scoring",
    "fill_scores",
    "make_score",
    "read_solution",
    "score_candidates",
    "score_groups",
    "score_pairs",
]

_TOGETHER = 256  # candidates that are scored together, and lost together if the run is stopped
_ROUNDING = 1e-3  # nats by which rounding may push a log-probability above 0


def check_room(
    problems: Sequence[Problem], lm: LanguageModel, demonstrations: Sequence[Problem] = ()
) -> None:
    """Raise `InputError` if questions or demonstrations leave no room in the model's context.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(context=8)
    >>> check_room([Problem(id="p", question="2 + 2?")], lm)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: fake: 1 of 1 questions leave no room for a solution in the 8 ...
    """
    shown = len(_demonstration_ids(demonstrations, lm))
    room = lm.context - shown
    if room < 1:
        raise InputError(
            f"{lm.name}: the demonstrations take {shown} tokens of a context of {lm.context}; give "
            "fewer, or shorter ones"
        )
    lengths: list[int] = []
    for some in even_groups(problems, _TOGETHER):  # all offsets at once take memory
        texts = [(problem.question, "") for problem in some]
        pairs = lm.pair_format.encode(lm.tokenizer, texts, *lm.special_ids)
        lengths += [len(pair.ids) - 1 for pair in pairs]
    too_long = [i for i, length in enumerate(lengths) if length >= room]
    if too_long:
        first = too_long[0]
        raise InputError(
            f"{lm.name}: {len(too_long)} of {len(problems)} questions leave no room for a solution "
            f"in the {room} tokens of the model's context, the first is that of problem "
            f"{problems[first].id!r} with {lengths[first]} tokens; remove these problems"
        )


def check_scoring(lm: LanguageModel) -> None:
    """Score one token. Raises `ServerError` for a server that samples but cannot score; without
    this, hours of sampling would come first.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> check_scoring(FakeLanguageModel())
    """
    ids = lm.add_special_tokens(lm.tokenizer.encode("1").ids)
    lm.logprobs([TokenSpan(ids, 1, len(ids))])


def score_groups(
    candidates: Sequence[Candidate], together: int | None = None
) -> list[list[Candidate]]:
    """Split candidates into groups of at most `together`, each of which is scored together.

    Candidates of one problem share its tokens, so they stay in one group unless they are too many.

    >>> drawn = [Candidate(problem_id=p, index=i, text=str(i)) for p in "ab" for i in range(3)]
    >>> [[c.key for c in group] for group in score_groups(drawn, together=4)]
    [[('a', 0), ('a', 1), ('a', 2)], [('b', 0), ('b', 1), ('b', 2)]]
    """
    together = together or _TOGETHER
    by_problem: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_problem.setdefault(candidate.problem_id, []).append(candidate)
    groups: list[list[Candidate]] = []
    for own in by_problem.values():
        for part in even_groups(own, together):
            if not groups or len(groups[-1]) + len(part) > together:
                groups.append([])
            groups[-1] += part
    return groups


@dataclass(frozen=True)
class ScoreFiles:
    """The files of one model's scores in a folder, and how the model reads the texts."""

    folder: Path
    problems: Sequence[Problem]
    candidates: Sequence[Candidate]
    lm: LanguageModel
    track: Track
    demonstrations: Sequence[Problem] = ()
    """Solved problems that the model reads first."""
    mask_copies: int = 0
    """A reverse model skips passages of at least this many words (0: none); see `read_solution`."""

    def fill(
        self,
        name: str,
        make: Callable[[Sequence[Candidate]], Iterable[list[Score]]],
        settings: JsonObject,
        wanted: Callable[[Candidate], bool] = lambda candidate: True,
    ) -> list[Score]:
        """The scores of the `wanted` distinct candidates in `scores.<name>.jsonl`; `settings` is
        what changes them besides the model, the texts, and how the model reads them."""
        made_with = {"model": self.lm.identity, **text_hashes(self.problems, self.candidates)}
        if self.demonstrations:
            made_with["demonstrations"] = fingerprint(
                (d.question, d.solution or "", d.answer or "") for d in self.demonstrations
            )
        if self.mask_copies and self.lm.direction is Direction.REVERSE:
            made_with |= {"mask_copies": self.mask_copies, "words": fingerprint([(WORD,)])}
        read = [_without_thought(c.text) for c in self.candidates]
        if read != [c.text for c in self.candidates]:
            made_with["without_thoughts"] = fingerprint((text,) for text in read)
        path = self.folder / f"scores.{name}.jsonl"
        check = partial(score_check, self.problems, self.candidates, name)
        work: Work[Candidate, Score] = Work(
            items=[c for c in distinct_candidates(self.candidates) if wanted(c)],
            make=at_once(make),
            groups=score_groups,
            together=self.lm.batches_requests,
        )
        stage = Stage(path, Score, made_with | settings, check)
        return stage.fill(work, self.track, f"scoring, {name}", timed=True)


def fill_scores(files: ScoreFiles) -> list[Score]:
    """The model's scores for all distinct candidates, saved in `scores.<direction>.jsonl`.

    >>> import tempfile
    >>> from ledom.core.stage import no_progress
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm, problem = FakeLanguageModel(direction="reverse"), Problem(id="p", question="2 + 2?")
    >>> drawn = [Candidate(problem_id="p", index=0, text="4")]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scores = fill_scores(ScoreFiles(Path(folder), [problem], drawn, lm, no_progress))
    >>> [score.target for score in scores]
    ['x|y', 'y']
    """
    read = files.lm, files.demonstrations, files.mask_copies
    name = str(files.lm.direction)
    return files.fill(name, lambda some: score_candidates(files.problems, some, *read), {})


def score_candidates(
    problems: Sequence[Problem],
    candidates: Iterable[Candidate],
    lm: LanguageModel,
    demonstrations: Sequence[Problem] = (),
    mask_copies: int = 0,
    with_thoughts: bool = False,
) -> Iterator[list[Score]]:
    """Yield the scores of each distinct candidate, by problem.

    A forward model gives one record (y|x), a reverse model two from one pass (x|y and y). In a
    forward model's score, the document-end token is part of y; in a reverse model's, the
    document-start token is part of x.

    `demonstrations` are problems with solutions that the model reads first, each as a document:
    before the pair for a forward model, after it for a reverse one. See `read_solution` for
    `mask_copies` and `with_thoughts`.

    If a pair is longer than the model's context, y loses its last tokens, and the records have
    `truncated`: true. A `ServerError` is raised after all scores that the server returned before.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(direction="reverse")
    >>> texts = ["4", "5", "4"]
    >>> drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate(texts)]
    >>> scores = score_candidates([Problem(id="p", question="2 + 2?")], drawn, lm)
    >>> [score.key for own in scores for score in own]  # equal texts are scored once
    [('p', 0, 'x|y'), ('p', 0, 'y'), ('p', 1, 'x|y'), ('p', 1, 'y')]
    """
    questions = {problem.id: problem.question for problem in problems}
    for chunk in score_groups(distinct_candidates(candidates)):
        asked = []
        for candidate in chunk:
            question = questions[candidate.problem_id]
            read = read_solution(candidate, question, lm, mask_copies, with_thoughts)
            asked.append((candidate, question, read))
        for place, scored in score_pairs(lm, asked, demonstrations):
            yield _records(asked[place][0], scored, lm)


def read_solution(
    candidate: Candidate,
    question: str,
    lm: LanguageModel,
    mask_copies: int = 0,
    with_thoughts: bool = False,
) -> str:
    """A candidate's text as the model reads it: in the model's style.

    With `mask_copies`, a reverse model does not read passages of at least that many words that also
    occur in the question. Without `with_thoughts`, which is for texts that are not answers, the
    text up to the last `</think>` is left out, unless nothing follows, and that from a `<think>`
    that is never closed: a thought repeats the question and would fill the model's context.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(direction="reverse")
    >>> candidate = Candidate(problem_id="p", index=0, text="Ava has 3 pens: 3 + 4 = 7")
    >>> read_solution(candidate, "Ava has 3 pens and buys 4.", lm, mask_copies=4)
    ': 3 + 4 = 7'
    """
    text = candidate.text if with_thoughts else _without_thought(candidate.text)
    if mask_copies and lm.direction is Direction.REVERSE:
        text = without_copies(text, question, mask_copies)
    return lm.pair_format.restyle(text)


def _without_thought(text: str) -> str:
    thought, conclusion = split_thought(text)
    return (conclusion.lstrip() or text) if thought else conclusion


@dataclass(frozen=True)
class ScoredPair:
    """A question and a solution, with the log-probabilities of their tokens."""

    pair: EncodedPair
    logprobs: NDArray[np.float32]
    """Forward: of y and the EOS after it. Reverse: of all from the EOS before x to the end of y."""
    solution: str
    """What the model read of the solution: its beginning, if the rest did not fit."""
    truncated: bool


def score_pairs(
    lm: LanguageModel,
    asked: Sequence[tuple[Candidate, str, str]],
    demonstrations: Sequence[Problem] = (),
) -> Iterator[tuple[int, ScoredPair]]:
    """Score triples (candidate, question, solution as the model reads it); yields (index, result).

    All triples are scored together, so tokens that they share are computed once. See
    `score_candidates` for demonstrations, truncation and `ServerError`.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> asked = [(Candidate(problem_id="p", index=0, text="4"), "2 + 2?", "4")]
    >>> [(place, len(found.logprobs)) for place, found in score_pairs(lm, asked)]  # 4 and EOS
    [(0, 2)]
    """
    shown = _demonstration_ids(demonstrations, lm)
    texts = [(question, solution) for _, question, solution in asked]
    room = lm.context - len(shown)
    fitted = lm.pair_format.fit(lm.tokenizer, texts, *lm.special_ids, room=room)
    failure: ServerError | None = None
    try:
        targets = [_target(pair, lm, shown) for pair, _ in fitted]
        logprobs = dict(enumerate(lm.logprobs(targets)))
    except ServerError as error:
        failure, logprobs = error, error.finished
    for place, values in sorted(logprobs.items()):
        candidate, _, solution = asked[place]
        pair, read = fitted[place]
        yield place, ScoredPair(pair, _checked(values, candidate, lm), read, read != solution)
    if failure is not None:
        raise failure


def _demonstration_ids(demonstrations: Sequence[Problem], lm: LanguageModel) -> list[int]:
    """The demonstrations as tokens in reading order, to be joined with a pair's tokens.

    If BOS and EOS are the same token, one such token separates documents; otherwise each document
    has both. The pair brings its own.
    """
    before, after = lm.special_ids
    opening = [] if before == after else before
    texts = [
        (problem.question, lm.pair_format.restyle(problem.solution or "", problem.answer))
        for problem in demonstrations
    ]
    pairs = lm.pair_format.encode(lm.tokenizer, texts, [], [])
    if lm.direction is Direction.FORWARD:
        return [i for pair in pairs for i in (*pair.ids, *after, *opening)]
    return [i for pair in pairs for i in (*opening, *pair.ids, *after)]


def _target(pair: EncodedPair, lm: LanguageModel, shown: list[int]) -> TokenSpan:
    """The tokens to score (see `ScoredPair.logprobs`), with the demonstrations where the model
    reads them first, after its special tokens."""
    if lm.direction is Direction.FORWARD:
        first = len(lm.bos_ids)
        ids = pair.ids[:first] + shown + pair.ids[first:]
        return TokenSpan(ids, len(shown) + pair.solution[0], len(ids))
    return TokenSpan(pair.ids + shown, 0, pair.solution[1])


def _checked(
    values: NDArray[np.float32], candidate: Candidate, lm: LanguageModel
) -> NDArray[np.float32]:
    """The values, capped at 0; raises `InputError` for values that are not log-probabilities."""
    whose = f"candidate {candidate.index} of problem {candidate.problem_id!r}"
    check_finite(values, lm, whose)
    if (values > _ROUNDING).any():
        raise InputError(
            f"{lm.name}: {whose} has a log-probability of {values.max():.4g}, but none may be "
            "above 0; try another model"
        )
    return np.minimum(values, np.float32(0))


def check_finite(values: NDArray[np.float32], lm: LanguageModel, whose: str) -> None:
    """Raise `InputError` for a log-probability that is infinite or not a number."""
    if not np.isfinite(values).all():
        raise InputError(
            f"{lm.name}: {whose} has a log-probability that is not finite; try --dtype float32"
        )


def _records(candidate: Candidate, scored: ScoredPair, lm: LanguageModel) -> list[Score]:
    """The scores of the parts of a pair that the model predicts."""
    pair, values = scored.pair, scored.logprobs
    parts: list[tuple[Target, NDArray[np.float32], Sequence[tuple[int, int]]]]
    if lm.direction is Direction.FORWARD:
        # Template text after y counts as part of y's end; a trained model is certain of it.
        parts = [("y|x", values, pair.offsets[pair.solution[0] :])]
    else:
        x, y = slice(pair.question[1]), slice(*pair.solution)
        parts = [("x|y", values[x], pair.offsets[x]), ("y", values[y], pair.offsets[y])]
    records = []
    for target, part, spans in parts:
        total = float(part.sum(dtype=np.float64))
        score = make_score(candidate, lm, target, total, len(part), scored.truncated)
        score.token_logprobs = [round(float(value), DECIMALS) for value in part]
        score.token_spans = [list(span) for span in spans]
        if target != "x|y" and scored.solution != candidate.text:
            score.text = scored.solution
        records.append(score)
    return records


def make_score(
    candidate: Candidate,
    lm: LanguageModel,
    target: Target,
    logprob: float,
    num_tokens: int,
    truncated: bool,
) -> Score:
    """Build a candidate's score; `truncated` says that the model did not read all of its text.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> candidate = Candidate(problem_id="p", index=0, text="4")
    >>> make_score(candidate, FakeLanguageModel(), "y|x", -1.5, num_tokens=2, truncated=True).extra
    {'truncated': True}
    """
    return Score(
        problem_id=candidate.problem_id,
        index=candidate.index,
        model=lm.name,
        direction=lm.direction.value,
        target=target,
        logprob=round(logprob, DECIMALS),
        num_tokens=num_tokens,
        extra={"truncated": True} if truncated else {},
    )
