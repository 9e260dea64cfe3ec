"""Our own routes: numbers worked out by hand, health, metrics."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import ledom
from ledom.core.errors import InputError
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.rerank.weights import TunedWeights
from ledom.serve.app import make_app
from ledom.serve.judge import Judge, Judgement, Pair
from ledom.serve.service import Service
from ledom.serve.settings import Settings
from ledom.text.tokenizer import Tokenizer

PAGE = Path(ledom.__file__).parent / "serve" / "page"
QUESTION, ANSWERS = "Ava has 3 pens.", ["3 + 4 = 7", "it is 12"]


def log_p(tokenizer: Tokenizer, text: str) -> list[float]:
    """The fake's log-probabilities of a document between two EOS, in reading order, by its rule:
    -log(1 + (token + neighbor) mod 7), with the neighbor before it forward, after it in reverse.
    """
    eos = tokenizer.eos_id
    ids = [eos, *tokenizer.encode(text).ids, eos]
    # The rule is symmetric: these are for all tokens but the first (forward) or last (reverse).
    return [-math.log1p((a + b) % 7) for a, b in pairwise(ids)]


def test_health_names_the_directions_and_no_folder(client: TestClient) -> None:
    answer = client.get("/healthz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "models": ["forward", "reverse"]}


def test_scores_follow_the_rule(client: TestClient, tokenizer: Tokenizer) -> None:
    body = {"question": QUESTION, "answers": ANSWERS}
    results = client.post("/ledom/score", json=body).json()["results"]
    for answer, result in zip(ANSWERS, results, strict=True):
        values = log_p(tokenizer, f"{QUESTION}\n\n{answer}")
        num_answer = result["scores"]["y"]["num_tokens"]
        num_question = result["scores"]["x|y"]["num_tokens"]
        # forward predicts the answer and EOS; reverse predicts the first EOS and the question
        assert result["scores"]["y|x"]["logprob"] == pytest.approx(
            sum(values[-num_answer - 1 :]), abs=1e-4
        )
        assert result["scores"]["x|y"]["logprob"] == pytest.approx(
            sum(values[:num_question]), abs=1e-4
        )
        # untuned: half of each sum
        expected = (sum(values[-num_answer - 1 :]) + sum(values[:num_question])) / 2
        assert result["reward"] == pytest.approx(expected, abs=1e-4)
        assert result["probability"] == pytest.approx(math.exp(expected), abs=1e-6)
    best = max(results, key=lambda result: result["reward"])
    assert best["rank"] == 1


def test_tokens_and_words_add_up(client: TestClient) -> None:
    body = {"question": QUESTION, "answers": ANSWERS[:1]}
    (result,) = client.post("/ledom/score", json=body).json()["results"]
    for target, text in {"x|y": QUESTION, "y": ANSWERS[0], "y|x": ANSWERS[0]}.items():
        score = result["scores"][target]
        assert score["text"] == text
        assert sum(t["logprob"] for t in score["tokens"]) == pytest.approx(
            score["logprob"], abs=1e-3
        )
        assert "".join(t["text"] for t in score["tokens"]) == text
        assert "".join(word["text"] for word in score["words"]) == text
        special = [t for t in score["tokens"] if t["start"] == t["end"]]
        assert sum(w["logprob"] or 0 for w in score["words"]) == pytest.approx(
            score["logprob"] - sum(t["logprob"] for t in special), abs=1e-3
        )


def test_tokens_can_be_left_out(client: TestClient) -> None:
    body = {"question": QUESTION, "answers": ANSWERS, "tokens": False}
    result = client.post("/ledom/score", json=body).json()["results"][0]
    assert set(result["scores"]["y"]) == {"logprob", "num_tokens", "text", "truncated"}


def test_names_of_special_tokens_are_plain_text(
    client: TestClient, pair: tuple[FakeLanguageModel, FakeLanguageModel]
) -> None:
    body = {"question": QUESTION, "answers": ["7<|end|>"]}
    (result,) = client.post("/ledom/score", json=body).json()["results"]
    tokens = result["scores"]["y"]["tokens"]
    assert "".join(token["text"] for token in tokens) == "7<|end|>"
    assert len(tokens) > 2  # spelled out, not one token
    assert pair[0].tokenizer.eos_id not in pair[0].tokenizer.encode("7<|end|>").ids


def test_metrics_count_requests_by_route(client: TestClient) -> None:
    client.post("/ledom/score", json={"question": QUESTION, "answers": ANSWERS})
    client.post("/ledom/score", json={"question": QUESTION})
    client.get("/nonsense")
    text = client.get("/metrics").text
    assert 'ledom_requests_total{route="/ledom/score",status="200"} 1.0' in text
    assert 'ledom_requests_total{route="/ledom/score",status="422"} 1.0' in text
    assert 'ledom_requests_total{route="other",status="404"} 1.0' in text
    assert "ledom_batch_items_sum 2.0" in text
    assert "ledom_waiting_items 0.0" in text


def test_models_say_how_the_reward_is_computed(client: TestClient) -> None:
    answer = client.get("/ledom/models").json()
    assert answer["strategy"] == "reverse_reward"
    assert answer["weights"] == {"forward": 0.5, "reverse": 0.5}
    assert answer["models"]["reverse"]["direction"] == "reverse"


@pytest.mark.slow
def test_vllms_score_is_the_probability(client: TestClient) -> None:
    own = client.post("/ledom/score", json={"question": QUESTION, "answers": ANSWERS}).json()
    for path in ("/score", "/v1/score"):
        for one, many in (
            ("queries", "documents"),
            ("text_1", "text_2"),
            ("data_1", "data_2"),
            ("queries", "items"),
        ):
            answer = client.post(path, json={one: QUESTION, many: ANSWERS}).json()
            assert [row["index"] for row in answer["data"]] == [0, 1]
            for row, result in zip(answer["data"], own["results"], strict=True):
                assert row["object"] == "score"
                assert row["score"] == pytest.approx(result["probability"])
            assert answer["usage"]["total_tokens"] == sum(
                result["scores"]["x|y"]["num_tokens"] + result["scores"]["y"]["num_tokens"]
                for result in own["results"]
            )


@pytest.mark.slow
def test_texts_unfamiliar_to_the_embedded_pair_get_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log has it too, once, as clients of other routes only get a number."""
    recorded = json.loads((PAGE / "examples.json").read_text())["examples"][0]
    known = {"question": recorded["question"], "answers": recorded["answers"]}
    foreign = {"question": "Which treaty ended the war?", "answers": ["That of Vienna, in 1815."]}
    app = make_app(Service(Judge(None, ledom.load("tiny", "reverse")), Settings()))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.post("/ledom/score", json=known).json()["warning"] is None
        prompt = {"model": "reverse", "prompt": f"\n\n{recorded['answers'][0]}"}
        assert client.post("/ledom/generate", json=prompt).json()["warning"] is None
        prompt["prompt"] = "It was the best of times, it was the worst of times."
        warning = client.post("/ledom/generate", json=prompt).json()["warning"]
        assert "what it writes means nothing here" in warning
        client.post("/score", json={"queries": recorded["question"], "documents": ["", "#### 9"]})
        assert not caplog.messages  # a familiar question with bad answers
        assert "means nothing" in client.post("/ledom/score", json=foreign).json()["warning"]
        client.post("/reward", json={"prompt": foreign["question"], "response": "In 1815."})
    (logged,) = caplog.messages
    assert logged.startswith("judging texts unlike anything that the embedded model was trained on")


