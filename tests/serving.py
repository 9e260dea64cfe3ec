"""A server on a real port, for client tests, and a gateway in front of a mock upstream."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi.testclient import TestClient

from ledom.lm.language_model import LanguageModel
from ledom.rerank.weights import TunedWeights
from ledom.serve.app import make_app
from ledom.serve.judge import Judge
from ledom.serve.server import Server
from ledom.serve.service import Service
from ledom.serve.settings import Limits, Settings
from ledom.serve.upstream import Upstream
from waiting import SECONDS, until

Handler = Callable[[httpx.Request], Any]
Models = tuple[LanguageModel, LanguageModel]

ANSWERS = [
    "3 + 4 = 7\n#### 7",
    "3 * 4 = 12\n#### 12",
    "4 + 3 = 7\n#### 7",
    "it is unclear",
    "7 - 3 = 4\n#### 4",
    "3 + 4 = 8\n#### 8",
]
QUESTIONS = ["Ava has 3 pens and buys 4.", "Bo had 4 cats, then 3 came.", "How many is 12 less 3?"]


@contextmanager
def running(
    judge: Judge, limits: Limits, reports: Path | None = None, token: str | None = None
) -> Iterator[Server]:
    """A server on a free port, in a thread; it must end when asked to."""
    settings = Settings(port=0, limits=limits, reports=reports, token=token)
    server = Server(settings)
    service = Service(judge, settings)
    server.listen()  # requests wait until it runs
    thread = threading.Thread(target=server.run, args=(service,), daemon=True)
    thread.start()
    until(lambda: server._server is not None or not thread.is_alive())  # `stop` now works
    try:
        yield server
    finally:
        server.stop()
        thread.join(SECONDS)
        assert not thread.is_alive()


def waiting(server: Server) -> float:
    """The number of texts waiting for a model, from the server's metrics."""
    lines = httpx.get(f"{server.url}/metrics", timeout=SECONDS).text.splitlines()
    (line,) = [line for line in lines if line.startswith("ledom_waiting_items ")]
    return float(line.split()[1])


def choices(count: int, first: int = 0) -> list[dict[str, Any]]:
    """`count` choices as in a chat response: `ANSWERS` from index `first` on, repeated."""
    return [
        {
            "index": i,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": ANSWERS[(first + i) % len(ANSWERS)]},
        }
        for i in range(count)
    ]


def honest(request: httpx.Request) -> httpx.Response:
    """An upstream that returns the `n` choices that the request asks for."""
    body = json.loads(request.content)
    usage = {"prompt_tokens": 11, "completion_tokens": 5 * body["n"], "total_tokens": 0}
    return httpx.Response(200, json={"choices": choices(body["n"]), "usage": usage})


@contextmanager
def gateway(
    models: Models,
    handler: Handler | None,
    seconds: float = SECONDS,
    weights: TunedWeights | None = None,
    key: str = "key",
    limits: Limits | None = None,
) -> Iterator[TestClient]:
    """A client of a gateway with the upstream `handler`; without one, the forward model answers.

    By default, a request may take as long as a test waits: a machine may stop this process.
    """
    upstream = None
    if handler is not None:
        upstream = Upstream("http://up/v1", "big", key, seconds, 1.0, 2.0)
        upstream.client = httpx.AsyncClient(
            headers=upstream.client.headers,
            timeout=None,
            transport=httpx.MockTransport(handler),
        )
    settings = Settings(limits=limits or Limits(seconds=SECONDS, read_seconds=SECONDS))
    app = make_app(Service(Judge(*models, weights=weights), settings, upstream))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def chat(client: TestClient, **more: Any) -> httpx.Response:
    """The gateway's answer to the first of `QUESTIONS`."""
    body = {"model": "ledom/auto,n=6", "messages": [{"role": "user", "content": QUESTIONS[0]}]}
    return client.post("/v1/chat/completions", json=body | more)
