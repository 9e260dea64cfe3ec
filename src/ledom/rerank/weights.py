"""Weights of strategies: their file, the defaults, and the answers chosen with them.

The file records hashes of the problems that the weights were fitted on, so that the weights cannot
be tested on the same problems.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat, NonNegativeInt, StringConstraints

from ledom.core.errors import InputError
from ledom.core.files import differences, write_json
from ledom.core.reading import as_type, read_json
from ledom.core.records import Candidate, Problem, Record
from ledom.lm import EMBEDDED, embedded_folder
from ledom.lm.language_model import SPELLED_OUT
from ledom.report.intervals import FloatArray
from ledom.rerank.candidate_table import CandidateTable
from ledom.rerank.candidates import HASH_LENGTH, pools, question_hash
from ledom.rerank.strategies import (
    STRATEGIES,
    Pick,
    Strategy,
    Vote,
    Weights,
    check_score_names,
    leading,
    strategies,
)
from ledom.text.answers import extract_answer

__all__ = [
    "LAMBDAS",
    "CrossFitted",
    "Selection",
    "TunedWeights",
    "choose_weights",
    "default_weights",
    "preferred_strategy",
    "select",
]

LAMBDAS = np.linspace(0, 1, 41)
"""The grid of lambda."""

_FORMAT = 3  # of the weights file
_Hash = Annotated[str, StringConstraints(pattern=f"^[0-9a-f]{{{HASH_LENGTH}}}$")]


@dataclass(frozen=True)
class TunedWeights:
    """Weights by strategy and feature, and what they were fitted on.

    The weights of a vote include the division by its temperature.

    >>> import tempfile
    >>> weights = TunedWeights({"noisy_channel": {"reverse": 0.5}}, 10, 8, frozenset())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     weights.save(f"{folder}/weights.json")
    ...     TunedWeights.load(f"{folder}/weights.json") == weights
    True
    """

    weights: dict[str, dict[str, FiniteFloat]]
    num_problems: NonNegativeInt
    num_candidates: NonNegativeInt
    problem_hashes: frozenset[_Hash]
    """Hashes of the questions that the weights were fitted on; see `question_hash`."""
    external_scores: tuple[str, ...] = ()
    """The external scores that the weights need in every candidate."""
    models: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The identities of the models that made the scores, by direction; empty if unknown."""

    def save(self, path: str | Path) -> None:
        """Write the fields above to a JSON file."""
        about = {"format": _FORMAT, "ledom": version("ledom")}
        own = {f.name: getattr(self, f.name) for f in fields(TunedWeights)}
        write_json(path, about | own | {"problem_hashes": sorted(self.problem_hashes)})

    @classmethod
    def load(cls, path: str | Path) -> TunedWeights:
        """Read the file; raises `InputError` that names the file and the key for a bad one."""
        try:
            contents = read_json(path)
            if contents.get("format") != _FORMAT:
                raise InputError(f"its format is {contents.get('format')!r:.40}, not {_FORMAT}")
            loaded = as_type(contents, cls)
            check_score_names(loaded.external_scores)
            _check_rows(loaded.weights, strategies(loaded.external_scores))
        except InputError as error:
            remedy = "make a weights file with: ledom tune"
            raise InputError(f"{error.reason}; {remedy}", path=path) from None
        return loaded

    def of(self, strategy: str) -> Weights:
        """The weights of a strategy, given its id; None without any."""
        return self.weights.get(strategy)

    def select(self, rows: NDArray[np.int64]) -> TunedWeights:
        """The weights for a table of only these rows; see `CandidateTable.select`."""
        return self

    def usable_with(
        self, features: Collection[str], external_scores: Sequence[str] = ()
    ) -> dict[str, Strategy]:
        """The strategies by id whose features and weights exist; a single feature needs no weight.

        >>> list(TunedWeights({}, 0, 0, frozenset()).usable_with(["forward"]))[:3]
        ['greedy', 'random', 'forward']
        """
        return {
            name: strategy
            for name, strategy in strategies(external_scores).items()
            if {*strategy.features} <= {*features}
            and (len(strategy.features) <= 1 or name in self.weights)
        }

    @property
    def interpolation(self) -> tuple[float, bool] | None:
        """Reverse Reward's lambda, and whether its terms are means per token; None if not fitted.

        >>> default_weights(0.25).interpolation
        (0.25, False)
        """
        weights = self.weights.get("reverse_reward")
        if weights is None:
            return None
        mean = any(name.endswith("_mean") for name in weights)
        return weights.get("reverse_mean" if mean else "reverse", 0.0), mean

    @property
    def settings(self) -> dict[str, str | float]:
        """Reverse Reward's weights as shown in a report; empty if they were not fitted.

        >>> default_weights(0.25).settings
        {'lambda': 0.25, 'normalization': 'sum', 'tuned on': 'nothing: defaults'}
        """
        if self.interpolation is None:
            return {}
        lam, mean = self.interpolation
        tuned_on = f"{self.num_problems} problems" if self.num_problems else "nothing: defaults"
        return {
            "lambda": lam,
            "normalization": "mean per token" if mean else "sum",
            "tuned on": tuned_on,
        }

    def other_models(self, models: Mapping[str, Mapping[str, str]]) -> list[str]:
        """One line for each model, by direction, that differs from the one used for fitting.

        The same model in another precision differs; one that spells out special tokens does not,
        since few texts have any. If the models used for fitting are unknown, there are no lines.

        >>> fitted = {"forward": {"name": "m", "hash": "ab"}}
        >>> weights = TunedWeights({}, 1, 8, frozenset(), models=fitted)
        >>> weights.other_models({"forward": {"name": "m", "hash": "ab-int8"}})
        ... # doctest: +NORMALIZE_WHITESPACE
        ['the weights were fitted on scores of another model: forward: m (ab) there, m (ab-int8)
        now, the same weights in another precision: write ,dtype=float32 after its name']
        """
        return [
            f"the weights were fitted on scores of another model: {line}"
            for direction, model in models.items()
            if direction in self.models
            for line in differences(_scoring(self.models[direction]), _scoring(model), direction)
        ]

    def refuse_overlap(self, problems: Iterable[Problem]) -> None:
        """Raise `InputError` if the weights were fitted on one of these problems.

        >>> known = frozenset([question_hash("2 + 2?")])
        >>> tested = [Problem(id="a", question="2 + 2?")]
        >>> TunedWeights({}, 1, 8, known).refuse_overlap(tested)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ledom.core.errors.InputError: problem 'a' is one of those that the weights were tuned ...
        """
        for problem in problems:
            if question_hash(problem.question) in self.problem_hashes:
                raise InputError(
                    f"problem {problem.id!r} is one of those that the weights were tuned on; "
                    "its accuracy would look too good: leave it out, or use other weights"
                )


