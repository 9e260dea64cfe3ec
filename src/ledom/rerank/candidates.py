"""Checks candidates, groups them by problem and answer, and finds scores that equal texts share.

A problem's pool, from which strategies choose, has all its candidates except greedy and broken-off
ones. An external score is an extra field of a candidate, such as the score of a trained verifier: a
finite number, larger for better candidates. Every candidate of the pool needs it. Strategies weigh
it under the field's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ledom.core.errors import InputError
from ledom.core.files import fingerprint
from ledom.core.reading import JsonObject, is_number
from ledom.core.records import (
    CONFIDENCE,
    EARLY_STOP,
    NUM_TOKENS,
    SELF_CERTAINTY,
    Candidate,
    Key,
    Problem,
    Score,
    read_records,
    unique_ids,
)
from ledom.text.answers import equal_answers, split_thought
from ledom.text.math.notation import has_content

__all__ = [
    "EXTERNAL_LABELS",
    "GIVEN",
    "HASH_LENGTH",
    "AnswerClasses",
    "candidate_check",
    "check_problems",
    "choose_external_scores",
    "distinct_candidates",
    "is_blank",
    "labeled_problems",
    "match_candidates",
    "planned_candidates",
    "pools",
    "question_hash",
    "read_candidates",
    "scores_by_target",
    "text_hashes",
    "written_tokens",
]

GIVEN = "candidates.given.jsonl"
"""The candidates of a folder's last run, if they were supplied rather than sampled."""

EXTERNAL_LABELS = {
    SELF_CERTAINTY: "self-certainty",
    **{name: f"{name.partition('_')[2]} confidence" for name in CONFIDENCE},
}
"""Labels of the external scores that sampling writes; any other's label is its field's name."""

HASH_LENGTH = 12  # of `question_hash`
_MAX_INDEX = 2**63  # other JSON readers parse larger numbers as floats


def check_problems(problems: Sequence[Problem]) -> None:
    """Raise `InputError` for no problems, a repeated id, and a question or answer without content.

    >>> check_problems([Problem(id="a", question=" ")])
    Traceback (most recent call last):
    ledom.core.errors.InputError: problem 'a' has an empty question; remove the problem
    """
    if not problems:
        raise InputError("there are no problems")
    check = unique_ids()
    for problem in problems:
        check(problem)
        if not problem.question.strip():
            raise InputError(f"problem {problem.id!r} has an empty question; remove the problem")
        if problem.answer and problem.is_labeled and not has_content(problem.answer):
            raise InputError(
                f"problem {problem.id!r} has the answer {problem.answer!r:.60}, which nothing "
                "can equal; correct or remove the answer"
            )


def candidate_check(problems: Sequence[Problem]) -> Callable[[Candidate], None]:
    """A function that checks candidates of these problems one by one, for `read_records`.

    It raises `InputError` for an unknown problem, for an index that is repeated or not in
    [0, 2^63), and for a token count that is invalid, or missing when no score will supply it.

    >>> check = candidate_check([Problem(id="a", question="2 + 2?")])
    >>> check(Candidate(problem_id="a", index=0, text="4"))
    >>> check(Candidate(problem_id="a", index=0, text="5"))
    Traceback (most recent call last):
    ledom.core.errors.InputError: problem 'a' has two candidates with index 0
    """
    known = {problem.id for problem in problems}
    seen: set[Key] = set()

    def check(candidate: Candidate) -> None:
        problem_id, index = candidate.problem_id, candidate.index
        if problem_id not in known:
            raise InputError(
                f"a candidate belongs to the problem {problem_id!r}, which is not among "
                f"the {len(known)} problems; give the problems file that it belongs to"
            )
        if not 0 <= index < _MAX_INDEX:
            raise InputError(
                f"a candidate of problem {problem_id!r} has the index {index!r:.40}, expected "
                "0 to 2^63 - 1; number the candidates of each problem from 0"
            )
        if candidate.key in seen:
            raise InputError(f"problem {problem_id!r} has two candidates with index {index}")
        seen.add(candidate.key)
        if written_tokens(candidate) is None and candidate.finish_reason == "unsure":
            raise InputError(
                f"candidate {index} of problem {problem_id!r} was broken off (its finish_reason is "
                f"'unsure') and has no {NUM_TOKENS!r}, which is its cost; add it, or leave out the "
                "candidate"
            )

    return check


