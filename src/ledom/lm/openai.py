"""A model behind a server that speaks OpenAI's completions protocol, such as vLLM's.

Scoring sends token ids in model order and reads the log-probabilities of the prompt back (`echo`),
so a server that holds a reverse model scores in reverse. vLLM must run without prefix caching for
that. Sampling sends text and is for forward models. The client retries what may pass (429, 5xx, a
broken connection) with growing pauses; what does not pass is a `ServerError`, and the stage that
asked keeps what is finished.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ledom.direction import Direction
from ledom.errors import DirectionError, InputError, MissingExtraError, ServerError
from ledom.lm.base import Generation, LanguageModel, Sampling, Target
from ledom.model.tokenizer import Tokenizer
from ledom.pairs import PairFormat

__all__ = ["OpenAILanguageModel"]

_T = TypeVar("_T")


class OpenAILanguageModel(LanguageModel):
    """`model` as the server at `base_url` calls it; see `ledom.load`.

    `tokenizer` is the model's own, as a folder or a tokenizer.json. `requests_per_second` limits
    the rate at which requests start; `concurrency` how many run at once.
    """

    def __init__(
        self,
        model: str,
        direction: Direction | str | None,
        tokenizer: str | Path,
        base_url: str | None = None,
        api_key: str | None = None,
        context: int = 4096,
        eos_token: str | None = None,
        framed: bool | None = None,
        pair_format: PairFormat | None = None,
        max_retries: int = 8,
        timeout: float = 120.0,
        concurrency: int = 8,
        requests_per_second: float | None = None,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise MissingExtraError("openai", "openai") from None
        if direction is None:
            raise DirectionError(
                f"{model}: a server records no direction; say direction='forward' or 'reverse'"
            )
        self.name = model
        self.direction = Direction(direction)
        self.tokenizer = Tokenizer.load(tokenizer, eos_token)
        self.pair_format = pair_format or PairFormat()
        self.framed = self.direction is Direction.REVERSE if framed is None else framed
        self.context = context
        try:
            self._client = openai.OpenAI(
                base_url=base_url, api_key=api_key, max_retries=max_retries, timeout=timeout
            )
        except openai.OpenAIError as error:
            raise InputError(f"{model}: {error}") from None
        identity = f"{self._client.base_url} {model} {self.tokenizer.fingerprint} {self.direction}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._concurrency = concurrency
        self._limit = _RateLimit(requests_per_second)

    def logprobs(self, targets: Sequence[Target]) -> list[NDArray[np.float32]]:
        for target in targets:
            self.check_target(target)
        found = dict(self._side_by_side(self._score, targets))
        return [found[place] for place in range(len(targets))]

    def _score(self, target: Target) -> NDArray[np.float32]:
        start, end = self.direction.span_to_model_order(target.start, target.end, len(target.ids))
        if start == end:
            return np.empty(0, np.float32)
        ids = self.direction.to_model_order(list(target.ids))[:end]
        # One token more than asked for: not every server takes a limit of 0.
        answer = self._ask(prompt=ids, max_tokens=1, echo=True, logprobs=1, temperature=0.0)
        values = _prompt_logprobs(answer)
        if values is None or len(values) < end or None in values[start:end]:
            raise ServerError(
                f"{self.name}: the server returned no log-probabilities of the prompt's tokens; it "
                "can be sampled from, but not score (it must take echo with logprobs)"
            )
        scores = np.array(values[start:end], np.float32)
        if not np.isfinite(scores).all():
            raise ServerError(
                f"{self.name}: the server returned log-probabilities that are no number"
            )
        return np.ascontiguousarray(self.direction.to_reading_order(scores))

    def generate(
        self, prompts: Sequence[str | Generation], sampling: Sampling, num_samples: int = 1
    ) -> Iterator[tuple[int, list[Generation]]]:
        if num_samples < 1:
            raise InputError(f"num_samples is {num_samples}; it must be at least 1")
        if self.direction is Direction.REVERSE:
            raise DirectionError(
                f"{self.name}: a server writes text, and a reverse model's tokens are no text "
                "before they are turned round; load the model itself"
            )
        if sampling.border is not None or any(not isinstance(p, str) for p in prompts):
            raise InputError(f"{self.name}: a server cannot stop at borders; load the model itself")

        def draw(prompt: str | Generation) -> list[Generation]:
            options: dict[str, Any] = {"extra_body": {"top_k": sampling.top_k}}
            answer = self._ask(
                prompt=prompt,
                n=num_samples,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
                **(options if sampling.top_k else {}),
            )
            choices = list(answer.choices or [])
            if len(choices) != num_samples:
                raise ServerError(
                    f"{self.name}: asked for {num_samples} texts, the server sent {len(choices)}"
                )
            return [self._generation(choice) for choice in choices]

        yield from self._side_by_side(draw, prompts)

    def _generation(self, choice: Any) -> Generation:
        if not isinstance(choice.text, str):
            raise ServerError(f"{self.name}: the server returned a choice without text")
        reason = "stop" if choice.finish_reason == "stop" else "length"
        return Generation(choice.text, self.tokenizer.encode(choice.text).ids, reason)  # type: ignore[arg-type]

    def _side_by_side(
        self, work: Callable[[Any], _T], items: Sequence[Any]
    ) -> Iterator[tuple[int, _T]]:
        """(place, result) as they end; the first failure ends the others that wait."""
        with ThreadPoolExecutor(self._concurrency) as pool:
            waiting = {pool.submit(work, item): place for place, item in enumerate(items)}
            try:
                for done in as_completed(waiting):
                    yield waiting[done], done.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, **request: Any) -> Any:
        import openai

        self._limit.wait()
        try:
            answer = self._client.completions.create(model=self.name, **request)
        except openai.APIStatusError as error:
            raise ServerError(
                f"{self.name}: the server answered {error.status_code}: {error.message[:200]}"
            ) from error
        except (openai.OpenAIError, ValueError) as error:
            raise ServerError(f"{self.name}: no usable answer from the server: {error}") from error
        if not hasattr(answer, "choices"):
            raise ServerError(f"{self.name}: no usable answer from the server: {str(answer)[:200]}")
        return answer


def _prompt_logprobs(answer: Any) -> list[float | None] | None:
    choices = answer.choices or []
    logprobs = choices[0].logprobs if choices else None
    return None if logprobs is None else logprobs.token_logprobs


class _RateLimit:
    """Starts of requests, evenly spaced."""

    def __init__(self, per_second: float | None) -> None:
        if per_second is not None and not per_second > 0:
            raise InputError(f"requests_per_second is {per_second}; it must be above 0")
        self._pause = 0.0 if per_second is None else 1 / per_second
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Wait for this request's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._pause
        time.sleep(turn - now)
