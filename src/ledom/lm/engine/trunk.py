"""Runs a decoder's layers on one row of tokens, for inference; the caller supplies the attention.

Models of Llama's shape have a faster loop of their own: projections of the same input are one
product, the feed-forward part takes a piece of the row at a time to save memory, and the last layer
computes only the tokens whose outputs are wanted. Every other architecture runs its own
transformers modules. All tokens are in model order.

Shapes: T tokens, Q queries, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

from ledom.lm.engine.prefix_tree import PrefixTree, TreeAttention
from ledom.model.architectures import finish_logits
from ledom.model.attention import Attend, attending
from ledom.model.kernels import Int8Weight, add_linear, filled_rows, linear
from ledom.model.native import rms_norm, rotate, silu_product

__all__ = ["LlamaTrunk", "Trunk", "build_trunk"]

_Weight = Tensor | Int8Weight
_LLAMA_SHAPED = ("llama", "mistral", "qwen2")
_PIECE = 1024  # tokens that the feed-forward part takes at a time


class Trunk:
    """Runs any decoder whose attention implementation is `ledom` (`model.attention`)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._rounded_head: Int8Weight | None = None

    def __call__(
        self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None
    ) -> Tensor:
        """Normalized outputs [T, width] of the tokens `ids` [T] at `positions` [T].

        With `wanted`, ascending indices in the row, only their outputs: [len(wanted), width].
        """
        with attending(attend):
            hidden: Tensor = self.model.base_model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False
            ).last_hidden_state[0]
        return hidden if wanted is None else hidden[wanted]

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's logits [T, vocabulary] from normalized outputs [T, width]."""
        head: Any = self.model.get_output_embeddings()
        weight = self._rounded_head or head.weight
        projected = linear(hidden, weight, getattr(head, "bias", None))
        return finish_logits(projected, self.model.config.get_text_config())

    def packed(self, ids: Tensor, positions: Tensor, boundaries: Tensor, targets: Tensor) -> Tensor:
        """log P of `targets` [T] in a row of documents; a `PackedRun` of `model.exactness`."""
        sizes = boundaries.diff().tolist()
        tree = PrefixTree(ids.tolist(), positions.tolist(), sizes, [[] for _ in sizes])
        attention = TreeAttention(tree, None, ids.device, self.model.dtype)
        logits = self.logits(self(ids, positions, attention)).float()
        return -cross_entropy(logits, targets, reduction="none")


class LlamaTrunk(Trunk):
    """Runs models of Llama's shape. The model's weights become views of concatenated ones."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        base: Any = model.base_model
        self.base = base
        self.head_dim: int = base.layers[0].self_attn.head_dim
        self.layers = [_Layer(layer) for layer in base.layers]

    def round_weights(self) -> None:
        """Use int8 products from now on. The model keeps its own weights."""
        for layer in self.layers:
            layer.round_weights()
        head: Any = self.model.get_output_embeddings()
        self._rounded_head = Int8Weight(head.weight)

    def __call__(
        self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None
    ) -> Tensor:
        count = len(ids)
        hidden: Tensor = self.base.embed_tokens(ids)
        missing = filled_rows(hidden, self.layers[0].qkv) - count
        if missing:  # once here, instead of in every product
            hidden = pad(hidden, (0, 0, 0, missing))
            positions = pad(positions, (0, missing))
            attend = _without_filling(attend, count)
        cos, sin = (part[0] for part in self.base.rotary_emb(hidden, positions[None]))
        for number, layer in enumerate(self.layers):
            only = wanted if layer is self.layers[-1] else None
            hidden = self._attention(number, layer, hidden, cos, sin, attend, only)
            hidden = torch.cat([_feed_forward(layer, piece) for piece in hidden.split(_PIECE)])
        hidden = rms_norm(hidden, *_norm(self.base.norm))
        return hidden[:count] if wanted is None else hidden

    def _attention(
        self,
        number: int,
        layer: _Layer,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        attend: Attend,
        wanted: Tensor | None,
    ) -> Tensor:
        """The residual stream [Q, width] after attention; only the `wanted` rows if given."""
        x = rms_norm(hidden, *layer.attention_norm)
        if wanted is None:
            heads = self._heads(linear(x, layer.qkv, layer.qkv_bias))
            rotate(heads[:, : layer.rotated], cos, sin)
            q, k, v = heads.tensor_split([layer.inner // self.head_dim, layer.rotated], dim=1)
        else:
            q_bias, kv_bias = _split(layer.qkv_bias, layer.inner)
            k, v = self._heads(linear(x, layer.kv, kv_bias)).tensor_split(2, dim=1)
            q = self._heads(linear(x[wanted], layer.q, q_bias))
            rotate(k, cos, sin)
            rotate(q, cos[wanted], sin[wanted])
            hidden = hidden[wanted]
        out = attend(number, q, k, v).flatten(1)
        return add_linear(hidden, out, layer.out, layer.out_bias)

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads


def _without_filling(attend: Attend, count: int) -> Attend:
    """Attention among the first `count` tokens only; for the rest, which fill the row, zeros."""

    def attend_first(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if len(q) < len(k):  # the last layer asks only for the wanted tokens, which are not filled
            return attend(layer, q, k[:count], v[:count])
        out = attend(layer, q[:count], k[:count], v[:count])
        return pad(out, (0, 0, 0, 0, 0, len(q) - count))

    return attend_first


class _Layer:
    """One layer's weights; those that multiply the same input are concatenated."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv: _Weight = _join(projections, "weight")
        self.inner: int = len(attention.q_proj.weight)  # H * D
        self.q: _Weight = self.qkv[: self.inner]
        self.kv: _Weight = self.qkv[self.inner :]
        self.qkv_bias = _join(projections, "bias") if attention.q_proj.bias is not None else None
        self.rotated: int = (self.inner + len(attention.k_proj.weight)) // attention.head_dim
        """Heads of queries and keys together: those to which rotary positions apply."""
        self.out: _Weight = attention.o_proj.weight
        self.out_bias: Tensor | None = attention.o_proj.bias
        self.up: _Weight = _join([mlp.gate_proj, mlp.up_proj], "weight")
        self.down: _Weight = mlp.down_proj.weight
        self.attention_norm = _norm(layer.input_layernorm)
        self.mlp_norm = _norm(layer.post_attention_layernorm)

    def round_weights(self) -> None:
        for name in ("qkv", "q", "kv", "out", "up", "down"):
            setattr(self, name, Int8Weight(getattr(self, name)))


def _join(modules: Sequence[Any], name: str) -> Tensor:
    """Concatenate the modules' parameters of this name; the modules keep views, to save memory."""
    parameters = [getattr(module, name) for module in modules]
    joined = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, joined.split([len(p) for p in parameters]), strict=True):
        parameter.data = part
    return joined


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight, module.variance_epsilon


def _split(bias: Tensor | None, at: int) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if bias is None else (bias[:at], bias[at:])


def _feed_forward(layer: _Layer, hidden: Tensor) -> Tensor:
    """The residual stream [T, width] after the feed-forward part; `hidden` may be overwritten."""
    x = rms_norm(hidden, *layer.mlp_norm)
    return add_linear(hidden, silu_product(linear(x, layer.up)), layer.down)


def build_trunk(model: PreTrainedModel) -> Trunk:
    """The fastest trunk that supports the model's architecture."""
    config = model.config
    full = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    plain = (
        config.model_type in _LLAMA_SHAPED
        and full
        and getattr(config, "sliding_window", None) is None
        and not getattr(config, "mlp_bias", False)
        and config.hidden_act == "silu"
    )
    return LlamaTrunk(model) if plain else Trunk(model)
