"""The server backend, tested with a server in this process that follows the documented protocol."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import ledom
from ledom.core.errors import DirectionError, InputError, ServerError
from ledom.lm.backends.openai import OpenAILanguageModel
from ledom.lm.confidence import ConfidenceSettings
from ledom.lm.language_model import Sampling, TokenSpan
from ledom.text.tokenizer import Tokenizer
from stand_ins import CompletionsServer, Reply


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """Completions by the fake model: echoed log-probabilities of the prompt, or n texts."""
    if body.get("echo"):
        ids = body["prompt"]
        values = [None, *(-math.log1p((a + b) % 7) for a, b in pairwise(ids))]
        logprobs = {"token_logprobs": [*values, -0.1], "tokens": ["?"] * (len(ids) + 1)}
        choices = [{"index": 0, "text": "?", "finish_reason": "length", "logprobs": logprobs}]
    else:
        choices = [
            {"index": i, "text": f"{body['prompt'][:3]} {i}", "finish_reason": reason}
            for i, reason in zip(range(body.get("n", 1)), ["stop", "length"] * 99, strict=False)
        ]
    return {"id": "c", "object": "text_completion", "created": 1, "choices": choices}


@pytest.fixture
def server() -> Iterator[CompletionsServer]:
    server = CompletionsServer(answer)
    yield server
    server.close()


@pytest.fixture
def load(
    server: CompletionsServer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., OpenAILanguageModel]:
    """Load the backend for this test's server, with short pauses between retries."""
    import openai._base_client as base

    monkeypatch.setattr(base, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(base, "MAX_RETRY_DELAY", 0.02)
    tokenizer.save(tmp_path)

    def make(direction: str = "forward", **options: Any) -> OpenAILanguageModel:
        options = {"base_url": server.url, "api_key": "k", "tokenizer": tmp_path, **options}
        lm = ledom.load("openai:m", direction, **options)
        assert isinstance(lm, OpenAILanguageModel)
        return lm

    return make


def targets(lm: ledom.LanguageModel) -> list[TokenSpan]:
    texts = ["Ava has 12 apples.", "7", "naïve café 数学"]
    ids = [[lm.tokenizer.eos_id, *lm.tokenizer.encode(t).ids, lm.tokenizer.eos_id] for t in texts]
    reverse = str(lm.direction) == "reverse"
    spans = [(0, len(i) - 1) if reverse else (1, len(i)) for i in ids]
    return [TokenSpan(i, *span) for i, span in zip(ids, spans, strict=True)]


@pytest.mark.slow
def test_texts_are_returned_by_prompt(
    load: Callable[..., OpenAILanguageModel], server: CompletionsServer
) -> None:
    lm = load(bos_token="")  # like its tokenizer: the prompt is sent unchanged
    sampling = Sampling(temperature=0.7, top_k=5, top_p=0.9, max_tokens=9, seed=3)
    made = dict(lm.generate(["one?", "two?"], sampling, 2))
    assert [text.text for text in made[1]] == ["two 0", "two 1"]
    assert [text.finish_reason for text in made[0]] == ["stop", "length"]
    assert made[0][0].ids == lm.tokenizer.encode("one 0").ids
    body = next(body for body in server.requests if body["prompt"] == "two?")
    assert body.pop("seed") != 3  # which would be the same for another prompt
    expected = {"model": "m", "n": 2, "max_tokens": 9, "temperature": 0.7, "top_p": 0.9}
    neutral = {"min_p": 0, "repetition_penalty": 1}
    assert body == expected | {"prompt": "two?", "top_k": 5} | neutral


NEUTRAL = {"top_k": -1, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
REJECTIONS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "vLLM": lambda body: False,
    "OpenAI": lambda body: not body.keys().isdisjoint({"top_k", "min_p", "repetition_penalty"}),
    "TGI": lambda body: body.get("top_p", 0.5) >= 1,
    "llama.cpp": lambda body: body.get("n", 1) > 1,
    "strict": lambda body: "top_k" in body or "n" in body,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("vLLM", {"n": 2, **NEUTRAL}),  # else it takes those of generation_config.json
        ("OpenAI", {"n": 2}),
        ("TGI", {"n": 2}),
        ("llama.cpp", NEUTRAL),  # else it takes a top_k of 40 and a min_p of 0.05
        ("strict", {}),
    ],
)
def test_settings_without_effect_are_sent_unless_the_server_rejects_them(
    load: Callable[..., OpenAILanguageModel],
    server: CompletionsServer,
    kind: str,
    sent: dict[str, float],
) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        if REJECTIONS[kind](body):
            return 400, b'{"error": {"message": "no"}}'
        return 200, json.dumps(answer(body | {"n": body.get("n", 1)})).encode()

    server.always = reply
    lm = load(concurrency=1, bos_token="")
    made = dict(lm.generate(["one?", "two?"], Sampling(), 2))
    assert [len(texts) for texts in made.values()] == [2, 2]
    always = {"model", "prompt", "max_tokens", "temperature", "seed"}
    last = server.requests[-1]
    assert {key: value for key, value in last.items() if key not in always} == sent
    accepted = 2 if "n" in sent else 4
    assert len(server.requests) <= accepted + 3  # the server is asked once what it accepts


