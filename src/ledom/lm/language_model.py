"""The interface of a language model: `logprobs` and `generate`, and how to draw samples.

Every backend (`lm/backends/`) obeys these rules: results do not depend on how requests are batched
or ordered; equal seeds give equal samples; all inputs and outputs are in reading order; a request
that the model cannot serve is rejected before any work is done (tests/lm/test_contract.py).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.files import digest
from ledom.core.reading import check_counts, is_number, require
from ledom.lm.confidence import ConfidenceSettings
from ledom.lm.generation import FinishReason, Generation, ModelSpan, Prompts, PromptTexts, TokenSpan
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

__all__ = ["SPELLED_OUT", "FinishReason", "Generation", "LanguageModel", "Sampling", "TokenSpan"]

SPELLED_OUT = "-spelled-out"
"""The suffix of a model's hash if the model reads special tokens' names as plain text."""
_UNKNOWN = "token id {} is not in the vocabulary: this model's ids are 0 to {}"


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token.

    >>> Sampling(temperature=0.7, top_p=2)
    Traceback (most recent call last):
    ledom.core.errors.InputError: top_p is 2; it must lie in (0, 1]
    """

    temperature: float = 1.0
    """Divides the logits; at 0, the most likely token is always chosen."""
    top_k: int = 0
    """Sample only from the k most likely tokens; 0 means all."""
    top_p: float = 1.0
    """Sample only from the most likely tokens that together have this probability."""
    max_tokens: int = 256
    """Maximum number of tokens to write."""
    seed: int = 0
    """Seed; together with the prompt's text and the sample's number it determines every draw."""
    stop_pattern: str | None = None
    """A regular expression that ends a text; white space next to the prompt is not searched."""
    confidence: ConfidenceSettings | None = None
    """How to compute confidence (see `ledom.lm.confidence`); None means not at all."""

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            require({f"{name} is {value!r}; it must be a number": is_number(value)})
            if not isinstance(value, int):  # other types do not multiply with tensors
                object.__setattr__(self, name, float(value))
        check_counts(1, max_tokens=self.max_tokens)
        check_counts(top_k=self.top_k, seed=self.seed)
        for name in ("top_k", "max_tokens", "seed"):  # numpy's integers may overflow
            object.__setattr__(self, name, int(getattr(self, name)))
        usable = self.temperature == 0 or 0.001 <= self.temperature <= 1000  # logits stay finite
        require({f"temperature is {self.temperature}; give 0, or from 0.001 to 1000": usable})
        require({f"top_p is {self.top_p}; it must lie in (0, 1]": 0 < self.top_p <= 1})
        unknown = f"confidence is {self.confidence!r:.40}; give ConfidenceSettings, or None"
        require({unknown: isinstance(self.confidence, ConfidenceSettings | None)})
        try:
            re.compile(self.stop_pattern or "").search("")  # bytes compile too
        except (re.error, TypeError) as error:
            pattern = f"stop_pattern {self.stop_pattern!r}"
            raise InputError(f"{pattern} is not a regular expression: {error}") from None

    @property
    def greedy(self) -> Sampling:
        """The same settings, but always choosing the most likely token.

        >>> Sampling(top_k=5, max_tokens=9).greedy == Sampling(temperature=0, max_tokens=9)
        True
        """
        return replace(self, temperature=0.0, top_k=0, top_p=1.0)


