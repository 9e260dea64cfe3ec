"""What a language model is to the rest of ledom: two methods, in reading order.

    logprobs(targets)          the log-probability of each token of a span, given the rest that the
                               model has read by then
    generate(prompts, ...)     texts that follow (forward) or precede (reverse) a prompt

Backends live beside this file and are loaded by `ledom.load`. The rules that every backend keeps:
results do not depend on how requests are batched or ordered; equal seeds give equal samples;
everything in and out is in reading order; what a model cannot do is an error before any work.
tests/lm/test_contract.py holds them all to it.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from textwrap import shorten
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.lm.confidence import Confidence, ConfidenceSettings
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

__all__ = ["Generation", "LanguageModel", "Sampling", "TokenSpan", "digest"]


_COLDEST, _HOTTEST = 0.001, 1000.0  # temperatures within which fp32 logits stay finite


@dataclass(frozen=True)
class TokenSpan:
    """The tokens [start, end) of `ids` whose log-probabilities are wanted.

    `ids` is a whole text in reading order, with the special tokens that the model was trained with
    (see `LanguageModel.add_special_tokens`). The first token in model order has nothing before it
    and cannot be part of the span.
    """

    ids: Sequence[int]
    start: int
    end: int


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token.

    >>> Sampling(temperature=0.7, top_p=2)
    Traceback (most recent call last):
    ledom.core.errors.InputError: top_p is 2; it must lie in (0, 1]
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Only the most likely tokens that hold this much probability together."""
    max_tokens: int = 256
    """Most tokens to write."""
    seed: int = 0
    """With the prompt's text and the sample's number, decides every draw."""
    stop_pattern: str | None = None
    """A regular expression: a text ends at its first match, leading white space aside."""
    confidence: ConfidenceSettings | None = None
    """Whether texts get their confidence, and from what; see `ledom.lm.confidence`."""

    def __post_init__(self) -> None:
        checks = {
            f"temperature is {self.temperature}; it must be 0, or from {_COLDEST} to {_HOTTEST}": (
                self.temperature == 0 or _COLDEST <= self.temperature <= _HOTTEST
            ),
            f"top_k is {self.top_k}; it must be 0 or more": self.top_k >= 0,
            f"top_p is {self.top_p}; it must lie in (0, 1]": 0 < self.top_p <= 1,
            f"max_tokens is {self.max_tokens}; it must be at least 1": self.max_tokens >= 1,
            f"seed is {self.seed}; it must be 0 or more": self.seed >= 0,
        }
        for message, holds in checks.items():
            if not holds:
                raise InputError(message)
        try:
            re.compile(self.stop_pattern or "")
        except re.error as error:
            raise InputError(
                f"stop_pattern {self.stop_pattern!r} is not a regular expression: {error}"
            ) from None

    @property
    def greedy(self) -> Sampling:
        """The same, but the most likely token each time.

        >>> Sampling(top_k=5, max_tokens=9).greedy == Sampling(temperature=0, max_tokens=9)
        True
        """
        return replace(self, temperature=0.0, top_k=0, top_p=1.0)


@dataclass(frozen=True)
class Generation:
    """One text that a model wrote; ids and text in reading order, without the prompt and EOS."""

    text: str
    ids: list[int]
    finish_reason: Literal["stop", "length", "pattern", "unsure"]
    """`stop`: the model ended its document; `length`: it reached `max_tokens`; `unsure`: its
    confidence fell below `ConfidenceSettings.least`; `pattern`: it
    matched `stop_pattern`, and `generate` continues it when given as a prompt."""
    state: Any = field(default=None, compare=False, repr=False)
    """What the backend needs to continue without reading the text again."""
    self_certainty: float | None = field(default=None, compare=False)
    """Mean over the tokens drawn, EOS included, of KL(uniform || P(token | what was read)) in nats:
    the larger, the surer the model was (Kang, Zhao and Song, Scalable Best-of-N Selection for Large
    Language Models via Self-Certainty, 2025). None where a backend does not see the whole
    distribution."""
    confidence: Confidence | None = field(default=None, compare=False)
    """Where `Sampling.confidence` asks for it: that of the tokens drawn, EOS included."""


