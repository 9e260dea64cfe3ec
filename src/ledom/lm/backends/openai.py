"""Uses a model on a server that speaks OpenAI's completions protocol, such as vLLM's.

Scoring sends token ids in model order and reads back the log-probabilities of the prompt (`echo`),
so a server with a reverse model scores in reverse. For this, an older vLLM must run without prefix
caching (docs/footguns.md). Sampling sends text if the server's tokenizer encodes it to the same
ids, special tokens included, and ids otherwise. A reverse model must also return the ids that it
wrote (`return_token_ids` of vLLM). The client retries transient errors (429, 5xx, a broken
connection) with increasing delays, which a warning announces once. Settings without effect are sent
too, so that no default of the server applies instead. Other errors raise `ServerError`, and the
calling stage keeps its results.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction
from ledom.core.errors import InputError, ServerError, in_one_line, needs_extra
from ledom.core.files import digest
from ledom.core.options import check_secret
from ledom.core.reading import JsonObject, check_counts, require
from ledom.lm.backends.remote import (
    CONNECT_SECONDS,
    RateLimit,
    model_info,
    read_logprobs,
    run_concurrently,
)
from ledom.lm.confidence import Confidence, of_alternatives
from ledom.lm.generation import ModelSpan, Prompts, PromptTexts
from ledom.lm.language_model import Generation, LanguageModel, Sampling, TokenSpan

__all__ = ["OpenAILanguageModel"]

_ENDED = ("stop", "eos", "eos_token")  # finish reasons of a complete text (OpenAI, Together, TGI)
_NEUTRAL: JsonObject = {"top_k": -1, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Settings that have no effect. Without them, a server would apply its own defaults, such as those
in the model's generation_config.json (vLLM) or a top_k of 40 (llama.cpp)."""
_ANNOUNCED = "2"  # the retry that a warning announces, a few seconds after the first request
_T = TypeVar("_T")


