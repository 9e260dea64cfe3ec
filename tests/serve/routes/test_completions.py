"""Completions in either direction, compared with plain transformers and via lm-eval's client."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoModelForCausalLM

import ledom
from ledom.core.errors import ServerError
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.serve.app import make_app
from ledom.serve.judge import Judge
from ledom.serve.server import Server
from ledom.serve.service import Service
from ledom.serve.settings import Settings
from ledom.text.tokenizer import train_tokenizer
from waiting import SECONDS

TEXT = "Ava has 3 pens.\n\n3 + 4 = 7"


def post(server: Server, path: str, **body: Any) -> Any:
    answer = httpx.post(server.url + path, json=body, timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    return answer.json()


def tokens(server: Server, text: str) -> list[int]:
    return list(post(server, "/tokenize", prompt=text)["tokens"])


def plain(folder: Path, ids: list[int]) -> list[float]:
    """log P of each id but the first, in model order, from plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [logprobs[i, token].item() for i, token in enumerate(ids[1:])]


def echo(server: Server, model: str, prompt: Any, **more: Any) -> Any:
    body = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0} | more
    return post(server, "/v1/completions", model=model, prompt=prompt, **body)["choices"]


@pytest.mark.slow
def test_a_forward_prompts_ids_are_scored_unchanged(
    server: Server, checkpoints: dict[str, Path]
) -> None:
    ids = tokens(server, TEXT)
    (choice,) = echo(server, "forward", ids)
    values = choice["logprobs"]["token_logprobs"]
    assert values[0] is None
    assert values[1 : len(ids)] == pytest.approx(plain(checkpoints["forward"], ids), abs=1e-4)
    assert len(values) == len(ids) + 1  # one token follows
    best = max(choice["logprobs"]["top_logprobs"][-1].values())
    assert values[-1] == best
    assert "".join(choice["logprobs"]["tokens"][:-1]) == TEXT


@pytest.mark.slow
def test_a_text_is_read_after_the_models_first_token(
    server: Server, checkpoints: dict[str, Path]
) -> None:
    ids = tokens(server, TEXT)
    (eos,) = tokens(server, "<|end|>")
    (choice,) = echo(server, "forward", TEXT, max_tokens=0)
    expected = plain(checkpoints["forward"], [eos, *ids])
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-4)
    assert choice["text"] == TEXT


@pytest.mark.slow
def test_reverse_values_of_a_continuation_are_its_log_probability_after_the_context(
    server: Server, checkpoints: dict[str, Path]
) -> None:
    ids = tokens(server, TEXT)
    (eos,) = tokens(server, "<|end|>")
    joint = {n: sum(plain(checkpoints["reverse"], [eos, *ids[:n][::-1]])) for n in (3, 8, len(ids))}
    (choice,) = echo(server, "reverse", ids)
    values = choice["logprobs"]["token_logprobs"]
    assert len(values) == len(ids) + 1
    for n in (3, 8):
        assert sum(values[n:-1]) == pytest.approx(joint[len(ids)] - joint[n], abs=1e-4)
    assert sum(values[:-1]) == pytest.approx(joint[len(ids)], abs=1e-4)


@pytest.mark.slow
def test_a_completion_is_what_generate_gives(server: Server, checkpoints: dict[str, Path]) -> None:
    for name in ("forward", "reverse"):
        lm = ledom.load(checkpoints[name], name)
        body = {"model": name, "prompt": TEXT, "max_tokens": 6, "temperature": 0, "logprobs": 2}
        (choice,) = post(server, "/v1/completions", **body)["choices"]
        ((_, (made,)),) = lm.generate([TEXT], ledom.Sampling(0, max_tokens=6))
        assert choice["text"] == made.text
        logprobs = choice["logprobs"]
        for token, (start, end) in zip(
            logprobs["tokens"], pairwise([*logprobs["text_offset"], len(made.text)]), strict=True
        ):
            piece = made.text[start:end]
            if piece and "\ufffd" not in piece:
                assert token == piece
            else:  # part of a character has its vocabulary name
                assert lm.tokenizer.backend.token_to_id(token) in made.ids
        for value, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
            assert value == max(top.values())  # greedy picks the most likely


@pytest.mark.slow
def test_samples_stops_and_counts_are_right(server: Server) -> None:
    body = {"model": "forward", "prompt": ["3 + 4", "5"], "max_tokens": 8, "n": 2, "seed": 3}
    found = post(server, "/v1/completions", **body)
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert found["usage"]["completion_tokens"] <= 32
    assert found["usage"]["total_tokens"] == sum(
        found["usage"][key] for key in ("prompt_tokens", "completion_tokens")
    )
    assert post(server, "/v1/completions", **body)["choices"] == found["choices"]
    text = found["choices"][0]["text"]
    stop = text[3:5]
    cut = post(server, "/v1/completions", **body, stop=stop)["choices"][0]
    assert cut["text"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["forward", "reverse"])
