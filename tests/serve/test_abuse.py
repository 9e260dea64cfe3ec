"""Every input gets a status and one line, and the server keeps running."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from ledom.core.errors import LedomError
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.serve.app import make_app
from ledom.serve.batching import Steps
from ledom.serve.judge import Judge, Judgement, Pair
from ledom.serve.protocol import BoundedProtocol
from ledom.serve.server import Server
from ledom.serve.service import Service
from ledom.serve.settings import Limits, Settings
from ledom.text.tokenizer import Tokenizer
from serving import running, waiting
from waiting import SECONDS, until

Models = tuple[FakeLanguageModel, FakeLanguageModel]
JSON = {"Content-Type": "application/json"}
QUESTION = '"question": "How many?"'


def nested(depth: int) -> bytes:
    return b'{"question": "a", "answers": ' + b"[" * depth + b"]" * depth + b"}"


BODIES: dict[str, tuple[bytes, int, str]] = {
    "not json": (b"{", 400, "not JSON"),
    "empty": (b"", 422, "required"),
    "a list": (b"[1]", 400, "expected a JSON object"),
    "null": (b"null", 400, "expected a JSON object"),
    "wrong type": (b'{"question": 7, "answers": ["a"]}', 422, "question: "),
    "wrong list": (b'{"question": "a", "answers": "b"}', 422, "answers: "),
    "missing": (f"{{{QUESTION}}}".encode(), 422, "answers: "),
    "no answers": (f'{{{QUESTION}, "answers": []}}'.encode(), 422, "answers: "),
    "empty question": (b'{"question": " \\n", "answers": ["a"]}', 400, "question is empty"),
    "nan": (f'{{{QUESTION}, "answers": ["a"], "x": NaN}}'.encode(), 400, "NaN"),
    "infinity": (f'{{{QUESTION}, "answers": ["a"], "x": 1e999}}'.encode(), 400, "too large"),
    "digits": (f'{{{QUESTION}, "answers": [{"9" * 5000}]}}'.encode(), 400, "digits"),
    "deep": (nested(5000), 400, "deep"),
    "deeper": (nested(20000), 400, "deep"),
    "bytes": (b'{"question": "\xff\xfe", "answers": ["a"]}', 400, "not UTF-8"),
    "surrogate": (b'{"question": "\\ud800", "answers": ["a"]}', 400, "surrogate"),
    "twice": (f'{{{QUESTION}, {QUESTION}, "answers": ["a"]}}'.encode(), 400, "twice"),
    "large": (b'{"question": "' + b"a" * 60_000 + b'"}', 413, "larger than 50000 bytes"),
    "many": (json.dumps({"question": "a", "answers": ["b"] * 10_000}).encode(), 413, "50"),
    "long": (json.dumps({"question": "a", "answers": ["b c " * 9000]}).encode(), 413, "tokens"),
    "long question": (json.dumps({"question": "b " * 4500, "answers": ["a"]}).encode(), 400, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_bad_bodies_are_refused(client: TestClient, name: str) -> None:
    body, status, message = BODIES[name]
    answer = client.post("/ledom/score", content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["code"] == status
    assert len(error["message"]) < 500
    assert "\n" not in error["message"]


@pytest.mark.parametrize("path", ["/reward", "/get_reward", "/rerank", "/v1/chat/completions"])
def test_bad_bodies_are_refused_on_every_route(client: TestClient, path: str) -> None:
    for name in ("not json", "deep", "bytes", "large", "nan"):
        body, status, _ = BODIES[name]
        assert client.post(path, content=body, headers=JSON).status_code == status


def test_unusual_answers_are_scored(client: TestClient) -> None:
    answers = ["", " ", "\x00", "\u202e", "<script>alert(1)</script>", "😀" * 50, "<|end|>" * 9]
    body = {"question": "<script>", "answers": answers, "tokens": True}
    answer = client.post("/ledom/score", json=body)
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == len(answers)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/etc/passwd", "//etc/passwd", "/\\etc"],
)
def test_unknown_paths_are_not_found(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_a_wrong_method_is_405(client: TestClient) -> None:
    assert client.get("/reward").status_code == 405
    assert client.get("/reward").json()["error"]["type"] == "method_not_allowed"


def test_other_hosts_are_refused_without_a_token(client: TestClient) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "."):
        answer = client.get("/healthz", headers={"Host": host})
        assert (answer.status_code, "in LEDOM_TOKEN" in answer.text) == (403, True)
    here = ["localhost:8000", "127.0.0.1", "[::1]:80", "127.0.0.2:8000", "[::1]"]
    here += ["LOCALHOST", "LocalHost:8000", "localhost.", "localhost.:8000"]  # forms valid in DNS
    for host in here:
        assert client.get("/healthz", headers={"Host": host}).status_code == 200


def test_a_token_is_required(pair: Models) -> None:
    app = make_app(Service(Judge(*pair), Settings(token="secret")))
    body = {"queries": "a", "documents": ["b"]}
    with TestClient(app, base_url="http://any.example") as client:
        assert client.get("/healthz").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            answer = client.post("/score", json=body, headers=headers)
            assert answer.status_code == 401
            assert "Authorization: Bearer TOKEN" in answer.json()["error"]["message"]
        assert client.get("/metrics").status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert client.post("/score", json=body, headers=right).status_code == 200


def test_an_internal_error_reveals_nothing(pair: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Judge, pairs: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(Judge, "judge_in_steps", broken)
    app = make_app(Service(Judge(*pair), Settings()))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        answer = client.post("/score", json={"queries": "a", "documents": ["b"]})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["message"].startswith("internal error")


class Gate:
    """A judge that waits until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        judge: Callable[[Judge, Any], Steps[list[Judgement]]] = Judge.judge_in_steps

        def wait(this: Judge, pairs: list[Pair]) -> Steps[list[Judgement]]:
            self.entered.set()
            assert self.open.wait(SECONDS)
            return (yield from judge(this, pairs))

        monkeypatch.setattr(Judge, "judge_in_steps", wait)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def post(server: Server, answers: list[str]) -> httpx.Response:
    body = {"question": "How many?", "answers": answers, "tokens": True}
    return httpx.post(f"{server.url}/ledom/score", json=body, timeout=SECONDS)


