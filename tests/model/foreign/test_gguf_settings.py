"""Settings in GGUF files that transformers does not read for an architecture, or reads wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from imported import assert_logits_are_kept
from ledom.core.errors import CheckpointError
from ledom.model.foreign.importer import ImportOptions, import_model

VOCAB = 260
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
THETA = {"rope_type": "default", "rope_theta": 300.0}


def write(file: Path, kind: str, keys: dict[str, Any], **config: Any) -> Any:
    """Write a tiny random model like llama.cpp's converter; returns the transformers model."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    shape = AutoConfig.for_model({"gemma3": "gemma3_text"}.get(kind, kind), **SHAPE | config)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32).eval()
    writer = gguf.GGUFWriter(file, kind)
    sizes = {
        "context_length": 256,
        "block_count": shape.num_hidden_layers,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "vocab_size": VOCAB,
    }
    for key, value in (sizes | keys).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](f"{kind}.{key}", value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "a"])
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([2, 3, 3, *[6] * 256, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, shape.num_hidden_layers)
    for key, value in model.state_dict().items():
        if key != "lm_head.weight":
            one = "gemma" in kind and "norm" in key  # llama.cpp adds it to the norms' weights
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(name, np.ascontiguousarray(value + 1 if one else value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


RMS = {"attention.layer_norm_rms_epsilon": 1e-2}
GEMMA = RMS | {"attention.key_length": 16, "attention.sliding_window": 8}
GEMMAS = {"rms_norm_eps": 1e-2, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
ROPES = {"full_attention": THETA | {"rope_theta": 400.0}, "sliding_attention": THETA}


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "keys", "config"),
    [
        (
            "starcoder2",
            {"rope.freq_base": 300.0, "attention.layer_norm_epsilon": 1e-2},
            {"rope_parameters": THETA, "norm_epsilon": 1e-2},
        ),
        # Phi-4 writes 0 for no window
        (
            "phi3",
            RMS | {"rope.dimension_count": 8, "attention.sliding_window": 0},
            {"rms_norm_eps": 1e-2, "original_max_position_embeddings": 256},
        ),
        ("gemma2", GEMMA, GEMMAS | {"hidden_activation": "gelu_pytorch_tanh"}),
        (
            "gemma3",
            GEMMA | {"rope.freq_base": 400.0, "rope.freq_base_swa": 300.0},
            GEMMAS | {"num_hidden_layers": 6, "layer_types": None, "rope_parameters": ROPES},
        ),
    ],
)
def test_settings_are_kept(
    tmp_path: Path, kind: str, keys: dict[str, Any], config: dict[str, Any]
) -> None:
    """The logits equal those of the original model."""
    model = write(tmp_path / "x.gguf", kind, keys, **config)
    assert_logits_are_kept(tmp_path / "x.gguf", model, num_tokens=100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "config", "reason"),
    [
        ({"logit_scale": 0.5}, {}, r"its logit_scale is 0\.5, which ledom does not read; give the"),
        ({"attention.scale": 0.5}, {}, "its attention.scale is"),
        (
            {},
            {"head_dim": 16},
            r"'model.layers.0.self_attn.k_norm.weight' has the shape \[16\], .*",
        ),
    ],
)
def test_other_settings_are_refused(
    tmp_path: Path, keys: dict[str, Any], config: dict[str, Any], reason: str
) -> None:
    write(tmp_path / "x.gguf", "qwen3", RMS | keys, **{"head_dim": 128} | config)
    with pytest.raises(CheckpointError, match=reason):
        import_model(str(tmp_path / "x.gguf"), tmp_path / "out", ImportOptions("forward"))