class LanguageModel(ABC):
    """A model with a direction, a tokenizer and the pair format that it was trained on."""

    batches_requests: ClassVar[bool] = True
    """Whether requests of one call are computed together, so that the last bits of a result may
    depend on the others. To repeat a result to the bit, the whole call is repeated."""
    stops_at_patterns: ClassVar[bool] = False
    """Whether `generate` stops at `Sampling.stop_pattern` and can continue from there."""
    reports_certainty: ClassVar[bool] = False
    """Whether what it generates carries its `self_certainty`."""
    reports_confidence: ClassVar[bool] = False
    """Whether `generate` takes `Sampling.confidence`."""
    stops_when_unsure: ClassVar[bool] = False
    """Whether `generate` takes `ConfidenceSettings.least`."""
    reports_hits: ClassVar[bool] = False
    """Whether it has `logprobs_and_hits`."""

    def __init__(
        self,
        *,
        name: str,
        direction: Direction,
        tokenizer: Tokenizer,
        pair_format: PairFormat,
        bos_ids: list[int],
        context: int,
        fingerprint: str,
        num_parameters: int | None = None,
    ) -> None:
        self.name = name
        self.direction = direction
        self.tokenizer = tokenizer
        self.pair_format = pair_format
        self.bos_ids = bos_ids
        """The special tokens that the model reads first, in its own order: its tokenizer's BOS, or
        the EOS that ends the document before; none where it was trained with none."""
        self.context = context
        """Longest text in tokens, special ones included."""
        self.fingerprint = fingerprint
        """Changes when the model does: what was computed with another one is not reused."""
        self.num_parameters = num_parameters
        """Parameters, tied ones counted once; None where unknown, as for a server's model."""

    @property
    def identity(self) -> dict[str, str]:
        """What files made with the model record of it: its name, and a hash that identifies it."""
        return {"name": self.name, "hash": self.fingerprint}

    @property
    def special_ids(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after a document, in reading order.

        In model order, BOS is read first and EOS is predicted last.
        """
        first, last = self.bos_ids, [self.tokenizer.eos_id]
        if self.direction is Direction.FORWARD:
            return first, last
        return last, self.direction.to_reading_order(first)

    def add_special_tokens(self, ids: Sequence[int]) -> list[int]:
        """A document's ids as the model was trained to see them, in reading order.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> lm = FakeLanguageModel()
        >>> lm.add_special_tokens([5, 6]) == [lm.tokenizer.eos_id, 5, 6, lm.tokenizer.eos_id]
        True
        """
        before, after = self.special_ids
        return [*before, *ids, *after]

    def check_target(self, target: TokenSpan) -> None:
        """Raise `InputError` for a span that has no context or lies beyond the text, or a text
        longer than the model's context.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> lm = FakeLanguageModel()
        >>> lm.check_target(TokenSpan([5, 6], 0, 3))
        Traceback (most recent call last):
        ledom.core.errors.InputError: no span [0, 3) in 2 tokens
        """
        length = len(target.ids)
        if length - 1 > self.context:
            raise InputError(
                f"a text of {length} tokens is longer than the model's context of {self.context}"
            )
        if not 0 <= target.start <= target.end <= length:
            raise InputError(f"no span [{target.start}, {target.end}) in {length} tokens")
        start, end = self.direction.span_to_model_order(target.start, target.end, length)
        if start == 0 and end > 0:
            raise InputError(
                "the first token that the model reads has no context, so no log-probability; "
                "add LanguageModel.add_special_tokens to the text"
            )

    def check_request(
        self, prompts: Sequence[str | Generation], sampling: Sampling, num_samples: int
    ) -> None:
        """Raise `InputError` for less than one sample, or for what the backend does not support."""
        if num_samples < 1:
            raise InputError(f"num_samples is {num_samples}; it must be at least 1")
        if sampling.confidence is not None and not self.reports_confidence:
            raise InputError(f"{self.name}: this backend does not report confidence; leave it out")
        least = sampling.confidence and sampling.confidence.least
        if isinstance(least, tuple) and len(least) != len(prompts):
            raise InputError(
                f"confidence: least has {len(least)} numbers for {len(prompts)} prompts; give one "
                "for each, or one for all"
            )
        if least is not None and not self.stops_when_unsure:
            raise InputError(
                f"{self.name}: this backend cannot stop a text while it is written; give the "
                "model's folder, which runs in this process"
            )
        continues = any(isinstance(prompt, Generation) for prompt in prompts)
        if (continues or sampling.stop_pattern is not None) and not self.stops_at_patterns:
            raise InputError(
                f"{self.name}: this backend cannot stop at a pattern; give the model's folder, "
                "which runs in this process"
            )

    def text_prompts(
        self, prompts: Sequence[str | Generation], sampling: Sampling, num_samples: int
    ) -> tuple[list[str], list[list[int]]]:
        """The prompts of a backend that takes texts alone, and their ids in model order.

        Raises `InputError` like `check_request`, and for a prompt that leaves no room to write.
        """
        self.check_request(prompts, sampling, num_samples)
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        return texts, [self.prompt_ids(text, sampling.max_tokens) for text in texts]

    def prompt_ids(self, prompt: str, max_tokens: int) -> list[int]:
        """A prompt's ids in model order, as the model reads them; see `check_room`.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> lm = FakeLanguageModel(direction="reverse")
        >>> lm.tokenizer.decode(lm.prompt_ids("abc", max_tokens=8)[1:])  # after EOS, from its end
        'cba'
        """
        context = self.bos_ids + self.direction.to_model_order(self._ids_of(prompt))
        self.check_room(prompt, len(context), max_tokens)
        return context

    def shortened_prompt(self, prompt: str, room: int) -> tuple[str, int]:
        """A prompt of at most `room` tokens, special ones aside, and how many tokens it lost.

        They are lost at its end far from what is written.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> lm = FakeLanguageModel()
        >>> lm.shortened_prompt("abcdef", room=4)  # a forward model writes after the prompt
        ('cdef', 2)
        """
        forward = self.direction is Direction.FORWARD
        num_tokens, kept, text = len(self._ids_of(prompt)), room, prompt
        offsets = self.tokenizer.encode(prompt).offsets if num_tokens > room else []
        while (left := len(self._ids_of(text))) > max(0, room):  # cut, it may be encoded otherwise
            if kept <= 0:
                return "", num_tokens
            text = prompt[offsets[-kept][0] :] if forward else prompt[: offsets[kept - 1][1]]
            kept -= 1
        return text, num_tokens - left

    def written_text(self, prompt: str, ids: Sequence[int]) -> str:
        """The text of ids that the model wrote to a prompt, all in reading order.

        Decoded together with the prompt, less the prompt, so that prompt and text are the text of
        all ids.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> lm = FakeLanguageModel()
        >>> lm.written_text("2 + 2 =", lm.tokenizer.encode(" 4").ids)
        ' 4'
        """
        known = self._ids_of(prompt)
        if self.direction is Direction.FORWARD:
            return self.tokenizer.decode_after(known, ids)
        together = self.tokenizer.decode([*ids, *known])
        if together.endswith(prompt):
            return together.removesuffix(prompt)
        return self.tokenizer.decode(ids)  # the prompt is not what its own ids say

    def _ids_of(self, prompt: str) -> list[int]:
        """A prompt's ids in reading order: a document's start, or, for a reverse model, its end."""
        if self.direction is Direction.FORWARD:
            return self.tokenizer.encode(prompt).ids
        return self.tokenizer.encode_inside(prompt)

    def check_room(self, prompt: str, num_tokens: int, max_tokens: int) -> None:
        """Raise `InputError` where there is nothing to read, or no room left to write."""
        if not num_tokens:
            raise InputError("the prompt is empty, and this model reads no special token first")
        if num_tokens + max_tokens > self.context:
            raise InputError(
                f"the prompt {shorten(prompt, 60)!r} has {num_tokens} tokens; with "
                f"max_tokens={max_tokens} it does not fit the model's context of {self.context}"
            )

    @abstractmethod
    def logprobs(self, targets: Sequence[TokenSpan]) -> list[NDArray[np.float32]]:
        """Log-probabilities in nats, in reading order: for each target an array [end - start].

        A forward model conditions each token on those before it, a reverse model on those after.
        Raises `InputError` for a span that is empty of context or beyond the text, or a text
        longer than the model's context.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> lm = FakeLanguageModel()
        >>> [values.shape for values in lm.logprobs([TokenSpan([0, 5, 6], 1, 3)])]
        [(2,)]
        """

    def logprobs_and_hits(
        self, targets: Sequence[TokenSpan]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """As `logprobs`, and whether each token is the one that the model finds most likely.

        Raises `InputError` for a backend without it (`reports_hits`).
        """
        raise InputError(
            f"{self.name}: this backend does not say which token is the most likely; give the "
            "model's folder, which runs in this process"
        )

    def alternatives(self, target: TokenSpan, count: int) -> list[list[tuple[int, float]]]:
        """The `count` most likely (token id, log-probability) at each place of a span, best first.

        Raises `InputError` where the backend does not see them.
        """
        raise InputError(
            f"{self.name}: this backend does not say which other tokens were likely; give the "
            "model's folder, which runs in this process"
        )

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[str | Generation],
        sampling: Sampling,
        num_samples: int = 1,
        first_sample: int = 0,
    ) -> Iterator[tuple[int, list[Generation]]]:
        """Write `num_samples` texts for each prompt; yields (prompt's place, texts) as they end.

        They are the samples numbered from `first_sample` on. A prompt is a text, or a generation
        that stopped at the pattern: the model continues it without computing it again. A forward
        model writes what follows the prompt; a reverse model writes what precedes it. An empty
        prompt asks for a whole document. A draw depends only on the seed, the prompt's text and the
        sample's number, so a job cut in two draws the same samples. Raises `InputError` for a
        prompt that leaves no room in the model's context.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> ((place, texts),) = FakeLanguageModel(answers=["4"]).generate(["2 + 2?"], Sampling())
        >>> place, texts[0].text
        (0, '4')
        """

    def generate_with_greedy(
        self, prompts: Sequence[str], sampling: Sampling, num_samples: int
    ) -> Iterator[tuple[int, list[Generation]]]:
        """As `generate`; each prompt's samples are followed by its greedy text."""
        greedy = dict(self.generate(prompts, sampling.greedy))
        for place, texts in self.generate(prompts, sampling, num_samples):
            yield place, [*texts, *greedy[place]]


def digest(text: str) -> int:
    """64 bits that represent a text, in a seed.

    >>> hex(digest(""))
    '0xe3b0c44298fc1c14'
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
