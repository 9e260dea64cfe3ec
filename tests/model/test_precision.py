"""The precision a model computes in, and that int8 computes what it claims."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    LlamaPreTrainedModel,
    PreTrainedModel,
)

import ledom
from architectures import tiny
from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, InputError
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.engine.trunk import LlamaTrunk, Trunk, round_weights
from ledom.lm.language_model import Sampling, TokenSpan
from ledom.model import precision
from ledom.model.architectures import layer_matrices
from ledom.model.checkpoint import save_checkpoint
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer
from made import whole_text

TEXTS = ["Ava has 12 apples.\n\n12 + 3 = 15\n#### 15", "naïve café, 42", "7"]


@pytest.fixture(scope="module")
def folder(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["reverse"]


@pytest.fixture(scope="module")
def int8(folder: Path) -> HFLanguageModel:
    lm = ledom.load(folder, device="cpu", dtype="int8")
    assert isinstance(lm, HFLanguageModel)
    return lm


def plain(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def by_hand(model: Any, ids: list[int]) -> list[float]:
    """log P of all ids but the first, computed by transformers."""
    found = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [float(found[i, after]) for i, after in enumerate(ids[1:])]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="ledom")
    return lambda: [record.getMessage() for record in caplog.records]


def test_auto_is_float32_where_bf16_is_slow(
    folder: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: False)
    lm = ledom.load(folder, device="cpu")
    assert isinstance(lm, HFLanguageModel)
    assert (lm.model.dtype, lm.precision) == (torch.float32, "float32")
    assert said() == ["float32: this device is not faster in bfloat16"]


@pytest.mark.parametrize(("limit", "chosen"), [(1.0, "bfloat16"), (1e-9, "float32")])
@pytest.mark.slow
def test_auto_is_decided_by_the_error_in_a_trial(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], list[str]],
    limit: float,
    chosen: str,
) -> None:
    """The error equals that of transformers' own passes on the worse text, in model order."""
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "TOLERANCE", limit)
    lm = ledom.load(folder, device="cpu")
    assert isinstance(lm, HFLanguageModel)
    assert (lm.model.dtype, lm.precision) == (getattr(torch, chosen), chosen)
    exact, rough = (plain(folder, dtype) for dtype in (torch.float32, torch.bfloat16))
    errors = []
    for text in precision._TEXTS:
        ids = [lm.tokenizer.eos_id, *reversed(lm.tokenizer.encode(text).ids)][: lm.context]
        errors.append(np.abs(np.subtract(by_hand(exact, ids), by_hand(rough, ids))).mean())
    assert said() == [
        f"{chosen}: bfloat16 changes the log-probability of a token by {max(errors):.4f} nats on "
        f"average (limit: {limit})"
    ]
    named = ledom.load(folder, device="cpu", dtype=chosen)
    assert lm.fingerprint == named.fingerprint  # the precision counts, not how it was requested


@pytest.mark.slow
def test_auto_tests_more_than_english(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has large weights only for tokens that do not occur in English."""
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: True)
    model, tokenizer = plain(folder, torch.float32), Tokenizer.load(folder)
    english = {id for text in precision._TEXTS[:1] for id in tokenizer.encode(text).ids}
    others = [id for id in range(tokenizer.vocab_size) if id not in english]
    for weight in model.parameters():  # bf16 values, so rounding changes nothing
        weight.data.zero_()
    for norm in (m for name, m in model.named_parameters() if name.endswith("norm.weight")):
        norm.data.fill_(1.0)
    save_checkpoint(tmp_path, model, tokenizer, Direction.REVERSE, PairFormat())
    assert ledom.load(tmp_path, device="cpu").precision == "bfloat16"  # uniform: nothing to round
    width = model.config.hidden_size
    drawn = torch.randn(len(others), width, generator=torch.Generator().manual_seed(0))
    model.get_input_embeddings().weight.data[others] = drawn
    if not model.config.tie_word_embeddings:
        model.get_output_embeddings().weight.data[others] = drawn
    save_checkpoint(tmp_path, model, tokenizer, Direction.REVERSE, PairFormat())
    assert ledom.load(tmp_path, device="cpu").precision == "float32"
    monkeypatch.setattr(precision, "_TEXTS", precision._TEXTS[:1])
    assert ledom.load(tmp_path, device="cpu").precision == "bfloat16"


@pytest.mark.slow
def test_auto_is_float32_for_a_model_that_does_not_run_in_bf16(
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], list[str]],
) -> None:
    """XLNet creates parts of its input in fp32 whatever its weights, so it cannot run in bf16."""
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: True)
    folder = tmp_path / "model"
    save_checkpoint(folder, tiny("xlnet", tokenizer), tokenizer, Direction.REVERSE, PairFormat())
    with pytest.raises(CheckpointError, match="sees later tokens"):
        ledom.load(folder, device="cpu")
    assert said()[0].startswith("float32: the model does not run in bfloat16 (")


@pytest.mark.slow
def test_auto_is_the_only_precision_in_which_quantized_weights_run(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of torchao's weights keep the precision in which they were saved."""
    model = tiny("llama", tokenizer)
    half = torch.bfloat16
    save_checkpoint(tmp_path, model, tokenizer, Direction.REVERSE, PairFormat(), half)
    forward = LlamaForCausalLM.forward

    @wraps(forward)
    def in_half(self: Any, *args: Any, **options: Any) -> Any:
        if self.dtype != half:
            self.lm_head.scale = torch.nn.Parameter(torch.ones(1, dtype=half))  # as of NVFP4
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        return forward(self, *args, **options)

    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: True)
    monkeypatch.setattr(LlamaPreTrainedModel, "is_quantized", True, raising=False)
    monkeypatch.setattr(LlamaForCausalLM, "forward", in_half)
    assert ledom.load(tmp_path, device="cpu").precision == "bfloat16"
    with pytest.raises(CheckpointError, match="the same dtype.*; try bfloat16, or give plain ones"):
        ledom.load(tmp_path, device="cpu", dtype="float32")


