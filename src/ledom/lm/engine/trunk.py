"""Runs a decoder's layers on one row of tokens, for inference; the caller supplies the attention.

Models of Llama's shape have a faster loop of their own: projections of the same input are one
product, and the last layer computes only the tokens whose outputs are wanted. In fp32 on a CPU,
compiled kernels run everything but attention from a copy of the weights (`model.native`). Every
other architecture runs its own transformers modules. All tokens are in model order.

Shapes: T tokens, Q queries, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

from ledom.core import processes
from ledom.core.errors import CheckpointError
from ledom.model.architectures import (
    finish_logits,
    is_linear,
    is_llama_shaped,
    num_weights,
    used_layers,
)
from ledom.model.attention import Attend, attending, turn, without_filling
from ledom.model.changes import does_more, evaluating, weights_state
from ledom.model.device import large_blocks_apart
from ledom.model.exactness import check_long_text, in_float32, packing_reach
from ledom.model.kernels import Int8Weight, add_linear, filled_rows, linear
from ledom.model.native.attention import has_native
from ledom.model.native.layers import (
    PackedWeight,
    finish_layer,
    project,
    rms_norm,
    rotate,
    silu_product,
)
from ledom.model.native.library import library_for
from ledom.model.own_forward import OwnForward
from ledom.model.prefix_tree import PrefixTree, TreeAttention

__all__ = ["LlamaTrunk", "Trunk", "build_trunk", "longest_packed", "round_weights"]

_Weight = Tensor | Int8Weight
_MOST_PACKED = 2**28  # weights; a copy of them takes up to 1 GB
_PIECE = 1024  # tokens that the feed-forward part takes at a time
_NARROW = 512  # widest model whose products one thread does as fast as several
_READING = Lock()  # so that of several threads that see a change, one reads the weights


class Trunk:
    """Runs any decoder whose attention implementation is `ledom` (`model.attention`)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.version = 0
        """How many changes to the model `refresh` has seen."""
        self._known: object = None
        self._read()

    def __call__(
        self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None
    ) -> Tensor:
        """Normalized outputs [T, width] of the tokens `ids` [T] at `positions` [T].

        With `wanted`, ascending indices in the row, only their outputs: [len(wanted), width].
        """
        with turn(self.model), attending(attend):
            hidden: Tensor = self.model.base_model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False
            ).last_hidden_state[0]
        return hidden if wanted is None else hidden[wanted]

    @property
    def runs_modules(self) -> bool:
        """Whether the model's own modules run, which may keep state from one pass to the next."""
        return True

    @property
    def shares_rows(self) -> bool:
        """Whether torch's threads share a row of tokens at little cost: by compiled kernels."""
        return False

    @property
    def num_workers(self) -> int:
        """The number of threads to split the work over, each with texts of its own.

        A product of a narrow model takes microseconds; splitting it over threads costs as much as
        it saves.
        """
        if self.runs_modules or self.model.device.type != "cpu":
            return 1
        narrow = self.model.config.get_text_config().hidden_size <= _NARROW
        return processes.torch_threads() if narrow else 1

    def reach(self, longest: int) -> int:
        """The longest text to run here: `longest`, but none while a hook changes the whole model.

        A trunk runs a model's parts, so such a model has to make its own pass.
        """
        return 0 if does_more(self.model) else longest

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Prepare the model and the process's memory for many passes, until the block ends."""
        reuses = self.shares_rows  # the compiled kernels keep the large buffers of a pass
        with evaluating(self.model), large_blocks_apart() if reuses else nullcontext():
            yield

    def refresh(self) -> None:
        """Take note of changes to the model; call it before the first of many passes."""
        with _READING:
            if self._state() != self._known:
                self._read()
                self.version += 1

    def _state(self) -> object:
        """Differs from an earlier one if the model has changed since."""
        return weights_state(list(self.model.parameters()), copied=False)

    def _read(self) -> None:
        """Read the model's weights."""
        self._known = self._state()

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's logits [T, vocabulary] from normalized outputs [T, width].

        They are valid until the thread's next call: their memory may then be used again.
        """
        return finish_logits(self._projected(hidden), self.model.config.get_text_config())

    def _projected(self, hidden: Tensor) -> Tensor:
        head: Any = self.model.get_output_embeddings()
        if not is_linear(head):
            logits: Tensor = head(hidden)
            return logits
        return linear(hidden, head.weight, head.bias)

    def packed(self, ids: Tensor, positions: Tensor, boundaries: Tensor, targets: Tensor) -> Tensor:
        """log P of `targets` [T] in a row of documents; a `PackedRun` of `model.exactness`."""
        sizes = boundaries.diff().tolist()
        tree = PrefixTree(ids.tolist(), positions.tolist(), sizes, [[] for _ in sizes])
        attention = TreeAttention(tree, None, ids.device, self.model.dtype)
        logits = self.logits(self(ids, positions, attention)).float()
        return -cross_entropy(logits, targets, reduction="none")


class LlamaTrunk(Trunk):
    """Runs models of Llama's shape. The model's weights become views of concatenated ones.

    As long as a model has adapters that are not merged, hooks, or other modules than its
    architecture's, its own modules run.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.base: Any = model.base_model
        self.layers: list[_Layer] = []
        self._rounded = False
        self._packed: _Packed | None = None
        super().__init__(model)

    @property
    def runs_modules(self) -> bool:
        return not self.layers

    @property
    def shares_rows(self) -> bool:
        if self._packed is None:
            return False
        head = torch.empty(0, self.layers[0].head_dim)
        return has_native(head, head)  # attention too

    def _state(self) -> object:
        copied = self._rounded or self._packed is not None
        weights = weights_state(list(self.model.parameters()), copied)
        if not is_llama_shaped(self.model):
            return weights
        return weights, [_epsilons(layer) for layer in used_layers(self.base)]

    def round_weights(self) -> None:
        """Use int8 products from now on, as long as the model's own weights, kept too, are fp32."""
        self._rounded = True
        self._read()

    def _read(self) -> None:
        """Join the model's weights, and copy them as fits the way to compute with them."""
        self._packed = None  # frees an earlier copy, so that there is one at a time
        if not is_llama_shaped(self.model):
            self.layers, self._known = [], self._state()
            return
        model, layers = self.model, [_Layer(layer) for layer in used_layers(self.base)]
        head: Any = model.get_output_embeddings()
        self._head: _Weight = head.weight
        weights = list(model.parameters())
        if self._rounded and model.dtype == torch.float32:  # the user may have moved the model
            for layer in layers:
                layer.round_weights()
            self._head = Int8Weight(head.weight)
        packs = not self._rounded and num_weights(model) <= _MOST_PACKED
        packs = packs and library_for(*(weight.detach() for weight in weights)) is not None
        self._packed = _Packed(layers, head) if packs else None
        self.layers, self._known = layers, self._state()

    def _projected(self, hidden: Tensor) -> Tensor:
        packed = self._packed
        if packed is not None:
            return project(hidden, packed.head, name="logits")
        if self.runs_modules:
            return super()._projected(hidden)
        head: Any = self.model.get_output_embeddings()
        return linear(hidden, self._head, head.bias)

    def __call__(
        self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None
    ) -> Tensor:
        own, packed, count = self.layers, self._packed, len(ids)
        if not own:
            return super().__call__(ids, positions, attend, wanted)
        hidden: Tensor = self.base.embed_tokens(ids)
        layers: Sequence[_Layer | _PackedLayer] = packed.layers if packed else own
        missing = 0 if packed else filled_rows(hidden, own[0].qkv) - count
        if missing:  # once here, instead of in every product
            hidden = pad(hidden, (0, 0, 0, missing))
            positions = pad(positions, (0, missing))
            attend = without_filling(attend, count)
        with turn(self.model):
            cos, sin = (part[0] for part in self.base.rotary_emb(hidden, positions[None]))
        for number, layer in enumerate(layers):
            if wanted is None or number < len(layers) - 1:
                q, k, v = layer.project("qkv", hidden, cos, sin)
            else:
                _, k, v = layer.project("kv", hidden, cos, sin)
                hidden = hidden[wanted]
                q, _, _ = layer.project("q", hidden, cos[wanted], sin[wanted])
            hidden = layer.finish(hidden, attend(number, q, k, v).flatten(1))
        hidden = rms_norm(hidden, *_norm(self.base.norm))
        return hidden[:count] if wanted is None else hidden


