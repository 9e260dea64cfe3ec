"""Tiny random models of every architecture that transformers has for causal language modeling."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ledom.text.tokenizer import Tokenizer

__all__ = ["NOT_BUILT", "REFUSED", "tiny"]

REFUSED = {
    **dict.fromkeys(("cpmant", "prophetnet", "xlnet"), "sees later tokens"),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "on token ids alone"),
    **dict.fromkeys(("emu3", "mllama"), "no causal language model of this architecture"),
}
"""Architectures that are refused at load, with the words of the refusal."""
NOT_BUILT = {
    "dots3_note": "its image tower has no tiny shape; its decoder is that of dots3_note_text",
    "gemma3n": "its image tower needs timm; its decoder is that of gemma3n_text",
    **dict.fromkeys(
        ("musicgen", "musicgen_melody"), "transformers cannot build its own entry of the mapping"
    ),
}
_MOST_PARAMETERS = 500_000

_SIZES: dict[str, Any] = {  # under every name that some architecture uses for them
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim"), 32),
    "intermediate_size": 48,
    **dict.fromkeys(("num_hidden_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_decoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "feed_forward_size"), 32),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"), 4),
    "num_experts_per_tok": 2,
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "first_k_dense_replace"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_d_state"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("mamba_num_heads", "mamba_head_dim", "ssm_state_size"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 16),  # texts are longer: they cross chunks
    **dict.fromkeys(("swa_num_attention_heads", "index_n_heads"), 4),
    "swa_num_key_value_heads": 2,
    **dict.fromkeys(("swa_head_dim", "index_head_dim", "global_head_dim", "dim_head"), 16),
    **dict.fromkeys(("hc_lowrank", "o_lora_rank", "router_hidden_size"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("shared_experts_intermediate_size", "dense_intermediate_size"), 16),
    **dict.fromkeys(("dff", "dim_ff", "mlp_dim", "input_embedding_size"), 32),
    **dict.fromkeys(("output_embedding_size", "output_proj_dims", "backbone_hidden_size"), 32),
    # Vision and audio towers, which text does not use.
    **dict.fromkeys(("num_blocks", "output_channels", "nemo_conv_channels"), 1),
    **dict.fromkeys(("ext_pw_out_channel", "depthwise_separable_out_channel"), 32),
    "position_embedding_size": 16,
    "hidden_size_per_layer_input": 8,
    **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop", "residual_dropout"), 0.0),
    **dict.fromkeys(("dropout", "activation_dropout", "dropout_p"), 0.0),
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "hidden_dropout_prob"), 0.0),
    **dict.fromkeys(("attention_probs_dropout_prob", "attn_dropout", "layerdrop"), 0.0),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), None),
}
_NULL = ("bos_token_id", "forced_bos_token_id", "forced_eos_token_id")  # null means no such token
_LATENT: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": None}
_DECODER = {"is_decoder": True}
_LAYER_TYPES = ("full_attention", "sliding_attention")
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_MIXED_BLOCKS = ["linear_attention", "hybrid"]
_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
_OTHER_SIZES: dict[str, dict[str, Any]] = {  # None: the architecture's default
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _LATENT
    ),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "sarvam_mla", "youtu"), _LATENT),
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text"), _DECODER
    ),
    **dict.fromkeys(("electra", "ernie", "megatron-bert", "rembert", "roberta"), _DECODER),
    **dict.fromkeys(
        ("roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl"), _DECODER
    ),
    **dict.fromkeys(("granitemoehybrid", "qwen3_5_moe_text"), _MIXED),
    **dict.fromkeys(("qwen3_5_text", "qwen3_next"), _MIXED),
    "blt": {"encoder_hash_byte_group_vocab": 50, "use_cache": False},
    "blt_local_decoder": {"hidden_size_global": 32},
    "blt_local_encoder": {"hidden_size_global": 32},
    "bailing_hybrid": {"layer_group_size": 2, "num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": {**_DECODER, "attention_type": "original_full"},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(_LAYER_TYPES, _ROPE)},
    "cwm": {"bos_token_id": 0},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dory": {"n_input_layers": 1, "n_output_layers": 1, "num_hidden_layers": 4},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "emu3_text_model": {"bos_token_id": 0},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 400},
    "gemma4_text": {"vocab_size_per_layer_input": 400},
    "gemma4_assistant": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "num_hidden_layers": 2,
            "hidden_size": 32,
            "vocab_size": 400,
            "intermediate_size": 48,
            "model_type": "gemma4_text",
            "vocab_size_per_layer_input": 0,
        }
    },
    "gemma4_unified_vision": {"mm_embed_dim": 32, "mm_posemb_size": 4, "output_proj_dims": 32},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_hidden_layers": None,
        "window_size": 8,
    },
    "gptj": {"rotary_dim": 4},
    "inkling2_loop_text": {"unpadded_vocab_size": 400},
    "inkling2_text": {"unpadded_vocab_size": 400},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "kimi_linear": {**_MIXED, "num_key_value_heads": 4},
    "longcat_flash": {
        "num_layers": 1,
        "num_hidden_layers": None,
        "zero_expert_num": 2,
        "num_key_value_heads": 4,
    },
    "minimax_m3_vl_text": {
        "layer_types": ["minimax_m3_sparse"] * 2,
        "index_block_size": 8,
        "index_topk_blocks": 2,
    },
    "mllama_text_model": {"bos_token_id": 0},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "modernbert-decoder": {"bos_token_id": 0},
    "prophetnet": {"use_cache": False},
    "qwen4_exp_text": {
        **_MIXED,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "reformer": {
        "attn_layers": ["local"] * 2,
        "local_attn_chunk_length": 16,
        "is_decoder": True,
        "axial_pos_embds": False,
        "attention_head_size": 8,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 16},
    "roc_bert": {
        **_DECODER,
        "shape_embed_dim": 8,
        "shape_vocab_size": 40,
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 40,
    },
    "xlm": {"causal": True, "n_langs": 1},
    "xlnet": {
        "d_head": 8,
        "n_head": 4,
        "n_layer": 2,
        "d_inner": 32,
        "hidden_size": None,
        **dict.fromkeys(("num_attention_heads", "num_hidden_layers", "head_dim")),
    },
    "xmod": {**_DECODER, "default_language": "en_XX"},
    "xlstm": {"hidden_size": 128, "num_heads": 2},
    "zamba": {"layers_block_type": [*_MIXED_BLOCKS, "hybrid"], "num_hidden_layers": 3},
    "zamba2": {"layers_block_type": _MIXED_BLOCKS},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny(kind: str, tokenizer: Tokenizer, **changes: Any) -> PreTrainedModel:
    """A random model of an architecture; its weights are large enough for context to matter."""
    ids = {
        "vocab_size": tokenizer.vocab_size,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.eos_id,
    }
    config = AutoConfig.for_model(kind, **_sizes(kind, ids, changes))
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    size = model.num_parameters()
    assert size < _MOST_PARAMETERS, f"{kind} is not tiny: say which of its sizes to change"
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data.normal_(0, 0.15, generator=generator)
    return model.eval()


def _sizes(kind: str, ids: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The arguments for a config and, nested in it, for the configs of its parts."""
    config_class = CONFIG_MAPPING[kind]
    known = {*inspect.signature(config_class.__init__).parameters, *config_class.attribute_map}
    sizes = {name: size for name, size in (_SIZES | ids).items() if name in known}
    sizes |= _OTHER_SIZES.get(kind, {}) | changes
    parts = getattr(config_class, "sub_configs_defaults", {})
    for name, part in parts.items():
        of_part = part.model_type or part.config_class.model_type
        if of_part in CONFIG_MAPPING and name not in sizes:
            sizes[name] = _sizes(of_part, ids, {}) | {"model_type": of_part}
    return {name: value for name, value in sizes.items() if value is not None or name in _NULL}
