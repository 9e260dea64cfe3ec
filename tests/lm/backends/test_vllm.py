"""The vLLM backend beyond the contract: the arguments it passes and what vLLM refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

import ledom
from ledom.core.errors import CheckpointError, InputError
from ledom.lm.backends import vllm as backend
from ledom.lm.language_model import Sampling
from stand_ins import LLM, vllm_module


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", vllm_module())


def test_the_engine_gets_the_right_arguments(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["forward"]
    lm = ledom.load(f"vllm:{folder},tensor_parallel_size=2,max_model_len=100", dtype="bfloat16")
    assert LLM.made[-1] == {
        "model": str(folder),
        "dtype": "bfloat16",
        "skip_tokenizer_init": True,  # only ids go in and out
        "enable_prefix_caching": False,  # cached tokens have no log-probabilities
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.9,
        "max_model_len": 100,
    }
    assert lm.context == 98
    assert lm.fingerprint != ledom.load(f"vllm:{folder}").fingerprint


def test_int8_is_refused(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="forward: int8 is for ledom's own backend on a CPU"):
        ledom.load(f"vllm:{checkpoints['forward']}", dtype="int8")


def test_vllm_may_find_the_settings_of_quantized_weights_in_other_files(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """AutoGPTQ writes them to quantize_config.json, which transformers does not read."""
    folder = copytree(checkpoints["forward"], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("weight"))
    save_file(weights | {name: weights[name].to(torch.int32)}, folder / "model.safetensors")
    assert ledom.load(f"vllm:{folder}").num_parameters == sum(w.numel() for w in weights.values())


def test_a_length_must_be_a_number(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="forward: max_model_len is '4k'; give a number of tokens"):
        ledom.load(f"vllm:{checkpoints['forward']},max_model_len=4k")


@pytest.mark.parametrize("option", ["max_model_len=9999", "no_such_option=1"])
def test_a_refusal_by_vllm_gives_one_clear_line(checkpoints: dict[str, Path], option: str) -> None:
    with pytest.raises(CheckpointError, match=r"reverse: vLLM cannot load this: .+"):
        ledom.load(f"vllm:{checkpoints['reverse']},{option}")


def test_parts_are_returned_before_everything_is_done(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_TOGETHER", 4)
    lm = ledom.load(f"vllm:{checkpoints['forward']}")
    calls: list[int] = []
    real = LLM.generate

    def counted(self, prompts, *args, **kwargs):
        calls.append(len(prompts))
        return real(self, prompts, *args, **kwargs)

    monkeypatch.setattr(LLM, "generate", counted)
    texts = lm.generate(["1", "2", "3"], Sampling(max_tokens=2), num_samples=2)
    assert [next(texts)[0], calls] == [0, [4]]
    assert [place for place, _ in texts] == [1, 2]
    assert calls == [4, 2]
