"""Runs a model's layers on one row of tokens, for inference; the caller supplies the attention.

Llama-shaped models have a faster loop of their own: projections of the same input are one matmul,
and the last layer computes only the tokens whose outputs are wanted. In fp32 on a CPU, compiled
kernels run everything except attention from a copy of the weights (`model.native`). Every other
architecture runs its own transformers modules. All tokens are in model order.

Shapes: T tokens, Q queries, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
from ledom.model.attention import (
    IMPLEMENTATION,
    Attend,
    attending,
    turn,
    without_autocast,
    without_filling,
)
from ledom.model.changes import evaluating, is_extended, weights_state
from ledom.model.device import large_blocks_apart
from ledom.model.exactness import check_long_text, in_float32, packing_reach
from ledom.model.kernels import Int8Weight, filled_rows, linear
from ledom.model.llama_layers import Layer, PackedLayer, PackedLayers, Weight, norm_of
from ledom.model.native.attention import has_native
from ledom.model.native.layers import project, rms_norm
from ledom.model.native.library import library_for
from ledom.model.own_forward import OwnForward, reset_length
from ledom.model.prefix_tree import PrefixTree
from ledom.model.tree_attention import TreeAttention

__all__ = ["Trunk", "build_trunk", "longest_packed", "round_weights", "trials"]

_MOST_PACKED = 2**28  # the most weights to copy, which takes up to 1 GB
_NARROW = 512  # the widest model whose matmuls one thread computes as fast as several
_READING = Lock()  # so that only one of several threads that see a change reads the weights


class Trunk:
    """Runs any decoder, with ledom's attention (`model.attention`) in place of its own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.own = OwnForward(model, follows_autocast=False)
        self.version = 0
        """The number of changes to the model that `refresh` has seen."""
        self._known: object = None
        self._read()

    def __call__(
        self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None
    ) -> Tensor:
        """Normalized outputs [T, width] of the tokens `ids` [T] at `positions` [T].

        With `wanted` (ascending indices in the row), only their outputs: [len(wanted), width].
        """
        with without_autocast(self.model):
            return self._run(ids, positions, attend, wanted)

    def _run(self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None) -> Tensor:
        with self.own.attention(IMPLEMENTATION), attending(attend):
            hidden: Tensor = self.model.base_model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False
            ).last_hidden_state[0]
        return hidden if wanted is None else hidden[wanted]

    def read(
        self, tree: PrefixTree, wanted: NDArray[np.int64], attend: Attend | None = None
    ) -> Tensor:
        """Outputs of a tree's row at the `wanted` indices: [len(wanted), width].

        `attend` defaults to `attention(tree, wanted)`; any other must call it.
        """
        device = self.model.device
        ids, positions = (torch.tensor(x, device=device) for x in (tree.ids, tree.positions))
        attend = attend or self.attention(tree, wanted)
        return self(ids, positions, attend, torch.from_numpy(wanted).to(device))

    def attention(self, tree: PrefixTree, wanted: NDArray[np.int64] | None = None) -> TreeAttention:
        """Attention in the row of a tree; see `TreeAttention`."""
        return TreeAttention(tree, wanted, self.model.device, self.model.dtype, self.shares_rows)

    @property
    def runs_modules(self) -> bool:
        """Whether the model's own modules run; these may keep state from one pass to the next."""
        return True

    @property
    def shares_rows(self) -> bool:
        """Whether torch's threads can share a row of tokens at little cost (compiled kernels)."""
        return False

    @property
    def num_workers(self) -> int:
        """The number of threads to split the work over, each with its own texts.

        A matmul of a narrow model takes microseconds; splitting it over threads costs as much as it
        saves.
        """
        if self.runs_modules or self.model.device.type != "cpu":
            return 1
        narrow = self.model.config.get_text_config().hidden_size <= _NARROW
        return processes.torch_threads() if narrow else 1

    def reach(self, longest: int) -> int:
        """The longest text to run here: `longest`, or 0 while hooks and the like affect the model.

        They must see each text alone, as the model's own forward pass runs it.
        """
        return 0 if is_extended(self.model) else longest

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within this block, the model and the process's memory are prepared for many passes."""
        reuses = self.shares_rows  # the compiled kernels keep the large buffers of a pass
        with evaluating(self.model), large_blocks_apart() if reuses else nullcontext():
            yield

    def refresh(self) -> None:
        """Notice changes to the model; call this before the first of many passes."""
        with _READING:
            if self._state() != self._known:
                self._read()
                self.version += 1

    def _state(self) -> object:
        """A value that differs from an earlier one if the model has changed since."""
        return weights_state(dict(self.model.named_parameters()), copied=False)

    def _read(self) -> None:
        """Read the model's weights."""
        self._known = self._state()

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's logits [T, vocabulary] from normalized outputs [T, width].

        They are valid until this thread's next call, which may reuse their memory.
        """
        with without_autocast(self.model):
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
        logits = self.logits(self(ids, positions, self.attention(tree))).float()
        return -cross_entropy(logits, targets, reduction="none")


class LlamaTrunk(Trunk):
    """Runs Llama-shaped models. The model's weights become views of concatenated weights.

    As long as a model has unmerged adapters, hooks, or modules that are not its architecture's, its
    own modules run.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.base: Any = model.base_model
        self.layers: list[Layer] = []
        self._rounded = False
        self._packed: PackedLayers | None = None
        super().__init__(model)

    @property
    def runs_modules(self) -> bool:
        return not self.layers

    @property
    def shares_rows(self) -> bool:
        if self._packed is None:
            return False
        head = torch.empty(0, self.layers[0].head_dim, dtype=torch.float32)
        return has_native(head, head)  # attention too

    def _state(self) -> object:
        copied = self._rounded or self._packed is not None
        weights = weights_state(dict(self.model.named_parameters()), copied)
        if not is_llama_shaped(self.model):
            return weights
        layers = used_layers(self.base)
        norms = [(layer.input_layernorm, layer.post_attention_layernorm) for layer in layers]
        return weights, [norm.variance_epsilon for pair in norms for norm in pair]

    def round_weights(self) -> None:
        """Use int8 matmuls from now on, as long as the model's own weights (also kept) are fp32."""
        self._rounded = True
        self._read()

    def _read(self) -> None:
        """Concatenate the model's weights, and copy them for int8 or the compiled kernels."""
        self._packed = None  # frees an earlier copy, so that there is only one at a time
        if not is_llama_shaped(self.model):
            self.layers, self._known = [], self._state()
            return
        model, layers = self.model, [Layer(layer) for layer in used_layers(self.base)]
        head: Any = model.get_output_embeddings()
        self._head: Weight = head.weight
        weights = list(model.parameters())
        if self._rounded and model.dtype == torch.float32:  # the user may have moved the model
            for layer in layers:
                layer.round_weights()
            self._head = Int8Weight(head.weight)
        packs = not self._rounded and num_weights(model) <= _MOST_PACKED
        packs = packs and library_for(*(weight.detach() for weight in weights)) is not None
        self._packed = PackedLayers(layers, head) if packs else None
        self.layers, self._known = layers, self._state()

    def _projected(self, hidden: Tensor) -> Tensor:
        packed = self._packed
        if packed is not None:
            return project(hidden, packed.head, name="logits")
        if self.runs_modules:
            return super()._projected(hidden)
        head: Any = self.model.get_output_embeddings()
        return linear(hidden, self._head, head.bias)

    def _run(self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None) -> Tensor:
        own, packed, count = self.layers, self._packed, len(ids)
        if not own:
            return super()._run(ids, positions, attend, wanted)
        hidden: Tensor = self.base.embed_tokens(ids)
        layers: Sequence[Layer | PackedLayer] = packed.layers if packed else own
        missing = 0 if packed else filled_rows(hidden, own[0].qkv) - count
        if missing:  # once here, instead of in every matmul
            hidden = pad(hidden, (0, 0, 0, missing))
            positions = pad(positions, (0, missing))
            attend = without_filling(attend, count)
        with turn(self.model):
            reset_length(self.base.rotary_emb)
            cos, sin = (part[0] for part in self.base.rotary_emb(hidden, positions[None]))
        for number, layer in enumerate(layers):
            if wanted is None or number < len(layers) - 1:
                q, k, v = layer.project("qkv", hidden, cos, sin)
            else:
                _, k, v = layer.project("kv", hidden, cos, sin)
                hidden = hidden[wanted]
                q, _, _ = layer.project("q", hidden, cos[wanted], sin[wanted])
            hidden = layer.finish(hidden, attend(number, q, k, v).flatten(1))
        hidden = rms_norm(hidden, *norm_of(self.base.norm))
        return hidden[:count] if wanted is None else hidden


