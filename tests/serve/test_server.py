"""A real port: it answers, refuses to listen without a token, and finishes what it took."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.serve.judge import Judge
from ledom.serve.protocol import bounded
from ledom.serve.server import Server
from ledom.serve.settings import Limits, Settings
from ledom.text.tokenizer import Tokenizer
from serving import running
from waiting import SECONDS


def judge_of(tokenizer: Tokenizer) -> Judge:
    return Judge(*(FakeLanguageModel(tokenizer, direction) for direction in Direction))


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Server]:
    """A server that waits longer than any test."""
    with running(judge_of(tokenizer), Limits(read_seconds=2 * SECONDS)) as server:
        yield server


@pytest.fixture(scope="module")
def hasty(tokenizer: Tokenizer) -> Iterator[Server]:
    """A server that does not wait long for a head."""
    with running(judge_of(tokenizer), Limits(read_seconds=0.3)) as server:
        yield server


def test_it_answers_on_a_port(server: Server) -> None:
    body = {"queries": "How many pens?", "documents": ["7", "8"]}
    answer = httpx.post(f"{server.url}/v1/score", json=body, timeout=SECONDS)
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 2
    assert "server" not in answer.headers


def test_a_port_that_is_taken_is_one_line(server: Server) -> None:
    settings = Settings(port=server.port)
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        Server(None, settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("token", ["", "two words", "line\n", "é"])
def test_a_token_that_no_client_can_send_is_refused(token: str) -> None:
    with pytest.raises(InputError, match="LEDOM_TOKEN") as refused:
        Settings(token=token).check()
    assert not token or token not in str(refused.value)


def test_without_a_token_only_this_machine_is_served() -> None:
    with pytest.raises(InputError, match="LEDOM_TOKEN"):
        Settings(host="0.0.0.0").check()
    Settings(host="0.0.0.0", token="secret").check()
    Settings(host="::1").check()


@pytest.mark.parametrize(
    "head",
    [b"", b"POST /v1/sc", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "],
    ids=["nothing", "line", "header"],
)
def test_a_head_that_does_not_come_ends_the_connection(hasty: Server, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=SECONDS) as client:
        client.sendall(head)
        with suppress(ConnectionResetError):
            assert client.recv(100) == b""


def test_a_body_that_does_not_come_is_408(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 100\r\n\r\n"
    # The head, which comes, has all the time that it needs.
    patient = bounded(Limits(read_seconds=2 * SECONDS))
    monkeypatch.setattr("ledom.serve.protocol.bounded", lambda limits: patient)
    with running(judge_of(tokenizer), Limits(read_seconds=0.3)) as server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address, timeout=SECONDS) as client:
            client.sendall(head + b"{")
            assert client.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_head_without_end_ends_the_connection(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(20):
                client.sendall(b"X: " + b"x" * 9000 + b"\r\n")
            assert client.recv(100) == b""