class LanguageModel(ABC):
    """A model with a direction, a tokenizer and the pair format that it was trained on."""

    batches_requests: ClassVar[bool] = True
    """Whether the requests of one call are computed together, so that the last bits of a result may
    depend on the other requests. Only the same call as a whole reproduces a result exactly."""
    stops_at_patterns: ClassVar[bool] = False
    """Whether `generate` stops at `Sampling.stop_pattern` and can continue from there."""
    reports_certainty: ClassVar[bool] = False
    """Whether the generations have `self_certainty`."""
    reports_confidence: ClassVar[bool] = False
    """Whether `generate` supports `Sampling.confidence`."""
    stops_when_unsure: ClassVar[bool] = False
    """Whether `generate` supports `ConfidenceSettings.least`."""
    reports_hits: ClassVar[bool] = False
    """Whether the model supports `logprobs_and_hits`."""

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
        stop_ids: Iterable[int] = (),
    ) -> None:
        self.name = name
        self.direction = direction
        self.tokenizer = tokenizer
        self.pair_format = pair_format
        self.bos_ids = bos_ids
        """The tokens that the model reads first, in model order: its tokenizer's BOS, or the EOS of
        the previous document. Empty if it was trained without any."""
        self.stop_ids = frozenset([tokenizer.eos_id, *stop_ids])
        """The tokens that end a text: EOS and any others that the model's files list."""
        self.context = context
        """The longest text, in tokens, including special tokens."""
        self.fingerprint = fingerprint
        self._use_at_load = self._use()
        self._spelled_at_load = tokenizer.spells_out_special_tokens
        self.num_parameters = num_parameters
        """The number of parameters, counting tied ones once; None if unknown (on a server)."""

    @property
    def fingerprint(self) -> str:
        """A hash that identifies the model; results of a model with another hash are not reused.

        It changes when a caller changes the model, its tokenizer, or the tokens around a text.
        """
        spelled = self.tokenizer.spells_out_special_tokens and not self._spelled_at_load
        return self._fingerprint + self._changed() + (SPELLED_OUT if spelled else "")

    @fingerprint.setter
    def fingerprint(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    def _changed(self) -> str:
        """A suffix that identifies changes since the model was loaded; empty if there are none."""
        return "" if (use := self._use()) == self._use_at_load else f"-used-{use}"

    def _use(self) -> str:
        """A hash of the attributes that callers might replace."""
        tokenizer = self.tokenizer
        known = [
            *(str(self.direction), tokenizer.fingerprint, tokenizer.eos_id, self.bos_ids),
            *(sorted(self.stop_ids), self.context, self.pair_format),
        ]
        return f"{digest(repr(known)):016x}"

    @property
    def vocab_size(self) -> int:
        """The number of token ids that the model can read, 0 to `vocab_size - 1`."""
        return self.tokenizer.vocab_size

    @property
    def identity(self) -> dict[str, str]:
        """Name and current fingerprint, recorded in every file written with the model."""
        return {"name": self.name, "hash": self.fingerprint}

    @property
    def special_ids(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after a document in reading order; BOS is read first."""
        eos = [self.tokenizer.eos_id]
        if self.direction is Direction.FORWARD:
            return self.bos_ids, eos
        return eos, self.direction.to_reading_order(self.bos_ids)

    def add_special_tokens(self, ids: Sequence[int]) -> list[int]:
        """A document's ids with the special tokens that the model expects, in reading order.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> FakeLanguageModel().add_special_tokens([5, 6])  # EOS is 0
        [0, 5, 6, 0]
        """
        before, after = self.special_ids
        return [*before, *ids, *after]

    def check_targets(self, targets: Sequence[TokenSpan]) -> list[ModelSpan]:
        """Apply `check_target` to each; raises `InputError` if `targets` is not a list of spans."""
        is_list = isinstance(targets, Collection)
        if not is_list or not all(isinstance(target, TokenSpan) for target in targets):
            raise InputError(f"targets is {targets!r:.60}; give a list of TokenSpan")
        return [self.check_target(target) for target in targets]

    def check_target(self, target: TokenSpan) -> ModelSpan:
        """Check a target and return it in model order; its ids may be any integer array.

        Raises `InputError` for a span that lies outside the text or contains the first token in
        model order, for a text longer than the model's context, and for ids outside the vocabulary.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> FakeLanguageModel(direction="reverse").check_target(TokenSpan([5, 6], 0, 1))
        ([6, 5], 1, 2)
        """
        ids, highest = np.asarray(target.ids), self.vocab_size - 1
        length, ends = ids.size, np.asarray([target.start, target.end])
        whole = ids.ndim == 1 and ends.dtype.kind == "i" and (not length or ids.dtype.kind in "biu")
        require({"the ids and bounds of a span must be whole numbers": whole})
        odd = 0 if not length else int(ids.max() if ids.min() >= 0 else ids.min())
        long = f"a text of {length} tokens is longer than the model's context of {self.context}"
        outside = f"no span [{target.start}, {target.end}) in {length} tokens"
        unknown = _UNKNOWN.format(odd, highest)
        inside = 0 <= target.start <= target.end <= length
        require({long: length - 1 <= self.context, outside: inside, unknown: 0 <= odd <= highest})
        start, end = self.direction.span_to_model_order(target.start, target.end, length)
        first = "the first token read has no log-probability; leave it out of the span "
        first += "(LanguageModel.add_special_tokens puts a special token there)"
        require({first: start > 0 or end == 0})
        return self.direction.to_model_order(ids.tolist()), start, end

    @staticmethod
    def sample_numbers(num_samples: int, first_sample: int = 0) -> range:
        """The numbers of a prompt's samples; raises `InputError` unless there is at least one."""
        check_counts(1, num_samples=num_samples)
        check_counts(first_sample=first_sample)
        return range(int(first_sample), int(first_sample) + int(num_samples))

    def check_request(self, prompts: Prompts, sampling: Sampling) -> None:
        """Raise `InputError` if `prompts` is not a list, or if the request is not supported."""
        if not isinstance(sampling, Sampling):
            raise InputError(f"sampling is {sampling!r:.60}; give a ledom.Sampling")
        is_list = isinstance(prompts, Collection) and not isinstance(prompts, str)
        odd = [x for x in prompts if not isinstance(x, str | Generation)] if is_list else [prompts]
        if odd:
            raise InputError(f"prompts: {odd[0]!r:.60}; give a list of texts")
        if (asked := sampling.confidence) is not None:
            if not self.reports_confidence:
                raise self._unsupported("does not report confidence")
            asked.thresholds(len(prompts))
            if asked.least is not None and not self.stops_when_unsure:
                raise self._unsupported("cannot stop a text while it is written")
        continues = any(isinstance(prompt, Generation) for prompt in prompts)
        if (continues or sampling.stop_pattern is not None) and not self.stops_at_patterns:
            raise self._unsupported("cannot stop at a pattern")

    def _unsupported(self, what: str) -> InputError:
        remedy = "give the model's folder, which runs in this process"
        return InputError(f"{self.name}: this backend {what}; {remedy}")

    def text_prompts(
        self, prompts: Prompts, sampling: Sampling
    ) -> tuple[list[str], list[list[int]]]:
        """The prompts and their ids in model order, for a backend that cannot continue generations.
        Raises `InputError` like `check_request` and `prompt_ids`."""
        self.check_request(prompts, sampling)
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        return texts, [self.prompt_ids(text, sampling.max_tokens) for text in texts]

    def prompt_ids(self, prompt: str, max_tokens: int) -> list[int]:
        """A prompt's ids in model order, after BOS; raises `InputError` for unknown ids or no room.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> lm = FakeLanguageModel(direction="reverse")
        >>> lm.tokenizer.decode(lm.prompt_ids("abc", max_tokens=8)[1:])  # after EOS, from its end
        'cba'
        """
        context = self.bos_ids + self.direction.to_model_order(self._ids_of(prompt))
        highest, odd = self.vocab_size - 1, max(context, default=0)
        require({_UNKNOWN.format(odd, highest): odd <= highest})
        self.check_room(prompt, len(context), max_tokens)
        return context

    def shortened_prompt(self, prompt: str, room: int) -> tuple[str, int]:
        """Cut the prompt to `room` tokens, not counting special ones; also returns the number cut.

        The cut is made at the end that is farther from the text to be written.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> FakeLanguageModel().shortened_prompt("abcdef", room=4)  # it writes after the prompt
        ('cdef', 2)
        """
        num_tokens, text = len(self._ids_of(prompt)), prompt
        offsets = self.tokenizer.encode(prompt).offsets if num_tokens > room else []
        kept = min(room, len(offsets))  # with a dummy prefix, there may be fewer tokens
        # A cut text may be encoded differently, into more tokens than were kept.
        while (left := len(self._ids_of(text))) > max(0, room):
            if kept <= 0:
                return "", num_tokens
            first, last = offsets[-kept][0], offsets[kept - 1][1]
            text = prompt[first:] if self.direction is Direction.FORWARD else prompt[:last]
            kept -= 1
        return text, num_tokens - left

    def written_text(self, prompt: str, ids: Sequence[int]) -> str:
        """Decode the ids that the model wrote for a prompt, in reading order.

        Prompt and ids are decoded together: the text of a token may depend on its neighbors.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> FakeLanguageModel().written_text("2 + 2 =", [221, 20])
        ' 4'
        """
        known = self._ids_of(prompt)
        if self.direction is Direction.FORWARD:
            return self.tokenizer.decode_after(known, ids)
        together = self.tokenizer.decode([*ids, *known])
        for end in (prompt, self.tokenizer.decode(known)):  # unequal if case is lost
            if end and together.endswith(end):
                return together.removesuffix(end)
        return self.tokenizer.decode(ids)

    def _ids_of(self, prompt: str) -> list[int]:
        """Encode a prompt, in reading order: a document's start, or its end for a reverse model."""
        if self.direction is Direction.FORWARD:
            return self.tokenizer.encode(prompt).ids
        return self.tokenizer.encode_inside(prompt)

    def check_room(self, prompt: str, num_tokens: int, max_tokens: int) -> None:
        """Raise `InputError` if there is nothing to read, or no room left to write."""
        empty = "the prompt is empty, and this model reads no special token first; give a text"
        require({empty: num_tokens > 0})
        room = self.context - num_tokens
        if max_tokens > room:
            lower = f"lower max_tokens to {room}, or " if room > 0 else ""
            raise InputError(
                f"the prompt {prompt[:60]!r} has {num_tokens} tokens; with max_tokens={max_tokens} "
                f"it does not fit the model's context of {self.context}; {lower}shorten it"
            )

    @abstractmethod
    def logprobs(self, targets: Sequence[TokenSpan]) -> list[NDArray[np.float32]]:
        """Log-probabilities in nats, in reading order: an array [end - start] for each target.

        A forward model conditions each token on the tokens before it, a reverse model on those
        after. Raises `InputError` like `check_target`.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> [values.shape for values in FakeLanguageModel().logprobs([TokenSpan([0, 5, 6], 1, 3)])]
        [(2,)]
        """

    def logprobs_and_hits(
        self, targets: Sequence[TokenSpan]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Like `logprobs`, but also tells whether each token is the model's most likely one.

        Raises `InputError` for a backend that does not support it (`reports_hits`).
        """
        raise self._unsupported("does not report which token is the most likely")

    def alternatives(self, target: TokenSpan, count: int) -> list[list[tuple[int, float]]]:
        """The `count` most likely (token id, log-probability) per token of a span, best first.

        Raises `InputError` for a backend that does not support it.
        """
        raise self._unsupported("does not report the alternatives to a token")

    @abstractmethod
    def generate(
        self, prompts: Prompts, sampling: Sampling, num_samples: int = 1, first_sample: int = 0
    ) -> Iterator[PromptTexts]:
        """Write `num_samples` texts per prompt; yields (prompt index, texts) when complete.

        The samples are numbered from `first_sample`. A prompt is either a text or a generation that
        stopped at the pattern; the model continues the latter without recomputing it. A forward
        model writes what follows the prompt; a reverse model, what precedes it. An empty prompt
        asks for a whole document. A sample depends only on the seed, the prompt's text and the
        sample's number. Raises `InputError` for a prompt that leaves no room to write.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> ((place, texts),) = FakeLanguageModel(answers=["4"]).generate(["2 + 2?"], Sampling())
        >>> place, texts[0].text
        (0, '4')
        """

    def generate_in_steps(
        self, prompts: Sequence[str], sampling: Sampling, num_samples: int = 1
    ) -> Iterator[list[PromptTexts]]:
        """Like `generate`, but yields after each step the prompts completed in it, often none.

        A caller that stops iterating ends the work. A step is one token of each text. For a backend
        that cannot stop inside a text, it is one prompt.
        """
        for completed in self.generate(prompts, sampling, num_samples):
            yield [completed]

    def generate_with_greedy(
        self, prompts: Sequence[str], sampling: Sampling, num_samples: int
    ) -> Iterator[PromptTexts]:
        """Like `generate`, but each prompt's samples are followed by its greedy text."""
        greedy = dict(self.generate(prompts, sampling.greedy))
        for place, texts in self.generate(prompts, sampling, num_samples):
            yield place, [*texts, *greedy[place]]