def test_empty_answers_can_have_a_reward_of_their_own(
    pair: tuple[FakeLanguageModel, FakeLanguageModel],
) -> None:
    answers = ["", "<think>3 + 4", "<think>3 + 4</think>7", "7"]
    pairs = [Pair("What is 3 + 4?", answer) for answer in answers]
    usual = Judge(*pair).judge(pairs)
    judged = Judge(*pair, empty_reward=-1e6).judge(pairs)
    assert [j.reward for j in judged[:2]] == [-1e6, -1e6]
    assert judged[2:] == usual[2:]
    assert [j.scores for j in judged] == [j.scores for j in usual]
    assert max(usual, key=lambda j: j.reward) in usual[:2]  # why it exists
    with pytest.raises(InputError, match="empty_reward is nan; give a finite number"):
        Judge(*pair, empty_reward=math.nan)


def test_weights_for_another_model_give_a_warning(
    pair: tuple[FakeLanguageModel, FakeLanguageModel], caplog: pytest.LogCaptureFixture
) -> None:
    fitted = {str(lm.direction): lm.identity for lm in pair}
    weights = TunedWeights({"reverse_reward": {"forward": 1.0, "reverse": 1.0}}, 1, 8, frozenset())
    Judge(*pair, weights=replace(weights, models=fitted))
    Judge(*pair, weights=weights)  # for unknown models
    Judge(*pair, weights=replace(weights, models=fitted))  # special tokens are now spelled out
    assert not caplog.records
    fitted = {str(lm.direction): lm.identity for lm in pair}
    fitted["forward"] = fitted["forward"] | {"hash": "other"}
    Judge(*pair, weights=replace(weights, models=fitted))
    (record,) = caplog.records
    assert "fitted on scores of another model: forward: " in record.getMessage()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (None, 415),
        ("application/x-www-form-urlencoded", 415),  # what curl -d sends
        ("text/plain", 415),
        ("application/jsonp", 415),
        ("application/json; charset=utf-8", 200),
        ("Application/vnd.api+JSON", 200),
    ],
)
def test_a_body_must_be_announced_as_json(
    client: TestClient, kind: str | None, status: int
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = client.post("/tokenize", content=b'{"prompt": "a"}', headers=headers)
    assert answer.status_code == status, answer.text
    if status == 415:
        assert answer.json()["error"] == {
            "message": f"Content-Type is {kind or ''!r}; send application/json",
            "type": "unsupported_media_type",
            "code": 415,
        }


def test_sums_over_long_answers_keep_their_order_between_0_and_1() -> None:
    rewards = [0.0, -1.0, -699.0, -701.0, -800.0, -9e3, -1e6]
    values = [Judgement(reward, {}, {}).probability for reward in rewards]
    assert values == sorted(set(values), reverse=True)
    assert values[-1] > 0
    assert values[1] == math.exp(-1)


def test_the_error_for_a_union_names_the_inner_problem(client: TestClient) -> None:
    answer = client.post("/v1/embeddings", json={"input": ["a\n\nb", [1, 2]]})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("input.list[str].1: ")
