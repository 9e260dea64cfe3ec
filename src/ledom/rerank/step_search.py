"""Beam search over reasoning steps, guided by Reverse Reward on the partial solutions.

Each round draws n continuations of every unfinished beam to the end of its next step, scores all
beams and keeps the k best, until all of them are finished. Scores are means per token, so that
short and long beams, finished or not, compete fairly:
(1 - lambda) log P(y|x) / |y| + lambda log P(x|y) / |x|.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.reading import check_counts, require
from ledom.core.records import Candidate, Problem, Score
from ledom.core.stage import even_groups
from ledom.lm.language_model import Generation, LanguageModel, Sampling
from ledom.rerank.candidates import scores_by_target
from ledom.rerank.score import score_candidates

__all__ = ["STEP_ENDS", "Beam", "SearchConfig", "check_models", "search", "search_groups"]

STEP_ENDS = {"line": r"\n", "sentence": r"[.!?]\s"}
"""Patterns of step ends by name."""

_TOGETHER = 32  # problems that are searched in parallel, to fill the batch


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search."""

    width: int = 4
    """k, beams kept per round."""
    expansions: int = 3
    """n, continuations drawn per beam."""
    lam: float = 0.5
    """Weight of the reverse term; 0 searches by the forward model alone."""
    step_end: str = "line"
    """`line`, `sentence`, or a regular expression at which a step ends."""
    max_steps: int = 32
    """Rounds after which a search ends, finished or not."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, max_tokens=96))
    """How a step is drawn; `max_tokens` is the limit of one step."""

    def __post_init__(self) -> None:
        check_counts(1, width=self.width, expansions=self.expansions, max_steps=self.max_steps)
        require({f"lambda is {self.lam}; it must lie in [0, 1]": 0 <= self.lam <= 1})
        if re.search(self.stepwise(0).stop_pattern or "", ""):  # raises for an invalid pattern
            raise InputError(f"step_end {self.step_end!r} matches an empty text; give another one")

    def stepwise(self, step: int) -> Sampling:
        """The sampling of round `step`, with its own seed and the pattern that ends a step.

        >>> config = SearchConfig(step_end="sentence")
        >>> config.stepwise(3).seed, config.stepwise(3).stop_pattern == STEP_ENDS["sentence"]
        (3, True)
        """
        pattern = STEP_ENDS.get(self.step_end, self.step_end)
        return replace(self.sampling, stop_pattern=pattern, seed=self.sampling.seed + step)


@dataclass(frozen=True)
class Beam:
    """A complete or partial solution."""

    text: str
    finish_reason: str
    """`stop`: finished; `pattern`: ended a step, can be continued; `length`: ran out of tokens."""
    num_tokens: int
    """Tokens of the text."""
    score: float = 0.0
    last: Generation | None = None
    """The generation that the next step continues."""


def search(
    problems: Sequence[Problem],
    forward: LanguageModel,
    reverse: LanguageModel | None,
    config: SearchConfig,
) -> Iterator[tuple[str, list[Beam], int]]:
    """Yield (problem id, its beams, best first, number of generated tokens) for each problem.

    Finished beams come before unfinished ones. Generated tokens include those of beams that were
    not kept. Raises the errors of `check_models`.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> problem, config = Problem(id="p", question="2 + 2?"), SearchConfig(width=2, lam=0)
    >>> ((problem_id, beams, _),) = search([problem], FakeLanguageModel(), None, config)
    >>> problem_id, len(beams)
    ('p', 2)
    """
    check_models(forward, reverse, config)
    for group in search_groups(problems):
        together = [_Search(problem) for problem in group]
        for step in range(config.max_steps):
            active = [one for one in together if one.is_open]
            if not active:
                break
            _expand(active, forward, config, step)
            _score(active, forward, reverse, config.lam)
            for one in active:
                one.keep(config.width)
        for one in together:
            yield one.problem.id, one.ranked(), one.generated


def search_groups(problems: Sequence[Problem]) -> list[Sequence[Problem]]:
    """The groups of problems that are searched in parallel, the same when resumed.

    >>> len(search_groups([Problem(id="p", question="How many?")]))
    1
    """
    return even_groups(problems, _TOGETHER)


def check_models(
    forward: LanguageModel, reverse: LanguageModel | None, config: SearchConfig
) -> None:
    """Raise `DirectionError` or `InputError` for models that `search` cannot use.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> check_models(lm, None, SearchConfig(lam=0.5))
    Traceback (most recent call last):
    ledom.core.errors.InputError: lambda is 0.5 without a reverse model; give one, or lambda 0
    """
    Direction.FORWARD.require(forward.direction, forward.name, "to sample steps")
    if reverse is not None:
        Direction.REVERSE.require(reverse.direction, reverse.name, "to score steps")
    elif config.lam > 0:
        raise InputError(f"lambda is {config.lam} without a reverse model; give one, or lambda 0")


@dataclass
class _Search:
    """The state of one problem's search."""

    problem: Problem
    beams: list[Beam] = field(default_factory=lambda: [Beam("", "pattern", 0)])
    generated: int = 0

    @property
    def is_open(self) -> bool:
        return any(beam.finish_reason == "pattern" for beam in self.beams)

    def keep(self, width: int) -> None:
        """Keep the best `width` beams; those that ran out of tokens only fill free places."""
        order = sorted(self.beams, key=lambda beam: (beam.finish_reason == "length", -beam.score))
        self.beams = order[:width]

    def ranked(self) -> list[Beam]:
        return sorted(self.beams, key=lambda beam: (beam.finish_reason != "stop", -beam.score))