_Part = Literal["q", "kv", "qkv"]


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
        self.head_dim: int = attention.head_dim
        self.heads = self.inner // self.head_dim, len(attention.k_proj.weight) // self.head_dim
        """Heads of queries, and of keys or values."""
        self.out: _Weight = attention.o_proj.weight
        self.out_bias: Tensor | None = attention.o_proj.bias
        self.up: _Weight = _join([mlp.gate_proj, mlp.up_proj], "weight")
        self.down: _Weight = mlp.down_proj.weight
        self.attention_norm = _norm(layer.input_layernorm)
        self.mlp_norm = _norm(layer.post_attention_layernorm)

    def round_weights(self) -> None:
        for name in ("qkv", "q", "kv", "out", "up", "down"):
            setattr(self, name, Int8Weight(getattr(self, name)))

    def bias(self, part: _Part) -> Tensor | None:
        """Of `qkv`, `q` or `kv`."""
        if self.qkv_bias is None or part == "qkv":
            return self.qkv_bias
        return self.qkv_bias[: self.inner] if part == "q" else self.qkv_bias[self.inner :]

    def rotated(self, part: _Part) -> int:
        """The heads at the beginning of `qkv`, `q` or `kv` to which rotary positions apply."""
        queries, keys = self._heads_of(part)
        return queries + keys

    def _heads_of(self, part: _Part) -> tuple[int, int]:
        """The heads of queries in `qkv`, `q` or `kv`, and those of keys."""
        return (self.heads[0] if "q" in part else 0), (self.heads[1] if "kv" in part else 0)

    def split(self, part: _Part, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, H, D], keys and values [T, K, D] in `qkv`, `q` or `kv`; else empty ones."""
        queries, keys = self._heads_of(part)
        q, k, v = x.unflatten(-1, (-1, self.head_dim)).split([queries, keys, keys], dim=1)
        return q, k, v

    def project(
        self, part: _Part, hidden: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, H, D], keys and values [T, K, D], of which those in `part` are not empty."""
        x = linear(rms_norm(hidden, *self.attention_norm), getattr(self, part), self.bias(part))
        heads = x.unflatten(-1, (-1, self.head_dim))
        rotate(heads[:, : self.rotated(part)], cos, sin)
        return self.split(part, x)

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The residual stream [T, width] after the layer, which may overwrite `hidden`, from
        attention's result [T, H * D]."""
        hidden = add_linear(hidden, attended, self.out, self.out_bias)
        return torch.cat([self._feed_forward(piece) for piece in hidden.split(_PIECE)])

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        x = rms_norm(hidden, *self.mlp_norm)
        return add_linear(hidden, silu_product(linear(x, self.up)), self.down)


