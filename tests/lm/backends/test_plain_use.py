"""The model inside a backend works like any transformers model, whatever ledom did with it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import ledom
from architectures import tiny
from ledom.core.direction import Direction
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.language_model import Sampling, TokenSpan
from ledom.model.checkpoint import save_checkpoint
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "factor": 4.0,
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 16,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "compiled kernels": ("llama", {}),
    "its own modules": ("qwen3", {}),
    "its own pass": ("bloom", {}),
    "dynamic NTK": ("qwen3", {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}),
    "LongRoPE": (
        "phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 16, "pad_token_id": 0},
    ),
}


@pytest.mark.parametrize("inside", ["inference mode", "no mode"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_it_runs_trains_and_generates(
    kind: str, inside: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    architecture, settings = KINDS[kind]
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "head_dim": 8}
    model = tiny(architecture, tokenizer, **(sizes | settings))
    model.generation_config.pad_token_id = 0
    save_checkpoint(tmp_path / "m", model, tokenizer, Direction.FORWARD, PairFormat())
    lm, plain = ledom.load(tmp_path / "m"), AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert isinstance(lm, HFLanguageModel)
    text = [*range(5, 5 + min(lm.context, 24))]

    def score() -> list[float]:
        with torch.inference_mode(inside == "inference mode"):
            list(lm.generate(["12"], Sampling(max_tokens=4)))
            return [float(lm.logprobs([TokenSpan(ids, 1, 9)])[0].sum()) for ids in (text, text[:9])]

    before, identity = score(), lm.identity
    rows = torch.tensor([text[:10], text[3:13]])
    mask = torch.ones_like(rows)
    mask[0, :4] = 0  # left padding
    given = {"input_ids": rows, "attention_mask": mask}
    found, expected = (m.generate(**given, max_new_tokens=6) for m in (lm.model, plain))
    assert torch.equal(found, expected)
    ours, theirs = (m(**given, labels=rows) for m in (lm.model, plain))
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    ours.loss.backward()
    assert score() == pytest.approx(before, abs=1e-4)
    assert lm.identity == identity


@pytest.mark.slow
def test_a_replaced_module_keeps_nothing_from_earlier_texts(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = tiny("qwen3", tokenizer, hidden_size=32, num_attention_heads=4, head_dim=8)
    save_checkpoint(tmp_path / "m", model, tokenizer, Direction.FORWARD, PairFormat())
    lm = HFLanguageModel(tmp_path / "m")
    config = deepcopy(lm.model.config)
    config.rope_parameters, config.max_position_embeddings = DYNAMIC, 16
    rotary = lm.model.base_model.rotary_emb
    lm.model.base_model.rotary_emb = type(rotary)(config)
    short, long = ([TokenSpan([*range(5, 5 + n)], 1, n)] for n in (20, 32))
    expected = lm.logprobs(short)[0]
    lm.logprobs(long)
    assert lm.logprobs(short)[0].tolist() == expected.tolist()


@pytest.mark.slow
@torch.no_grad()
def test_a_sliding_window_set_after_loading_counts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The test made at load is repeated, because ledom's attention has no windows."""
    model = tiny("mistral", tokenizer, sliding_window=None)
    save_checkpoint(tmp_path / "m", model, tokenizer, Direction.FORWARD, PairFormat())
    lm, ids = HFLanguageModel(tmp_path / "m", "forward", "cpu", "float32"), [*range(5, 45)]
    found = []
    for window in (None, 8):
        lm.model.config.sliding_window = window
        logprobs = lm.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        found.append(torch.from_numpy(lm.logprobs([TokenSpan(ids, 1, len(ids))])[0]))
        torch.testing.assert_close(found[-1], expected, atol=1e-4, rtol=0)
    assert (found[0] - found[1]).abs().max() > 0.01
