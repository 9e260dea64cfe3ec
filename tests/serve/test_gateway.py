"""The gateway: it chooses as `ledom rerank` does, through OpenAI's own client, whatever the
upstream does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

import ledom
from ledom.core.errors import InputError
from ledom.core.records import Candidate, Problem, read_records
from ledom.lm.language_model import LanguageModel
from ledom.rerank.pipeline import Job, Selection, default_weights, rerank
from ledom.rerank.stages import Scoring
from ledom.serve.app import make_app
from ledom.serve.gateway import Options, strategy_slugs
from ledom.serve.judge import MASK_COPIES, Judge
from ledom.serve.refusals import Refusal
from ledom.serve.service import Service
from ledom.serve.settings import Settings
from ledom.serve.upstream import Upstream

Handler = Callable[[httpx.Request], Any]

ANSWERS = [
    "3 + 4 = 7\n#### 7",
    "3 * 4 = 12\n#### 12",
    "4 + 3 = 7\n#### 7",
    "it is unclear",
    "7 - 3 = 4\n#### 4",
    "3 + 4 = 8\n#### 8",
]
QUESTIONS = ["Ava has 3 pens and buys 4.", "Bo had 4 cats, then 3 came.", "How many is 12 less 3?"]


@pytest.fixture(scope="module")
def models(checkpoints: dict[str, Path]) -> tuple[LanguageModel, LanguageModel]:
    """Tiny random models of both directions."""
    return ledom.load(checkpoints["forward"], "forward"), ledom.load(
        checkpoints["reverse"], "reverse"
    )


def choices(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "index": i,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": ANSWERS[(first + i) % len(ANSWERS)]},
        }
        for i in range(count)
    ]


def honest(request: httpx.Request) -> httpx.Response:
    """An upstream that does as it is asked."""
    body = json.loads(request.content)
    usage = {"prompt_tokens": 11, "completion_tokens": 5 * body["n"], "total_tokens": 0}
    return httpx.Response(200, json={"choices": choices(body["n"]), "usage": usage})


@contextmanager
def gateway(
    models: tuple[LanguageModel, LanguageModel], handler: Handler | None, seconds: float = 20
) -> Iterator[TestClient]:
    upstream = None
    if handler is not None:
        transport = httpx.MockTransport(handler)
        upstream = Upstream("http://up/v1", "big", "key", seconds, 1.0, 2.0, transport)
    app = make_app(Service(Judge(*models), Settings(), upstream))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def chat(client: TestClient, **more: Any) -> httpx.Response:
    body = {"model": "ledom/auto,n=6", "messages": [{"role": "user", "content": QUESTIONS[0]}]}
    return client.post("/v1/chat/completions", json=body | more)


@pytest.mark.parametrize("strategy", ["auto", "reverse-reward", "vote-reverse-only", "majority"])
def test_it_chooses_as_rerank_does_on_the_same_candidates(
    models: tuple[LanguageModel, LanguageModel], tmp_path: Path, strategy: str
) -> None:
    problems = [Problem(id=str(i), question=q) for i, q in enumerate(QUESTIONS)]
    candidates = [
        Candidate(problem_id=p.id, index=i, text=text)
        for p in problems
        for i, text in enumerate(ANSWERS)
    ]
    job = Job(
        problems,
        tmp_path,
        *models,
        default_weights(),
        candidates,
        scoring=Scoring(mask_copies=MASK_COPIES),
    )
    rerank(job, _no_track)
    chosen = read_records(tmp_path / "selected.jsonl", Selection)
    with gateway(models, honest) as client:
        for problem, selection in zip(problems, chosen, strict=True):
            messages = [{"role": "user", "content": problem.question}]
            answer = chat(client, model=f"ledom/{strategy},n=6", messages=messages).json()
            details = answer["ledom"]
            if strategy == "auto":
                assert details["strategy"] == selection.strategy
                assert details["chosen"] == selection.index
                assert details["confidence"] == pytest.approx(selection.confidence, abs=2e-4)
            elif strategy == "reverse-reward":
                rewards = [row["reward"] for row in details["candidates"]]
                assert details["chosen"] == rewards.index(max(rewards))
            elif strategy == "majority":
                assert details["answer"] == "7"
            assert answer["choices"][0]["message"]["content"] == ANSWERS[details["chosen"]]


def _no_track(items: Any, *args: Any, **options: Any) -> Any:
    return items


def test_counts_and_cost_are_of_all_that_was_drawn(
    models: tuple[LanguageModel, LanguageModel],
) -> None:
    with gateway(models, honest) as client:
        answer = chat(client).json()
    assert answer["usage"] == {"prompt_tokens": 11, "completion_tokens": 30, "total_tokens": 41}
    assert answer["ledom"]["cost"] == pytest.approx((11 * 1.0 + 30 * 2.0) / 1e6)
    assert len(answer["ledom"]["candidates"]) == 6
    assert answer["ledom"]["answers"][0] == {"answer": "7", "count": 2}


def test_the_upstream_gets_the_body_without_our_keys(
    models: tuple[LanguageModel, LanguageModel],
) -> None:
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


def test_an_upstream_that_sends_one_choice_is_asked_again(
    models: tuple[LanguageModel, LanguageModel],
) -> None:
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
    """An upstream that refuses n, as several do."""
    body = json.loads(request.content)
    if "n" in body:
        return httpx.Response(400, json={"error": {"message": "n is not supported"}})
    usage = {"prompt_tokens": 10, "completion_tokens": 4}
    return httpx.Response(200, json={"choices": choices(1, body["seed"]), "usage": usage})


def test_an_upstream_that_refuses_n_is_asked_for_each_candidate(
    models: tuple[LanguageModel, LanguageModel],
) -> None:
    with gateway(models, _only_one) as client:
        answer = chat(client, ledom={"n": 4}, seed=1).json()
    # Each with a seed of its own: the same one would draw the same text.
    texts = [row["text"] for row in answer["ledom"]["candidates"]]
    assert sorted(texts) == sorted(ANSWERS[1:5])
    assert answer["usage"] == {"prompt_tokens": 40, "completion_tokens": 16, "total_tokens": 56}


def test_when_one_of_many_requests_fails_the_others_are_ended(
    models: tuple[LanguageModel, LanguageModel],
) -> None:
    ended = []

    async def slow(request: httpx.Request) -> httpx.Response:
        number = json.loads(request.content)["seed"]
        if number == 0:
            return httpx.Response(200, json={"choices": choices(1)})
        if number == 1:
            return httpx.Response(403, text="no more\nfor you")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(number)
        raise AssertionError

    with gateway(models, slow) as client:
        answer = chat(client, ledom={"n": 4}, seed=0)
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "the upstream answered 403: no more for you"
    assert sorted(ended) == [2, 3]


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": "x", "completion_tokens": -5}, {"prompt_tokens": True}]
)
def test_counts_that_make_no_sense_are_unknown(
    models: tuple[LanguageModel, LanguageModel], usage: Any
) -> None:
    sent = {"choices": choices(2), "usage": usage}
    with gateway(models, lambda request: httpx.Response(200, json=sent)) as client:
        answer = chat(client, ledom={"n": 2})
    assert answer.status_code == 200
    assert answer.json()["usage"] is answer.json()["ledom"]["cost"] is None


def test_an_answer_in_parts_is_read(models: tuple[LanguageModel, LanguageModel]) -> None:
    parts = [{"type": "text", "text": "3 + 4 = 7"}, {"type": "text", "text": "\n#### 7"}]
    sent = {"choices": [{"message": {"role": "assistant", "content": parts}}]}
    with gateway(models, lambda request: httpx.Response(200, json=sent)) as client:
        answer = chat(client, ledom={"n": 1}).json()
    assert answer["ledom"]["candidates"][0]["text"] == "3 + 4 = 7\n#### 7"
    assert answer["choices"][0]["message"]["content"] == parts


def test_an_upstreams_model_writes_as_much_as_its_client_asks_for(
    models: tuple[LanguageModel, LanguageModel],
) -> None:
    with gateway(models, honest) as client:
        assert chat(client, max_tokens=100_000).status_code == 200
    with gateway(models, None) as client:
        assert chat(client, max_tokens=100_000).status_code == 413


@pytest.mark.parametrize("address", ["", "up/v1", "ftp://up/v1", "http://", "http://up:port/v1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="give its address"):
        Upstream(address, "big")


def _hangs(request: httpx.Request) -> Any:
    async def wait() -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    return wait()


def _dies(request: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("peer closed connection without complete body")


class _Garbled(httpx.AsyncByteStream):
    """Bytes that are not what the head says."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"not gzip"


