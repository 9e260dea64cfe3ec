"""The server that the gateway draws candidates from, over OpenAI's protocol.

Any failure of the upstream becomes one `Refusal`. Requests that may succeed later (429, 5xx, a
broken connection) are retried, unless the upstream asks for a longer wait than the longest pause
between tries. If the upstream ignores or rejects `n`, it gets one request per candidate. No message
contains the server's key.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from ledom.core.errors import InputError, in_one_line
from ledom.core.options import check_secret
from ledom.core.reading import JsonObject, parse_json
from ledom.lm.backends.remote import CONNECT_SECONDS
from ledom.serve.chat_text import content_of
from ledom.serve.refusals import Refusal

__all__ = ["Drawn", "Upstream"]

_PAUSES = (0.5, 2.0)  # seconds before the first and the second retry
_LONGEST_WAIT = 3600  # most seconds that a client is told to wait
_MOST_BYTES = 64 * 2**20  # of one answer
_WAIT = 5  # seconds that a client is told to wait after a 429 without a time
_DECLINES = (400, 404, 413, 422)  # statuses that mean that the client's request is wrong
_TOGETHER = 8  # concurrent requests to an upstream that sends one choice per request


@dataclass
class Drawn:
    """Candidates: the choices that an upstream sent."""

    choices: list[JsonObject]
    tokens: tuple[int, int] | None
    """Tokens read and written for all of them; None if the upstream does not report them."""

    @property
    def texts(self) -> list[str]:
        """The text of each choice.

        >>> Drawn([{"text": "4"}], tokens=None).texts
        ['4']
        """
        return [_text(choice) for choice in self.choices]


@dataclass
class Upstream:
    """An OpenAI-compatible server; prices are per million tokens, in any currency."""

    base_url: str
    model: str
    key: str | None = None
    seconds: float = 100.0
    prompt_price: float | None = None
    completion_price: float | None = None
    client: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        if not _is_address(self.base_url):
            raise InputError(
                f"upstream is {self.base_url!r}; give its address, such as http://127.0.0.1:8001/v1"
            )
        if (self.prompt_price is None) != (self.completion_price is None):
            raise InputError(
                "one price alone gives no cost; give both --prompt-price and --completion-price"
            )
        if self.key:
            check_secret("the key in OPENAI_API_KEY", self.key)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        # `draw` has its own timeout. By default, httpx sends at most 100 requests at a time.
        many = httpx.Limits(max_connections=None)
        wait = httpx.Timeout(None, connect=CONNECT_SECONDS)
        self.client = httpx.AsyncClient(headers=headers, timeout=wait, limits=many)

    async def draw(self, path: str, body: Mapping[str, Any], count: int) -> Drawn:
        """Draw `count` choices. `path` is `chat/completions` or `completions`.

        Raises `Refusal` if the upstream fails, rejects the body, or takes longer than `seconds`.
        """
        try:
            async with asyncio.timeout(self.seconds):
                answers = await self._ask_for(path, body, count)
        except TimeoutError:
            raise Refusal(
                504,
                f"the upstream did not answer within {self.seconds:g} s; ask for less, or raise "
                "the server's --max-seconds",
            ) from None
        choices = [choice for answer in answers for choice in answer["choices"]][:count]
        read, written = _sum(answers, "prompt_tokens"), _sum(answers, "completion_tokens")
        return Drawn(choices, None if read is None or written is None else (read, written))

    def cost(self, drawn: Drawn) -> float | None:
        """The price of the candidates; None without prices, or if token counts are unknown.

        >>> upstream = Upstream("http://127.0.0.1:8001/v1", "m", prompt_price=1, completion_price=2)
        >>> upstream.cost(Drawn([], tokens=(1_000_000, 500_000)))
        2.0
        """
        if drawn.tokens is None or self.prompt_price is None or self.completion_price is None:
            return None
        read, written = drawn.tokens
        return (read * self.prompt_price + written * self.completion_price) / 1e6

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def _ask_for(self, path: str, body: Mapping[str, Any], count: int) -> list[JsonObject]:
        """Answers that together have `count` choices."""
        single = {**body, "n": 1}
        try:
            answers = [await self._ask(path, {**body, "n": count})]
        except _Declined as declined:
            if count == 1:
                raise
            single = dict(body)  # the upstream may reject the key n itself
            try:
                answers = [await self._ask(path, single)]
            except _Declined:
                raise declined from None
        limit = asyncio.Semaphore(_TOGETHER)

        async def one(number: int) -> JsonObject:
            # With equal seeds all requests would draw the same text.
            seed = single.get("seed")
            seeded = {"seed": seed + number} if isinstance(seed, int) else {}
            async with limit:
                return await self._ask(path, single | seeded)

        lacking = count - len(answers[0]["choices"])
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number)) for number in range(1, lacking + 1)]
        except ExceptionGroup as errors:  # the first error cancelled the other requests
            raise errors.exceptions[0] from None
        return answers + [task.result() for task in tasks]

    async def _ask(self, path: str, body: Mapping[str, Any]) -> JsonObject:
        """The upstream's answer; temporary failures are retried."""
        url = f"{self.base_url.rstrip('/')}/{path}"
        for pause in (*_PAUSES, None):
            wait = 0
            try:
                return await self._post(url, body)
            except httpx.RequestError as error:
                problem = Refusal(
                    502, f"the connection to the upstream failed: {in_one_line(error)}"
                )
            except _Passing as error:
                problem, wait = error, error.wait or 0
            if pause is None or wait > max(_PAUSES):
                raise problem
            await asyncio.sleep(max(pause, wait))
        raise AssertionError

    async def _post(self, url: str, body: Mapping[str, Any]) -> JsonObject:
        content = bytearray()
        async with self.client.stream("POST", url, json=dict(body)) as answer:
            async for part in answer.aiter_bytes():
                content += part
                if len(content) > _MOST_BYTES:
                    raise Refusal(502, "the upstream's answer is too large")
        if answer.status_code != 200:
            raise self._refusal(answer, content)
        try:
            data = parse_json(bytes(content))
        except InputError as error:
            raise Refusal(502, f"the upstream's answer is not valid: {error}") from None
        choices = data.get("choices")
        if not isinstance(choices, list) or not choices or not all(map(_is_choice, choices)):
            raise Refusal(502, f"the upstream sent no usable choices: {self._said(content)}")
        return data

    def _refusal(self, answer: httpx.Response, content: bytearray) -> Refusal:
        status = answer.status_code
        message = f"the upstream answered {status}"
        if status == 401:  # its message may contain parts of the key
            what = "rejects this server's key" if self.key else "needs a key"
            return Refusal(502, f"{message}: it {what} (OPENAI_API_KEY)")
        if answer.is_redirect:
            return Refusal(502, f"{message}, a redirect; give --upstream the final address")
        if status == 404 and "/v1" not in self.base_url:
            message += " (--upstream has no /v1 at its end, which most servers need)"
        said = self._said(content)
        message += f": {said}" if said else ""
        if status in _DECLINES:
            return _Declined(400, message)
        if status == 429 or status >= 500:
            return _Passing(status, message, _seconds(answer.headers.get("Retry-After", "")))
        return Refusal(502, message)

    def _said(self, content: bytearray) -> str:
        """The start of an answer in one line, without the key."""
        said = " ".join(content[:2000].decode("utf-8", "replace").split())
        return (said.replace(self.key, "***") if self.key else said)[:300]