@pytest.mark.slow
def test_a_setting_with_an_effect_is_never_left_out(
    load: Callable[..., OpenAILanguageModel], server: CompletionsServer
) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        problem = "top_k is unknown" if "top_k" in body else "no model m"
        return 400, json.dumps({"error": {"message": problem}}).encode()

    server.always = reply
    with pytest.raises(ServerError, match="the server answered 400: .*top_k is unknown"):
        list(load().generate(["one?"], Sampling(top_k=5)))
    assert all(body["top_k"] == 5 for body in server.requests)


@pytest.mark.slow
def test_the_longest_text_fits_a_server_of_the_models_context(
    load: Callable[..., OpenAILanguageModel],
    server: CompletionsServer,
    checkpoints: dict[str, Path],
) -> None:
    """vLLM refuses a request whose prompt and `max_tokens` exceed its `max_model_len` together."""
    for lm in (load(tokenizer=checkpoints["forward"]), load(context=512)):
        longest = lm.context + 1  # the last token is not read
        (values,) = lm.logprobs([TokenSpan([0, *[5] * (longest - 1)], 1, longest)])
        assert len(values) == longest - 1
        body = server.requests[-1]
        assert len(body["prompt"]) + body["max_tokens"] == 512


@pytest.mark.slow
@pytest.mark.parametrize("fault", [(429, b"{}"), (500, b"oops"), (503, b""), None])
def test_temporary_errors_are_retried(
    load: Callable[..., OpenAILanguageModel],
    server: CompletionsServer,
    fault: Reply | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lm = load(concurrency=1)
    for _ in "12":
        server.faults = [fault, fault]
        assert len(lm.logprobs(targets(lm)[:1])[0]) > 0
    assert len(server.requests) == 6
    assert caplog.text.count("m: no usable answer from the server at") == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            (401, b'{"error": {"message": "no key"}}'),
            "m: the server answered 401: .*no key; put .* in OPENAI_API_KEY",
        ),
        ((404, b"{}"), "the server answered 404"),
        ((422, b'{"error": "top_p > 1", "error_type": "validation"}'), "answered 422: top_p > 1"),
        ((500, b"oops"), "the server answered 500: oops$"),
        (
            (400, b'{"error": {"message": "the maximum context length is 1024 tokens"}}'),
            "is 1024 tokens; give the server's limit, as in context=4096$",
        ),
        ((200, b'{"error": {"message": "no credit"}}'), "the server failed: no credit"),
        (
            (200, b'{"choices": [{"text": "cut", "error": {"message": "gone"}}]}'),
            "the server failed: gone",
        ),
        ((200, b"garbage"), "no usable answer from the server"),
        ((200, b'{"choices": [null]}'), "is not valid"),
        ((200, b'{"choices": [{"logprobs": {"token_logprobs": 7}}]}'), "is not valid"),
        ((200, b'{"choices": []}'), "no log-probabilities of the prompt's tokens"),
        ((200, b'{"choices": [{"text": "x", "logprobs": null}]}'), "no log-probabilities"),
        (
            (200, b'{"choices": [{"logprobs": {"token_logprobs": [null, -1]}}]}'),
            "it can generate, but not score",
        ),
        (None, r"from the server at http://127.0.0.1:\d+/v1/: Connection error. \(.+\)"),
    ],
)
@pytest.mark.slow
def test_permanent_errors_give_one_clear_line(
    load: Callable[..., OpenAILanguageModel],
    server: CompletionsServer,
    reply: Reply | None,
    message: str,
) -> None:
    server.always = lambda _: reply
    lm = load(max_retries=1, concurrency=1)
    with pytest.raises(ServerError, match=message):
        lm.logprobs(targets(lm))