def _check_rows(weights: Mapping[str, Mapping[str, float]], known: Mapping[str, Strategy]) -> None:
    """Raise `InputError` for an unknown strategy or feature, and for missing or mixed weights."""
    for name, row in weights.items():
        if name not in known:
            raise InputError(f"unknown strategy {name!r}; known: {', '.join(known)}")
        features = known[name].features
        unknown = [feature for feature in row if feature not in features]
        if unknown:
            uses = f"it uses: {', '.join(features)}" if features else "it has no weights"
            raise InputError(f"strategy {name!r}: unknown feature {unknown[0]!r:.60}; {uses}")
        if features and not row:
            raise InputError(f"strategy {name!r} has no weights; it uses: {', '.join(features)}")
        sums, means = ([f for f in part if f in row] for part in (features[:2], features[2:]))
        if known[name].interpolated and sums and means:
            raise InputError(
                f"strategy {name!r} mixes sums and means per token ({sums[0]}, {means[0]}); give "
                "two of one kind"
            )
        is_lambda = min(row.values(), default=0) >= 0 and abs(sum(row.values()) - 1) < 1e-3
        if known[name].interpolated and not isinstance(known[name], Vote) and not is_lambda:
            raise InputError(
                f"strategy {name!r} has the weights {', '.join(map(str, row.values()))}; give "
                "1 - lambda and lambda, with lambda from 0 to 1"
            )


def _scoring(model: Mapping[str, str]) -> dict[str, str]:
    """A model's identity without the settings that matter to few scores."""
    return {key: value.removesuffix(SPELLED_OUT) for key, value in model.items()}


@dataclass(frozen=True)
class CrossFitted(TunedWeights):
    """Weights fitted in folds of a table, so that no problem's choice depends on its own labels;
    the inherited fields are those of weights fitted on all problems, which are only shown."""

    folds: Sequence[tuple[NDArray[np.int64], TunedWeights]] = ()
    """For each fold, its rows in the table, and weights fitted on the other folds."""

    def of(self, strategy: str) -> Weights:
        """The weights of a strategy: an array [P, 1] for each feature."""
        found: dict[str, FloatArray] = {}
        num_problems = sum(len(rows) for rows, _ in self.folds)
        for rows, fold in self.folds:
            for feature, value in fold.weights.get(strategy, {}).items():
                found.setdefault(feature, np.zeros((num_problems, 1)))[rows] = value
        return found or None

    @property
    def settings(self) -> dict[str, str | float]:
        found = super().settings
        about = "these problems; each choice uses the weights of the other folds"
        return found | {"tuned on": about} if found else {}

    def select(self, rows: NDArray[np.int64]) -> CrossFitted:
        folds = [(np.flatnonzero(np.isin(rows, own)), fold) for own, fold in self.folds]
        return replace(self, folds=folds)


