"""The gateway's upstream: what it is sent, and one clear line for every failure."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from ledom.core.errors import InputError
from ledom.serve.refusals import Refusal
from ledom.serve.upstream import Drawn, Upstream
from serving import ANSWERS, QUESTIONS, Handler, Models, chat, choices, gateway, honest
from waiting import SECONDS, until_async


@pytest.mark.slow
def test_the_upstream_gets_the_body_without_our_keys(models: Models) -> None:
    seen: list[tuple[Any, Any]] = []

    def watch(request: httpx.Request) -> httpx.Response:
        seen.append((json.loads(request.content), request.headers["authorization"]))
        return honest(request)

    with gateway(models, watch) as client:
        chat(client, temperature=0.5, presence_penalty=1, ledom={"n": 3, "model": "other"})
    ((body, key),) = seen
    assert key == "Bearer key"
    assert body == {
        "model": "other",
        "n": 3,
        "temperature": 0.5,
        "presence_penalty": 1,
        "messages": [{"role": "user", "content": QUESTIONS[0]}],
    }


@pytest.mark.slow
def test_an_upstream_that_returns_one_choice_is_asked_again(models: Models) -> None:
    calls = iter(range(100))

    def one(request: httpx.Request) -> httpx.Response:
        usage = {"prompt_tokens": 10, "completion_tokens": 4}
        return httpx.Response(200, json={"choices": choices(1, next(calls)), "usage": usage})

    with gateway(models, one) as client:
        answer = chat(client, ledom={"n": 4}).json()
    texts = {row["text"] for row in answer["ledom"]["candidates"]}
    assert texts == set(ANSWERS[:4])
    assert answer["usage"] == {"prompt_tokens": 40, "completion_tokens": 16, "total_tokens": 56}


def _only_one(request: httpx.Request) -> httpx.Response:
    """An upstream that refuses `n`, as several do."""
    body = json.loads(request.content)
    if "n" in body:
        return httpx.Response(400, json={"error": {"message": "n is not supported"}})
    usage = {"prompt_tokens": 10, "completion_tokens": 4}
    return httpx.Response(200, json={"choices": choices(1, body["seed"]), "usage": usage})


@pytest.mark.slow
def test_an_upstream_that_refuses_n_gets_a_request_per_candidate(models: Models) -> None:
    with gateway(models, _only_one) as client:
        answer = chat(client, ledom={"n": 4}, seed=1).json()
    # Each with its own seed: the same seed would give the same text.
    texts = [row["text"] for row in answer["ledom"]["candidates"]]
    assert sorted(texts) == sorted(ANSWERS[1:5])
    assert answer["usage"] == {"prompt_tokens": 40, "completion_tokens": 16, "total_tokens": 56}


def test_when_one_of_many_requests_fails_the_others_are_cancelled(models: Models) -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def slow(request: httpx.Request) -> httpx.Response:
        number = json.loads(request.content)["seed"]
        if number == 0:
            return httpx.Response(200, json={"choices": choices(1)})
        if number == 1:
            await until_async(lambda: len(begun) == 2)
            return httpx.Response(403, text="no more\nfor you")
        try:
            begun.append(number)
            await asyncio.Event().wait()
        finally:
            ended.append(number)
        raise AssertionError

    with gateway(models, slow) as client:
        answer = chat(client, ledom={"n": 4}, seed=0)
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "the upstream answered 403: no more for you"
    assert sorted(ended) == [2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "usage",
    [
        *(None, {}, {"prompt_tokens": "x", "completion_tokens": -5}),
        {"prompt_tokens": True, "completion_tokens": 4},
    ],
)
def test_invalid_counts_are_treated_as_unknown(models: Models, usage: Any) -> None:
    sent = {"choices": choices(2), "usage": usage}
    with gateway(models, lambda request: httpx.Response(200, json=sent)) as client:
        answer = chat(client, ledom={"n": 2})
    assert answer.status_code == 200
    assert answer.json()["usage"] is answer.json()["ledom"]["cost"] is None


@pytest.mark.parametrize("content", [ANSWERS[0], "", None])
def test_a_single_candidate_is_returned_as_it_is(models: Models, content: str | None) -> None:
    choice = {"finish_reason": "length", "message": {"role": "assistant", "content": content}}
    long = [{"role": "user", "content": "Give this chat a title. " * 500}]  # as chat clients ask
    with gateway(models, lambda request: httpx.Response(200, json={"choices": [choice]})) as client:
        (model,) = [m for m in client.get("/v1/models").json()["data"] if "=" in m["id"]]
        answer = chat(client, model=model["id"], messages=long)
        several = chat(client, messages=long)
    assert answer.json()["choices"] == [{"index": 0, **choice}]
    details = answer.json()["ledom"]
    assert (details["candidates"], details["confidence"]) == ([], None)  # it was not judged
    assert model["max_model_len"] is None  # the upstream does not report its limit
    assert "leaves no room for an answer" in several.json()["error"]["message"]


def test_an_answer_in_parts_is_read(models: Models) -> None:
    parts = [{"type": "text", "text": "3 + 4 = 7"}, {"type": "text", "text": "\n#### 7"}]
    sent = {"choices": [{"message": {"role": "assistant", "content": parts}}]}
    with gateway(models, lambda request: httpx.Response(200, json=sent)) as client:
        answer = chat(client, ledom={"n": 2}).json()
    assert answer["ledom"]["candidates"][0]["text"] == "3 + 4 = 7\n#### 7"
    assert answer["choices"][0]["message"]["content"] == parts


@pytest.mark.slow
def test_max_tokens_is_limited_only_without_an_upstream(models: Models) -> None:
    with gateway(models, honest) as client:
        assert chat(client, max_tokens=100_000).status_code == 200
    with gateway(models, None) as client:
        assert chat(client, max_tokens=100_000).status_code == 413


@pytest.mark.parametrize("address", ["", "up/v1", "ftp://up/v1", "http://", "http://up:port/v1"])
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="give its address"):
        Upstream(address, "big")


@pytest.mark.parametrize("price", [{"prompt_price": 1.0}, {"completion_price": 0.0}])
def test_one_price_alone_is_refused(price: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give both --prompt-price and --completion-price"):
        Upstream("http://up/v1", "big", **price)


def _hangs(request: httpx.Request) -> Any:
    async def wait() -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    return wait()


def _dies(request: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("peer closed connection without complete body")


def _falls_silent(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("")


class _Garbled(httpx.AsyncByteStream):
    """Bytes that do not match the headers."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"not gzip"