def scored(values: list[Any], **more: Any) -> bytes:
    """A server's response with these log-probabilities for the prompt's tokens."""
    return json.dumps({"choices": [{"logprobs": {"token_logprobs": values}}], **more}).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda good: scored([None, -9.0, *good[1:]]), "the server read 4 tokens where 3 were"),
        (lambda good: scored(good, usage={"prompt_tokens": 4}), "read 4 tokens where 3 were sent"),
        (lambda good: scored(good, usage={"prompt_tokens": 2}), "read 2 tokens where 3 were sent"),
        (lambda _: scored([None, 0.5, -1.0, -1.0]), "a log-probability is 0.5, and none can be ab"),
        (lambda _: scored([None, "-1", -1.0, -1.0]), "is not valid: a log-probability is not a nu"),
        (lambda _: scored([None, -1.0, math.nan, -1.0]), "a log-probability is not finite"),
        (lambda _: scored([None, -1e39, -1.0, -1.0]), "a log-probability is not finite"),
        (lambda _: b'{"choices": {"0": 1}}', "is not valid"),
        (lambda _: b"[" * 100_000, "no usable answer from the server: (maximum rec|Stack over)"),
        (lambda _: b'"two\\nlines"', "no usable answer from the server: two lines$"),
    ],
)
@pytest.mark.slow
def test_numbers_for_another_text_are_refused(
    load: Callable[..., OpenAILanguageModel],
    server: CompletionsServer,
    change: Callable[[list[Any]], bytes],
    message: str,
) -> None:
    lm = load()
    target = TokenSpan([lm.tokenizer.eos_id, 5, 6], 1, 3)
    good = [None, -1.0, -2.0, -3.0]  # the last is for the token generated after the prompt
    server.always = lambda _: (200, scored(good, usage={"prompt_tokens": 3}))
    assert lm.logprobs([target])[0].tolist() == [-1.0, -2.0]
    server.always = lambda _: (200, change(good))
    with pytest.raises(ServerError, match=message):
        lm.logprobs([target])


@pytest.mark.slow
def test_a_server_that_returns_one_text_is_asked_again(
    load: Callable[..., OpenAILanguageModel], server: CompletionsServer
) -> None:
    server.always = lambda body: (200, json.dumps(answer(body | {"n": 1})).encode())
    ((_, made),) = load().generate(["one?"], Sampling(seed=2), 3)
    assert len(made) == 3
    seeds = [body["seed"] for body in server.requests]
    assert seeds == [*range(seeds[0], seeds[0] + 3)]  # as from a server that returns all three
    server.always = lambda _: (200, b'{"choices": []}')
    with pytest.raises(ServerError, match="asked for 3 texts, the server sent 0"):
        list(load().generate(["one?"], Sampling(), 3))


@pytest.mark.slow
def test_greedy_texts_are_requested_once(
    load: Callable[..., OpenAILanguageModel], server: CompletionsServer
) -> None:
    ((_, made),) = load(bos_token="").generate(["one?"], Sampling(temperature=0), 3)
    assert [text.text for text in made] == ["one 0"] * 3
    assert [body["n"] for body in server.requests] == [1]  # vLLM refuses a higher n


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('[{"a": NaN, "b": -1}]', "a log-probability is not finite"),
        ('[{"a": -Infinity, "b": -1}]', "a log-probability is not finite"),
        ('[{"a": 3, "b": -1}]', "a log-probability is 3"),
        ("[]", "returned no log-probabilities of the most likely tokens"),
        ('[{"a": -1}, {"b": -2}]', "of at most 1 tokens, and confidence is to use 2"),
    ],
)
def test_invalid_logprobs_for_confidence_are_refused(
    load: Callable[..., OpenAILanguageModel], server: CompletionsServer, rows: str, message: str
) -> None:
    reply = '{"choices": [{"text": "x", "logprobs": {"top_logprobs": ' + rows + "}}]}"
    server.always = lambda _: (200, reply.encode())
    with pytest.raises(ServerError, match=message):
        list(load().generate(["one?"], Sampling(confidence=ConfidenceSettings(top_k=2))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "meant"),
    [
        *[("stop", "stop"), ("eos", "stop"), ("eos_token", "stop")],
        *[("length", "length"), (None, "length"), ("abort", "length")],
    ],
)
def test_only_a_text_that_its_model_ended_is_complete(
    load: Callable[..., OpenAILanguageModel],
    server: CompletionsServer,
    said: str | None,
    meant: str,
) -> None:
    choices = [{"text": "x", "finish_reason": said}]
    server.always = lambda _: (200, json.dumps({"choices": choices}).encode())
    ((_, (made,)),) = load().generate(["one?"], Sampling())
    assert made.finish_reason == meant