@pytest.mark.slow
def test_a_full_queue_gives_429(pair: Models, gate: Gate) -> None:
    with running(Judge(*pair), Limits(max_waiting=2)) as server, ThreadPoolExecutor(8) as pool:
        first = pool.submit(post, server, ["a"])
        assert gate.entered.wait(SECONDS)
        second = pool.submit(post, server, ["a", "b"])
        until(lambda: waiting(server) == 2)
        refused = post(server, ["c"])
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        gate.open.set()
        assert first.result(SECONDS).status_code == second.result(SECONDS).status_code == 200
        assert post(server, ["c"]).status_code == 200


@pytest.mark.slow
def test_work_for_a_disconnected_client_is_dropped(pair: Models, gate: Gate) -> None:
    with running(Judge(*pair), Limits()) as server, ThreadPoolExecutor(8) as pool:
        first = pool.submit(post, server, ["a"])
        assert gate.entered.wait(SECONDS)
        body = json.dumps({"question": "How many?", "answers": ["a", "b", "c"]}).encode()
        head = f"POST /ledom/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as client:
            client.sendall(head.encode() + body)
            until(lambda: waiting(server) == 3)
        until(lambda: waiting(server) == 0)
        gate.open.set()
        assert first.result(SECONDS).status_code == 200


_LONG = "3 + 4 = 7\n\n" * 2000
_PIECES = {"question": "How many?", "answers": ["3 + 4 = 7 "] * 500}
SLOW: dict[str, tuple[str, Any, str]] = {
    "openrlhf": ("/get_reward", {"query": [_LONG], "prompts": ["a"]}, "routes.rewards.response_in"),
    "slime": ("/reward", {"prompt": _LONG, "response": "7"}, "judge.question_of"),
    "verl": ("/classify", {"input": _LONG}, "routes.rewards.split_dialog"),
    "score": ("/score", {"queries": "a", "documents": [_LONG]}, "judge.Judge.check"),
    "rerank": (
        "/rerank",
        {"query": "a", "documents": [_LONG], "max_tokens_per_doc": 2},
        "routes.reranking._cut",
    ),
    "details": ("/ledom/score", _PIECES, "routes.own.question_words"),
    "tokenize": ("/tokenize", {"prompt": _LONG}, "service.Service.model"),
    "detokenize": ("/detokenize", {"tokens": [1] * 9000}, "writing.check_ids"),
    "gateway": (
        "/v1/completions",
        {"model": "ledom/majority", "prompt": _LONG, "max_tokens": 1},
        "routes.gateway.question_of",
    ),
    "body": ("/score", {"queries": "a", "documents": [_LONG]}, "guard.parse_json"),
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.slow
def test_nobody_waits_while_a_long_text_is_tokenized(
    pair: Models, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, body, place = SLOW[name]
    entered, let_go = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        entered.set()
        assert let_go.wait(SECONDS)
        raise LedomError("it was too long")

    monkeypatch.setattr(f"ledom.serve.{place}", slow)
    with running(Judge(*pair), Limits()) as server, ThreadPoolExecutor(1) as pool:
        url = f"{server.url}{path}"
        answer = pool.submit(httpx.post, url, json=body, timeout=SECONDS)
        try:
            assert entered.wait(SECONDS)
            assert httpx.get(f"{server.url}/healthz", timeout=SECONDS).status_code == 200
        finally:
            let_go.set()
        assert "it was too long" in answer.result(SECONDS).json()["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", {"queries": "a" * 40_000, "documents": ["b"]}),
        ("/v1/completions", {"model": "reverse", "prompt": "a" * 40_000}),
        ("/v1/completions", {"model": "reverse", "prompt": [1] * 1000}),
        ("/ledom/generate", {"model": "forward", "prompt": "a" * 40_000}),
        ("/v1/completions", {"model": "ledom/majority", "prompt": "a" * 40_000}),
    ],
)
def test_a_prompt_too_long_for_any_model_is_refused_early(
    client: TestClient, pair: Models, monkeypatch: pytest.MonkeyPatch, path: str, body: Any
) -> None:
    for lm in pair:
        lm.context = 512

    def read(*arguments: Any) -> Any:
        raise AssertionError

    for name in ("encode", "encode_batch", "encode_inside"):
        monkeypatch.setattr(Tokenizer, name, read)
    answer = client.post(path, json=body)
    message = answer.json()["error"]["message"]
    if path == "/score" or body["model"] == "ledom/majority":  # the prompt is a question
        assert answer.status_code == 400
        assert "no room for an answer in the 512 tokens that the forward model reads" in message
    else:
        assert answer.status_code == 413
        assert "the model reads 512 tokens" in message