def test_the_logprobs_end_where_a_stop_cuts_the_text(server: Server, model: str) -> None:
    body = {"model": model, "prompt": TEXT, "max_tokens": 16, "seed": 3, "logprobs": 1}
    (whole,) = post(server, "/v1/completions", **body)["choices"]
    tokens, values = whole["logprobs"]["tokens"], whole["logprobs"]["token_logprobs"]
    place = next(  # a stop that occurs once, between whole characters
        i
        for i in range(2, len(tokens) - 2)
        if "".join(tokens[i - 1 : i + 2]).isascii() and whole["text"].count(tokens[i]) == 1
    )
    (cut,) = post(server, "/v1/completions", **body, stop=[tokens[place], ""])["choices"]
    kept = slice(0, place) if model == "forward" else slice(place + 1, None)
    assert cut["finish_reason"] == "stop"
    before, _, behind = whole["text"].partition(tokens[place])
    assert cut["text"] == (before if model == "forward" else behind)
    assert cut["logprobs"]["tokens"] == tokens[kept]
    assert cut["logprobs"]["token_logprobs"] == values[kept]
    assert len(cut["logprobs"]["text_offset"]) == len(tokens[kept])


@pytest.mark.slow
def test_the_streamed_parts_add_up_to_the_text(server: Server) -> None:
    body = {"model": "reverse", "prompt": "7", "max_tokens": 8, "temperature": 0}
    whole = post(server, "/v1/completions", **body)["choices"][0]["text"]
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json=body | {"stream": True}, timeout=SECONDS
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(event["choices"][0]["text"] for event in events) == whole
    assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert not any("usage" in event for event in events)


@pytest.mark.slow
def test_the_usage_of_a_stream_is_a_separate_event(server: Server) -> None:
    body = {"model": "reverse", "prompt": ["7", "12"], "max_tokens": 8, "temperature": 0}
    whole = post(server, "/v1/completions", **body)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=SECONDS)
    lines = [line for line in answer.text.splitlines() if line]
    assert lines.pop() == "data: [DONE]"
    *events, last = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert last["choices"] == []  # as OpenAI documents stream_options
    assert last["usage"] == whole["usage"]
    assert all(event["usage"] is None and event["choices"] for event in events)
    assert {event["id"] for event in events} == {last["id"]}


@pytest.mark.slow
def test_steps_show_the_alternatives(server: Server, checkpoints: dict[str, Path]) -> None:
    for name in ("forward", "reverse"):
        body = {"model": name, "prompt": TEXT, "max_tokens": 3, "alternatives": 4}
        found = post(server, "/ledom/generate", **body)
        assert "".join(token["text"] for token in found["tokens"]) == found["text"]
        order = found["tokens"] if name == "forward" else found["tokens"][::-1]
        for token in order:
            assert len(token["alternatives"]) == 4
            assert token["alternatives"][0]["id"] == token["id"]  # greedy
            assert token["alternatives"][0]["logprob"] == token["logprob"]
        # The next alternatives are those that the previous step chose from.
        step = post(server, "/ledom/generate", **(body | {"max_tokens": 0}))
        assert step["text"] == ""
        first = [found["id"] for found in step["next"]]
        assert first == [found["id"] for found in order[0]["alternatives"]]


@pytest.mark.slow
def test_unsupported_requests_are_refused(server: Server) -> None:
    for body, status, message in (
        ({"model": "nonsense", "prompt": "a"}, 404, "no model 'nonsense'"),
        ({"model": "/etc/passwd", "prompt": "a"}, 404, "no model"),
        ({"model": "forward", "prompt": [10**9]}, 400, "no token has the id"),
        ({"model": "forward", "prompt": "a", "max_tokens": 10**6}, 413, "max_tokens"),
        ({"model": "forward", "prompt": "a", "echo": True, "max_tokens": 9}, 400, "echo"),
        ({"model": "forward", "prompt": "a", "max_tokens": 0}, 400, "max_tokens is 0"),
        ({"model": "ledom/auto", "prompt": "a", "max_tokens": 0}, 400, "max_tokens is 0"),
        ({"model": "forward", "prompt": "a", "temperature": -1}, 422, "temperature"),
        ({"model": "forward", "prompt": []}, 422, "prompt"),
        ({"model": "forward", "prompt": "a " * 2000, "max_tokens": 9}, 400, "does not fit"),
        ({"prompt": "a"}, 422, "model"),
    ):
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=SECONDS)
        assert answer.status_code == status, answer.text
        assert message in answer.json()["error"]["message"]


