"""Requests as other programs' clients send them give the same numbers as /ledom/score."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ledom.lm.backends.fake import FakeLanguageModel

QUESTION, ANSWERS = "Ava has 3 pens.", ["it is 12", "3 + 4 = 7", "7"]


@pytest.fixture
def own(client: TestClient) -> list[dict[str, Any]]:
    """The scores of the answers from our own route."""
    body = {"question": QUESTION, "answers": ANSWERS, "tokens": False}
    results: list[dict[str, Any]] = client.post("/ledom/score", json=body).json()["results"]
    return results


def post(client: TestClient, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_openrlhf_gets_the_same_numbers(client: TestClient, own: list[dict[str, Any]]) -> None:
    for index, answer in enumerate(ANSWERS):  # one sample per request
        prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        query = f"{prompt}{answer}<|im_end|>"
        for sent in (query, query[7:]):  # a prompt without its start
            found = post(client, "/get_reward", query=[sent], prompts=[prompt], labels=["7"])
            assert found["rewards"] == pytest.approx([own[index]["reward"]])
            assert found["scores"] == pytest.approx([own[index]["probability"]])
            assert 0 <= found["scores"][0] <= 1
            logs = found["extra_logs"]
            assert logs["log_p_xy"] == [own[index]["scores"]["x|y"]["logprob"]]
            assert logs["log_p_yx"] == [own[index]["scores"]["y|x"]["logprob"]]


def test_openrlhf_sends_empty_lists_to_all_servers_but_one(client: TestClient) -> None:
    found = post(client, "/get_reward", query=[], prompts=[], labels=[])
    assert found == {"rewards": [], "scores": [], "extra_logs": {}}


def test_openrlhf_lists_of_different_lengths_are_refused(client: TestClient) -> None:
    answer = client.post("/get_reward", json={"query": ["a"], "prompts": []})
    assert answer.status_code == 400
    assert "1 queries for 0 prompts" in answer.json()["error"]["message"]


def test_a_path_may_end_with_a_slash(client: TestClient, own: list[dict[str, Any]]) -> None:
    body = {"prompt": QUESTION, "response": ANSWERS[0]}
    answer = client.post("/reward/", json=body, follow_redirects=False)
    assert answer.json() == pytest.approx(own[0]["reward"])


def test_slime_gets_the_same_numbers(client: TestClient, own: list[dict[str, Any]]) -> None:
    for prompt in (QUESTION, [{"role": "user", "content": QUESTION}]):
        body = {"prompt": prompt, "response": ANSWERS[1], "label": None}
        assert post(client, "/reward", **body) == pytest.approx(own[1]["reward"])


def test_a_response_may_be_messages(client: TestClient, own: list[dict[str, Any]]) -> None:
    """As environments with tools keep them: the answer is the assistant's last message."""
    call = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    response = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": ANSWERS[1], "reasoning_content": "3 + 5"},
    ]
    body = {"prompt": [{"role": "user", "content": QUESTION}], "response": response}
    assert post(client, "/reward", **body) == pytest.approx(own[1]["reward"])


def test_a_template_may_begin_the_thought(client: TestClient, own: list[dict[str, Any]]) -> None:
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    empty = post(client, "/reward", prompt=QUESTION, response="")
    for response, reward in (
        ("3 + 4", empty),  # cut off
        ("3 + 4</think>it is 12", own[0]["reward"]),
        ("#### 7", post(client, "/reward", prompt=QUESTION, response="#### 7")),
    ):
        found = post(client, "/reward", prompt=prompt, response=response)
        assert found == pytest.approx(reward)
        found = post(client, "/get_reward", query=[prompt + response], prompts=[prompt])
        assert found["rewards"] == [pytest.approx(reward)]


def test_verl_gets_the_same_numbers(client: TestClient, own: list[dict[str, Any]]) -> None:
    text = (
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n{ANSWERS[2]}<|im_end|>\n"
    )
    body = {"model": "any", "input": text, "use_activation": False}
    found = post(client, "/classify", **body)
    assert found["data"][-1]["probs"][-1] == pytest.approx(own[2]["reward"])
    assert found["data"][0]["num_classes"] == 1
    assert found["object"] == "list"
    body["use_activation"] = True
    found = post(client, "/classify", **body)
    assert found["data"][-1]["probs"][-1] == pytest.approx(own[2]["probability"])
    found = post(client, "/v1/embeddings", model="any", input=text)
    assert found["data"][-1]["embedding"][-1] == pytest.approx(own[2]["reward"])


def test_vllms_pooling_gives_the_same_numbers(
    client: TestClient, own: list[dict[str, Any]]
) -> None:
    dialogs = [f"{QUESTION}\n\n{answer}" for answer in ANSWERS]
    found = post(client, "/pooling", model="m", input=dialogs, use_activation=False)
    assert (found["object"], found["model"]) == ("list", "m")
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] > 0
    assert found["data"] == [
        {"index": i, "object": "pooling", "data": [pytest.approx(own[i]["reward"])]}
        for i in range(3)
    ]
    found = post(client, "/pooling", input=dialogs[1], task="classify")
    assert found["data"][0]["data"] == [pytest.approx(own[1]["probability"])]
    answer = client.post("/pooling", json={"input": dialogs[1], "task": "token_classify"})
    assert answer.status_code == 422


_SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "bad", [_SYSTEM, " ", "<|role:user|>How many?", "pens " * 400, "pens " * 3500]
)
def test_a_sample_without_a_question_gets_a_neutral_reward(
    client: TestClient,
    pair: tuple[FakeLanguageModel, FakeLanguageModel],
    own: list[dict[str, Any]],
    bad: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One such row of a dataset must stop no trainer: `ledom.rewards` gives None or 0 too."""
    pair[0].context = 256
    good = f"{QUESTION}\n\n"
    body = {"query": [bad + "7", good + ANSWERS[0]], "prompts": [bad, good]}
    found = post(client, "/get_reward", **body)
    assert found["rewards"] == [0.0, pytest.approx(own[0]["reward"])]
    assert found["scores"] == [0.0, pytest.approx(own[0]["probability"])]
    log = own[0]["scores"]["x|y"]["logprob"]
    assert found["extra_logs"]["log_p_xy"] == [0.0, pytest.approx(log)]
    assert post(client, "/reward", prompt=bad, response="7") == 0.0
    assert caplog.text.count("no reward for a completion: ") == 2
    found = post(client, "/get_reward", query=[bad + "7"], prompts=[bad])
    assert (found["rewards"], found["extra_logs"]["log_p_y"]) == ([0.0], [0.0])
    dialog = bad + ("7" if bad == _SYSTEM else "\n\n7")
    found = post(client, "/classify", input=[dialog, good + ANSWERS[0]], use_activation=False)
    assert [row["probs"] for row in found["data"]] == [[0.0], [pytest.approx(own[0]["reward"])]]
    for use, number in (True, own[0]["probability"]), (False, own[0]["reward"]):
        found = post(client, "/pooling", input=[dialog, good + ANSWERS[0]], use_activation=use)
        assert [row["data"] for row in found["data"]] == [[0.0], [pytest.approx(number)]]


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_jina_and_cohere_rank(client: TestClient, own: list[dict[str, Any]], path: str) -> None:
    order = sorted(range(3), key=lambda i: -own[i]["reward"])
    found = post(client, path, model="m", query=QUESTION, documents=ANSWERS)
    assert [row["index"] for row in found["results"]] == order
    for row in found["results"]:
        assert row["document"] == {"text": ANSWERS[row["index"]]}
        assert row["relevance_score"] == pytest.approx(own[row["index"]]["probability"])
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] > 0
    documents = [{"text": answer} for answer in ANSWERS]
    body = {"query": QUESTION, "documents": documents, "top_n": 1, "return_documents": False}
    found = post(client, path, **body)
    assert found["results"] == [
        {"index": order[0], "relevance_score": pytest.approx(own[order[0]]["probability"])}
    ]
    assert len(post(client, path, query=QUESTION, documents=ANSWERS, top_n=0)["results"]) == 3


def test_a_documents_tokens_can_be_limited(client: TestClient) -> None:
    body = {"query": QUESTION, "documents": ["3 + 4 = 7"], "max_tokens_per_doc": 2}
    (row,) = post(client, "/rerank", **body)["results"]
    assert row["document"] == {"text": "3 +"}


def test_tei_gets_the_same_numbers(client: TestClient, own: list[dict[str, Any]]) -> None:
    order = sorted(range(3), key=lambda i: -own[i]["reward"])
    found = post(client, "/rerank", query=QUESTION, texts=ANSWERS)
    assert [row["index"] for row in found] == order
    assert found[0]["score"] == pytest.approx(own[order[0]]["probability"])
    assert "text" not in found[0]
    body = {"query": QUESTION, "texts": ANSWERS, "raw_scores": True, "return_text": True}
    (best,) = post(client, "/rerank", **body, top_n=1)  # as LiteLLM's client for TEI sends it
    assert best["score"] == pytest.approx(own[order[0]]["reward"])
    assert best["text"] == ANSWERS[order[0]]
    assert math.exp(best["score"]) == pytest.approx(own[order[0]]["probability"])


def test_errors_for_tei_have_teis_form(
    client: TestClient, pair: tuple[FakeLanguageModel, FakeLanguageModel]
) -> None:
    pair[0].context = 64
    for body, status, message in (
        ({"query": "", "texts": ["a"]}, 400, "the question is empty"),
        ({"query": "a", "texts": ["b"] * 51}, 413, "51 texts; at most 50 per request"),
        (
            {"query": "a", "texts": ["3 + 4 = 7 " * 40], "truncate": False},
            413,
            "a text is longer than the model's context; shorten it, or send truncate: true",
        ),
    ):
        answer = client.post("/rerank", json=body)
        assert answer.status_code == status
        assert answer.json() == {"error": message, "error_type": "Validation"}


def test_texts_and_documents_together_are_refused(client: TestClient) -> None:
    for more in ({}, {"texts": ["a"], "documents": ["a"]}):
        answer = client.post("/rerank", json={"query": QUESTION, **more})
        assert answer.status_code == 422
        assert "documents" in answer.json()["error"]["message"]


def test_score_pairs_many_queries_with_as_many_documents(
    client: TestClient, own: list[dict[str, Any]]
) -> None:
    found = post(client, "/score", queries=[QUESTION] * 3, documents=ANSWERS, use_activation=False)
    assert [row["score"] for row in found["data"]] == pytest.approx([r["reward"] for r in own])
    answer = client.post("/score", json={"queries": [QUESTION] * 2, "documents": ANSWERS})
    assert answer.status_code == 400