def build_trunk(model: PreTrainedModel) -> Trunk:
    """The fastest trunk that supports the model's architecture."""
    return LlamaTrunk(model) if is_llama_shaped(model) else Trunk(model)


def longest_packed(trunk: Trunk, eos_id: int, context: int) -> int:
    """The longest text, in tokens read, that may share a row; see `packing_reach`.

    The model keeps its own attention, so that callers can use it like any transformers model.
    """
    reach = context
    for each in trials(trunk):
        reach = reach and min(reach, packing_reach(each.own, each.packed, eos_id, context))
        each.own.use(None)
    if not reach:
        check_long_text(trunk.own, context)
    return reach


def trials(trunk: Trunk) -> Iterator[Trunk]:
    """The trunk; in half precision, which hides small errors, also the trunk of a copy in fp32."""
    yield trunk
    if (copy := in_float32(trunk.model)) is not None:
        yield build_trunk(copy)


def round_weights(trunk: Trunk, exact: bool, name: str) -> None:
    """Quantize a Llama-shaped model to int8, if its trunk is `exact` for texts of any length.

    Raises `CheckpointError` for any other model, because parts of it would stay in fp32.
    """
    if not (isinstance(trunk, LlamaTrunk) and exact):
        raise CheckpointError(
            f"{name}: int8 is for Llama-shaped models whose texts may share a row, which this "
            f"{type(trunk.model).__name__} is not; give float32"
        )
    trunk.round_weights()
