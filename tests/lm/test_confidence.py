"""Confidence: computed by hand, and every backend compared with plain transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ledom
from command_line import Run
from ledom.core.errors import InputError
from ledom.core.records import CONFIDENCE, Candidate, read_records
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.backends.vllm import VLLMLanguageModel
from ledom.lm.confidence import (
    Confidence,
    ConfidenceSettings,
    confidence_of,
    of_alternatives,
)
from ledom.lm.language_model import Generation, LanguageModel, Sampling
from ledom.rerank.candidates import EXTERNAL_LABELS
from ledom.text.tokenizer import Tokenizer
from stand_ins import CompletionsServer, PlainModel, vllm_module

SETTINGS = ConfidenceSettings(top_k=3, window=4)
SAMPLING = Sampling(temperature=0.8, max_tokens=12, seed=1, confidence=SETTINGS)
PROMPT = "Ava has 2 pens.\n\n"


def test_windows_match_values_by_hand() -> None:
    assert of_alternatives([{1: -1.0, 2: -2.0, 3: -6.0}], SETTINGS) == Confidence(3.0, 3.0, 3.0)
    # Windows of 2: (5 + 1) / 2 = 3, (1 + 2) / 2 = 1.5, (2 + 8) / 2 = 5
    assert confidence_of([5.0, 1.0, 2.0, 8.0], 2) == Confidence(4.0, 5.0, 1.5)
    assert confidence_of([5.0, 1.0], 64) == Confidence(3.0, 3.0, 3.0)
    assert confidence_of([], 64) is None
    # The sampled token, which a server adds, is not among the three most likely.
    rows = [{"a": -1.0, "b": -2.0, "c": -3.0, "drawn": -9.0}]
    assert of_alternatives(rows, SETTINGS) == Confidence(2.0, 2.0, 2.0)


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"window": 0}])
def test_settings_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is 0; it must be at least 1"):
        ConfidenceSettings(**wrong)


@pytest.mark.parametrize("least", [float("nan"), (1.0, float("nan"))])
def test_a_threshold_is_a_number(least: float | tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="least is .*nan.*; give a number"):
        ConfidenceSettings(least=least)


def expected(plain: PlainModel, prompt: list[int], text: Generation) -> Confidence | None:
    """The confidence from plain transformers' log-probabilities at every sampled token."""
    ids = [*text.ids, *([plain.tokenizer.eos_id] if text.finish_reason == "stop" else [])]
    with torch.no_grad():
        logits = plain.model(torch.tensor([[*prompt, *ids]])).logits[0]
    top = logits.log_softmax(-1)[len(prompt) - 1 : -1].topk(3).values
    return confidence_of((-top.mean(-1)).tolist(), 4)


def numbers(confidence: Confidence | None) -> tuple[float, float, float]:
    assert confidence is not None
    return confidence.mean, confidence.tail, confidence.lowest