def test_a_reverse_text_ends_where_its_document_begins(
    load: Callable[..., OpenAILanguageModel], server: CompletionsServer
) -> None:
    """If the server's files name another EOS, it keeps generating."""
    lm = load("reverse")
    reply = {"text": "", "finish_reason": "length", "token_ids": [5, 6, lm.tokenizer.eos_id, 7]}
    server.always = lambda _: (200, json.dumps({"choices": [reply]}).encode())
    ((_, (made,)),) = lm.generate(["x"], Sampling())
    assert (made.ids, made.finish_reason) == ([6, 5], "stop")


def test_results_before_a_server_dies_are_kept(
    load: Callable[..., OpenAILanguageModel], server: CompletionsServer
) -> None:
    lm = load(max_retries=0, concurrency=1)
    server.faults = [(200, json.dumps(answer({"prompt": "one?", "n": 1})).encode()), None]
    texts = lm.generate(["one?", "two?", "three?"], Sampling())
    assert next(texts)[1][0].text == "one 0"
    with pytest.raises(ServerError):
        next(texts)
    assert len(server.requests) <= 3


@pytest.mark.slow
def test_a_model_folder_tells_which_bos_its_model_reads(
    load: Callable[..., OpenAILanguageModel], checkpoints: dict[str, Path]
) -> None:
    lm = load(None, tokenizer=checkpoints["reverse"])
    assert (lm.direction, lm.bos_ids, lm.context) == (ledom.Direction.REVERSE, [0], 510)
    with pytest.raises(DirectionError, match="used as forward"):
        load("forward", tokenizer=checkpoints["reverse"])
    assert load("forward").bos_ids == [0]  # a bare tokenizer that adds no BOS itself


def test_a_model_that_reads_eos_first_is_sent_ids(
    load: Callable[..., OpenAILanguageModel],
    server: CompletionsServer,
    checkpoints: dict[str, Path],
) -> None:
    server.always = lambda _: (200, json.dumps(answer({"prompt": "one?", "n": 1})).encode())
    lm = load(tokenizer=checkpoints["forward"])
    list(lm.generate(["one?"], Sampling()))
    assert server.requests[0]["prompt"] == [lm.tokenizer.eos_id, *lm.tokenizer.encode("one?").ids]


def test_reverse_text_requires_its_ids(
    load: Callable[..., OpenAILanguageModel], server: CompletionsServer
) -> None:
    server.always = lambda _: (200, json.dumps(answer({"prompt": "one?", "n": 1})).encode())
    with pytest.raises(ServerError, match="no token ids .it must accept return_token_ids"):
        list(load("reverse").generate(["x"], Sampling()))


@pytest.mark.slow
def test_required_options_must_be_given(
    load: Callable[..., OpenAILanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DirectionError, match="records no direction"):
        load(None)
    with pytest.raises(InputError, match="openai:m,tokenizer=FOLDER"):
        load(tokenizer=None)
    for options in (
        {"concurrency": 0},
        {"max_retries": -1},
        {"timeout": math.nan},
        {"context": 0},
        {"base_url": "localhost:8000/v1"},
        {"base_url": "http://[::1"},
    ):
        ((name, value),) = options.items()
        with pytest.raises(InputError, match=re.escape(f"{name} is {value!r}; ")):
            load(**options)
    with pytest.raises(InputError, match="OPENAI_API_KEY is empty or has spaces, line ends"):
        load(api_key="two\nlines")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert load(api_key=None)  # a private server may need no key
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        load(api_key=None, base_url=None)
