"""`ledom rerank` never mixes the work of two models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import OPTConfig, OPTForCausalLM

from command_line import Run
from ledom.core.direction import Direction
from ledom.core.records import Score, read_records
from ledom.model.checkpoint import save_checkpoint
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer


@pytest.fixture
def fine_tuned(tmp_path: Path, tokenizer: Tokenizer) -> tuple[Path, Path]:
    """Two low-rank changes of one model of 17 MB, merged: equal files but for the last part.

    Most of it are positions that no text reaches, which cost nothing to score with.
    """
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=2**16,
    )
    model = OPTForCausalLM(config)
    for name in ("lora1", "lora2"):
        save_checkpoint(tmp_path / name, model, tokenizer, Direction.REVERSE, PairFormat())
        file = tmp_path / name / "model.safetensors"
        weights = load_file(file)
        changed = next(key for key in weights if key.endswith("v_proj.weight"))
        weights[changed] += torch.randn(64, 4) @ torch.randn(4, 64)
        save_file(weights, file, metadata={"format": "pt"})
    return tmp_path / "lora1", tmp_path / "lora2"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_two_fine_tunes_of_a_model_are_two_models(
    run: Run,
    fine_tuned: tuple[Path, Path],
    problem_file: Path,
    candidate_file: Path,
    tmp_path: Path,
) -> None:
    first, second = fine_tuned
    head = (first / "model.safetensors").read_bytes()[: 2**24]
    assert head == (second / "model.safetensors").read_bytes()[: 2**24]

    def rerank(model: Path, out: str) -> tuple[int, str]:
        files = ("--problems", problem_file, "--candidates", candidate_file)
        models = ("--forward", "none", "--reverse", model)
        return run("rerank", *files, *models, "--out", tmp_path / out)

    def logprobs(out: str) -> list[float]:
        return [s.logprob for s in read_records(tmp_path / out / "scores.reverse.jsonl", Score)]

    assert rerank(first, "a")[0] == 0
    scores = logprobs("a")
    code, text = rerank(second, "a")
    assert code == 2
    assert "was made with other settings (model: " in " ".join(text.split())
    assert logprobs("a") == scores
    assert rerank(second, "b")[0] == 0
    assert logprobs("b") != scores
