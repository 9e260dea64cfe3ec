"""A nanochat model (karpathy/nanochat, October 2025 to March 2026) as a transformers model.

One class covers every version that `nanochat_import` recognizes; the config selects the version.
Unlike Llama, it normalizes the embedding, rotates by -theta, normalizes queries and keys after the
rotation, has norms without weights, and caps its logits. transformers' own NanoChat model is not
used: it covers only the first versions, and keeps its rotary tables in fp32 (nanochat: bfloat16),
which changes logits by 0.01. This module does not read files.

Shapes: B texts, T tokens, C width, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, rms_norm, scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from ledom.core.errors import CheckpointError
from ledom.model.attention import is_attending

__all__ = ["FULL", "SLIDING", "NanochatConfig", "NanochatForCausalLM"]

FULL, SLIDING = "full_attention", "sliding_attention"


class NanochatConfig(PretrainedConfig):  # type: ignore[misc]
    """The shape of a nanochat model, and the features of its version."""

    model_type = "ledom_nanochat"

    vocab_size: int = 32768
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    num_key_value_heads: int = 6
    max_position_embeddings: int = 2048
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    """Keys visible to a token in a sliding layer, including itself: nanochat's window + 1."""
    residual_lambdas: bool = False
    value_gate_channels: int = 0
    """The number of inputs of the value embeddings' gate; 0 in versions without them."""
    value_gate_scale: float = 0.0
    query_key_scale: float = 1.0
    rope_theta: float = 10000.0
    rope_bfloat16: bool = True
    final_logit_softcapping: float = 15.0
    initializer_range: float = 0.02

    def __init__(self, **kwargs: Any) -> None:
        for name in NanochatConfig.__annotations__:
            setattr(self, name, kwargs.pop(name, getattr(NanochatConfig, name)))
        self.head_dim = self.hidden_size // self.num_attention_heads
        self.layer_types = self.layer_types or [FULL] * self.num_hidden_layers
        super().__init__(**{"tie_word_embeddings": False} | kwargs)

    def has_value_embedding(self, layer: int) -> bool:
        """Whether a layer has a value embedding: every second layer from the last, if any."""
        alternate = layer % 2 == (self.num_hidden_layers - 1) % 2
        return bool(self.value_gate_channels) and alternate


def _norm(x: Tensor) -> Tensor:
    return rms_norm(x, x.shape[-1:])


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads [B, heads, T, D] by -theta; dimension i is paired with i + D / 2."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


class _Attention(nn.Module):
    is_causal = True

    def __init__(self, config: NanochatConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.c_q = nn.Linear(width, width, bias=False)
        self.c_k = nn.Linear(width, kv_width, bias=False)
        self.c_v = nn.Linear(width, kv_width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        if config.has_value_embedding(layer):
            heads = config.num_key_value_heads
            self.ve_gate = nn.Linear(config.value_gate_channels, heads, bias=False)

    def forward(
        self,
        x: Tensor,
        value_embedding: Tensor | None,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        **packing: Any,
    ) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            parts: Tensor = x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            return parts

        q, k, v = (heads(project(x)) for project in (self.c_q, self.c_k, self.c_v))
        if value_embedding is not None:
            gate = torch.sigmoid(self.ve_gate(x[..., : self.config.value_gate_channels]))
            scaled = self.config.value_gate_scale * gate.transpose(1, 2)[..., None]
            v = v + scaled * heads(value_embedding)
        q, k = (_norm(_rotate(part, *rotation)) for part in (q, k))
        if self.config.query_key_scale != 1:
            q, k = q * self.config.query_key_scale, k * self.config.query_key_scale
        attended = self._attend(q, k, v, mask, **packing)
        out: Tensor = self.c_proj(attended.flatten(2))
        return out

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **packing: Any
    ) -> Tensor:
        """Attention [B, T, H, D]: the registered implementation, or plain SDPA under a mask."""
        attend = AttentionInterface().get(self.config._attn_implementation)
        if attend is not None and mask is None:
            out: Tensor = attend(self, q, k, v, None, **packing)[0]
            return out
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        ).transpose(1, 2)


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(relu(self.c_fc(x)).square())
        return out


