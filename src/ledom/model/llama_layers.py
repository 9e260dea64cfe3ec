"""The layers of Llama-shaped models, with weights concatenated or arranged for kernels.

Projections of the same input are one matmul. All tokens are in model order.

Shapes: T tokens, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ledom.model.kernels import Int8Weight, add_linear, linear
from ledom.model.native.layers import (
    PackedWeight,
    finish_layer,
    project,
    rms_norm,
    rotate,
    silu_product,
)

__all__ = ["Layer", "PackedLayer", "PackedLayers", "Weight", "norm_of"]

Weight = Tensor | Int8Weight
_PIECE = 1024  # tokens that the feed-forward part processes at a time
_Part = Literal["q", "kv", "qkv"]


class Layer:
    """One layer's weights; those with the same input are concatenated."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv: Weight = _join(projections, "weight")
        self.inner: int = len(attention.q_proj.weight)  # H * D
        self.q: Weight = self.qkv[: self.inner]
        self.kv: Weight = self.qkv[self.inner :]
        self.qkv_bias = _join(projections, "bias") if attention.q_proj.bias is not None else None
        self.head_dim: int = attention.head_dim
        self.heads = self.inner // self.head_dim, len(attention.k_proj.weight) // self.head_dim
        """The number of query heads, and of key-value heads."""
        self.out: Weight = attention.o_proj.weight
        self.out_bias: Tensor | None = attention.o_proj.bias
        self.up: Weight = _join([mlp.gate_proj, mlp.up_proj], "weight")
        self.down: Weight = mlp.down_proj.weight
        self.attention_norm = norm_of(layer.input_layernorm)
        self.mlp_norm = norm_of(layer.post_attention_layernorm)

    def round_weights(self) -> None:
        for name in ("qkv", "q", "kv", "out", "up", "down"):
            setattr(self, name, Int8Weight(getattr(self, name)))

    def bias(self, part: _Part) -> Tensor | None:
        """The bias of `qkv`, `q` or `kv`."""
        if self.qkv_bias is None or part == "qkv":
            return self.qkv_bias
        return self.qkv_bias[: self.inner] if part == "q" else self.qkv_bias[self.inner :]

    def rotated(self, part: _Part) -> int:
        """The number of heads, first in `qkv`, `q` or `kv`, to which rotary positions apply."""
        queries, keys = self._heads_of(part)
        return queries + keys

    def _heads_of(self, part: _Part) -> tuple[int, int]:
        """The numbers of query heads and of key heads in `qkv`, `q` or `kv`."""
        return (self.heads[0] if "q" in part else 0), (self.heads[1] if "kv" in part else 0)

    def split(self, part: _Part, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, H, D], keys and values [T, K, D] in `qkv`, `q` or `kv`; the rest empty."""
        queries, keys = self._heads_of(part)
        q, k, v = x.unflatten(-1, (-1, self.head_dim)).split([queries, keys, keys], dim=1)
        return q, k, v

    def project(
        self, part: _Part, hidden: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, H, D], keys and values [T, K, D]; those not in `part` are empty."""
        x = linear(rms_norm(hidden, *self.attention_norm), getattr(self, part), self.bias(part))
        heads = x.unflatten(-1, (-1, self.head_dim))
        rotate(heads[:, : self.rotated(part)], cos, sin)
        return self.split(part, x)

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The residual stream [T, width] after the layer, given the attention's result [T, H * D].
        May overwrite `hidden`."""
        hidden = add_linear(hidden, attended, self.out, self.out_bias)
        return torch.cat([self._feed_forward(piece) for piece in hidden.split(_PIECE)])

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        x = rms_norm(hidden, *self.mlp_norm)
        return add_linear(hidden, silu_product(linear(x, self.up)), self.down)


class PackedLayer:
    """Like `Layer`, but with compiled kernels and a copy of the layer's weights."""

    def __init__(self, layer: Layer, parts: Sequence[_Part]) -> None:
        def pack(name: str, bias: Tensor | None = None) -> PackedWeight:
            return PackedWeight(getattr(layer, name), bias)

        self._layer = layer
        self._projections = {part: pack(part, layer.bias(part)) for part in parts}
        self._out, self._up, self._down = pack("out", layer.out_bias), pack("up"), pack("down")

    def project(
        self, part: _Part, hidden: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rotary = cos, sin, self._layer.rotated(part)
        x = project(hidden, self._projections[part], self._layer.attention_norm, rotary, part)
        return self._layer.split(part, x)

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        finish_layer(hidden, attended, self._out, self._layer.mlp_norm, self._up, self._down)
        return hidden


class PackedLayers:
    """A copy of a model's weights, arranged for compiled kernels."""

    def __init__(self, layers: Sequence[Layer], head: Any) -> None:
        *others, last = layers
        self.layers = [
            *(PackedLayer(layer, ["qkv"]) for layer in others),
            PackedLayer(last, ["qkv", "q", "kv"]),
        ]
        self.head = PackedWeight(head.weight, head.bias)


def _join(modules: Sequence[Any], name: str) -> Tensor:
    """Concatenate the modules' parameters of this name; the modules get views, to save memory."""
    parameters = [getattr(module, name) for module in modules]
    joined = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, joined.split([len(p) for p in parameters]), strict=True):
        parameter.data = part
    return joined


def norm_of(module: Any) -> tuple[Tensor, float]:
    return module.weight, module.variance_epsilon
