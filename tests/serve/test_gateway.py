"""The gateway: it chooses as `ledom rerank` does, through OpenAI's own client."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

import ledom
from ledom.core.errors import InputError
from ledom.core.records import Candidate, Problem, Score, read_records
from ledom.rerank.candidate_table import build_candidate_table
from ledom.rerank.pipeline import Job, rerank
from ledom.rerank.strategies import STRATEGIES, Pick, Vote
from ledom.rerank.weights import Selection, TunedWeights, select
from ledom.serve.app import make_app
from ledom.serve.batching import Steps
from ledom.serve.gateway import Options
from ledom.serve.judge import MASK_COPIES, Judge
from ledom.serve.service import Service
from ledom.serve.settings import Limits, Settings
from serving import ANSWERS, QUESTIONS, Models, chat, choices, gateway, honest, running
from waiting import SECONDS


def made_up_weights() -> TunedWeights:
    """Weights for every strategy that has several features."""
    several = {name: strategy for name, strategy in STRATEGIES.items() if strategy.features}
    weights = {
        name: {feature: (-1.0) ** i / (i + 1) for i, feature in enumerate(strategy.features)}
        for name, strategy in several.items()
    }
    return TunedWeights(weights, 0, 0, frozenset())


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow
def test_with_every_strategy_it_chooses_as_rerank_does(models: Models, tmp_path: Path) -> None:
    weights = made_up_weights()
    problems = [Problem(id=str(i), question=q) for i, q in enumerate(QUESTIONS)]
    candidates = [
        Candidate(problem_id=p.id, index=i, text=text)
        for p in problems
        for i, text in enumerate(ANSWERS)
    ]
    job = Job(problems, tmp_path, *models, weights, candidates, mask_copies=MASK_COPIES)
    rerank(job, _no_track)
    scores = [s for file in tmp_path.glob("scores*.jsonl") for s in read_records(file, Score)]
    table = build_candidate_table(problems, candidates, scores)
    with gateway(models, honest, weights=weights) as client:
        able = Judge(*models, weights=weights).usable(weights)
        names = {name.replace("_", "-"): name for name in able}
        assert set(able) == {
            name
            for name, strategy in STRATEGIES.items()
            if isinstance(strategy, (Pick, Vote)) and strategy.available(table)
        }
        assert len(names) > 10
        expected = {slug: select(table, candidates, name, weights) for slug, name in names.items()}
        expected["auto"] = list(read_records(tmp_path / "selected.jsonl", Selection))
        for slug, selections in expected.items():
            for problem, selection in zip(problems, selections, strict=True):
                messages = [{"role": "user", "content": problem.question}]
                found = chat(client, model=f"ledom/{slug},n=6", messages=messages)
                assert found.status_code == 200, found.text
                answer, details = found.json(), found.json()["ledom"]
                assert details["strategy"] == selection.strategy
                assert details["chosen"] == selection.index, slug
                assert details["confidence"] == pytest.approx(selection.confidence, abs=2e-4)
                assert answer["choices"][0]["message"]["content"] == selection.text
    votes = {selection.index for selection in expected["majority"]}
    assert votes <= {0, 2}  # those that answer 7, the only answer given twice


def _no_track(items: Any, *args: Any, **options: Any) -> Any:
    return items


@pytest.mark.slow
def test_a_choice_does_not_wait_for_a_models_long_job(models: Models) -> None:
    chosen = threading.Event()

    def job() -> Steps[None]:
        assert chosen.wait(SECONDS)
        yield

    with gateway(models, honest) as client:
        assert client.portal is not None
        compute = client.app.state.service.compute  # type: ignore[attr-defined]
        busy = client.portal.start_task_soon(compute, job)
        assert chat(client).status_code == 200
        assert not busy.done()
        chosen.set()
        busy.result(SECONDS)


@pytest.mark.slow
def test_counts_and_cost_cover_everything_sampled(models: Models) -> None:
    with gateway(models, honest) as client:
        answer = chat(client).json()
    assert answer["usage"] == {"prompt_tokens": 11, "completion_tokens": 30, "total_tokens": 41}
    assert answer["ledom"]["cost"] == pytest.approx((11 * 1.0 + 30 * 2.0) / 1e6)
    assert len(answer["ledom"]["candidates"]) == 6
    assert answer["ledom"]["answers"][0] == {"answer": "7", "count": 2}


@pytest.mark.slow
def test_a_choice_by_the_embedded_pair_among_unfamiliar_texts_has_a_warning(models: Models) -> None:
    with gateway((models[0], ledom.load("tiny", "reverse")), honest) as client:
        assert "its preference means nothing" in chat(client).json()["ledom"]["warning"]
    with gateway(models, honest) as client:
        assert chat(client).json()["ledom"]["warning"] is None  # another model


@pytest.mark.slow
def test_without_an_upstream_the_forward_model_answers(models: Models) -> None:
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


@pytest.mark.slow
def test_without_max_tokens_answers_get_the_remaining_context(models: Models) -> None:
    """Chat clients send no max_tokens; the question may take more than half of the context."""
    (forward, _), asked = models, QUESTIONS[0]
    size = len(forward.pair_format.before_solution(asked))
    asked = asked * (3 * forward.context // (2 * size))
    with gateway(models, None) as client:
        answer = chat(client, messages=[{"role": "user", "content": asked}])
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens"] > forward.context - 256


@pytest.mark.slow
def test_without_an_upstream_candidates_end_at_the_stop_string(models: Models) -> None:
    with gateway(models, None) as client:
        more = {"ledom": {"n": 1}, "max_tokens": 8, "seed": 1}
        whole = chat(client, **more).json()["choices"][0]["message"]["content"]
        stop = whole[3:5]
        answer = chat(client, **more, stop=[stop]).json()
    assert answer["choices"][0]["message"]["content"] == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


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
@pytest.mark.slow
def test_options_that_make_no_sense_are_refused(
    models: Models, model: str, given: dict[str, Any] | None, message: str
) -> None:
    with gateway(models, honest) as client:
        answer = chat(client, model=model, ledom=given)
    assert answer.status_code == 400, answer.text
    said = answer.json()["error"]["message"]
    assert message in said
    if "strategy" not in message and "=" not in message:
        assert "the keys are strategy, n, lambda, model" in said


def test_options_in_the_body_override_those_in_the_name() -> None:
    read = Options.read("ledom/majority,n=4,lambda=0.25", {"n": 2}, 9)
    assert read == Options(strategy="majority", n=2, **{"lambda": 0.25})
    assert Options.read("ledom", None, None).strategy is None
    assert Options.read("ledom/auto", None, 3).n == 3
    assert Options.read("ledom/auto", None, 1).n == 8  # what Haystack and LangChain always send
    assert Options.read("ledom/auto,n=1", None, 1).n == 1
    with pytest.raises(InputError, match="'b' is not an option"):
        Options.read("ledom/a,b", None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ledom/all-terms", "'all-terms' cannot choose here; choose among: forward"),  # no weights
        ("ledom/flip", "'flip' cannot choose here"),  # no scores
        ("ledom/majority,lambda=0.9", "with a lambda; choose among: reverse-reward, vote-reverse"),
    ],
)
def test_nothing_is_sampled_for_a_strategy_that_cannot_choose(
    models: Models, model: str, message: str
) -> None:
    def upstream(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    with gateway(models, upstream) as client:
        answer = chat(client, model=model)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_equal_candidates_are_refused_before_they_are_sampled(models: Models) -> None:
    with gateway(models, honest) as client:
        answer = chat(client, temperature=0)
        one = chat(client, temperature=0, model="ledom/auto,n=1")
    assert answer.status_code == 400
    assert "the temperature is 0, so all 6 candidates" in answer.json()["error"]["message"]
    assert one.json()["choices"][0]["message"]["content"] == ANSWERS[0]


def test_nothing_is_sampled_that_could_not_be_judged(models: Models) -> None:
    def upstream(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    with gateway(models, upstream, limits=Limits(max_waiting=5)) as client:
        assert chat(client).status_code == 413  # 6 texts
        queue = client.app.state.service._batcher  # type: ignore[attr-defined]
        queue.waiting = 1
        full = chat(client, model="ledom/auto,n=5")
        queue.waiting = 0
    assert full.status_code == 429
    assert full.headers["Retry-After"]


def test_what_was_sampled_is_judged_at_any_length_and_load(models: Models) -> None:
    """It may have cost money."""

    def upstream(request: httpx.Request) -> httpx.Response:
        queue.waiting = 6  # meanwhile other requests have filled the queue
        return honest(request)

    with gateway(models, upstream, limits=Limits(max_tokens=60, max_waiting=6)) as client:
        queue = client.app.state.service._batcher  # type: ignore[attr-defined]
        answer = chat(client)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["ledom"]["candidates"]) == 6


def test_a_server_that_cannot_sample_has_no_gateway(models: Models) -> None:
    service = Service(Judge(None, models[1]), Settings())
    with TestClient(make_app(service), base_url="http://127.0.0.1") as client:
        answer = chat(client)
        listed = [row["id"] for row in client.get("/v1/models").json()["data"]]
    assert answer.status_code == 404
    assert "has neither" in answer.json()["error"]["message"]
    assert listed == ["reverse"]


def test_one_model_alone_has_no_lambda(models: Models) -> None:
    service = Service(Judge(models[0], None), Settings())
    with TestClient(make_app(service), base_url="http://127.0.0.1") as client:
        answer = chat(client, model="ledom/auto,lambda=0.9")
    assert answer.status_code == 400
    assert "only one of them" in answer.json()["error"]["message"]


def test_a_stream_has_everything_in_the_chosen_message(models: Models) -> None:
    function = {"name": "add", "arguments": '{"a": 3}'}
    calls = [{"id": "call", "type": "function", "function": function}]
    logprobs = {"content": [{"token": "7", "logprob": -0.5, "bytes": [55], "top_logprobs": []}]}

    def upstream(request: httpx.Request) -> httpx.Response:
        message = {"role": "assistant", "content": "It is 7.", "tool_calls": calls, "audio": None}
        message["reasoning_content"] = "3 and 4."
        choice = {"message": message, "logprobs": logprobs, "finish_reason": "tool_calls"}
        return httpx.Response(200, json={"choices": [choice] * json.loads(request.content)["n"]})

    with gateway(models, upstream) as client:
        options = {"include_usage": False}
        lines = chat(client, stream=True, stream_options=options).text.splitlines()
    assert '"usage"' not in "".join(lines)
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "It is 7."
    assert choices[1]["delta"] == {"reasoning_content": "3 and 4."}  # shown where it comes
    (called,) = [choice for choice in choices if "tool_calls" in choice["delta"]]
    assert called["delta"] == {"tool_calls": [{"index": 0, **calls[0]}]}
    assert called["logprobs"] == logprobs
    assert choices[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(("first", "second", "texts", "chosen"), [(1, 2, 2, 1), (1, 1, 3, None)])
def test_a_tool_call_is_returned_if_most_candidates_call_a_tool(
    models: Models, first: int, second: int, texts: int, chosen: int | None
) -> None:
    def call(argument: int) -> dict[str, Any]:
        function = {"name": "add", "arguments": json.dumps({"a": argument})}
        calls = [{"id": f"call{argument}", "type": "function", "function": function}]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        return {"message": message, "finish_reason": "tool_calls"}

    drawn = [call(3)] * first + [call(4)] * second + choices(texts)

    def upstream(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"choices": drawn})

    with gateway(models, upstream) as client:
        answer = chat(client, model=f"ledom/auto,n={len(drawn)}").json()
    if chosen is None:
        assert answer["choices"][0]["message"]["content"] in ANSWERS
    else:
        assert answer["choices"][0] == {**drawn[chosen], "index": 0}
        assert answer["ledom"]["strategy"] is None
        assert answer["ledom"]["confidence"] == pytest.approx(second / len(drawn))


@pytest.mark.parametrize(("refusals", "is_refused"), [(2, True), (1, False)])
@pytest.mark.slow
def test_a_refusal_is_returned_if_most_candidates_refuse(
    models: Models, refusals: int, is_refused: bool
) -> None:
    message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
    drawn = [{"message": message, "finish_reason": "stop"}] * refusals + choices(1)
    with gateway(models, lambda _: httpx.Response(200, json={"choices": drawn})) as client:
        answer = chat(client, model=f"ledom/auto,n={len(drawn)}").json()
    assert (answer["choices"][0]["message"] == message) is is_refused


@pytest.mark.parametrize(
    ("calls", "chosen"),
    [
        ([("f", "{}"), ("f", "{}"), *[("g", a) for a in ('{"a":1,"b":2}', '{"b": 2, "a": 1}')]], 0),
        ([("f", "{}"), *[("g", a) for a in ('{"a":1,"b":2}', '{"b": 2, "a": 1}')]], 1),
        ([("f", "not JSON"), ("g", "not JSON"), ("g", "not JSON")], 1),
    ],
)
@pytest.mark.parametrize("form", ["function", "custom", "old"])
@pytest.mark.parametrize("said", [None, "I ask a tool."])
@pytest.mark.slow
def test_equal_calls_are_counted_together(
    models: Models, calls: list[tuple[str, str]], chosen: int, form: str, said: str | None
) -> None:
    """A call with words before it is a call."""

    def choice(number: int, name: str, given: str) -> dict[str, Any]:
        called: dict[str, Any] = {"function_call": {"name": name, "arguments": given}}
        if form != "old":
            tool = {"name": name, "arguments" if form == "function" else "input": given}
            called = {"tool_calls": [{"id": f"{number}", "type": form, form: tool}]}
        return {"message": {"role": "assistant", "content": said, **called}}

    if form == "custom":  # its input is not JSON
        calls = [(name, "1 + 2") for name, _ in calls]
    drawn = [choice(i, *call) for i, call in enumerate(calls)]
    with gateway(models, lambda _: httpx.Response(200, json={"choices": drawn})) as client:
        answer = chat(client, model=f"ledom/auto,n={len(drawn)}").json()
    assert answer["choices"][0] == {**drawn[chosen], "index": 0}
    assert answer["ledom"]["strategy"] is None


@pytest.mark.slow
def test_openais_client_streams_the_chosen_answer(models: Models) -> None:
    openai = pytest.importorskip("openai")
    with running(Judge(*models), Limits()) as server, ExitStack() as closes:
        client = closes.enter_context(
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=SECONDS)
        )
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
        assert all(chunk.usage is None for chunk in chunks[:-1])
        assert chunks[-2].ledom["strategy"] == "reverse_only"
        text = client.completions.create(model="reverse", prompt="7", max_tokens=4)
        assert text.usage.completion_tokens <= 4
        assert {model.id for model in client.models.list()} >= {"forward", "reverse"}
        with pytest.raises(openai.NotFoundError, match="no model"):
            client.completions.create(model="gpt", prompt="7")
