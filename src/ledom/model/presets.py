"""The shape of a model: plain Llama, so any tool that loads Llama can load it.

A recipe gives a shape in full, names a preset (`model: 7b`), or overrides parts of a preset
(`model: {preset: 7b, max_position_embeddings: 4096}`).
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from ledom.core.reading import Config

__all__ = ["ModelConfig"]


def _shape(width: int, inner: int, layers: int, heads: int, kv_heads: int, **more: int) -> _Shape:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


_Shape = dict[str, int]
_LARGE = {"max_position_embeddings": 8192, "tie_word_embeddings": False}
PRESETS: dict[str, _Shape] = {
    # the embedded pair; 2.8M parameters with a vocabulary of 2,048
    "tiny": _shape(192, 512, 6, 6, 2),
    # 30M with a vocabulary of 8,192
    "small": _shape(512, 1408, 8, 8, 8, max_position_embeddings=1024),
    # GPT-2's shape; 124M with its vocabulary of 50,257
    "base": _shape(768, 2048, 12, 12, 12, max_position_embeddings=1024),
    # LEDOM's and MAP-Neo's; 2.24B and 7.79B with a vocabulary of 64,000
    "2b": _shape(2048, 16384, 18, 8, 1, **_LARGE),
    "7b": _shape(3072, 24576, 28, 16, 16, **_LARGE),
}
"""Shapes by name."""


class ModelConfig(Config):
    """The shape of a Llama model; the vocabulary comes from the tokenizer.

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
    """Number of key-value heads; each is shared by a group of query heads."""
    max_position_embeddings: PositiveInt = 512
    """Longest text, in tokens."""
    tie_word_embeddings: bool = True
    rms_norm_eps: Annotated[float, Field(gt=0, le=0.1)] = 1e-6
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