def default_weights(lam: float = 0.5) -> TunedWeights:
    """Untuned weights of Reverse Reward: 1 - `lam` and `lam`, which must lie in [0, 1].

    >>> default_weights(0.25).weights["reverse_reward"]
    {'forward': 0.75, 'reverse': 0.25}
    """
    if math.isnan(lam) or not 0 <= lam <= 1:
        raise InputError(f"lambda is {lam}; it must lie in [0, 1]")
    weights = {
        name: {"forward": 1 - lam, "reverse": lam}
        for name, strategy in STRATEGIES.items()
        if strategy.interpolated
    }
    return TunedWeights(weights, 0, 0, frozenset())


def choose_weights(
    lam: float | None, file: str | Path | None, forward: str, reverse: str
) -> TunedWeights:
    """The weights for a lambda or from a file (not both), else the embedded pair's or the defaults.

    >>> choose_weights(None, None, "my-model", "my-reverse-model") == default_weights(0.5)
    True
    >>> choose_weights(None, None, "tiny,dtype=float32", "tiny") == default_weights(0.5)
    False
    """
    if lam is not None and file is not None:
        raise InputError(f"lambda is {lam:g} and the weights are those of {file}; give one of them")
    if lam is not None:
        return default_weights(lam)
    if file is not None:
        return TunedWeights.load(file)
    embedded = embedded_folder("forward").parent / "weights.json"
    names = {name.partition(",")[0] for name in (forward, reverse)}  # without options
    if names != {EMBEDDED} or not embedded.is_file():
        return default_weights()
    return TunedWeights.load(embedded)


_PREFERRED = (
    "vote_all_external",
    "vote_reverse_external",
    "vote_all_terms",
    "vote_reverse_tuned",
    "vote_reverse_reward",
    "vote_reverse_only",
    "majority",
)
"""The answers come from the first of these that can choose, which depends only on which scores and
weights exist, so it is known before any result."""


@dataclass(kw_only=True)
class Selection(Record):
    """The answer chosen for a problem, and the candidate that gives it."""

    problem_id: str
    strategy: str
    answer: str | None = None
    index: int
    text: str
    confidence: float


def preferred_strategy(table: CandidateTable, weights: TunedWeights) -> str:
    """The strategy that chooses the answers: the first of `_PREFERRED` that can choose.

    >>> from ledom.rerank.candidate_table import build_candidate_table
    >>> drawn = [Candidate(problem_id="p", index=0, text="4")]
    >>> table = build_candidate_table([Problem(id="p", question="2 + 2?")], drawn, [])
    >>> preferred_strategy(table, default_weights())  # no scores: the plain vote
    'majority'
    """
    able = weights.usable_with(table.features, table.external_scores)
    return next(name for name in _PREFERRED if name in able)


def select(
    table: CandidateTable, candidates: Sequence[Candidate], name: str, weights: TunedWeights
) -> list[Selection]:
    """A strategy's choice for each problem: its pick, or the best with the winning answer.

    Raises `InputError` for a strategy that chooses none ("oracle") or lacks scores or weights.

    >>> from ledom.rerank.candidate_table import build_candidate_table
    >>> drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate("5446")]
    >>> table = build_candidate_table([Problem(id="p", question="2 + 2?")], drawn, [])
    >>> [(s.index, s.confidence) for s in select(table, drawn, "majority", default_weights())]
    [(1, 0.5)]
    """
    usable = weights.usable_with(table.features, table.external_scores)
    able = {n: s for n, s in usable.items() if isinstance(s, (Pick, Vote))}
    if name not in able:
        reason = "not a strategy that can choose a candidate by these scores and weights"
        raise InputError(f"{name!r} is {reason}; choose among: {', '.join(able)}")
    strategy, own = able[name], weights.of(name)
    shares, score = strategy.shares(table, own), strategy.score(table, own)
    eligible_cells = table.mask & (leading(shares) if isinstance(strategy, Vote) else True)
    selections = []
    for row, (problem_id, pool) in enumerate(pools(table.problem_ids, candidates).items()):
        eligible = np.flatnonzero(eligible_cells[row])
        column = int(eligible[score[row, eligible].argmax()])
        chosen = pool[column]
        selections.append(
            Selection(
                problem_id=problem_id,
                strategy=name,
                answer=extract_answer(chosen.text),
                index=chosen.index,
                text=chosen.text,
                confidence=round(float(shares[row, column]), 4),
            )
        )
    return selections
