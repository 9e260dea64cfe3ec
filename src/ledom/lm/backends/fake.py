"""A deterministic language model without weights, for tests, docs and experiments.

A token's log-probability is a fixed function of the token and its predecessor in model order, so
results can be worked out by hand. Generated texts are seeded draws from a list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction
from ledom.core.files import digest
from ledom.lm.generation import Prompts, PromptTexts
from ledom.lm.language_model import Generation, LanguageModel, Sampling, TokenSpan
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer, train_tokenizer

__all__ = ["FakeLanguageModel"]


class FakeLanguageModel(LanguageModel):
    """A model whose log P(token | neighbor) is -log(1 + (token + neighbor) mod 7).

    Generated texts are drawn from `answers`; prompt, seed and sample number determine the draw. The
    default tokenizer has one token per byte, and EOS.

    >>> lm = FakeLanguageModel()
    >>> lm.logprobs([TokenSpan([3, 1, 2], 1, 3)])  # -log(1 + 4), -log(1 + 3)
    [array([-1.609438 , -1.3862944], dtype=float32)]
    >>> [text.text[-1] for _, texts in lm.generate(["2 + 2?"], Sampling(), 2) for text in texts]
    ['2', '3']
    """

    batches_requests = False
    stops_at_patterns = True

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        direction: Direction | str = Direction.FORWARD,
        answers: Sequence[str] = ("1 + 1 = 2\n#### 2", "1 + 1 = 3\n#### 3"),
        context: int = 4096,
    ) -> None:
        tokenizer = tokenizer or train_tokenizer([], 257)
        super().__init__(
            name="fake",
            direction=Direction(direction),
            tokenizer=tokenizer,
            pair_format=PairFormat(),
            bos_ids=[tokenizer.eos_id],
            context=context,
            fingerprint=f"fake-{Direction(direction)}",
            num_parameters=0,
        )
        self.answers = list(answers)
        self.num_scored = 0
        """The number of targets scored so far; tests check that nothing is scored twice."""

    def logprobs(self, targets: Sequence[TokenSpan]) -> list[NDArray[np.float32]]:
        spans = self.check_targets(targets)
        self.num_scored += len(targets)
        return [self._score(*span) for span in spans]

    def _score(self, ids: list[int], start: int, end: int) -> NDArray[np.float32]:
        values = [-math.log1p((ids[i] + ids[i - 1]) % 7) for i in range(start, end)]
        return self.direction.to_reading_order(np.array(values, np.float32))

    def generate(
        self, prompts: Prompts, sampling: Sampling, num_samples: int = 1, first_sample: int = 0
    ) -> Iterator[PromptTexts]:
        self.text_prompts(prompts, sampling)
        numbers = self.sample_numbers(num_samples, first_sample)
        for place, prompt in enumerate(prompts):
            yield place, [self._draw(prompt, sampling, number) for number in numbers]

    def _draw(self, prompt: str | Generation, sampling: Sampling, sample: int) -> Generation:
        """One of the answers, or the rest of an answer that stopped at the pattern."""
        if isinstance(prompt, Generation):
            text = str(prompt.state)
        else:
            key = "greedy" if sampling.temperature == 0 else f"{sampling.seed} {sample}"
            text = self.answers[(digest(f"{prompt} {key}") >> 56) % len(self.answers)]
        match = re.search(sampling.stop_pattern, text) if sampling.stop_pattern else None
        part, rest = (text, "") if match is None else (text[: match.end()], text[match.end() :])
        ids = self.tokenizer.encode(part).ids
        if len(ids) >= sampling.max_tokens:
            ids = ids[: sampling.max_tokens]
            return Generation(self.tokenizer.decode(ids), ids, "length")
        return Generation(part, ids, "pattern" if rest else "stop", rest)
