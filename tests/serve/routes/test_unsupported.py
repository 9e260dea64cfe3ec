"""Settings that our own models do not support are refused or passed on to an upstream."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from serving import QUESTIONS, Models, chat, gateway, honest

MESSAGES = [{"role": "user", "content": QUESTIONS[0]}]
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "completions": ("/v1/completions", {"model": "reverse", "prompt": "7"}),
    "completions by choice": (
        "/v1/completions",
        {"model": "ledom/auto,n=1", "prompt": QUESTIONS[0]},
    ),
    "chat": ("/v1/chat/completions", {"model": "ledom/auto,n=1", "messages": MESSAGES}),
    "generate": ("/ledom/generate", {"model": "forward", "prompt": "7"}),
}
TOOL = {"type": "function", "function": {"name": "add"}}
REFUSED: dict[str, Any] = {
    "add_generation_prompt": False,
    "add_special_tokens": False,
    "allowed_token_ids": [1],
    "audio": {"voice": "alloy", "format": "wav"},
    "bad_words": ["no"],
    "best_of": 4,
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": True},
    "continue_final_message": True,
    "documents": [{"text": "a"}],
    "frequency_penalty": -0.5,
    "function_call": {"name": "add"},
    "functions": [{"name": "add"}],
    "guided_choice": ["a", "b"],
    "guided_grammar": "root ::= 7",
    "guided_json": {"type": "object"},
    "guided_regex": "[0-9]+",
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "logit_bias": {"5": -100},
    "logits_processors": ["a.b"],
    "logprob_token_ids": [5],
    "min_p": 0.1,
    "min_tokens": 3,
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "presence_penalty": 1,
    "prompt_embeds": "AAAA",
    "prompt_logprobs": 0,
    "reasoning_effort": "high",
    "repetition_detection": {"max_pattern_size": 3},
    "repetition_penalty": 1.1,
    "response_format": {"type": "json_object"},
    "return_prompt_text": True,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "skip_special_tokens": False,
    "stop_token_ids": [1],
    "structural_tag": "{}",
    "structured_outputs": {"choice": ["a"]},
    "suffix": " pens",
    "tool_choice": "required",
    "tools": [TOOL],
    "top_logprobs": 3,
    "truncate_prompt_tokens": 4,
    "use_beam_search": True,
    "verbosity": "low",
    "vllm_xargs": {"a": 1},
    "watermarking": True,
    "web_search_options": {},
}
REFUSED_BY_ROUTE: dict[str, dict[str, Any]] = {
    "completions": {"max_completion_tokens": 9},
    "completions by choice": {"max_completion_tokens": 9},
    "chat": {"logprobs": True, "echo": True},
    "generate": {
        "logprobs": 1,
        "echo": True,
        "n": 2,
        "stop": ["."],
        "stream": True,
        "max_completion_tokens": 9,
    },
}
NEUTRAL: dict[str, list[Any]] = {
    "add_generation_prompt": [True],
    "add_special_tokens": [True],
    "best_of": [1],
    "frequency_penalty": [0, 0.0],
    "functions": [[]],
    "function_call": ["none", "auto"],
    "ignore_eos": [False],
    "logit_bias": [{}],
    "min_p": [0],
    "modalities": [["text"], []],
    "presence_penalty": [0],
    "reasoning_effort": ["none"],
    "repetition_penalty": [1, 1.0],
    "response_format": [{"type": "text"}],
    "skip_special_tokens": [True],
    "stop_token_ids": [[]],
    "suffix": [""],
    "tool_choice": ["none", "auto"],
    "tools": [[]],
    "top_logprobs": [0],
    "truncate_prompt_tokens": [-1],
    "verbosity": ["medium"],
}
HARMLESS: dict[str, Any] = {
    "user": "me",
    "metadata": {"run": "1"},
    "store": True,
    "service_tier": "flex",
    "stream_options": {"include_usage": True},
    "parallel_tool_calls": True,
    "priority": 3,
    "key_of_some_client": [1],
}


@pytest.fixture(scope="module")
def own(models: Models) -> Iterator[TestClient]:
    """A client of a server without an upstream."""
    with gateway(models, None) as client:
        yield client


def ask(client: TestClient, route: str, **more: Any) -> httpx.Response:
    path, body = ROUTES[route]
    return client.post(path, json={"max_tokens": 3, "seed": 1} | body | more)


def written(client: TestClient, route: str, **more: Any) -> Any:
    """The text that the server generates."""
    answer = ask(client, route, **more)
    assert answer.status_code == 200, (more, answer.text)
    found = answer.json()
    return found["text"] if route == "generate" else [c | {"index": 0} for c in found["choices"]]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.slow
def test_a_setting_that_would_change_the_answer_is_refused(own: TestClient, route: str) -> None:
    for name, value in (REFUSED | REFUSED_BY_ROUTE[route]).items():
        answer = ask(own, route, **{name: value})
        assert answer.status_code == 400, (name, answer.text)
        error = answer.json()["error"]
        assert error["message"].startswith(f"{name} is {repr(value)[:1]}")
        assert "leave it out" in error["message"]
        assert (error["type"], error["code"]) == ("bad_request", 400)


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_a_value_that_changes_nothing_is_accepted(own: TestClient, route: str) -> None:
    plain = written(own, route)
    assert written(own, route, **dict.fromkeys(REFUSED)) == plain  # all null
    for place in range(2):
        values = {name: values[min(place, len(values) - 1)] for name, values in NEUTRAL.items()}
        assert written(own, route, **values) == plain
    assert written(own, route, **HARMLESS) == plain


def test_best_of_may_equal_the_number_of_texts(own: TestClient) -> None:
    assert written(own, "completions", n=2, best_of=2) == written(own, "completions", n=2)
    refused = ask(own, "completions", n=2, best_of=1).json()["error"]["message"]
    assert refused.startswith("best_of is 1; ")


def test_the_message_is_short_whatever_the_value(own: TestClient) -> None:
    for value in ({str(i): 1 for i in range(5000)}, "a\n" * 5000, [[["a" * 99] * 9] * 9] * 9):
        message = ask(own, "chat", logit_bias=value).json()["error"]["message"]
        assert len(message) < 150
        assert "\n" not in message


@pytest.mark.slow
@pytest.mark.parametrize("route", ["chat", "completions by choice"])
def test_an_upstream_gets_every_setting(models: Models, route: str) -> None:
    seen: list[dict[str, Any]] = []

    def watch(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return honest(request)

    with gateway(models, watch) as client:
        settings = REFUSED | HARMLESS
        assert ask(client, route, **settings).status_code == 200
    (body,) = seen
    del settings["stream_options"]  # the gateway's own
    assert {name: value for name, value in body.items() if name in settings} == settings


@pytest.mark.slow
def test_images_are_passed_to_an_upstream(own: TestClient, models: Models) -> None:
    text = {"type": "text", "text": QUESTIONS[0]}
    image = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    messages = [{"role": "user", "content": [text, image]}]
    answer = ask(own, "chat", messages=messages)
    assert answer.status_code == 400
    assert "a part of type 'image_url'" in answer.json()["error"]["message"]
    whole = written(own, "chat")
    assert written(own, "chat", messages=[{"role": "user", "content": [text]}]) == whole
    with gateway(models, honest) as client:
        assert chat(client, messages=messages).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("route", ["chat", "completions by choice"])
def test_without_an_upstream_top_k_is_obeyed(own: TestClient, route: str) -> None:
    settings = {"max_tokens": 8, "seed": 2, "temperature": 1}
    greedy = written(own, route, **settings | {"temperature": 0})
    assert written(own, route, **settings) != greedy
    assert written(own, route, **settings, top_k=1) == greedy


def test_gateway_options_are_refused_where_nothing_is_chosen(own: TestClient) -> None:
    answer = ask(own, "completions", ledom={"n": 4})
    assert answer.status_code == 400
    assert "name a model such as ledom/auto" in answer.json()["error"]["message"]


DIALOG = f"{QUESTIONS[0]}\n\n3 + 4 = 7\n#### 7"
READING: dict[str, tuple[str, dict[str, Any]]] = {
    "score": ("/v1/score", {"queries": QUESTIONS[0], "documents": ["7", "8"]}),
    "rerank": ("/rerank", {"query": QUESTIONS[0], "documents": ["7", "8"]}),
    "TEI": ("/rerank", {"query": QUESTIONS[0], "texts": ["7", "8"]}),
    "classify": ("/classify", {"input": DIALOG}),
    "pooling": ("/pooling", {"input": DIALOG}),
    "embeddings": ("/v1/embeddings", {"input": DIALOG}),
    "tokenize": ("/tokenize", {"prompt": "7"}),
    "detokenize": ("/detokenize", {"tokens": [7]}),
}
OF_READING: dict[str, tuple[Any, list[Any]]] = {  # one refused value, and neutral values
    "activation": (False, [True]),
    "chat_template": ("{{ messages }}", [""]),
    "dimensions": (2, [1]),
    "embed_dtype": ("float16", ["float32"]),
    "endianness": ("big", ["native", "little"]),
    "instruction": ("Find the answer.", [""]),
    "max_chunks_per_doc": (1, []),
    "max_tokens_per_query": (3, []),
    "messages": ([{"role": "user", "content": "a"}], [[]]),
    "mm_processor_kwargs": ({"a": 1}, [{}]),
    "normalize": (True, [False]),
    "rank_fields": (["a"], [[]]),
    "return_embeddings": (True, [False]),
    "return_token_strs": (True, [False]),
    "softmax": (False, [True]),
    "top_k": (1, []),
    "truncate_prompt_tokens": (4, [-1]),
    "truncation": (False, [True]),
    "truncation_direction": ("Left", ["Right", "right"]),
    "truncation_side": ("left", ["right"]),
}
OF_ONE_ROUTE: dict[str, dict[str, tuple[Any, list[Any]]]] = {
    "score": {"encoding_format": ("base64", ["float"]), "truncate": ("START", ["END", True])},
    "rerank": {
        "raw_scores": (True, [False]),
        "return_text": (True, [False]),
        "truncate": (False, [True]),
    },
    "TEI": {"max_tokens_per_doc": (9, [])},
    "embeddings": {"use_activation": (True, [False])},
}


def read(client: TestClient, route: str, **more: Any) -> httpx.Response:
    path, body = READING[route]
    return client.post(path, json=body | more)


def numbers(answer: httpx.Response) -> Any:
    """The answer, without its id; equal in every bit for equal texts, however a server batches."""
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return found | {"id": "", "created": 0} if isinstance(found, dict) else found


@pytest.mark.parametrize("route", READING)
@pytest.mark.slow
def test_a_setting_that_would_change_a_score_is_refused(own: TestClient, route: str) -> None:
    plain = numbers(read(own, route))
    for name, (other, neutral) in (OF_READING | OF_ONE_ROUTE.get(route, {})).items():
        answer = read(own, route, **{name: other})
        assert answer.status_code == 400, (name, answer.text)
        error = answer.json()["error"]
        message = error if route == "TEI" else error["message"]
        assert message.startswith(f"{name} is {repr(other)[:1]}")
        assert message.endswith("; leave it out")
        for value in neutral:
            assert numbers(read(own, route, **{name: value})) == plain, (name, value)
    assert numbers(read(own, route, **dict.fromkeys(OF_READING))) == plain  # all null
    assert numbers(read(own, route, **HARMLESS)) == plain


def test_a_reranker_returns_the_raw_reward_on_request(own: TestClient) -> None:
    for route, name in (("rerank", "relevance_score"), ("TEI", "score")):
        raw, usual = (read(own, route, use_activation=value).json() for value in (False, True))
        rows = [found["results"] if route == "rerank" else found for found in (raw, usual)]
        for one, other in zip(*rows, strict=True):
            assert one["index"] == other["index"]
            assert other[name] == pytest.approx(math.exp(one[name]))
            assert one[name] < 0


def test_a_base64_embedding_is_a_number_in_fp32(own: TestClient) -> None:
    """OpenAI's own client requests base64 by default."""
    for route, key in (("embeddings", "embedding"), ("pooling", "data")):
        (reward,) = read(own, route).json()["data"][0][key]
        text = read(own, route, encoding_format="base64").json()["data"][0][key]
        assert np.frombuffer(base64.b64decode(text), "<f4") == np.float32(reward)
        assert read(own, route, encoding_format="bytes").status_code == 422


def test_a_mistyped_key_of_our_own_route_is_refused(own: TestClient) -> None:
    body = {"question": QUESTIONS[0], "answers": ["7"]}
    assert own.post("/ledom/score", json=body).status_code == 200
    answer = own.post("/ledom/score", json=body | {"lambda": 0.2})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "lambda: Extra inputs are not permitted"
