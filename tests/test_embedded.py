"""The embedded pair: its size, its splits, and that it agrees with plain transformers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import ledom
from ledom.core.records import Problem
from ledom.data.problems import generate_problems
from ledom.lm import embedded_folder, unfamiliar_texts
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.language_model import Sampling, TokenSpan
from ledom.model.checkpoint import load_checkpoint
from ledom.rerank.candidates import question_hash
from ledom.rerank.explain import explain
from ledom.rerank.weights import TunedWeights

pytestmark = pytest.mark.slow

ASSETS = embedded_folder("forward").parent


@pytest.fixture(scope="module")
def pair() -> dict[str, HFLanguageModel]:
    """Both embedded models."""
    return {d: ledom.load("tiny", d, device="cpu") for d in ("forward", "reverse")}  # type: ignore[misc]


@pytest.fixture(scope="module")
def unseen() -> list[Problem]:
    return list(generate_problems("valid", 24, seed=11))


def test_the_pair_is_small_and_matched(pair: dict[str, HFLanguageModel]) -> None:
    forward, reverse = pair["forward"], pair["reverse"]
    assert forward.num_parameters == reverse.num_parameters <= 6_000_000
    assert forward.tokenizer.fingerprint == reverse.tokenizer.fingerprint
    assert forward.pair_format == reverse.pair_format
    files = [file for file in ASSETS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 24 * 2**20
    for direction in pair:
        stored = load_checkpoint(ASSETS / direction, dtype=torch.bfloat16).model
        assert {p.dtype for p in stored.parameters()} == {torch.bfloat16}


def test_the_weights_were_not_tuned_on_test_problems() -> None:
    tuned = TunedWeights.load(ASSETS / "weights.json")
    assert tuned.num_problems == len(tuned.problem_hashes) > 100
    # A question's fingerprint is the start of the hash that decides its split: all are in the
    # generator's tune split, 0.92 to 0.96.
    for problem in generate_problems("tune", 2):
        assert 0.92 <= share_of(question_hash(problem.question)) < 0.96
    assert all(0.92 <= share_of(known) < 0.96 for known in tuned.problem_hashes)
    tuned.refuse_overlap(generate_problems("test", 2))


def share_of(fingerprint: str) -> float:
    return int(fingerprint, 16) / 16.0 ** len(fingerprint)


@torch.no_grad()
def test_reverse_logprobs_equal_plain_transformers(
    pair: dict[str, HFLanguageModel], unseen: list[Problem]
) -> None:
    """On ids flipped by hand: to 1e-5 in fp64, and in fp32 as closely as rounding allows."""
    folder = ASSETS / "reverse"
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    doubles, lm = HFLanguageModel(folder, dtype=torch.float64), pair["reverse"]
    errors: dict[str, list[float]] = {"ours": [], "plain": []}
    for problem in unseen[:8]:
        text = lm.pair_format.render(problem.question, problem.solution or "")
        ids = lm.add_special_tokens(lm.tokenizer.encode(text).ids)
        expected = _logprobs_by_hand(exact, ids)
        target = TokenSpan(ids, 0, len(ids) - 1)
        np.testing.assert_allclose(doubles.logprobs([target])[0], expected, atol=1e-5)
        errors["ours"] += np.abs(lm.logprobs([target])[0] - expected).tolist()
        errors["plain"] += np.abs(np.subtract(_logprobs_by_hand(plain, ids), expected)).tolist()
    assert np.quantile(errors["ours"], 0.99) < 1e-5
    assert max(errors["ours"]) < max(1e-5, 2 * max(errors["plain"]))


def _logprobs_by_hand(model: PreTrainedModel, ids: list[int]) -> list[float]:
    flipped = ids[::-1]
    logprobs = model(torch.tensor([flipped])).logits[0].log_softmax(-1)
    return [logprobs[i - 1, flipped[i]].item() for i in range(1, len(ids))][::-1]


@torch.no_grad()
def test_greedy_output_is_the_most_likely_in_plain_transformers(
    pair: dict[str, HFLanguageModel], unseen: list[Problem]
) -> None:
    """One pass over each text shows that every token, and the end, is the most likely next one."""
    lm = pair["forward"]
    plain = AutoModelForCausalLM.from_pretrained(ASSETS / "forward", dtype=torch.float32).eval()
    prompts = [lm.pair_format.before_solution(problem.question) for problem in unseen[:10]]
    made = dict(lm.generate(prompts, Sampling(temperature=0, max_tokens=200)))
    eos = lm.tokenizer.eos_id
    for place, prompt in enumerate(prompts):
        context, written = [eos, *lm.tokenizer.encode(prompt).ids], made[place][0].ids
        logits = plain(torch.tensor([context + written])).logits[0]
        likeliest = logits.argmax(-1)[len(context) - 1 :].tolist()
        ended = made[place][0].finish_reason == "stop"
        assert len(written) == 200 or ended
        assert [*written, eos][: len(written) + ended] == likeliest[: len(written) + ended]


def test_the_pair_writes_solutions_forward_and_questions_backward(
    pair: dict[str, HFLanguageModel], unseen: list[Problem]
) -> None:
    forward, reverse = pair["forward"], pair["reverse"]
    sampling = Sampling(temperature=0, max_tokens=256)
    prompts = [forward.pair_format.before_solution(problem.question) for problem in unseen]
    solutions = [texts[0].text for _, texts in forward.generate(prompts, sampling)]
    assert sum("\n#### " in solution for solution in solutions) >= len(unseen) * 0.9
    endings = [reverse.pair_format.after_question(problem.solution or "") for problem in unseen]
    questions = [texts[0] for _, texts in reverse.generate(endings, sampling)]
    assert sum(q.finish_reason == "stop" for q in questions) >= len(unseen) * 0.8
    assert sum("?" in q.text for q in questions) >= len(unseen) * 0.9


def test_the_reverse_model_prefers_a_questions_own_solution(
    pair: dict[str, HFLanguageModel], unseen: list[Problem]
) -> None:
    """log P(x|y) is higher for a question's own solution than for that of the next problem."""
    lm = pair["reverse"]
    own = [(p.question, p.solution or "") for p in unseen]
    other = [(p.question, q.solution or "") for p, q in pairwise(unseen)]
    sums = []
    for pairs in (own[:-1], other):
        encoded = lm.pair_format.encode(lm.tokenizer, pairs, *lm.special_ids)
        targets = [TokenSpan(pair.ids, 0, pair.question[1]) for pair in encoded]
        sums.append([float(values.sum()) for values in lm.logprobs(targets)])
    assert all(mine > theirs for mine, theirs in zip(*sums, strict=True))