class _Block(nn.Module):
    def __init__(self, config: NanochatConfig, layer: int) -> None:
        super().__init__()
        self.attn = _Attention(config, layer)
        self.mlp = _FeedForward(config.hidden_size)

    def forward(self, x: Tensor, *attention: Any, **packing: Any) -> Tensor:
        x = x + self.attn(_norm(x), *attention, **packing)
        out: Tensor = x + self.mlp(_norm(x))
        return out


class _Pretrained(PreTrainedModel):  # type: ignore[misc]
    config_class = NanochatConfig
    base_model_prefix = "transformer"
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["_Block"]


class NanochatModel(_Pretrained):
    """The model up to and including the last norm; parameters have nanochat's names."""

    def __init__(self, config: NanochatConfig) -> None:
        super().__init__(config)
        layers = range(config.num_hidden_layers)
        kv_width = config.num_key_value_heads * config.head_dim
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList([_Block(config, layer) for layer in layers])
        if config.residual_lambdas:
            self.resid_lambdas = nn.Parameter(torch.ones(len(layers)))
            self.x0_lambdas = nn.Parameter(torch.zeros(len(layers)))
        self.value_embeds = nn.ModuleDict(
            {
                str(layer): nn.Embedding(config.vocab_size, kv_width)
                for layer in layers
                if config.has_value_embedding(layer)
            }
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPast:
        """Outputs [B, T, C] for ids [B, T].

        A row is one text, or several with `attending` or `cu_seq_lens_q` (see `model.attention`).
        Raises `CheckpointError` for padding, and for packed texts longer than the model's window.
        """
        config, length = self.config, input_ids.shape[1]
        packing = {key: kwargs[key] for key in ("cu_seq_lens_q",) if key in kwargs}
        attention_mask = kwargs.get("attention_mask")
        if attention_mask is not None and not bool(attention_mask.all()):
            raise CheckpointError("a nanochat model takes no padding; run texts one at a time")
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device)[None]
        x = x0 = _norm(self.wte(input_ids))
        rotation = self._rotation(position_ids, x.dtype)
        if is_attending() and int(position_ids.max()) >= (config.sliding_window or math.inf):
            raise CheckpointError("packed texts are longer than this nanochat model's window")
        window = (
            None if is_attending() else self._window(length, x.device, packing.get("cu_seq_lens_q"))
        )
        for layer, block in enumerate(self.h):
            if config.residual_lambdas:
                x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0
            extra = None
            if config.has_value_embedding(layer):
                extra = self.value_embeds[str(layer)](input_ids)
            mask = window if config.layer_types[layer] == SLIDING else None
            x = block(x, extra, rotation, mask, **packing)
        return BaseModelOutputWithPast(last_hidden_state=_norm(x))

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, 1, T, D / 2] of positions [B, T]."""
        width = self.config.head_dim
        steps = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device)
        angles = positions[:, None, :, None].float() * (
            1.0 / self.config.rope_theta ** (steps / width)
        )
        kept = torch.bfloat16 if self.config.rope_bfloat16 else dtype
        return angles.cos().to(kept).to(dtype), angles.sin().to(kept).to(dtype)

    def _window(
        self, length: int, device: torch.device, boundaries: Tensor | None
    ) -> Tensor | None:
        """A sliding layer's mask [T, T], True where a key is visible; None if it hides nothing."""
        window = self.config.sliding_window
        longest = length if boundaries is None else int(boundaries.diff().max())
        if window is None or longest <= window:
            return None
        if boundaries is not None:
            raise CheckpointError(
                f"a text of {longest} tokens is longer than this model's window of {window}, and "
                "is packed with others; give shorter texts"
            )
        seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        return seen.triu(1 - window)


class NanochatForCausalLM(_Pretrained):
    """The model with its vocabulary projection."""

    def __init__(self, config: NanochatConfig) -> None:
        super().__init__(config)
        self.transformer = NanochatModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.lm_head
        return head

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, vocabulary] in fp32; see `NanochatModel.forward`."""
        hidden = self.transformer(input_ids, position_ids, **kwargs).last_hidden_state
        cap = self.config.final_logit_softcapping
        logits = cap * torch.tanh(self.lm_head(hidden).float() / cap)
        return CausalLMOutputWithPast(logits=logits)


AutoConfig.register(NanochatConfig.model_type, NanochatConfig)
AutoModelForCausalLM.register(NanochatConfig, NanochatForCausalLM)
