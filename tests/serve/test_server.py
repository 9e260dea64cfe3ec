"""A real port: it answers, refuses to listen without a token, and finishes what it took."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from ledom.core.errors import InputError
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.serve.judge import Judge
from ledom.serve.server import Server
from ledom.serve.settings import Limits, Settings
from serving import running


@pytest.fixture
def server(pair: tuple[FakeLanguageModel, FakeLanguageModel]) -> Iterator[Server]:
    """A server that does not wait long."""
    with running(Judge(*pair), Limits(read_seconds=0.5, write_seconds=0.5)) as server:
        yield server


def test_it_answers_on_a_port(server: Server) -> None:
    body = {"queries": "How many pens?", "documents": ["7", "8"]}
    answer = httpx.post(f"{server.url}/v1/score", json=body, timeout=20)
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 2
    assert "server" not in answer.headers


def test_a_port_that_is_taken_is_one_line(server: Server) -> None:
    settings = Settings(port=server.port)
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        Server(None, settings)  # type: ignore[arg-type]


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
def test_a_head_that_does_not_come_ends_the_connection(server: Server, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(head)
        with suppress(ConnectionResetError):
            assert client.recv(100) == b""


def test_a_body_that_does_not_come_is_408(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(
            b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_head_without_end_ends_the_connection(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(20):
                client.sendall(b"X: " + b"x" * 9000 + b"\r\n")
            assert client.recv(100) == b""