def test_the_package_ships_the_pair() -> None:
    """The package data in pyproject.toml cover every file of the pair."""
    names = {str(file.relative_to(ASSETS)) for file in ASSETS.rglob("*") if file.is_file()}
    for direction in ("forward", "reverse"):
        assert {f"{direction}/config.json", f"{direction}/tokenizer.json"} <= names
        assert f"{direction}/model.safetensors" in names
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert '"lm/embedded/**/*"' in text


def test_a_text_unlike_the_training_data_is_reported(
    pair: dict[str, HFLanguageModel], unseen: list[Problem]
) -> None:
    """Unseen problems from the templates are familiar; other questions are not."""
    reverse = pair["reverse"]
    for problem in unseen[:8]:
        assert explain(problem, [problem.solution or ""], reverse).warning is None
    pens = Problem(id="pens", question="Ava has 3 pens and buys 4. How many?")
    warning = explain(pens, ["3 + 4 = 7", "3 - 4 = 1"], reverse).warning
    assert "unlike anything that the embedded model was trained on (loss 8." in warning
    for problem in generate_problems("test", 4, seed=3, held_out=True):
        assert explain(problem, [problem.solution or ""], reverse).warning


def test_a_prompt_unlike_the_training_data_is_reported(
    pair: dict[str, HFLanguageModel], unseen: list[Problem]
) -> None:
    for problem in unseen[:8]:
        half = problem.question[: len(problem.question) // 2]
        assert unfamiliar_texts(pair["forward"], [half, problem.question]) is None
        assert unfamiliar_texts(pair["reverse"], [f"\n\n{problem.solution}"]) is None
    for text in ("The weather is fine today.", "It was the best of times, it was the worst"):
        for lm in pair.values():
            warning = unfamiliar_texts(lm, [text]) or ""
            assert warning.startswith("unlike anything that the embedded model was trained on")
    assert unfamiliar_texts(pair["reverse"], ["", "#### 42"]) is None  # too short to tell
    for lm in pair.values():  # longer than the context
        assert "unlike anything" in (unfamiliar_texts(lm, ["Call me Ishmael. " * 200]) or "")