THOUGHT = {"message": {"content": "", "reasoning": "3 +"}, "finish_reason": "length"}
FAILURES: dict[str, tuple[Handler, int, str]] = {
    "hangs": (
        _hangs,
        504,
        "did not answer within 0.3 s; ask for less, or raise the server's --max-",
    ),
    "dies": (_dies, 502, "connection to the upstream failed"),
    "falls silent": (_falls_silent, 502, "connection to the upstream failed: ReadError"),
    "html": (lambda r: httpx.Response(200, html="<p>no"), 502, "is not valid"),
    "no choices": (lambda r: httpx.Response(200, json={"choices": []}), 502, "no usable choices"),
    "strange": (lambda r: httpx.Response(200, json={"choices": [7]}), 502, "no usable choices"),
    "an error with 200": (
        lambda r: httpx.Response(200, json={"error": {"message": "out of credit"}}),
        502,
        'no usable choices: {"error":{"message":"out of credit"}}',
    ),
    "a choice with an error": (
        lambda r: httpx.Response(
            200,
            json={"choices": [{"message": {"content": "3 +"}, "error": {"message": "gone"}}] * 6},
        ),
        502,
        "gone",
    ),
    "deep": (lambda r: httpx.Response(200, content=b"[" * 10**5), 502, "is not valid"),
    "no text": (
        lambda r: httpx.Response(200, json={"choices": [{"message": {"content": None}}] * 6}),
        502,
        "no text",
    ),
    "only thoughts": (  # a client would repeat a request after a 502
        lambda r: httpx.Response(200, json={"choices": [THOUGHT] * 6}),
        400,
        "no candidate has text within its token limit; send a larger max_tokens",
    ),
    "refuses": (lambda r: httpx.Response(400, text="bad model"), 400, "answered 400: bad model"),
    "broken": (lambda r: httpx.Response(500), 502, "answered 500"),
    "busy": (lambda r: httpx.Response(429, text="later"), 429, "answered 429: later"),
    "not its format": (
        lambda r: httpx.Response(200, stream=_Garbled(), headers={"Content-Encoding": "gzip"}),
        502,
        "connection to the upstream failed",
    ),
    "elsewhere": (
        lambda r: httpx.Response(302, headers={"Location": "http://127.0.0.1/metrics"}),
        502,
        "answered 302, a redirect; give --upstream the final address",
    ),
    "no key": (lambda r: httpx.Response(401, text="bad key"), 502, "rejects this server's key"),
    "an unlikely status": (lambda r: httpx.Response(204), 502, "answered 204"),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.slow
def test_a_failing_upstream_gives_one_clear_line(
    models: Models, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledom.serve.upstream._PAUSES", (0.0, 0.0))
    handler, status, message = FAILURES[name]
    with gateway(models, handler, seconds=0.3 if name == "hangs" else SECONDS) as client:
        answer = chat(client)
        assert answer.status_code == status, answer.text
        assert message in answer.json()["error"]["message"]
        assert client.get("/healthz").status_code == 200


def test_an_upstream_that_needs_a_key_says_so(models: Models) -> None:
    with gateway(models, lambda request: httpx.Response(401), key="") as client:
        message = chat(client).json()["error"]["message"]
    assert message == "the upstream answered 401: it needs a key (OPENAI_API_KEY)"


@pytest.mark.slow
def test_an_upstream_that_cannot_be_reached_fails_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledom.serve.upstream._PAUSES", ())
    monkeypatch.setattr("ledom.serve.upstream.CONNECT_SECONDS", 0.1)
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    host, port = full.getsockname()
    upstream = Upstream(f"http://{host}:{port}/v1", "big", seconds=SECONDS)

    async def draw() -> None:
        with pytest.raises(Refusal, match="connection to the upstream failed: ConnectTimeout"):
            await upstream.draw("completions", {}, 1)
        await upstream.close()

    with full, socket.create_connection((host, port)):  # further connections are dropped
        asyncio.run(draw())


@pytest.mark.slow
def test_a_busy_upstream_says_when_to_try_again(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledom.serve.upstream._PAUSES", ())
    cases = {"33": "33", "soon": "5", "-1": "5", "²": "5", "9" * 30: "3600", "": "5"}
    cases |= {"Wed, 21 Oct 2099 07:28:00 GMT": "3600", "Wed, 21 Oct 2015 07:28:00 GMT": "0"}
    for given, passed in cases.items():
        busy = httpx.Response(429, headers={"Retry-After": given.encode("latin-1")})
        with gateway(models, lambda request, busy=busy: busy) as client:
            assert chat(client).headers["retry-after"] == passed
    for given, passes in ({"Retry-After": "7"}, "7"), ({}, None):
        down = httpx.Response(503, headers=given)
        with gateway(models, lambda request, down=down: down) as client:
            answer = chat(client)
            assert (answer.status_code, answer.headers.get("retry-after")) == (502, passes)


def test_an_upstream_that_asks_for_a_long_wait_is_not_retried(models: Models) -> None:
    asked = []

    def busy(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(429, headers={"Retry-After": "60"})

    with gateway(models, busy) as client:
        assert chat(client).status_code == 429
    assert len(asked) == 1


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 401, 403, 418, 429, 500])
def test_no_message_contains_the_key(
    models: Models, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An upstream may echo what it was sent, and for a wrong key a part of it."""
    monkeypatch.setattr("ledom.serve.upstream._PAUSES", ())

    def repeats(request: httpx.Request) -> httpx.Response:
        said = request.headers["authorization"] if status != 401 else "no such key: sk-12***"
        return httpx.Response(status, text=f"{said} is refused")

    with gateway(models, repeats, key="sk-123456") as client:
        answer = chat(client)
        assert "sk-12" not in answer.text + caplog.text + client.get("/metrics").text
        assert status == 401 or "Bearer *** is refused" in answer.json()["error"]["message"]


@pytest.mark.parametrize("key", ["sk-1\n", "sk 1", "sk-é", "\x00"])
def test_a_key_that_cannot_be_in_a_header_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="OPENAI_API_KEY") as refused:
        Upstream("http://up/v1", "big", key)
    assert key not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "user", "content": " "}]},
        {"messages": [{"role": "user", "content": "word " * 5000}]},
        {"ledom": {"strategy": "the best"}},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    ],
)
def test_impossible_choices_are_refused_before_anything_is_sampled(
    models: Models, more: dict[str, Any]
) -> None:
    asked = []

    def count(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return honest(request)

    with gateway(models, count) as client:
        answer = chat(client, **more)
    assert answer.status_code in (400, 413), answer.text
    assert not asked


def test_an_address_without_v1_is_named_if_nothing_is_found_there() -> None:
    async def draw(address: str) -> str:
        upstream = Upstream(address, "m")
        transport = httpx.MockTransport(lambda request: httpx.Response(404, text="Not Found"))
        upstream.client = httpx.AsyncClient(transport=transport)
        with pytest.raises(Refusal) as caught:
            await upstream.draw("completions", {}, 1)
        return caught.value.message

    lacks = "the upstream answered 404 (--upstream has no /v1 at its end, which most servers need)"
    assert asyncio.run(draw("http://up:8001/")) == f"{lacks}: Not Found"
    assert asyncio.run(draw("http://up:8001/v1")) == "the upstream answered 404: Not Found"


@pytest.mark.slow
def test_any_number_of_requests_reach_the_upstream_at_once() -> None:
    count = 150

    async def draw() -> list[Drawn]:
        all_arrived = asyncio.Barrier(count)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await all_arrived.wait()
            body = b'{"choices": [{"text": "4"}]}'
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(body) + body)
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            upstream = Upstream(f"http://127.0.0.1:{port}/v1", "m", seconds=SECONDS)
            drawn = await asyncio.gather(
                *(upstream.draw("completions", {}, 1) for _ in range(count))
            )
            await upstream.close()
        return drawn

    assert [found.texts for found in asyncio.run(draw())] == [["4"]] * count


def test_an_upstream_that_recovers_is_used(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledom.serve.upstream._PAUSES", (0.0, 0.0))
    answers: Iterator[Handler] = iter([_dies, lambda r: httpx.Response(503), honest])
    with gateway(models, lambda request: next(answers)(request)) as client:
        assert chat(client).status_code == 200