@pytest.mark.slow
def test_tokenizers_are_served(server: Server) -> None:
    info = httpx.get(f"{server.url}/tokenizer_info", timeout=SECONDS).json()
    assert info["eos_token"] == "<|end|>"
    ids = tokens(server, TEXT)
    assert post(server, "/detokenize", tokens=ids)["prompt"] == TEXT
    (eos,) = tokens(server, "<|end|>")
    spelled = post(server, "/tokenize", prompt="a <|end|>")["tokens"]
    assert eos not in spelled
    rows = httpx.get(f"{server.url}/v1/models").json()["data"]
    names = [row["id"] for row in rows]
    assert {"forward", "reverse"} <= set(names)
    assert {row["max_model_len"] for row in rows} == {info["model_max_length"]}
    for name in names:
        assert httpx.get(f"{server.url}/v1/models/{name}").json()["id"] == name
    assert httpx.get(f"{server.url}/v1/models/gpt").status_code == 404


def test_tokens_of_two_tokenizers_need_a_model(
    pair: tuple[FakeLanguageModel, FakeLanguageModel],
) -> None:
    """lm-eval names none, and would send one model's ids to the other."""
    pair[1].tokenizer = train_tokenizer(["2 + 2 + 2"], 300)
    app = make_app(Service(Judge(*pair), Settings()))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        given: dict[str, Any] = {"prompt": TEXT}
        for model in ("forward", "reverse"):
            found = client.post("/tokenize", json=given | {"model": model}).json()["tokens"]
            lm = pair[model == "reverse"]
            assert found == lm.tokenizer.encode(TEXT).ids
            assert client.get("/tokenizer_info", params={"model": model}).status_code == 200
        for answer in (
            client.post("/tokenize", json=given),
            client.post("/detokenize", json={"tokens": [1]}),
            client.get("/tokenizer_info"),
        ):
            assert answer.status_code == 400
            assert "different tokenizers" in answer.json()["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_lm_evals_client_gets_the_same_numbers_as_in_process(
    server: Server, checkpoints: dict[str, Path], direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("tenacity")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from ledom.evaluate.harness import LedomLM

    monkeypatch.setenv("TQDM_DISABLE", "1")
    client = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions", model=direction, max_retries=1, timeout=SECONDS
    )
    assert client.tokenizer_backend == "remote"  # detected automatically
    pairs = [
        ("Ava has 3 pens and buys 4.", " 3 + 4 = 7"),
        ("Ava has 3 pens and buys 4.", " 3 * 4 = 12"),
        ("How many pens?\n\n", "7"),
        ("", "3 pens"),
    ]

    def asked() -> list[Instance]:
        return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]

    over_http = client.loglikelihood(asked(), disable_tqdm=True)
    in_process = LedomLM(ledom.load(checkpoints[direction], direction)).loglikelihood(asked())
    for (sent, _), (value, _) in zip(over_http, in_process, strict=True):
        assert math.isfinite(sent)
        assert sent == pytest.approx(value, abs=1e-4)
    if direction == "forward":
        assert [greedy for _, greedy in over_http] == [greedy for _, greedy in in_process]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_coheres_client_ranks(server: Server) -> None:
    cohere = pytest.importorskip("cohere")
    documents = ["it is 12", "3 + 4 = 7", "7"]
    asked: dict[str, Any] = {"model": "ledom", "query": "Ava has 3 pens.", "documents": documents}
    own = post(server, "/rerank", **asked)["results"]
    with httpx.Client() as one, httpx.Client() as two:
        newer = cohere.ClientV2(api_key="none", base_url=server.url, httpx_client=one)
        older = cohere.Client(api_key="none", base_url=server.url, httpx_client=two)
        for found in (newer.rerank(**asked), older.rerank(**asked, return_documents=True)):
            assert [row.index for row in found.results] == [row["index"] for row in own]
            assert [row.relevance_score for row in found.results] == pytest.approx(
                [row["relevance_score"] for row in own]
            )
        assert len(newer.rerank(**asked, top_n=1).results) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "direction"), [("reverse", "reverse"), ("reverse", "forward")])
def test_a_reverse_model_here_is_not_taken_for_one_in_model_order(
    server: Server, checkpoints: dict[str, Path], name: str, direction: str
) -> None:
    """The backend would send ids in model order, or read what precedes a text as what follows."""
    lm = ledom.load(
        f"openai:{name},base_url={server.url}/v1,tokenizer={checkpoints['forward']}/tokenizer.json",
        direction,
    )
    ids = lm.add_special_tokens(lm.tokenizer.encode(TEXT).ids)
    with pytest.raises(ServerError, match="the server is ledom serve.*; give the model's folder"):
        lm.logprobs([ledom.TokenSpan(ids, 1, 3)])
    if direction == "forward":
        with pytest.raises(ServerError, match="the server is ledom serve"):
            list(lm.generate([TEXT], ledom.Sampling(max_tokens=4)))
