"""Recognizes a checkpoint's version of nanochat by the names and shapes of its tensors.

| since | sign | what it computes |
|---|---|---|
| 2025-10-13 | none of the below | rotation by -theta, base 10000; logits capped at 15 |
| 2025-12-09 | rows padded to a multiple of 64 | the padding is cut off |
| 2026-01-11 | resid_lambdas, x0_lambdas | x = r x + z x0 before each block |
| 2026-01-11 | window_pattern in the meta file | S: a window of half the context; last layer: all |
| 2026-01-18 | ve_gate [heads, 32] | value embeddings, gated by up to 2 |
| 2026-03-02 | no sign | logits capped at 20; the user must say so |
| 2026-03-09 | ve_gate [heads, 12] | base 100000; q, k times 1.15; gate up to 3; S: a third |
| 2026-03-14 | smear_gate | refused |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from ledom.core.errors import CheckpointError, InputError
from ledom.core.reading import as_type, read_json_object
from ledom.model.foreign.nanochat import FULL, SLIDING, NanochatConfig
from ledom.model.foreign.tensors import StoredTensor

__all__ = ["find_checkpoint", "infer_config", "is_nanochat", "read_model_config"]

_CAPS = (15.0, 20.0)


def is_nanochat(tensors: Mapping[str, Any]) -> bool:
    """Whether the tensors belong to a nanochat model, judging by their names.

    >>> is_nanochat({"model.embed_tokens.weight": None})
    False
    """
    return any(name.endswith(".attn.c_q.weight") for name in tensors)


def find_checkpoint(folder: Path) -> tuple[Path, Path] | None:
    """The weights and meta file of the last step in or below a folder; None without weights.

    Raises `CheckpointError` if several folders hold weights, or if the meta file is missing.
    """
    weights = sorted(folder.rglob("model_*.pt"), key=lambda file: (_step(file), file))
    if not weights:
        return None
    places = sorted({str(file.parent) for file in weights})
    if len(places) > 1:
        raise CheckpointError(f"{folder}: several models here; give one of {', '.join(places)}")
    last = weights[-1]
    meta = last.with_name(last.name.replace("model_", "meta_")).with_suffix(".json")
    if not meta.is_file():
        raise CheckpointError(f"{meta}: missing; it records the shape of {last.name}")
    return last, meta


def _step(file: Path) -> int:
    digits = re.search(r"(\d+)$", file.stem)
    return int(digits[1]) if digits else -1


@dataclass(frozen=True)
class Shape:
    """The keys of nanochat's `model_config`."""

    n_layer: PositiveInt
    n_head: PositiveInt
    n_kv_head: PositiveInt
    n_embd: PositiveInt
    vocab_size: PositiveInt
    sequence_len: PositiveInt
    window_pattern: Annotated[str, Field(pattern="^[SLsl]+$")] = "L"


def read_model_config(meta: Path) -> Shape:
    """Read the shape from a meta file (`model_config`) or a config.json with nanochat's keys.

    Raises `CheckpointError` for missing keys and impossible values.
    """
    contents = read_json_object(meta)
    try:
        shape = as_type(contents.get("model_config", contents), Shape, meta)
    except InputError as error:
        raise CheckpointError(str(error)) from None
    if shape.n_embd % (2 * shape.n_head) or shape.n_head % shape.n_kv_head:
        raise CheckpointError(
            f"{meta}: n_embd is {shape.n_embd}, n_head {shape.n_head}, n_kv_head "
            f"{shape.n_kv_head}; n_embd must be an even multiple of n_head, and n_head a multiple "
            "of n_kv_head"
        )
    return shape


def infer_config(
    tensors: Mapping[str, StoredTensor], shape: Shape, softcap: float | None = None
) -> tuple[NanochatConfig, list[str]]:
    """The config of a nanochat model, and notes on what was inferred.

    `softcap` is the cap on the logits, if the files do not show it (15 by default). Raises
    `CheckpointError` for an unsupported version, and `InputError` for an impossible `softcap`.
    """
    names = [name.removeprefix("_orig_mod.") for name in tensors]
    _check_version(tensors)
    gate = _gate_inputs(tensors)
    if softcap is not None and (softcap not in _CAPS or gate != 32):
        raise InputError(
            f"--softcap {softcap:g}: give 15 or 20, for a model whose ve_gate has 32 inputs; the "
            "cap of others is known"
        )
    late, context = gate == 12, shape.sequence_len
    short = -(-context // 3 // 128) * 128 if late else context // 2
    letters = islice(cycle(shape.window_pattern.upper()), shape.n_layer - 1)
    windows = [*(SLIDING if letter == "S" else FULL for letter in letters), FULL]
    config = NanochatConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.n_embd,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_kv_head,
        max_position_embeddings=context,
        layer_types=windows,
        sliding_window=short + 1 if SLIDING in windows else None,
        residual_lambdas="resid_lambdas" in names,
        value_gate_channels=gate,
        value_gate_scale={0: 0.0, 32: 2.0, 12: 3.0}[gate],
        query_key_scale=1.15 if late else 1.0,
        rope_theta=100000.0 if late else 10000.0,
        rope_bfloat16=not late,
        final_logit_softcapping=softcap or 15.0,
    )
    return config, _describe(config, softcap)


def _gate_inputs(tensors: Mapping[str, StoredTensor]) -> int:
    """The number of inputs of the value embeddings' gate; 0 in versions without them."""
    gates = {t.shape[-1] for name, t in tensors.items() if name.endswith(".attn.ve_gate.weight")}
    if gates - {12, 32} or len(gates) > 1:
        raise CheckpointError(
            f"nanochat's value gate reads {sorted(gates)} inputs here; known versions have 32 or 12"
        )
    return gates.pop() if gates else 0


def _check_version(tensors: Mapping[str, StoredTensor]) -> None:
    """Raise `CheckpointError` for tensors of unsupported versions."""
    for name, tensor in tensors.items():
        if re.search(r"(^|\.)(smear_gate|smear_lambda|backout_lambda)", name):
            raise CheckpointError(
                f"{tensor.file}: {name!r}: nanochat with smear (from 2026-03-14) mixes "
                "neighboring tokens, which ledom does not compute"
            )
        if re.search(r"(^|\.)(value_embed(?!s\.\d)|v0_lambdas|bigram_)", name):
            raise CheckpointError(
                f"{tensor.file}: {name!r} belongs to an experiment of nanochat that was "
                "reverted, which ledom does not compute"
            )


def _describe(config: NanochatConfig, softcap: float | None) -> list[str]:
    sliding = (config.layer_types or []).count(SLIDING)
    gate = config.value_gate_channels
    windows = f"{sliding} layers see {config.sliding_window} tokens"
    values = f"value embeddings gated by {gate} inputs, up to {config.value_gate_scale:g}"
    words = [
        f"nanochat: rotary base {config.rope_theta:g}",
        f"queries and keys times {config.query_key_scale:g}",
        "residual scales" if config.residual_lambdas else "no residual scales",
        values if gate else "no value embeddings",
        windows if sliding else "all layers see all tokens",
        f"logits capped at {config.final_logit_softcapping:g}",
    ]
    lines = ["; ".join(words)]
    if gate == 32 and softcap is None:
        lines.append(
            "a model of 2 to 9 March 2026 has a cap of 20, which its files do not show: import "
            "such a model with --softcap 20"
        )
    return lines
