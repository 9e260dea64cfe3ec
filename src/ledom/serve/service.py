"""The state that all routes share: the judge and its queue, the models by name, the metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ledom.core.direction import Direction
from ledom.lm.language_model import LanguageModel
from ledom.serve.batching import Batcher, Steps, apart
from ledom.serve.judge import LONGEST_TOKEN, Judge, Judgement, Pair
from ledom.serve.metrics import Metrics
from ledom.serve.refusals import Refusal
from ledom.serve.settings import Settings
from ledom.serve.upstream import Upstream

__all__ = ["REWARD", "Service"]

_T = TypeVar("_T")

REWARD = "ledom"
"""The reward's name as a model, in protocols that require one."""


class Service:
    """The state of one server."""

    def __init__(self, judge: Judge, settings: Settings, upstream: Upstream | None = None) -> None:
        self.judge, self.settings, self.upstream = judge, settings, upstream
        self.metrics = Metrics(lambda: self._batcher.waiting + self._jobs.waiting)
        self.started = int(time.time())
        self._num_tokenizers = len({lm.tokenizer.fingerprint for lm in judge.models})
        limits = settings.limits
        self._batcher = judge.queue(limits.batch_seconds, limits.max_waiting, self.metrics.batch)
        # Jobs have different settings and cannot share a batch: they run one at a time, in turn.
        self._jobs: Batcher[Callable[[], Steps[Any]], Any] = Batcher(
            _one_by_one, lambda job: math.inf, limits.batch_seconds, limits.max_waiting
        )

    @property
    def models(self) -> dict[str, LanguageModel]:
        """The language models by their names in requests, `forward` and `reverse`."""
        return {str(lm.direction): lm for lm in self.judge.models}

    @property
    def model_names(self) -> list[str]:
        """All names that a request may give as `model`.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> service = Service(Judge(FakeLanguageModel(), None), Settings())
        >>> service.can_draw, service.model_names
        (True, ['ledom/auto', 'ledom/auto,n=1', 'forward'])
        """
        drawn = [f"{REWARD}/auto", f"{REWARD}/auto,n=1"] if self.can_draw else []
        return drawn + list(self.models)

    @property
    def can_draw(self) -> bool:
        """Whether the gateway has a model to draw answers from."""
        return self.upstream is not None or self.judge.forward is not None

    def model(self, name: str | None) -> LanguageModel:
        """The model of that name; without one, any, as they share a tokenizer.

        Raises `Refusal` if there is no such model, and without a name if tokenizers differ.
        """
        if name is None:
            if self._num_tokenizers > 1:
                raise Refusal(
                    400, "the models have different tokenizers; name a model, forward or reverse"
                )
            return self.judge.models[0]
        if name not in self.models:
            known = ", ".join(self.models)
            raise Refusal(404, f"no model {name!r:.60}; this server has: {known}")
        return self.models[name]

    async def judge_pairs(self, pairs: Sequence[Pair], drawn: bool = False) -> list[Judgement]:
        """The judgement of each pair, computed in batches with pairs of other requests.

        Raises the errors of `check_pairs`, unless the answers were `drawn` after `check_pairs` and
        `check_room`: they may have cost money, so neither length nor a full queue drops them.
        """
        if not drawn:
            await self.check_pairs(pairs)
        judged = await self._batcher.submit(pairs, admitted=drawn)
        self.metrics.tokens("scored", sum(judgement.num_tokens for judgement in judged))
        return judged

    async def judge_samples(self, pairs: Sequence[Pair | None]) -> list[Judgement | None]:
        """Like `judge_pairs`, for what `Judge.read_sample` returns; None for None."""
        judged = iter(await self.judge_pairs([pair for pair in pairs if pair is not None]))
        return [None if pair is None else next(judged) for pair in pairs]

    async def check_pairs(self, pairs: Sequence[Pair]) -> None:
        """Raise `Refusal` or `InputError` for pairs that `judge_pairs` would refuse."""
        limits = self.settings.limits
        self._check_count(len(pairs))
        size = sum(len(pair.question) + len(pair.answer) for pair in pairs)

        def check() -> None:
            self.judge.check(pairs)
            most = limits.max_tokens
            if size <= most // 4:  # a character is at most four tokens, one per byte
                return
            encode, count = self.judge.models[0].tokenizer.encode_ids, 0
            texts = (text for pair in pairs for text in (pair.question, pair.answer))
            parts = (text[i : i + most] for text in texts for i in range(0, len(text), most))
            for part in parts:  # a whole huge text would take gigabytes
                count += len(encode([part])[0])
                if count > most:
                    raise Refusal(413, f"more than {most} tokens in a request; send less")

        await apart(size, check)

    def check_room(self, count: int) -> None:
        """Raise `Refusal` or `Overloaded` if this many texts cannot wait for the judge now."""
        self._check_count(count)
        self._batcher.check_room(count)

    def _check_count(self, count: int) -> None:
        limits = self.settings.limits
        most = min(limits.max_candidates, limits.max_waiting)  # more would never find room to wait
        if count > most:
            raise Refusal(413, f"{count} texts; at most {most} per request")

    async def compute(self, job: Callable[[], Steps[_T]]) -> _T:
        """Run a job that uses a model. Jobs run one at a time, in parallel with the judge."""
        result: _T
        (result,) = await self._jobs.submit([job])
        return result

    def check_writing(self, texts: int, tokens: int) -> None:
        """Raise `Refusal` if a request asks for more or longer texts than the limits allow.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> service = Service(Judge(FakeLanguageModel(), None), Settings())
        >>> service.check_writing(texts=1, tokens=2000)
        Traceback (most recent call last):
        ledom.serve.refusals.Refusal: max_tokens is 2000; at most 1024 per text
        """
        limits = self.settings.limits
        if texts > limits.max_candidates:
            raise Refusal(413, f"{texts} texts; at most {limits.max_candidates} per request")
        if tokens > limits.max_new_tokens:
            raise Refusal(413, f"max_tokens is {tokens}; at most {limits.max_new_tokens} per text")

    def check_scoring(self, lm: LanguageModel, lengths: Sequence[int]) -> None:
        """Raise `Refusal` for texts too long to score token by token; `lengths` are in tokens."""
        if max(lengths) > lm.context:
            raise Refusal(400, f"a prompt of {max(lengths)} tokens; the model reads {lm.context}")
        reverse = lm.direction is Direction.REVERSE  # it reads every prefix
        work = sum(n * (n + 1) // 2 if reverse else n for n in lengths)
        if work > (most := self.settings.limits.max_tokens):
            raise Refusal(
                413,
                f"scoring {sum(lengths)} tokens means reading {work}; at most {most} per request",
            )

    def check_prompts(self, lm: LanguageModel, prompts: Sequence[str | Sequence[int]]) -> None:
        """Raise `Refusal` for a prompt so long that to encode it would take long."""
        for prompt in prompts:
            unit, most = "tokens", lm.context
            if isinstance(prompt, str):
                unit, most = "characters", LONGEST_TOKEN * lm.context
            if len(prompt) > most:
                raise Refusal(
                    413, f"a prompt of {len(prompt)} {unit}; the model reads {lm.context} tokens"
                )

    async def close(self) -> None:
        """Finish all accepted requests, then stop."""
        await self._batcher.close()
        await self._jobs.close()
        if self.upstream is not None:
            await self.upstream.close()


def _one_by_one(jobs: list[Callable[[], Steps[Any]]]) -> Steps[list[Any]]:
    results = []
    for job in jobs:
        results.append((yield from job()))
    return results
