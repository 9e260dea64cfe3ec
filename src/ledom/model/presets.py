"""The shape of a model: plain Llama, so that any tool that loads Llama loads ours.

A recipe gives a shape in full, names a preset (`model: 7b`), or overrides parts of a preset
(`model: {preset: 7b, max_position_embeddings: 4096}`).
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ledom.core.reading import Config

__all__ = ["PRESETS", "ModelConfig"]

PRESETS: dict[str, dict[str, int]] = {
    "tiny": {  # the embedded pair; 2.8M parameters with a vocabulary of 2,048
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    "small": {  # 30M with a vocabulary of 8,192
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 1024,
    },
    "base": {  # GPT-2's shape; 124M with its vocabulary of 50,257
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "max_position_embeddings": 1024,
    },
    "2b": {  # LEDOM's and MAP-Neo's; 2.24B with a vocabulary of 64,000
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "7b": {  # LEDOM's and MAP-Neo's; 7.79B with a vocabulary of 64,000
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
}
"""Shapes by name."""


class ModelConfig(Config):
    """Shape of a Llama model; the vocabulary comes from the tokenizer.

    >>> ModelConfig.model_validate("tiny").num_hidden_layers
    6
    >>> ModelConfig.model_validate({"preset": "tiny", "num_hidden_layers": 4}).num_hidden_layers
    4
    """

    hidden_size: PositiveInt
    """Width of the residual stream."""
    intermediate_size: PositiveInt
    """Width of the feed-forward layer."""
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    """Key-value heads; each is shared by a group of query heads."""
    max_position_embeddings: PositiveInt = 512
    """Longest text, in tokens."""
    tie_word_embeddings: bool = True
    rms_norm_eps: PositiveFloat = 1e-6
    initializer_range: NonNegativeFloat = 0.02
    """Standard deviation of the initial weights."""

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"preset": value}
        if not isinstance(value, dict) or "preset" not in value:
            return value
        name = value["preset"]
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"no preset {name!r}; the presets are {', '.join(PRESETS)}")
        return PRESETS[name] | {key: item for key, item in value.items() if key != "preset"}

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % (2 * heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not an even multiple of num_attention_heads "
                f"{heads}"
            )
        if heads % kv_heads:
            raise ValueError(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )
        return self