@pytest.mark.parametrize("kept", ["bfloat16", "float16", "float32"])
def test_half_precision_is_kept_on_a_gpu(kept: str) -> None:
    """Weights stored in fp32 go through the trial, which this model fails. They are loaded once."""
    asked = []

    def load(dtype: Any) -> Any:
        asked.append("auto" if dtype == "auto" else "")
        name = kept if dtype == "auto" else "float32"
        return SimpleNamespace(model=SimpleNamespace(dtype=getattr(torch, name)))  # cannot run

    checkpoint, name = precision.load_in("auto", torch.device("cuda"), load)
    assert (name, asked) == (kept, ["auto"])
    assert checkpoint.model.dtype == getattr(torch, kept)


def rounded_product(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x * weight, both as integers."""
    w_scale, x_scale = (
        values.abs().amax(-1, keepdim=True).clamp(min=1e-30) / largest
        for values, largest in ((weight, 63), (x, 127))
    )
    whole = (x / x_scale).round().double() @ (weight / w_scale).round().double().T
    return (whole * x_scale * w_scale.T).float()


@pytest.mark.slow
def test_int8_equals_integers_in_every_matmul(int8: HFLanguageModel, folder: Path) -> None:
    """Compares with transformers' own pass with rounded inputs and weights; both round the same
    way except for ties."""
    model = plain(folder, torch.float32)
    matrices = layer_matrices(model)
    linears = [module for module in model.modules() if id(getattr(module, "weight", 0)) in matrices]
    for linear in [*linears, model.get_output_embeddings()]:
        linear.forward = partial(rounded_product, linear.weight.detach())
    exact = ledom.load(folder, device="cpu", dtype="float32")
    for text in TEXTS:
        target = whole_text(int8, text)
        found = int8.logprobs([target])[0]
        expected = by_hand(model, list(target.ids)[::-1])[::-1]
        np.testing.assert_allclose(found, expected, atol=2e-3)
        difference = np.abs(found - exact.logprobs([target])[0])
        assert 0 < difference.mean() < 0.1  # nats; the model is random and far from certain


def test_int8_scores_do_not_depend_on_their_batch(int8: HFLanguageModel) -> None:
    targets = [whole_text(int8, text) for text in TEXTS]
    together = int8.logprobs(targets)
    for target, values in zip(targets, together, strict=True):
        np.testing.assert_allclose(int8.logprobs([target])[0], values, atol=2e-3)


def test_int8_generates_the_tokens_it_scores_highest(int8: HFLanguageModel) -> None:
    ((_, (made,)),) = int8.generate(["12 apples"], Sampling(temperature=0, max_tokens=6))
    ids = [*made.ids, *int8.tokenizer.encode("12 apples").ids, int8.tokenizer.eos_id]
    likeliest = int8.alternatives(TokenSpan(ids, 0, len(made.ids)), 1)
    assert [best[0] for (best,) in likeliest] == made.ids


def test_int8_scores_are_not_mixed_with_others(int8: HFLanguageModel, folder: Path) -> None:
    exact = ledom.load(folder, device="cpu", dtype="float32")
    assert int8.fingerprint == f"{exact.fingerprint}-int8"


def test_unsupported_uses_of_int8_are_refused(int8: HFLanguageModel) -> None:
    with pytest.raises(InputError, match="int8 is for the CPU, not for cuda; give bfloat16"):
        precision.load_in("int8", torch.device("cuda"), lambda dtype: pytest.fail("loaded"))
    message = "a: int8 is for Llama-shaped models .* this LlamaForCausalLM is not; give float32"
    for trunk, exact in ((Trunk(int8.model), True), (LlamaTrunk(int8.model), False)):
        with pytest.raises(CheckpointError, match=message):
            round_weights(trunk, exact, "a")
