"""Reads GGUF files (llama.cpp's format); transformers and the package `gguf` dequantize them.

transformers silently skips tensors and settings that it does not know, and initializes missing
weights randomly. This module adds what was skipped to the config, or refuses the file. The whole
model is in memory at once, in fp32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from ledom.core.errors import CheckpointError, in_one_line, needs_extra
from ledom.core.reading import JsonObject, check_regular
from ledom.model.architectures import num_weights
from ledom.model.checkpoint import readable
from ledom.model.foreign.sentencepiece import SPACE, USER_DEFINED, build_sentencepiece
from ledom.model.foreign.tensors import StoredTensor, from_torch

__all__ = ["read_gguf"]


GGUF = tuple[JsonObject, dict[str, StoredTensor], RustTokenizer, str | None]


def read_gguf(file: Path, other_tokenizer: bool = False) -> GGUF:
    """The config, the tensors, the tokenizer and the EOS token of a GGUF file.

    With `other_tokenizer`, the file's own tokenizer is not used, so it need not be correct. Raises
    `CheckpointError` if transformers cannot read all of it, and `MissingExtraError` without the
    package `gguf`.
    """
    with needs_extra("gguf", "gguf"):
        from gguf import GGUFReader
    check_regular(file)
    with file.open("rb") as contents:
        if contents.read(4) != b"GGUF":
            raise CheckpointError(f"{file}: not a GGUF file; it does not begin with GGUF")
    try:
        reader = GGUFReader(file)  # its tensors fail if the file ends before them
    except Exception as error:  # gguf and numpy raise many types
        raise CheckpointError(
            f"{file}: truncated or damaged, or too new ({in_one_line(error)}); fetch it again, or "
            "upgrade the package gguf"
        ) from None
    with readable(file):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # and report them
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False
        )
    model, info = loaded
    for name, stored, described in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"{file}: {name!r} has the shape {list(stored)}, and transformers expects "
            f"{list(described)}; {_FOLDER}"
        )
    _complete(file, model, info["missing_keys"], reader)
    backend = tokenizer.backend_tokenizer
    if not other_tokenizer:
        with readable(file):  # its lists may differ in length
            backend = own_tokenizer(file, backend, reader.fields)
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # the weights are plain numbers now
    tensors = {name: from_torch(value, file) for name, value in model.state_dict().items()}
    return config, tensors, backend, tokenizer.eos_token


_FOLDER = "give the model's folder that the file was made from"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192  # before scaling, for every Llama 3
_EPSILON_KEYS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_NOT_READ = {
    "attention.scale": 0,
    "attention.clamp_kqv": 0,
    "embedding_scale": 1,
    "residual_scale": 1,
    "logit_scale": 1,
    "ssm.dt_b_c_rms": False,
}
"""Settings that change results and are in no config, with the values that change nothing."""
_LARGEST_GEMMAS = {("gemma2", 46), ("gemma3", 62)}  # architecture, layers: the 27B models


def _complete(file: Path, model: Any, missing: Any, reader: Any) -> None:
    """Add to the config what transformers left out; raises `CheckpointError` for anything else."""
    fields, config = reader.fields, model.config
    kind = fields["general.architecture"].contents()
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    factors = tensors.pop("rope_freqs.weight", None)
    if config.tie_word_embeddings:
        tensors.pop("output.weight", None)
    beyond = range(config.num_hidden_layers, fields[f"{kind}.block_count"].contents())
    if f"{kind}.nextn_predict_layers" in fields:  # layers for multi-token prediction are not used
        unused = tuple(f"blk.{layer}." for layer in beyond)
        tensors = {name: t for name, t in tensors.items() if not name.startswith(unused)}
    stored = sum(int(tensor.n_elements) for tensor in tensors.values())
    taken = num_weights(model)
    if missing or stored != taken:
        what = f"it holds {stored} weights, and transformers takes {taken} of them"
        what = f"the tensor {min(missing)!r} is missing" if missing else what
        raise CheckpointError(f"{file}: {what}; {_FOLDER}")
    found = {key: field.contents() for key, field in _under(f"{kind}.", fields).items()}
    _set_layers(file, kind, found, config)
    rope = getattr(config, "rope_parameters", None) or {"rope_type": "none"}
    if "rope.freq_base_swa" in found and "sliding_attention" in rope:
        rope["sliding_attention"]["rope_theta"] = found["rope.freq_base_swa"]
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type", "default") == "default":
        _set_rotation(file, rope, found, config)
        if factors is not None:
            _set_factors(file, rope, factors.data, config)


def _under(prefix: str, named: Mapping[str, Any]) -> JsonObject:
    """The values whose names have a prefix, by the rest of the name."""
    return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}


def _set_layers(file: Path, kind: str, found: JsonObject, config: Any) -> None:
    """Copy the settings of norms, attention and logits; raises `CheckpointError` for others."""
    for name, usual in _NOT_READ.items():
        if found.get(name, usual) != usual:
            raise CheckpointError(
                f"{file}: its {name} is {found[name]}, which ledom does not read; {_FOLDER}"
            )
    epsilon = next((found[key] for key in _EPSILON_KEYS if key in found), None)
    values = dict.fromkeys(_EPSILONS, epsilon)
    values |= {name: found.get(name) for name in _SOFTCAPS}
    for name, value in values.items():
        if value is not None and hasattr(config, name):
            setattr(config, name, value)
    # To llama.cpp, Mistral is a Llama; its config in transformers has a window by default.
    window = found.get("attention.sliding_window", 0 if kind == "llama" else None)
    if (
        window is not None
        and hasattr(config, "sliding_window")
        and getattr(config, "use_sliding_window", True)
    ):
        config.sliding_window = window or None  # 0: none
    if hasattr(config, "query_pre_attn_scalar"):
        is_largest = (kind, config.num_hidden_layers) in _LARGEST_GEMMAS
        per_head = config.hidden_size // config.num_attention_heads
        config.query_pre_attn_scalar = per_head if is_largest else config.head_dim


def _set_rotation(file: Path, rope: JsonObject, found: JsonObject, config: Any) -> None:
    """Copy llama.cpp's rotary settings into transformers' settings."""
    rope["rope_theta"] = found.get("rope.freq_base", 10000.0)  # llama.cpp's default
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = found.get("rope.dimension_count", width) / width
    if share != rope.get("partial_rotary_factor", 1.0):
        rope["partial_rotary_factor"] = share
    scaling = _under("rope.scaling.", found)
    factor = scaling.pop("factor", 0) or found.get("rope.scale_linear", 0)
    kind = scaling.pop("type", "linear" if factor else "none")
    context = scaling.pop("original_context_length", None)
    scaling.pop("finetuned", None)  # only a note
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        return
    if scaling or kind not in ("linear", "yarn") or not factor or (kind == "yarn" and not context):
        raise CheckpointError(
            f"{file}: its rotary scaling is {kind!r}, with {', '.join(scaling) or 'no more keys'}, "
            f"which ledom does not read; {_FOLDER}"
        )
    rope |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = context


def _set_factors(file: Path, rope: JsonObject, factors: Any, config: Any) -> None:
    """Set Llama 3's rotary settings, which yield these divisors of the frequencies [D / 2]."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    plain = rope["rope_theta"] ** (-np.arange(len(factors)) / len(factors))
    rope |= _LLAMA3 | {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }
    made, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    if len(made) != len(factors) or not np.allclose(
        made.numpy() * factors, plain, rtol=1e-4, atol=0
    ):
        raise CheckpointError(
            f"{file}: the tensor 'rope_freqs.weight' scales rotary frequencies, but not as Llama 3 "
            f"does; {_FOLDER}"
        )


