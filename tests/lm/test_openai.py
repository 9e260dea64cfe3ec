"""The server backend against a server in this process that speaks the documented protocol."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ledom
from ledom.errors import DirectionError, InputError, ServerError
from ledom.lm.base import Sampling, Target
from ledom.lm.fake import FakeLanguageModel
from ledom.lm.openai import OpenAILanguageModel, _RateLimit
from ledom.model.tokenizer import Tokenizer

Reply = tuple[int, bytes]


class Server:
    """Completions of a fake model; `faults` are served first, one a request."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.faults: list[Reply | None] = []
        self.always: Callable[[], Reply | None] | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                if server.always is not None:
                    reply = server.always()
                else:
                    reply = server.faults.pop(0) if server.faults else (200, server.answer(body))
                if reply is None:  # hang up without a word
                    self.connection.close()
                    return
                self.send_response(reply[0])
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply[1])))
                self.end_headers()
                self.wfile.write(reply[1])

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @staticmethod
    def answer(body: dict[str, Any]) -> bytes:
        """What the protocol says: echoed prompt log-probabilities, or n texts."""
        if body.get("echo"):
            ids = body["prompt"]
            values = [None, *(-math.log1p((a + b) % 7) for a, b in pairwise(ids))]
            logprobs = {"token_logprobs": [*values, -0.1], "tokens": ["?"] * (len(ids) + 1)}
            choices = [{"index": 0, "text": "?", "finish_reason": "length", "logprobs": logprobs}]
        else:
            choices = [
                {"index": i, "text": f"{body['prompt'][:3]} {i}", "finish_reason": reason}
                for i, reason in zip(range(body.get("n", 1)), ["stop", "length"] * 99, strict=False)
            ]
        return json.dumps(
            {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": choices}
        ).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def load(
    server: Server, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., OpenAILanguageModel]:
    """The backend on this test's server; pauses between tries are cut short."""
    import openai._base_client as base

    monkeypatch.setattr(base, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(base, "MAX_RETRY_DELAY", 0.02)
    tokenizer.save(tmp_path)

    def make(direction: str = "forward", **options: Any) -> OpenAILanguageModel:
        options = {"base_url": server.url, "api_key": "k", "tokenizer": tmp_path, **options}
        lm = ledom.load("openai:m", direction, **options)
        assert isinstance(lm, OpenAILanguageModel)
        return lm

    return make


def targets(lm: ledom.LanguageModel) -> list[Target]:
    texts = ["Ava has 12 apples.", "7", "naïve café 数学"]
    ids = [[lm.tokenizer.eos_id, *lm.tokenizer.encode(t).ids, lm.tokenizer.eos_id] for t in texts]
    reverse = str(lm.direction) == "reverse"
    spans = [(0, len(i) - 1) if reverse else (1, len(i)) for i in ids]
    return [Target(i, *span) for i, span in zip(ids, spans, strict=True)]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_scores_are_those_of_the_model_behind_it(
    load: Callable[..., OpenAILanguageModel], tokenizer: Tokenizer, direction: str
) -> None:
    lm = load(direction)
    fake = FakeLanguageModel(tokenizer, direction)
    asked = targets(lm)
    for ours, expected in zip(lm.logprobs(asked), fake.logprobs(asked), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    backwards = lm.logprobs(asked[::-1])[::-1]
    np.testing.assert_array_equal(backwards[0], lm.logprobs(asked[:1])[0])
    part = lm.logprobs([Target(asked[0].ids, 2, 4)])[0]
    assert len(part) == 2
    assert lm.logprobs([]) == []
    assert len(lm.logprobs([Target(asked[0].ids, 2, 2)])[0]) == 0


def test_texts_come_back_by_prompt(
    load: Callable[..., OpenAILanguageModel], server: Server
) -> None:
    lm = load()
    sampling = Sampling(temperature=0.7, top_k=5, top_p=0.9, max_tokens=9, seed=3)
    made = dict(lm.generate(["one?", "two?"], sampling, 2))
    assert [text.text for text in made[1]] == ["two 0", "two 1"]
    assert [text.finish_reason for text in made[0]] == ["stop", "length"]
    assert made[0][0].ids == lm.tokenizer.encode("one 0").ids
    body = next(body for body in server.requests if body["prompt"] == "two?")
    expected = {"model": "m", "n": 2, "max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": 3}
    assert body == expected | {"prompt": "two?", "top_k": 5}


@pytest.mark.parametrize("fault", [(429, b"{}"), (500, b"oops"), (503, b""), None])
def test_what_may_pass_is_tried_again(
    load: Callable[..., OpenAILanguageModel], server: Server, fault: Reply | None
) -> None:
    lm = load(concurrency=1)
    server.faults = [fault, fault]
    assert len(lm.logprobs(targets(lm)[:1])[0]) > 0
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, b'{"error": {"message": "no key"}}'), "m: the server answered 401: .*no key"),
        ((404, b"{}"), "the server answered 404"),
        ((500, b"oops"), "the server answered 500"),
        ((200, b"garbage"), "no usable answer from the server"),
        ((200, b'{"choices": []}'), "no log-probabilities of the prompt's tokens"),
        ((200, b'{"choices": [{"text": "x", "logprobs": null}]}'), "no log-probabilities"),
        (
            (200, b'{"choices": [{"logprobs": {"token_logprobs": [null, -1]}}]}'),
            "it can be sampled",
        ),
        (None, "no usable answer from the server: Connection error"),
    ],
)
def test_what_does_not_pass_is_one_clear_line(
    load: Callable[..., OpenAILanguageModel], server: Server, reply: Reply | None, message: str
) -> None:
    server.always = lambda: reply
    lm = load(max_retries=1, concurrency=1)
    with pytest.raises(ServerError, match=message):
        lm.logprobs(targets(lm))