@pytest.mark.slow
@pytest.mark.parametrize("backend", [ledom.load, VLLMLanguageModel])
def test_confidence_equals_that_of_plain_transformers(
    backend: Callable[[Path], LanguageModel],
    checkpoints: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", vllm_module())
    lm, plain = backend(checkpoints["forward"]), PlainModel(checkpoints["forward"])
    prompt = lm.prompt_ids(PROMPT, SAMPLING.max_tokens)
    ((_, texts),) = lm.generate([PROMPT], SAMPLING, num_samples=2)
    for text in texts:
        right = expected(plain, prompt, text)
        assert numbers(text.confidence) == pytest.approx(numbers(right), rel=1e-4)
    ((_, (unasked,)),) = lm.generate([PROMPT], Sampling(max_tokens=4))
    assert unasked.confidence is None


@pytest.mark.slow
def test_confidence_from_a_server(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["forward"]
    plain = PlainModel(folder)
    server = CompletionsServer(plain.complete)
    try:
        lm = ledom.load(f"openai:m,base_url={server.url},tokenizer={folder}", "forward")
        ((_, texts),) = lm.generate([PROMPT], SAMPLING, num_samples=2)
        assert server.requests[0]["logprobs"] == 3
        # The sampled ids differ from the ids of the text, so ask for the same ids again.
        drawn = plain.complete(server.requests[0] | {"return_token_ids": True})["choices"]
        prompt = drawn[0]["prompt_token_ids"]
        for text, choice in zip(texts, drawn, strict=True):
            ids = choice["token_ids"]
            rows = plain.alternatives(prompt, ids, 3)
            values = [-sum(sorted(row.values())[-3:]) / 3 for row in rows]
            right = confidence_of(values, 4)
            assert text.confidence is not None
            assert right is not None
            assert text.confidence.lowest == pytest.approx(right.lowest, rel=1e-4)
            assert text.confidence.tail == pytest.approx(right.tail, rel=1e-4)
    finally:
        server.close()


@pytest.mark.slow
def test_a_text_ends_where_its_latest_window_is_not_confident(checkpoints: dict[str, Path]) -> None:
    """Draws equal those without a threshold, cut after the first window with a mean below it."""
    lm, plain = ledom.load(checkpoints["forward"]), PlainModel(checkpoints["forward"])
    prompt = lm.prompt_ids(PROMPT, SAMPLING.max_tokens)
    ((_, whole),) = lm.generate([PROMPT], SAMPLING, num_samples=6)
    least = sorted(text.confidence.lowest for text in whole if text.confidence)[3]
    assert SAMPLING.confidence is not None
    strict = replace(SAMPLING, confidence=replace(SAMPLING.confidence, least=least + 1e-4))
    ((_, stopped),) = lm.generate([PROMPT], strict, num_samples=6)
    ends = 0
    for text, full in zip(stopped, whole, strict=True):
        ids = [*full.ids, *[lm.tokenizer.eos_id] * (full.finish_reason == "stop")]
        rows = plain.alternatives(prompt, ids, 3)
        values = [-sum(sorted(row.values())[-3:]) / 3 for row in rows]
        means = [sum(values[i : i + 4]) / 4 for i in range(len(values) - 3)]
        below = [i + 4 for i, mean in enumerate(means) if mean < least + 1e-4]
        assert text.ids == (full.ids[: below[0]] if below else full.ids)
        if below and below[0] <= len(full.ids):
            assert text.finish_reason == "unsure"
            ends += 1
    assert 0 < ends < 6


@pytest.mark.slow
def test_each_prompt_may_have_its_own_threshold(checkpoints: dict[str, Path]) -> None:
    lm = ledom.load(checkpoints["forward"])
    assert SAMPLING.confidence is not None
    (unsure, sure), prompts = (1e6, 0.0), [PROMPT, "7"]

    def made(which: list[str], least: float | tuple[float, ...]) -> list[list[Generation]]:
        strict = replace(SAMPLING, confidence=replace(SAMPLING.confidence, least=least))
        found = dict(lm.generate(which, strict, num_samples=3))
        return [found[place] for place in range(len(which))]

    together = made(prompts, (unsure, sure))
    assert together == [*made(prompts[:1], unsure), *made(prompts[1:], sure)]
    assert {text.finish_reason for text in together[0]} == {"unsure"}
    assert "unsure" not in {text.finish_reason for text in together[1]}
    with pytest.raises(InputError, match="least has 3 numbers for 2 prompts"):
        made(prompts, (1.0, 1.0, 1.0))


def test_a_server_cannot_stop_a_text(tokenizer: Tokenizer) -> None:
    lm = FakeLanguageModel(tokenizer)
    lm.reports_confidence = True  # type: ignore[misc]
    strict = Sampling(confidence=ConfidenceSettings(least=1.0))
    with pytest.raises(InputError, match="fake: this backend cannot stop a text"):
        list(lm.generate([PROMPT], strict))


def test_a_backend_without_confidence_refuses(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="fake: this backend does not report confidence"):
        list(FakeLanguageModel(tokenizer).generate([PROMPT], SAMPLING))


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_later_samples_stop_below_the_threshold_of_the_first_quarter(
    run: Run, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Of eight samples, two set the threshold; of the others, those below it are cut off."""
    size = ("--num-problems", "2", "--samples", "8", "--max-tokens", "20")
    models = ("--forward", checkpoints["forward"], "--reverse", "none")
    command = ("rerank", *size, *models, "--confidence", "5", "--window", "4")
    assert run(*command, "--out", tmp_path / "whole")[0] == 0
    assert run(*command, "--stop-unsure", "1", "--out", tmp_path / "out")[0] == 0
    whole, found = (
        read_records(tmp_path / name / "candidates.jsonl", Candidate) for name in ("whole", "out")
    )
    broken = 0
    for problem_id in {c.problem_id for c in whole}:
        own = [c for c in whole if c.problem_id == problem_id and not c.greedy]
        least = min(c.external_score(CONFIDENCE[2]) for c in own[:2])
        cut = [c for c in found if c.problem_id == problem_id and not c.greedy]
        for full, one in zip(own, cut, strict=True):
            below = full.index >= 2 and full.external_score(CONFIDENCE[2]) < least - 1e-4
            assert (one.finish_reason == "unsure") == below
            if below:
                assert full.text.startswith(one.text)
            broken += below
    assert broken
    notes = (tmp_path / "out" / "report.md").read_text()
    assert f"candidates broken off when the model became unsure: {broken}, after" in notes


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_candidates_carry_confidence_and_reports_choose_by_it(
    run: Run, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    size = ("--num-problems", "2", "--samples", "2", "--max-tokens", "20")
    models = ("--forward", checkpoints["forward"], "--reverse", "none")
    assert run("rerank", *size, *models, "--confidence", "5", "--out", tmp_path)[0] == 0
    drawn = read_records(tmp_path / "candidates.jsonl", Candidate)
    for candidate in drawn:
        mean, tail, lowest = (candidate.external_score(name) for name in CONFIDENCE)
        assert lowest <= min(mean, tail) + 1e-4
    report = (tmp_path / "report.md").read_text()
    assert all(EXTERNAL_LABELS[name] in report for name in CONFIDENCE)
    assert not any(name in report for name in CONFIDENCE)