class OpenAILanguageModel(LanguageModel):
    """The model that the server at `base_url` calls `model`; see `ledom.load`.

    `tokenizer` is the model's own: its folder or its tokenizer.json. A whole model folder also
    provides the direction, pair format and context. `requests_per_second` limits how many requests
    start per second; `concurrency` limits how many run at once. The key is read from the
    environment variable `OPENAI_API_KEY`; your own server (`base_url`) may not need one.
    """

    batches_requests = False
    reports_confidence = True

    def __init__(
        self,
        model: str,
        direction: Direction | str | None = None,
        tokenizer: str | Path | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        context: int | None = None,
        eos_token: str | None = None,
        bos_token: str | None = None,
        max_retries: int = 8,
        timeout: float = 120.0,
        concurrency: int = 8,
        requests_per_second: float | None = None,
    ) -> None:
        check_counts(1, concurrency=concurrency)
        check_counts(3, context=3 if context is None else context)
        check_counts(max_retries=max_retries)
        require({f"timeout is {timeout}; it must be above 0": 0 < timeout < math.inf})
        key = api_key or os.environ.get("OPENAI_API_KEY") or ("none" if base_url else None)
        self._client = _client(model, key, base_url, max_retries, timeout)
        info = model_info("openai", model, tokenizer, direction, eos_token, bos_token)
        super().__init__(
            name=model,
            direction=info.direction,
            tokenizer=info.tokenizer,
            pair_format=info.pair_format,
            bos_ids=info.bos_ids,
            # A scored text is entirely prompt, and the server needs room to write one more token.
            context=(context or info.context) - 2,
            fingerprint="",
            stop_ids=info.stop_ids,
        )
        known = self._client.base_url, model, self._use_at_load  # the server's weights are unknown
        self.fingerprint = f"{digest(' '.join(map(str, known))):016x}"
        self._concurrency = concurrency
        self._limit = RateLimit(requests_per_second)
        self._attempt = 0  # see `_complete`

    def logprobs(self, targets: Sequence[TokenSpan]) -> list[NDArray[np.float32]]:
        spans = self.check_targets(targets)
        found: dict[int, NDArray[np.float32]] = {}
        try:
            for place, values in run_concurrently(self._score, spans, self._concurrency):
                found[place] = values
        except ServerError as error:
            raise ServerError(str(error), found) from error
        return [found[place] for place in range(len(targets))]

    def _score(self, span: ModelSpan) -> NDArray[np.float32]:
        ids, start, end = span
        if start == end:
            return np.empty(0, np.float32)
        # One token is written and ignored, because not every server accepts a limit of 0.
        request: JsonObject = {"max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0.0}
        return self._ask(partial(self._scores, start, end), prompt=ids[:end], **request)

    def _scores(self, start: int, end: int, answer: Any) -> NDArray[np.float32]:
        """Read the log-probabilities of the prompt's tokens [start, end), and flip them."""
        logprobs = answer.choices[0].logprobs if answer.choices else None
        values = None if logprobs is None else logprobs.token_logprobs
        if values is None or len(values) < end or None in values[start:end]:
            raise ServerError(
                f"{self.name}: the server returned no log-probabilities of the prompt's tokens; it "
                "can generate, but not score; use one that accepts echo with logprobs, such as vLLM"
            )
        read = getattr(getattr(answer, "usage", None), "prompt_tokens", None)
        read = read if type(read) is int and read > 0 else None  # a server may not report it
        if len(values) > end + 1 or read not in (None, end):  # one token is written after the end
            raise ServerError(
                f"{self.name}: the server read {read or len(values) - 1} tokens where {end} were "
                "sent, so its log-probabilities belong to another text; it must neither add "
                "tokens, such as BOS, nor leave any out"
            )
        return self.direction.to_reading_order(read_logprobs(values[start:end]))

    def generate(
        self, prompts: Prompts, sampling: Sampling, num_samples: int = 1, first_sample: int = 0
    ) -> Iterator[PromptTexts]:
        texts, contexts = self.text_prompts(prompts, sampling)
        numbers = self.sample_numbers(num_samples, first_sample)
        # From a text, a server adds its tokenizer's own special tokens, and it cannot flip the ids.
        own = [self.tokenizer.token_id(token) for token in self.tokenizer.bos_tokens]
        reads_ids = self.bos_ids != own or self.direction is Direction.REVERSE
        settings = {
            **_NEUTRAL,
            "top_k": sampling.top_k or _NEUTRAL["top_k"],
            "top_p": sampling.top_p,
            **({"return_token_ids": True} if self.direction is Direction.REVERSE else {}),
        }
        request = {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            **({} if sampling.confidence is None else {"logprobs": sampling.confidence.top_k}),
        }
        # All greedy texts of a prompt are equal, and vLLM refuses to write the same one twice.
        count = 1 if sampling.temperature == 0 else len(numbers)

        def draw(place: int) -> list[Generation]:
            text = texts[place]
            # vLLM adds the sample's number to the seed, so nearby seeds would share samples.
            seed = (digest(f"{sampling.seed} {text}") >> 33) + numbers.start
            drawn: list[Generation] = []
            while len(drawn) < count:  # some servers write one text, however many are requested
                drawn += self._ask(
                    partial(self._texts, text, count - len(drawn), sampling),
                    {**settings, "n": count - len(drawn)},
                    prompt=contexts[place] if reads_ids else text,
                    seed=seed + len(drawn),
                    **request,
                )
            return drawn * (len(numbers) // count)

        yield from run_concurrently(draw, range(len(texts)), self._concurrency)

    def _texts(self, prompt: str, most: int, sampling: Sampling, answer: Any) -> list[Generation]:
        choices = sorted(answer.choices or [], key=lambda choice: choice.index or 0)
        if not 1 <= len(choices) <= most:
            raise ServerError(
                f"{self.name}: asked for {most} texts, the server sent {len(choices)}"
            )
        return [self._generation(prompt, choice, sampling) for choice in choices]

    def _generation(self, prompt: str, choice: Any, sampling: Sampling) -> Generation:
        reason: Literal["stop", "length"] = "stop" if choice.finish_reason in _ENDED else "length"
        confidence = self._confidence(choice, sampling)
        if self.direction is Direction.FORWARD:
            if not isinstance(choice.text, str):
                raise ServerError(f"{self.name}: the server returned a choice without text")
            text = choice.text.encode(errors="replace").decode()  # without lone surrogates
            whole, inside = self.tokenizer.encode(text).ids, self.tokenizer.encode_inside(text)
            return Generation(text, inside if prompt else whole, reason, confidence=confidence)
        written = getattr(choice, "token_ids", None)
        if not isinstance(written, list) or not all(type(i) is int for i in written):
            raise ServerError(
                f"{self.name}: the server returned no token ids (it must accept return_token_ids), "
                "and a reverse model's tokens must be flipped before they are decoded; give the "
                "model's folder"
            )
        # The server may not know every token that ends a text, and may continue past it.
        kept = [*takewhile(lambda i: i not in self.stop_ids, written)]
        if len(kept) < len(written):
            reason = "stop"
        ids = self.direction.to_reading_order(kept)
        return Generation(self.written_text(prompt, ids), ids, reason, confidence=confidence)

    def _confidence(self, choice: Any, sampling: Sampling) -> Confidence | None:
        if sampling.confidence is None:
            return None
        rows = getattr(choice.logprobs, "top_logprobs", None)
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row for row in rows):
            rows = []
        if not rows and choice.text:
            raise ServerError(
                f"{self.name}: the server returned no log-probabilities of the most likely tokens "
                "(it must accept logprobs), so it cannot report confidence"
            )
        for row in rows:
            read_logprobs([*row.values()])
        asked = sampling.confidence.top_k
        most = max(map(len, rows), default=asked)
        if most <= asked // 2:  # a few are lost where tokens share a name
            raise ServerError(
                f"{self.name}: the server sends log-probabilities of at most {most} tokens, and "
                f"confidence is to use {asked}; use at most {most}"
            )
        return of_alternatives(rows, sampling.confidence)

    def _ask(
        self, read: Callable[[Any], _T], settings: JsonObject | None = None, **request: Any
    ) -> _T:
        """Send a request and parse the answer with `read`; raises `ServerError` for any failure."""
        import openai

        try:
            answer = self._complete(settings or {}, request)
        except openai.APIStatusError as error:
            said = _said(error.body or error.message)
            remedy = "; give the server's limit, as in context=4096" if "context" in said else ""
            if error.status_code == 401:
                remedy = "; put the server's key in OPENAI_API_KEY"
            raise ServerError(
                f"{self.name}: the server answered {error.status_code}: {said}{remedy}"
            ) from error
        except openai.APIConnectionError as error:
            why = f"{in_one_line(error)} ({in_one_line(error.__cause__ or error)})"
            raise ServerError(
                f"{self.name}: no usable answer from the server at {self._client.base_url}: {why}"
            ) from error
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            raise self._unusable(error) from error
        if not hasattr(answer, "choices"):
            raise self._unusable(answer)
        known = getattr(answer, "ledom", None)
        if isinstance(known, dict) and "reverse" in (self.direction, known.get("direction")):
            raise ServerError(
                f"{self.name}: the server is ledom serve, whose reverse model reads and writes in "
                "reading order, so its answers would be taken for other texts; give the model's "
                "folder"
            )
        try:
            for part in (answer, *(answer.choices or ())):  # OpenRouter answers 200 to a failure
                if failure := getattr(part, "error", None):
                    raise ServerError(f"{self.name}: the server failed: {_said(failure)}")
            return read(answer)
        except (AttributeError, TypeError, ValueError, OverflowError, LookupError) as error:
            raise ServerError(f"{self.name}: the server's answer is not valid: {error}") from error

    def _complete(self, settings: JsonObject, request: JsonObject) -> Any:
        """The server's answer. What the server may reject is left out if it does: `n` (llama.cpp),
        and settings without effect (OpenAI: `top_k`; TGI: a `top_p` of 1).
        """
        import openai

        number, rejections = {"n": settings.get("n")}, []
        choices: list[JsonObject] = [{}, number, _NEUTRAL, number | _NEUTRAL]
        attempts = list(enumerate(choices))[self._attempt :]
        for attempt, left_out in attempts if settings else attempts[:1]:
            sent = {k: value for k, value in settings.items() if left_out.get(k) != value}
            self._limit.wait()
            try:
                answer = self._client.completions.create(
                    model=self.name, **request, extra_body=sent
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                rejections.append(error)
            else:
                self._attempt = attempt  # for the next requests
                return answer
        raise rejections[0]

    def _unusable(self, what: object) -> ServerError:
        return ServerError(f"{self.name}: no usable answer from the server: {in_one_line(what)}")


def _said(error: object) -> str:
    """The message in an error that a server sent, whatever its form, in one line."""
    return in_one_line(error.get("message") or error if isinstance(error, dict) else error)


def _client(
    model: str, key: str | None, base_url: str | None, max_retries: int, timeout: float
) -> Any:
    """OpenAI's client; raises `InputError` for an unusable key or address."""
    with needs_extra("openai", "openai"):
        import openai
    if key is not None:
        check_secret("the key in OPENAI_API_KEY", key)
    seconds = openai.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
    try:
        client = openai.OpenAI(
            api_key=key, base_url=base_url, max_retries=max_retries, timeout=seconds
        )
        client._prepare_request = _announcer(model)  # called before each try; does nothing itself
    except openai.OpenAIError as error:
        raise InputError(f"{model}: {in_one_line(error)}") from None
    except Exception:  # the error type depends on its HTTP library
        client = None
    address = client and client.base_url
    if not address or address.scheme not in ("http", "https") or not address.host:
        raise InputError(
            f"{model}: base_url is {base_url!r}; give an address such as http://127.0.0.1:8000/v1"
        )
    return client


def _announcer(model: str) -> Callable[[Any], None]:
    """A function that warns, once, before a request that is sent again: OpenAI's client is silent.

    It does not refer to the client, which closes its connections as soon as nothing does.
    """
    announced = Event()

    def announce(request: Any) -> None:
        if request.headers.get("x-stainless-retry-count") == _ANNOUNCED and not announced.is_set():
            announced.set()
            logging.getLogger("ledom").warning(
                "%s: no usable answer from the server at %s yet; trying again, with longer pauses",
                model,
                request.url,
            )

    return announce