def written_tokens(candidate: Candidate) -> int | None:
    """The tokens that sampling counted; None without a count. Raises `InputError` for a bad one.

    >>> written_tokens(Candidate(problem_id="a", index=0, text="4", extra={"num_tokens": 2}))
    2
    """
    known = candidate.extra.get(NUM_TOKENS)
    if known is None:
        return None
    if not is_number(known) or known < 0 or known != int(known):
        raise InputError(
            f"candidate {candidate.index} of problem {candidate.problem_id!r}: {NUM_TOKENS!r} is "
            f"{known!r:.40}, expected a whole number, 0 or more; correct it or leave it out"
        )
    return int(known)


def planned_candidates(candidate: Candidate) -> int:
    """How many candidates were planned for its problem; 0 if drawn without early stopping.

    >>> planned_candidates(Candidate(problem_id="p", index=0, text="4"))
    0
    """
    planned = (candidate.sampling or {}).get(EARLY_STOP)
    return planned if isinstance(planned, int) and 0 < planned < 2**31 else 0


def match_candidates(problems: Sequence[Problem], candidates: Sequence[Candidate]) -> None:
    """Raise `InputError` as the checks above do, and for a problem whose pool is empty.

    >>> match_candidates([Problem(id="a", question="?")], [])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: 1 of 1 problems have no candidates to choose from, the first ...
    """
    check_problems(problems)
    check = candidate_check(problems)
    for candidate in candidates:
        check(candidate)
    pool_of = pools([problem.id for problem in problems], candidates)
    empty = [problem_id for problem_id, pool in pool_of.items() if not pool]
    if empty:
        raise InputError(
            f"{len(empty)} of {len(pool_of)} problems have no candidates to choose from, the first "
            f"is {empty[0]!r}; greedy and broken-off ones do not count: add sampled candidates, or "
            "leave out the key 'greedy' or the problems"
        )


def read_candidates(
    path: Path,
    asked: Sequence[str] | None = None,
    needed: Iterable[str] = (),
    check: Callable[[Candidate], object] | None = None,
) -> list[Candidate]:
    """Read a file of candidates with the external scores that `choose_external_scores` chooses.

    `check` may raise for further reasons. Raises `InputError` with file and line for a bad record.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
    ...     _ = Path(file.name).write_text(
    ...         '{"problem_id": "p", "index": 0, "text": "4", "verifier": 0.9}')
    ...     read_candidates(Path(file.name), ["verifier"])[0].external_score("verifier")
    0.9
    """
    found = read_records(path, Candidate, check)
    try:
        choose_external_scores(found, asked, needed)
    except InputError:
        read_records(path, Candidate, lambda one: choose_external_scores([one], asked, needed))
        raise  # only if the file has changed: the check names the line
    return found


def choose_external_scores(
    candidates: Sequence[Candidate], asked: Sequence[str] | None = None, needed: Iterable[str] = ()
) -> tuple[str, ...]:
    """The external scores to use: those `asked` for, and those that the weights `needed`.

    If `asked` is None, those that sampling writes (`self_certainty`, the confidences) are used,
    provided that every candidate in the pools has them. Raises `InputError` for a candidate that
    lacks one of the scores.

    >>> sure = Candidate(problem_id="p", index=0, text="2", extra={"self_certainty": 1.5})
    >>> choose_external_scores([sure])
    ('self_certainty',)
    """
    pool = list(filter(_is_choice, candidates))
    if asked is None:
        asked = [n for n in EXTERNAL_LABELS if all(c.extra.get(n) is not None for c in pool)]
    names = tuple(dict.fromkeys([*asked, *needed]))
    for candidate in pool:
        for name in names:
            candidate.external_score(name)
    return names


