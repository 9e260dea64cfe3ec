"""Requests that are too large are refused early and permanently."""

from __future__ import annotations

import re
import resource
import socket
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from ledom.lm.backends.fake import FakeLanguageModel
from ledom.serve.app import make_app
from ledom.serve.judge import Judge
from ledom.serve.service import Service
from ledom.serve.settings import Limits, Settings
from serving import running
from waiting import SECONDS

Models = tuple[FakeLanguageModel, FakeLanguageModel]


WRONG: dict[str, tuple[str, Any, str]] = {
    "numbers for texts": ("/score", {"queries": [1] * 20_000, "documents": "a"}, "queries"),
    "numbers for documents": ("/rerank", {"query": "a", "documents": [1] * 20_000}, "documents"),
    "mixed": ("/v1/completions", {"model": "reverse", "prompt": ["a"] * 9000 + [1]}, "prompt"),
    "too many": ("/v1/completions", {"model": "reverse", "prompt": [""] * 100_001}, "at most 1000"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_long_list_is_checked_up_to_its_first_error(pair: Models, name: str) -> None:
    """Reporting all errors in a 4 MB body took 10 s, during which no one else was answered."""
    path, body, message = WRONG[name]
    app = make_app(Service(Judge(*pair), Settings()))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 422
    said = answer.json()["error"]["message"]
    assert message in said
    assert int(re.findall(r"and (\d+) more", said + "(and 0 more)")[0]) < 10


@pytest.mark.slow
def test_more_texts_than_the_queue_holds_are_refused_for_good(pair: Models) -> None:
    """A 429 would let the client try again forever."""
    app = make_app(Service(Judge(*pair), Settings(limits=Limits(max_waiting=3))))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for texts, status in ((3, 200), (4, 413)):
            body = {"queries": "How many?", "documents": ["7"] * texts}
            assert client.post("/score", json=body).status_code == status


@pytest.mark.slow
@pytest.mark.parametrize(("model", "most"), [("forward", 10), ("reverse", 1)])
def test_all_prompts_of_a_scoring_request_count(client: TestClient, model: str, most: int) -> None:
    """At most 5000 tokens are read: 500 per prompt forward, 90 * 91 / 2 in reverse."""
    size = 500 if model == "forward" else 90
    for count, status in ((most, 200), (most + 1, 413)):
        body = {"model": model, "prompt": [[7] * size] * count, "echo": True, "max_tokens": 0}
        assert client.post("/v1/completions", json=body).status_code == status


@pytest.mark.parametrize("shape", ["one", "several"])
def test_a_huge_text_is_refused_before_all_of_it_is_tokenized(
    client: TestClient, pair: Models, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    """The tokens of 4 MB took 1.6 GB and 10 s."""
    read = []
    encode = pair[0].tokenizer.encode_ids

    def watched(texts: list[str]) -> list[list[int]]:
        read.append(sum(map(len, texts)))
        return encode(texts)

    monkeypatch.setattr(pair[0].tokenizer, "encode_ids", watched)
    answers = ["7" * 40_000] if shape == "one" else ["7" * 1000] * 40
    answer = client.post("/score", json={"queries": "How many?", "documents": answers})
    assert answer.status_code == 413
    assert "more than 5000 tokens" in answer.json()["error"]["message"]
    assert sum(read) < 11_000


@pytest.mark.slow
def test_every_text_that_may_wait_can_have_its_own_connection(pair: Models) -> None:
    """Trainers send one text per connection; further ones got 503 while the queue had room."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 4000:
        pytest.skip(f"this system allows only {before[1]} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))  # as on most systems
    try:
        with running(Judge(*pair), Limits(max_waiting=1200)) as server, ExitStack() as idle:
            address = ("127.0.0.1", server.port)
            for _ in range(1200):
                idle.enter_context(socket.create_connection(address, timeout=SECONDS))
            assert httpx.get(f"{server.url}/healthz", timeout=SECONDS).status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