FAILURES: dict[str, tuple[Handler, int, str]] = {
    "hangs": (_hangs, 504, "did not answer within"),
    "dies": (_dies, 502, "broke off"),
    "html": (lambda r: httpx.Response(200, html="<p>no"), 502, "makes no sense"),
    "no choices": (lambda r: httpx.Response(200, json={"choices": []}), 502, "no choices"),
    "strange": (lambda r: httpx.Response(200, json={"choices": [7]}), 502, "no choices"),
    "deep": (lambda r: httpx.Response(200, content=b"[" * 10**5), 502, "makes no sense"),
    "no text": (
        lambda r: httpx.Response(200, json={"choices": [{"message": {"content": None}}] * 6}),
        502,
        "no text",
    ),
    "refuses": (lambda r: httpx.Response(400, text="bad model"), 400, "answered 400: bad model"),
    "broken": (lambda r: httpx.Response(500), 502, "answered 500"),
    "busy": (lambda r: httpx.Response(429), 429, "answered 429"),
    "not its format": (
        lambda r: httpx.Response(200, stream=_Garbled(), headers={"Content-Encoding": "gzip"}),
        502,
        "broke off",
    ),
    "elsewhere": (
        lambda r: httpx.Response(302, headers={"Location": "http://127.0.0.1/metrics"}),
        502,
        "answered 302",
    ),
    "no key": (lambda r: httpx.Response(401, text="bad key"), 502, "answered 401: bad key"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_upstream_is_one_clear_line(
    models: tuple[LanguageModel, LanguageModel], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledom.serve.upstream._PAUSES", (0.0, 0.0))
    handler, status, message = FAILURES[name]
    with gateway(models, handler, seconds=0.3) as client:
        answer = chat(client)
        assert answer.status_code == status, answer.text
        assert message in answer.json()["error"]["message"]
        assert client.get("/healthz").status_code == 200


def test_a_busy_upstream_says_when_to_try_again(
    models: tuple[LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledom.serve.upstream._PAUSES", ())
    for given, passed in (({"Retry-After": "33"}, "33"), ({"Retry-After": "soon"}, "5"), ({}, "5")):
        busy = httpx.Response(429, headers=given)
        with gateway(models, lambda request, busy=busy: busy) as client:
            assert chat(client).headers["retry-after"] == passed


def test_an_upstream_that_recovers_is_used(
    models: tuple[LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledom.serve.upstream._PAUSES", (0.0, 0.0))
    answers: Iterator[Handler] = iter([_dies, lambda r: httpx.Response(503), honest])
    with gateway(models, lambda request: next(answers)(request)) as client:
        assert chat(client).status_code == 200


def test_without_an_upstream_the_forward_model_answers(
    models: tuple[LanguageModel, LanguageModel],
) -> None:
    with gateway(models, None) as client:
        answer = chat(client, ledom={"n": 3}, max_tokens=6, seed=1).json()
        assert len(answer["ledom"]["candidates"]) <= 3
        assert answer["usage"]["completion_tokens"] <= 18
        again = chat(client, ledom={"n": 3}, max_tokens=6, seed=1).json()
        assert again["choices"] == answer["choices"]
        body = {"model": "ledom/majority", "prompt": QUESTIONS[1], "max_tokens": 6, "n": 2}
        text = client.post("/v1/completions", json=body).json()
        assert (
            text["choices"][0]["text"]
            == text["ledom"]["candidates"][
                [row["index"] for row in text["ledom"]["candidates"]].index(text["ledom"]["chosen"])
            ]["text"]
        )


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("ledom/nonsense", None, "strategy 'nonsense'"),
        ("ledom/oracle", None, "strategy 'oracle'"),
        ("ledom/auto,n", None, "write key=value"),
        ("ledom/auto,n=0", None, "n:"),
        ("ledom/auto,path=/etc/passwd", None, "path"),
        ("ledom/auto", {"lambda": 2}, "lambda"),
        ("ledom/auto", {"forward": "/etc/passwd"}, "forward"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    models: tuple[LanguageModel, LanguageModel],
    model: str,
    given: dict[str, Any] | None,
    message: str,
) -> None:
    with gateway(models, honest) as client:
        answer = chat(client, model=model, ledom=given)
    assert answer.status_code == 400, answer.text
    said = answer.json()["error"]["message"]
    assert message in said
    # Where the option itself is wrong, the right ones are named.
    assert ("the options are strategy, n, lambda, model" in said) == ("strategy" not in message)


def test_options_of_the_body_count_more_than_those_of_the_name() -> None:
    read = Options.read("ledom/majority,n=4,lambda=0.25", {"n": 2}, 9)
    assert read == Options(strategy="majority", n=2, **{"lambda": 0.25})
    assert Options.read("ledom", None, None).strategy is None
    with pytest.raises(Refusal):
        Options.read("ledom/a,b", None, None)
    assert "oracle" not in strategy_slugs()


@pytest.mark.slow
def test_openais_client_streams_the_chosen_answer(checkpoints: dict[str, Path]) -> None:
    openai = pytest.importorskip("openai")
    from ledom.serve.settings import Limits
    from serving import running

    pair = (
        ledom.load(checkpoints["forward"], "forward"),
        ledom.load(checkpoints["reverse"], "reverse"),
    )
    with running(Judge(*pair), Limits()) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60)
        asked: dict[str, Any] = {
            "model": "ledom/auto",
            "messages": [{"role": "user", "content": QUESTIONS[0]}],
            "max_tokens": 6,
            "seed": 1,
            "extra_body": {"ledom": {"n": 2, "strategy": "reverse_only"}},
        }
        whole = client.chat.completions.create(**asked)
        assert whole.ledom["strategy"] == "reverse_only"
        options = {"include_usage": True}
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=options))
        parts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert "".join(parts) == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage
        text = client.completions.create(model="reverse", prompt="7", max_tokens=4)
        assert text.usage.completion_tokens <= 4
        assert {model.id for model in client.models.list()} >= {"forward", "reverse"}
        with pytest.raises(openai.NotFoundError, match="no model"):
            client.completions.create(model="gpt", prompt="7")