def test_a_question_that_leaves_no_room_gives_one_clear_line(
    client: TestClient, pair: Models
) -> None:
    pair[0].context = 512
    answer = client.post("/score", json={"queries": "a " * 600, "documents": ["b"]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
        "the question leaves no room for an answer in the 512 tokens that the forward model reads; "
        "shorten it"
    )
    with pytest.raises(LedomError, match="half of a surrogate pair"):
        Judge(*pair).check([Pair("a " * 300 + "\ud83d", "b")])


@pytest.mark.slow
def test_a_request_that_takes_too_long_gives_504(pair: Models, gate: Gate) -> None:
    with running(Judge(*pair), Limits(seconds=0.2)) as server:
        answer = post(server, ["a"])
        assert answer.status_code == 504
        assert "0.2 s" in answer.json()["error"]["message"]
        gate.open.set()


@pytest.mark.slow
def test_accepted_requests_are_finished_at_shutdown(pair: Models, gate: Gate) -> None:
    with ThreadPoolExecutor(2) as pool:
        with running(Judge(*pair), Limits()) as server:
            taken = pool.submit(post, server, ["a", "b"])
            assert gate.entered.wait(SECONDS)
            server.stop()
            until(lambda: server._socket.fileno() < 0)  # it accepts no more
            gate.open.set()
        answer = taken.result(SECONDS)
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == 2


@pytest.mark.slow
def test_a_client_that_does_not_read_is_dropped(
    pair: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is larger than the buffers of the system and the server together."""
    dropped = threading.Event()
    whole = BoundedProtocol.connection_lost

    def lost(self: BoundedProtocol, error: Exception | None) -> None:
        whole(self, error)
        dropped.set()

    monkeypatch.setattr(BoundedProtocol, "connection_lost", lost)
    limits = Limits(write_seconds=0.3, read_seconds=2 * SECONDS)  # an idle client would stay
    with running(Judge(*pair), limits) as server:
        server._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(SECONDS)
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"GET /page/examples.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert dropped.wait(SECONDS)
        assert post(server, ["a"]).status_code == 200


@pytest.mark.slow
def test_more_connections_than_allowed_get_503(pair: Models) -> None:
    with running(Judge(*pair), Limits(max_connections=3)) as server:
        assert server._server is not None
        connections = server._server.server_state.connections
        with ExitStack() as idle:
            for _ in range(3):
                address = ("127.0.0.1", server.port)
                idle.enter_context(socket.create_connection(address, timeout=SECONDS))
            until(lambda: len(connections) == 3)
            refused = post(server, ["a"])
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert "too many connections" in refused.json()["error"]["message"]
        until(lambda: not connections)
        assert post(server, ["a"]).status_code == 200


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_schemathesis_finds_no_5xx_and_no_undocumented_status(pair: Models) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    limits = Limits(max_new_tokens=4, max_candidates=20)
    app = make_app(Service(Judge(*pair), Settings(token="secret", limits=limits)))
    schema = schemathesis.openapi.from_dict(app.openapi())
    headers = {"Authorization": "Bearer secret"}
    tried, paths = set(), app.openapi()["paths"]
    with TestClient(app, raise_server_exceptions=False, headers=headers) as client:
        for result in schema.get_all_operations():
            operation = result.ok()
            tried.add(operation.path)

            def check(case: Any) -> None:
                sent = case.as_transport_kwargs(base_url="http://testserver")
                sent.pop("cookies", None)
                sent["headers"] = {**(sent.get("headers") or {}), **headers}
                answer = client.request(**sent)
                known = paths[case.path][case.method.lower()]["responses"]
                assert answer.status_code < 500, (case.path, sent, answer.text)
                status = f"{answer.status_code // 100}XX" if answer.is_error else "200"
                assert status in known, (case.path, sent, answer.status_code)

            few = settings(
                max_examples=15,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            few(given(case=operation.as_strategy())(check))()
    assert {"/ledom/score", "/rerank", "/v1/completions", "/get_reward", "/classify"} <= tried