class _Passing(Refusal):
    """An error that may not occur on a retry; `wait` is what the upstream asks for, in seconds."""

    def __init__(self, status: int, message: str, wait: int | None) -> None:
        self.wait = wait
        if status == 429 and wait is None:
            wait = _WAIT
        headers = None if wait is None else {"Retry-After": str(wait)}
        super().__init__(429 if status == 429 else 502, message, headers)


class _Declined(Refusal):
    """The upstream rejects the request; a different one may be accepted."""


def _seconds(retry_after: str) -> int | None:
    """The seconds that a `Retry-After` asks for, given as a number or a date; None if neither.

    >>> _seconds("7"), _seconds("Wed, 21 Oct 2015 07:28:00 GMT"), _seconds("9" * 20), _seconds("-1")
    (7, 0, 3600, None)
    """
    if retry_after.isascii() and retry_after.isdigit():
        return min(int(retry_after[:9]), _LONGEST_WAIT)
    try:
        wait = parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(0, math.ceil(wait)), _LONGEST_WAIT)


def _is_address(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)


def _is_choice(choice: Any) -> bool:
    """Whether it is a choice; OpenRouter's have an error if their text was cut off by a failure."""
    is_read = isinstance(choice, dict) and isinstance(choice.get("message", choice), dict)
    return is_read and not choice.get("error")


def _text(choice: JsonObject) -> str:
    """The text of a choice; empty for a tool call."""
    if "message" in choice:
        return content_of(choice["message"])
    text = choice.get("text")
    return text if isinstance(text, str) else ""


def _sum(answers: list[JsonObject], key: str) -> int | None:
    counts = [
        usage.get(key) if isinstance(usage := answer.get("usage"), dict) else None
        for answer in answers
    ]
    known = [count for count in counts if type(count) is int and count >= 0]
    return sum(known) if len(known) == len(counts) else None