def test_too_few_texts_are_refused(
    load: Callable[..., OpenAILanguageModel], server: Server
) -> None:
    server.always = lambda: (200, Server.answer({"prompt": "one?", "n": 1}))
    with pytest.raises(ServerError, match="asked for 3 texts, the server sent 1"):
        list(load().generate(["one?"], Sampling(), 3))


def test_a_server_that_dies_half_way_keeps_what_it_gave(
    load: Callable[..., OpenAILanguageModel], server: Server
) -> None:
    lm = load(max_retries=0, concurrency=1)
    server.faults = [(200, Server.answer({"prompt": "one?", "n": 1})), None]
    texts = lm.generate(["one?", "two?", "three?"], Sampling())
    assert next(texts)[1][0].text == "one 0"
    with pytest.raises(ServerError):
        next(texts)
    assert len(server.requests) <= 3


def test_what_a_server_cannot_do(load: Callable[..., OpenAILanguageModel]) -> None:
    with pytest.raises(DirectionError, match="a server records no direction"):
        load(None)
    with pytest.raises(DirectionError, match="a reverse model's tokens are no text"):
        list(load("reverse").generate(["x"], Sampling()))
    with pytest.raises(InputError, match="cannot stop at borders"):
        list(load().generate(["x"], Sampling(border="\n")))
    with pytest.raises(InputError, match="num_samples is 0"):
        list(load().generate(["x"], Sampling(), 0))
    lm = load(context=4)
    with pytest.raises(InputError, match="context of 4"):
        lm.logprobs([Target([1] * 6, 1, 6)])
    with pytest.raises(InputError, match="no log-probability"):
        lm.logprobs([Target([1, 2], 0, 2)])


def test_requests_start_at_the_rate_that_is_allowed() -> None:
    limit = _RateLimit(50.0)
    started = time.monotonic()
    for _ in range(6):
        limit.wait()
    assert time.monotonic() - started >= 5 / 50
    with pytest.raises(InputError, match="requests_per_second is 0"):
        _RateLimit(0)
