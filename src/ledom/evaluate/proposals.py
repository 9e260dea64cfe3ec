"""One model proposes texts, another verifies them: the basis of a reverse model's abilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.files import fingerprint
from ledom.core.records import Key, Record
from ledom.core.stage import Stage, Track, Work, at_once, even_groups
from ledom.lm.language_model import LanguageModel, Sampling, TokenSpan
from ledom.rerank.sample import sampling_groups
from ledom.rerank.score import check_finite

__all__ = [
    "Prompt",
    "Proposal",
    "check_directions",
    "check_prompts",
    "fitting",
    "propose",
    "verify",
]

T = TypeVar("T")
_TOGETHER = 256  # texts that are scored together, and lost together if the run is stopped


@dataclass(frozen=True)
class Prompt:
    """The text that a model reads before it writes, and the id of the item that it is for."""

    id: str
    text: str

    @property
    def key(self) -> Key:
        return (self.id,)


@dataclass(kw_only=True)
class Proposal(Record):
    """A text that a model wrote for the prompt `item_id`; `index` numbers the prompt's texts."""

    KEY = ("item_id", "index")

    item_id: str
    index: int
    text: str
    finish_reason: Literal["stop", "length"] = "stop"


@dataclass(kw_only=True)
class Likelihood(Record):
    """A proposal's log-probability: the sum over `num_tokens` tokens, in nats."""

    KEY = ("item_id", "index")

    item_id: str
    index: int
    logprob: float
    num_tokens: int


def check_directions(reverse: LanguageModel, forward: LanguageModel) -> None:
    """Raise `DirectionError` unless `reverse` is a reverse model and `forward` a forward one.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> check_directions(FakeLanguageModel(), FakeLanguageModel())
    Traceback (most recent call last):
    ledom.core.errors.DirectionError: fake is a forward model; give a reverse one to propose texts
    """
    Direction.REVERSE.require(reverse.direction, reverse.name, "to propose texts")
    Direction.FORWARD.require(forward.direction, forward.name, "to verify them")


def check_prompts(prompts: Sequence[Prompt], lm: LanguageModel, sampling: Sampling) -> None:
    """Raise `InputError` for a prompt that leaves no room to write, before any work.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(context=8)
    >>> check_prompts([Prompt("p", "2 + 2?")], lm, Sampling(max_tokens=2))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: 'p': ...; lower max_tokens to 1, or shorten it
    """
    for prompt in prompts:
        try:
            lm.prompt_ids(prompt.text, sampling.max_tokens)
        except InputError as error:
            raise InputError(f"{prompt.id!r}: {error}") from None


def fitting(items: Sequence[T], check: Callable[[T], None]) -> list[T]:
    """The items that pass a check; raises the `InputError` of the first item if none does.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm, prompts = FakeLanguageModel(context=8), [Prompt("p", "2"), Prompt("q", "2 + 2?")]
    >>> fitting(prompts, lambda one: check_prompts([one], lm, Sampling(max_tokens=2)))
    [Prompt(id='p', text='2')]
    """
    kept: list[T] = []
    refusals: list[InputError] = []
    for item in items:
        try:
            check(item)
            kept.append(item)
        except InputError as error:
            refusals.append(error)
    if refusals and not kept:
        raise refusals[0]
    return kept


def propose(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    num_samples: int,
    path: Path,
    track: Track,
    name: str,
) -> list[Proposal]:
    """`num_samples` texts for each prompt, in the prompts' order, kept in the file `path`.

    Equal prompts get equal texts, since samples depend on the prompt's text. Ids must be unique.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> import tempfile
    >>> from ledom.core.stage import no_progress
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = propose(lm, [Prompt("p", "2 + 2?")], Sampling(), 3, Path(folder, "p.jsonl"),
    ...                     no_progress, "")
    >>> [proposal.key for proposal in found]
    [('p', 0), ('p', 1), ('p', 2)]
    """
    settings = {
        "model": lm.identity,
        "sampling": asdict(sampling),
        "num_samples": num_samples,
        "prompts": fingerprint((prompt.id, prompt.text) for prompt in prompts),
    }

    def make(some: Sequence[Prompt]) -> Iterator[list[Proposal]]:
        texts = [prompt.text for prompt in some]
        for place, made in lm.generate(texts, sampling, num_samples):
            yield [
                Proposal(
                    item_id=some[place].id,
                    index=index,
                    text=one.text,
                    finish_reason="stop" if one.finish_reason == "stop" else "length",
                )
                for index, one in enumerate(made)
            ]

    work = Work(
        items=prompts,
        make=at_once(make),
        groups=lambda some: sampling_groups(some, num_samples),
        together=lm.batches_requests,
    )
    return Stage(path, Proposal, settings).fill(work, track, name)


def verify(
    lm: LanguageModel,
    proposals: Sequence[Proposal],
    spans: Callable[[Sequence[Proposal]], Iterable[TokenSpan]],
    context: Mapping[str, object],
    path: Path,
    track: Track,
    name: str,
) -> list[Likelihood]:
    """The likelihood of each proposal, in the proposals' order, kept in the file `path`.

    `spans` puts proposals into their contexts and marks the tokens to score. `context` has
    the settings that it uses and hashes of the texts, for the file's settings. A proposal that does
    not fit the model's context is left out: its length in tokens is known only after it is written.

    >>> import tempfile
    >>> from ledom.core.stage import no_progress
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm, proposals = FakeLanguageModel(), [Proposal(item_id="p", index=0, text="4")]
    >>> def spans(some):
    ...     return [TokenSpan([0, *lm.tokenizer.encode(one.text).ids], 1, 2) for one in some]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = verify(lm, proposals, spans, {}, Path(folder, "scores.jsonl"),
    ...                    no_progress, "")
    >>> [(one.key, one.num_tokens) for one in found]
    [(('p', 0), 1)]
    """
    settings = {
        "model": lm.identity,
        "proposals": fingerprint((p.item_id, str(p.index), p.text) for p in proposals),
        **context,
    }

    def make(some: Sequence[Proposal]) -> Iterator[list[Likelihood]]:
        for proposal, values in zip(some, lm.logprobs([*spans(some)]), strict=True):
            item_id, index = proposal.key
            check_finite(values, lm, f"text {index} of {item_id!r}")
            total = round(float(values.sum(dtype=np.float64)), 5)
            made = Likelihood(item_id=item_id, index=index, logprob=total, num_tokens=len(values))
            yield [made]

    short = [
        proposal
        for some in even_groups(proposals, _TOGETHER)  # all of their tokens at once may be GBs
        for proposal, span in zip(some, spans(some), strict=True)
        if len(span.ids) - 1 <= lm.context
    ]
    work = Work(
        items=short,
        make=at_once(make),
        groups=lambda some: even_groups(some, _TOGETHER),
        together=lm.batches_requests,
    )
    return Stage(path, Likelihood, settings).fill(work, track, name)
