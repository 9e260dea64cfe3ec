"""If a client disconnects or its time is up, its work ends and other requests are unaffected."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Generation, Sampling, TokenSpan
from ledom.serve import writing
from ledom.serve.judge import Judge
from ledom.serve.server import Server
from ledom.serve.settings import Limits
from ledom.text.tokenizer import Tokenizer
from serving import running, waiting
from waiting import SECONDS, until


class SlowModel(FakeLanguageModel):
    """A model that takes a step when the test allows one, and counts its steps."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, "reverse")
        self.allowed = threading.Semaphore(0)
        self.steps = 0
        self.ended = 0

    def step(self) -> None:
        self.steps += 1
        assert self.allowed.acquire(timeout=SECONDS)

    def generate_in_steps(
        self, prompts: Sequence[str], sampling: Sampling, num_samples: int = 1
    ) -> Iterator[list[tuple[int, list[Generation]]]]:
        try:
            for _ in range(100):
                self.step()
                yield []
            yield from super().generate_in_steps(prompts, sampling, num_samples)
        finally:
            self.ended += 1

    def logprobs(self, targets: Sequence[TokenSpan]) -> Any:
        self.step()
        return super().logprobs(targets)


@pytest.fixture
def model(tokenizer: Tokenizer) -> SlowModel:
    return SlowModel(tokenizer)


@pytest.fixture
def server(model: SlowModel) -> Iterator[Server]:
    with running(Judge(None, model), Limits()) as server:
        yield server
        model.allowed.release(10_000)


def send(server: Server, path: str, body: Any) -> socket.socket:
    """Send a request on its own connection without reading the answer."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    client = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
    client.sendall(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return client


def gone(server: Server) -> bool:
    """Whether the server has noticed that a client has disconnected."""
    return 'status="499"' in httpx.get(f"{server.url}/metrics", timeout=SECONDS).text


COMPLETION = {"model": "reverse", "prompt": "#### 7", "max_tokens": 4}
WRITING = {
    "completion": ("/v1/completions", COMPLETION),
    "stream": ("/v1/completions", COMPLETION | {"stream": True}),
    "several": ("/v1/completions", COMPLETION | {"prompt": ["1", "2"], "n": 3, "logprobs": 2}),
    "own": ("/ledom/generate", COMPLETION),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITING)
def test_generation_ends_at_the_next_step(server: Server, model: SlowModel, name: str) -> None:
    with send(server, *WRITING[name]):
        model.allowed.release(2)
        until(lambda: model.steps == 3)  # it waits in the third step
    until(lambda: gone(server))
    assert model.ended == 0
    model.allowed.release()
    until(lambda: model.ended == 1)
    assert model.steps == 3


@pytest.mark.slow
def test_the_next_request_is_answered_at_once(server: Server, model: SlowModel) -> None:
    url = f"{server.url}/v1/completions"
    with ThreadPoolExecutor(1) as pool:
        with send(server, "/v1/completions", COMPLETION):
            until(lambda: model.steps == 1)
            other = pool.submit(httpx.post, url, json=COMPLETION, timeout=SECONDS)
            until(lambda: waiting(server) == 1)
        until(lambda: gone(server))
        model.allowed.release(1 + 100)  # the step of the first request, and all of the second
        assert other.result(SECONDS).status_code == 200
    assert model.steps == 1 + 100


@pytest.mark.slow
def test_scoring_a_prompt_ends_at_the_next_step(
    server: Server, model: SlowModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_STEP_TOKENS", 1)
    body = COMPLETION | {"echo": True, "logprobs": 1, "max_tokens": 1, "prompt": "3 + 4 = 7"}
    with send(server, "/v1/completions", body):
        model.allowed.release(1)
        until(lambda: model.steps == 2)
    until(lambda: gone(server))
    model.allowed.release(1 + 100)
    after = httpx.post(f"{server.url}/v1/completions", json=COMPLETION, timeout=SECONDS)
    assert after.status_code == 200
    assert model.steps == 2 + 100


@pytest.mark.slow
def test_other_requests_in_the_batch_are_computed(server: Server, model: SlowModel) -> None:
    """A batch with several clients is finished, and the scores equal those of each alone."""
    url = f"{server.url}/ledom/score"
    with ThreadPoolExecutor(4) as pool:

        def ask(answer: str) -> Any:
            body = {"question": "How many?", "answers": [answer], "tokens": False}
            return httpx.post(url, json=body, timeout=SECONDS).json()["results"][0]["reward"]

        first = pool.submit(ask, "1")
        until(lambda: model.steps == 1)  # the others share the next batch
        others = [pool.submit(ask, text) for text in ("3 + 4 = 7", "12")]
        with send(server, "/ledom/score", {"question": "How many?", "answers": ["no"]}):
            until(lambda: waiting(server) == 3)
            model.allowed.release()
            until(lambda: model.steps == 2)
        until(lambda: gone(server))
        model.allowed.release(10_000)
        rewards = [first.result(SECONDS), *(one.result(SECONDS) for one in others)]
        assert rewards == [ask(text) for text in ("1", "3 + 4 = 7", "12")]


@pytest.mark.slow
def test_a_request_that_ran_out_of_time_ends_too(model: SlowModel) -> None:
    with running(Judge(None, model), Limits(seconds=1)) as server:  # enough to begin
        url = f"{server.url}/v1/completions"
        assert httpx.post(url, json=COMPLETION, timeout=SECONDS).status_code == 504
        model.allowed.release()
        until(lambda: model.ended == 1)
        assert model.steps == 1


@pytest.mark.slow
def test_a_second_signal_ends_running_requests(model: SlowModel) -> None:
    """The first one waits for them, as for a request that is still being generated."""
    with running(Judge(None, model), Limits()) as server, ThreadPoolExecutor(1) as pool:
        url = f"{server.url}/v1/completions"
        answer = pool.submit(httpx.post, url, json=COMPLETION, timeout=SECONDS)
        until(lambda: model.steps == 1)
        assert server._server is not None
        server._server.handle_exit(signal.SIGINT, None)
        until(lambda: server._socket.fileno() < 0)
        assert not answer.done()
        server._server.handle_exit(signal.SIGINT, None)
        refused = answer.result(SECONDS)
        assert refused.status_code == 503
        assert refused.json()["error"]["message"] == "the server is shutting down"
        model.allowed.release()
    assert model.steps == 1