class _PackedLayer:
    """As `_Layer`, by compiled kernels, from a copy of the layer's weights."""

    def __init__(self, layer: _Layer, parts: Sequence[_Part]) -> None:
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


class _Packed:
    """A copy of a model's weights, arranged for compiled kernels."""

    def __init__(self, layers: Sequence[_Layer], head: Any) -> None:
        *others, last = layers
        self.layers = [
            *(_PackedLayer(layer, ["qkv"]) for layer in others),
            _PackedLayer(last, ["qkv", "q", "kv"]),
        ]
        self.head = PackedWeight(head.weight, head.bias)


def _join(modules: Sequence[Any], name: str) -> Tensor:
    """Concatenate the modules' parameters of this name; the modules keep views, to save memory."""
    parameters = [getattr(module, name) for module in modules]
    joined = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, joined.split([len(p) for p in parameters]), strict=True):
        parameter.data = part
    return joined


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight, module.variance_epsilon


def _epsilons(layer: Any) -> tuple[float, float]:
    return _norm(layer.input_layernorm)[1], _norm(layer.post_attention_layernorm)[1]


def build_trunk(model: PreTrainedModel) -> Trunk:
    """The fastest trunk that supports the model's architecture."""
    return LlamaTrunk(model) if is_llama_shaped(model) else Trunk(model)


def longest_packed(trunk: Trunk, own: OwnForward, eos_id: int, context: int) -> int:
    """The longest text, in tokens read, that may share a row; see `packing_reach`."""
    reach = packing_reach(own, trunk.packed, eos_id, context)
    if reach and (copy := in_float32(own.model)) is not None:
        reach = min(
            reach, packing_reach(OwnForward(copy), build_trunk(copy).packed, eos_id, context)
        )
    if not reach:
        own.restore()
        check_long_text(own, context)
    return reach


def round_weights(trunk: Trunk, exact: bool, name: str) -> None:
    """Quantize a model of Llama's shape to int8, if its trunk is `exact` for texts of any length.

    Raises `CheckpointError` for any other model: parts of its work would stay in fp32.
    """
    if not (isinstance(trunk, LlamaTrunk) and exact):
        raise CheckpointError(
            f"{name}: int8 is for models of Llama's shape whose texts may share a row, which this "
            f"{type(trunk.model).__name__} is not; give float32"
        )
    trunk.round_weights()