# ---- the tokenizer, with the ids that the model's own tokenizer gives ----

# transformers' version of it serves as a start, but it takes Llama's rules for every sentencepiece
# model, and GPT-2's for every other, except for how they split a text.

_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_LIKE_GPT2 = {"gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion"}
_LIKE_LLAMA3 = {
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    *("jina-v5-nano", "tekken"),
}
"""Names of splits for which llama.cpp looks up whole words before it merges, and adds BOS."""
_NFC = {"qwen2", "qwen35"}
"""Names of splits whose tokenizers compose characters first; llama.cpp does not."""


def own_tokenizer(file: Path, tokenizer: RustTokenizer, fields: Any) -> RustTokenizer:
    """The tokenizer that a file's fields describe, given transformers' version of it.

    Raises `CheckpointError` if the file names no way to split a text, or an unknown one.
    """
    found = {key: field.contents() for key, field in _under("tokenizer.ggml.", fields).items()}
    written = json.loads(tokenizer.to_str())  # no file
    size = len(found["tokens"])
    written["added_tokens"] = [t for t in written["added_tokens"] if t["id"] < size]
    own = RustTokenizer.from_str(json.dumps(written))
    if found.get("model") == "llama" and {"scores", "token_type"} <= found.keys():
        whole = _sentencepiece(file, found)
        whole.post_processor = own.post_processor
        return whole
    if found.get("model") == "gpt2":
        _set_byte_level(file, own, found, fields["general.architecture"].contents())
    return own


def _sentencepiece(file: Path, found: Mapping[str, Any]) -> RustTokenizer:
    """The tokenizer of a sentencepiece model, whose pieces the file has."""
    pieces = [
        # llama.cpp's converter writes the spaces of user-defined pieces as they are
        (text.replace(" ", SPACE) if kind == USER_DEFINED else text, score, kind)
        for text, score, kind in zip(
            *(found[key] for key in ("tokens", "scores", "token_type")), strict=True
        )
    ]
    if len({text for text, _, _ in pieces}) < len(pieces):
        raise CheckpointError(
            f"{file}: two of its tokens are the same; name the model's tokenizer.json with "
            "--tokenizer"
        )
    return build_sentencepiece(pieces, bool(found.get("add_space_prefix", True)))


def _set_byte_level(
    file: Path, own: RustTokenizer, found: Mapping[str, Any], architecture: str
) -> None:
    """Make a byte-level tokenizer follow the rules that belong to the name of its split."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        raise CheckpointError(
            f"{file}: this version of transformers may split a text differently than the model; "
            "upgrade transformers, or name the model's tokenizer.json with --tokenizer"
        ) from None
    split = found.get("pre", "gpt-2" if architecture == "gpt2" else None)
    if split in _DIGITS_APART:
        own.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
    elif split not in {*_LIKE_GPT2, *GGUF_PRE_TOKENIZER_SPLITS}:
        how = f"splits a text as {split!r}, which transformers does not know"
        raise CheckpointError(
            f"{file}: its tokenizer {how if split else 'does not say how it splits a text'}; name "
            "the model's tokenizer.json with --tokenizer"
        )
    if split in _NFC:
        own.normalizer = normalizers.NFC()
    if split in _LIKE_LLAMA3:
        own.model.ignore_merges = True
        bos = found.get("bos_token_id")
        if bos is not None and "add_bos_token" not in found:
            name = found["tokens"][bos]
            own.post_processor = processors.TemplateProcessing(
                single=f"{name} $A", special_tokens=[(name, bos)]
            )
