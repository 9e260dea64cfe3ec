"""A server on a real port: it answers, may require a token, and finishes its requests."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import closing, suppress

import httpx
import pytest

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.serve.judge import Judge
from ledom.serve.protocol import BoundedProtocol
from ledom.serve.server import Server
from ledom.serve.settings import Limits, Settings
from ledom.text.tokenizer import Tokenizer
from serving import running
from waiting import SECONDS


def judge_of(tokenizer: Tokenizer) -> Judge:
    return Judge(*(FakeLanguageModel(tokenizer, direction) for direction in Direction))


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Server]:
    """A server with timeouts longer than any test."""
    with running(judge_of(tokenizer), Limits(read_seconds=2 * SECONDS)) as server:
        yield server


@pytest.fixture(scope="module")
def hasty(tokenizer: Tokenizer) -> Iterator[Server]:
    """A server that waits only briefly for request headers."""
    with running(judge_of(tokenizer), Limits(read_seconds=0.3)) as server:
        yield server


@pytest.mark.slow
def test_it_answers_on_a_port(server: Server) -> None:
    body = {"queries": "How many pens?", "documents": ["7", "8"]}
    answer = httpx.post(f"{server.url}/v1/score", json=body, timeout=SECONDS)
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 2
    assert "server" not in answer.headers


def test_a_port_in_use_gives_one_line(server: Server) -> None:
    settings = Settings(port=server.port)
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        Server(settings)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [b"", b"POST /v1/sc", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "],
    ids=["nothing", "line", "header"],
)
def test_missing_headers_end_the_connection(hasty: Server, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=SECONDS) as client:
        client.sendall(head)
        with suppress(ConnectionResetError):
            assert client.recv(100) == b""


def test_a_health_check_may_leave_out_the_host(server: Server) -> None:
    """HAProxy's do by default."""
    status, body = answer_to(server, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert (status, json.loads(body)["status"]) == (200, "ok")


@pytest.mark.slow
def test_head_is_like_get_without_a_body(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=SECONDS) as client:
        paths = client.get("/openapi.json").json()["paths"]
        assert not any("head" in operations for operations in paths.values())
        for path in ["/", "/docs", "/openapi.json", *(p for p in paths if "get" in paths[p])]:
            head, get = client.head(path), client.get(path)  # on the same connection
            assert (head.status_code, head.content) == (get.status_code, b""), path
            kept = ("content-type", "content-security-policy", "cache-control")
            assert [head.headers.get(k) for k in kept] == [get.headers.get(k) for k in kept]
        assert client.head("/score").status_code == 405
        assert client.post("/healthz").headers["allow"] == "GET, HEAD"


@pytest.mark.slow
def test_a_missing_body_gives_408(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 100\r\n\r\n"
    # The headers, which do arrive, have all the time they need.
    monkeypatch.setattr(BoundedProtocol, "_expect_header", lambda self: None)
    with running(judge_of(tokenizer), Limits(read_seconds=0.3)) as server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address, timeout=SECONDS) as client:
            client.sendall(head + b"{")
            assert client.recv(100).startswith(b"HTTP/1.1 408 ")


def test_endless_headers_end_the_connection(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(20):
                client.sendall(b"X: " + b"x" * 9000 + b"\r\n")
            assert client.recv(100) == b""


def answer_to(server: Server, request: bytes) -> tuple[int, str]:
    """Send a raw request and return status and body; then the connection ends."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as client:
        client.sendall(request)
        answer = b""
        while part := client.recv(2**16):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


SCORE = b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize(
    "request_", [b"\x16\x03\x01\r\n\r\n", b"BREW /tea HTTP/1.1\r\n\r\n", b"GET / HTTP/x\r\n\r\n"]
)
def test_invalid_http_gets_the_usual_error(server: Server, request_: bytes) -> None:
    status, body = answer_to(server, request_)
    assert status == 400
    assert json.loads(body)["error"]["type"] == "bad_request"


def test_an_upgrade_with_a_body_says_what_to_do(server: Server) -> None:
    """Java's client sends this; the parser drops such a body."""
    status, body = answer_to(server, SCORE + UPGRADE + b"Content-Length: 2\r\n\r\n{}")
    assert status == 400
    assert "'h2c'; send HTTP/1.1 without this header" in json.loads(body)["error"]["message"]


def test_an_upgrade_without_a_body_is_ignored(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + UPGRADE + b"\r\n"
    assert answer_to(server, request)[0] == 200
    assert "websockets" not in caplog.text


def test_a_compressed_body_gives_415(server: Server) -> None:
    content = gzip.compress(b'{"queries": "a", "documents": ["b"]}')
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/score", content=content, headers=headers, timeout=SECONDS)
    assert answer.status_code == 415
    assert "Content-Encoding is 'gzip'; send the body uncomp" in answer.json()["error"]["message"]


def test_errors_for_wrong_routes_list_the_right_ones(server: Server) -> None:
    answer = httpx.get(f"{server.url}/v1/nothing", timeout=SECONDS)
    assert answer.status_code == 404
    assert "no route '/v1/nothing'; GET /openapi.json" in answer.json()["error"]["message"]
    answer = httpx.get(f"{server.url}/reward", timeout=SECONDS)
    assert answer.status_code == 405
    assert answer.json()["error"]["message"] == "'/reward' does not accept GET; send POST"


def test_no_connection_is_accepted_before_the_models_are_loaded() -> None:
    server = Server(Settings(port=0))
    with closing(server):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
        with closing(Server(Settings(port=server.port))) as other:  # neither listens yet
            other.listen()
            with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{server.port}"):
                server.listen()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["nosuch.invalid", "192.0.2.1"])
def test_a_host_that_is_not_local_gives_one_line(host: str) -> None:
    with pytest.raises(InputError, match=r"cannot listen on .*; give another --port or --host"):
        Server(Settings(host=host, port=0, token="t"))
