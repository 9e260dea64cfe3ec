"""The shape of a model: plain Llama, so that everything that loads Llama loads ours."""

from __future__ import annotations

from typing import Self

from pydantic import PositiveInt, model_validator

from ledom.config import Config

__all__ = ["ModelConfig"]


class ModelConfig(Config):
    """Shape of a Llama model; the vocabulary comes from the tokenizer."""

    hidden_size: PositiveInt
    """Width of the residual stream."""
    intermediate_size: PositiveInt
    """Width of the feed-forward layer."""
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    """Heads of keys and values, shared by groups of query heads."""
    max_position_embeddings: PositiveInt = 512
    """Longest text, in tokens."""
    tie_word_embeddings: bool = True
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % (2 * heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is no even multiple of num_attention_heads {heads}"
            )
        if heads % kv_heads:
            raise ValueError(
                f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
            )
        return self