def _expand(
    active: Sequence[_Search], forward: LanguageModel, config: SearchConfig, step: int
) -> None:
    """Draw the next step of every open beam."""
    sampling = config.stepwise(step)
    prompts: list[str | Generation] = []
    origins: list[tuple[_Search, Beam]] = []
    for one in active:
        prompt = forward.pair_format.before_solution(one.problem.question)
        room = forward.context - len(forward.tokenizer.encode(prompt).ids) - len(forward.bos_ids)
        kept = []
        for beam in one.beams:
            if beam.finish_reason != "pattern":
                kept.append(beam)
            elif beam.last is not None and beam.num_tokens + sampling.max_tokens > room:
                kept.append(replace(beam, finish_reason="length"))  # no room for another step
            else:
                prompts.append(prompt if beam.last is None else beam.last)
                origins.append((one, beam))
        one.beams = kept
    count = config.expansions * (1 if step else config.width)  # the first round has one beam
    for place, texts in forward.generate(prompts, sampling, count):
        one, before = origins[place]
        for made in texts:
            one.generated += len(made.ids) + (made.finish_reason == "stop")
            length = before.num_tokens + len(made.ids)
            text = before.text + made.text
            if made.finish_reason == "stop":
                text = forward.pair_format.written_solution(text)
            beam = Beam(text, made.finish_reason, length, last=made)
            # Duplicates are merged, but not a finished beam with an open one of the same text.
            if all((beam.text, beam.finish_reason) != (o.text, o.finish_reason) for o in one.beams):
                one.beams.append(beam)


def _score(
    active: Sequence[_Search], forward: LanguageModel, reverse: LanguageModel | None, lam: float
) -> None:
    """Set the score of each beam: the weighted means per token of log P(y|x) and log P(x|y)."""
    problems = [one.problem for one in active]
    # A beam is scored without the white space at its end: no document ends with white space.
    # Most steps of a reasoning model are in its thought, so the models read that too.
    candidates = [
        Candidate(problem_id=one.problem.id, index=index, text=beam.text.rstrip())
        for one in active
        for index, beam in enumerate(one.beams)
    ]
    models = [forward] if reverse is None or lam == 0 else [forward, reverse]
    chunks = (
        chunk
        for lm in models
        for chunk in score_candidates(problems, candidates, lm, with_thoughts=True)
    )
    scores = scores_by_target(candidates, (score for chunk in chunks for score in chunk))
    for one in active:
        for index, beam in enumerate(one.beams):
            own = scores[one.problem.id, index]
            reward = (1 - lam) * _mean(own["y|x"], beam.finish_reason == "stop")
            if lam > 0:
                reward += lam * _mean(own["x|y"], finished=True)
            one.beams[index] = replace(beam, score=reward)


def _mean(score: Score, finished: bool) -> float:
    """A score's mean per token. Unless the text is `finished`, EOS and the format's words after a
    solution do not count, because an open beam will continue."""
    values = [value for value, (_, end) in score.tokens() or () if finished or end]
    return sum(values) / len(values) if values else 0.0