def distinct_candidates(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The first candidate with each text, per problem; later ones with that text share its scores.

    Candidates that sampling broke off are left out.

    >>> twins = [Candidate(problem_id="p", index=i, text="2") for i in (0, 1)]
    >>> [candidate.index for candidate in distinct_candidates(twins)]
    [0]
    """
    first: dict[tuple[str, str], Candidate] = {}
    for candidate in candidates:
        if candidate.finish_reason != "unsure":
            first.setdefault((candidate.problem_id, candidate.text), candidate)
    return list(first.values())


def text_hashes(problems: Sequence[Problem], candidates: Sequence[Candidate]) -> JsonObject:
    """Hashes of questions and distinct solutions, for the settings of score files.

    >>> twins = [Candidate(problem_id="p", index=i, text="2") for i in (0, 1)]
    >>> text_hashes([Problem(id="p", question="1 + 1?")], twins)["candidates"]
    1
    """
    distinct = distinct_candidates(candidates)
    return {
        "questions": fingerprint(sorted((p.id, p.question) for p in problems)),
        "candidates": len(distinct),
        "texts": fingerprint((c.problem_id, str(c.index), c.text) for c in distinct),
    }


def question_hash(question: str) -> str:
    r"""A short fingerprint of a question's words, ignoring white space.

    >>> question_hash("What is\n2 + 2? ") == question_hash("What is 2 + 2?")
    True
    """
    words = " ".join(question.split())
    return hashlib.sha256(words.encode()).hexdigest()[:HASH_LENGTH]


def is_blank(text: str) -> bool:
    """Whether nothing of a candidate is read: an empty text, or a thought that was cut off.

    >>> is_blank(" "), is_blank("<think>1 + 1"), is_blank("<think>1 + 1</think>2")
    (True, True, False)
    """
    return not "".join(split_thought(text)).strip()


def _is_choice(candidate: Candidate) -> bool:
    return not candidate.greedy and candidate.finish_reason != "unsure"


def pools(
    problem_ids: Iterable[str], candidates: Iterable[Candidate]
) -> dict[str, list[Candidate]]:
    """The candidates to choose from, by problem id: all but greedy and broken-off ones.

    >>> drawn = [Candidate(problem_id="p", index=i, text="2", greedy=i > 0) for i in (0, 1)]
    >>> [c.index for c in pools(["p"], drawn)["p"]]
    [0]
    """
    found: dict[str, list[Candidate]] = {problem_id: [] for problem_id in problem_ids}
    for candidate in candidates:
        if _is_choice(candidate):
            found[candidate.problem_id].append(candidate)
    return found


def labeled_problems(
    problems: Sequence[Problem], candidates: Sequence[Candidate]
) -> NDArray[np.bool_]:
    """[P]: whether a problem has an answer, or a label on each of its candidates to choose from.

    >>> known = Problem(id="a", question="2 + 2?", answer="4")
    >>> labeled_problems([known, Problem(id="b", question="3 + 3?")], candidates=[])
    array([ True, False])
    """
    pool_of = pools([problem.id for problem in problems], candidates)
    labels = {id_: [c.correct is not None for c in pool] for id_, pool in pool_of.items()}
    found = [p.is_labeled or (labels[p.id] != [] and all(labels[p.id])) for p in problems]
    return np.array(found, bool)


def scores_by_target(
    candidates: Sequence[Candidate], scores: Iterable[Score]
) -> dict[Key, dict[str, Score]]:
    """The scores of each candidate by target, by its key; those with equal texts share them.

    >>> twins = [Candidate(problem_id="p", index=i, text="2") for i in (0, 1)]
    >>> score = Score(problem_id="p", index=0, model="m", direction="reverse", target="x|y",
    ...               logprob=-2.0, num_tokens=3)
    >>> scores_by_target(twins, [score])["p", 1]["x|y"].logprob
    -2.0
    """
    own: dict[Key, dict[str, Score]] = {}
    for score in scores:
        own.setdefault((score.problem_id, score.index), {})[score.target] = score
    first = {(c.problem_id, c.text): c.key for c in distinct_candidates(candidates)}
    keys = {c.key: first.get((c.problem_id, c.text)) for c in candidates}
    return {key: own.get(scored, {}) if scored else {} for key, scored in keys.items()}


class AnswerClasses:
    """Groups equal answers to one problem and numbers the groups.

    All answers of a class equal each other. Equality is not transitive ("5 cm" and "5 m" both equal
    "5"), so a new answer joins the first class whose members all equal it.

    >>> classes = AnswerClasses()
    >>> [classes.number(answer) for answer in ("1/2", "2", "0.5", None)]
    [0, 1, 0, -1]
    """

    def __init__(self) -> None:
        self._by_answer: dict[str, int] = {}
        self._classes: list[list[str]] = []

    def number(self, answer: str | None) -> int:
        """The number of the answer's class; -1 for None."""
        if answer is None or not has_content(answer):
            return -1
        if answer not in self._by_answer:
            fits = (all(equal_answers(a, answer) for a in members) for members in self._classes)
            found = next((n for n, fit in enumerate(fits) if fit), len(self._classes))
            if found == len(self._classes):
                self._classes.append([])
            self._classes[found].append(answer)
            self._by_answer[answer] = found
        return self._by_answer[answer]
