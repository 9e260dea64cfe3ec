"""Block-diagonal attention over documents packed end to end, without a mask.

It is registered with transformers as the attention implementation `ledom`. The documents of a batch
form one row, without padding; `cu_seq_lens_q` (flash attention's name) holds their boundaries. Each
document attends only to itself, causally. A GPU and ledom's own kernels take all documents in one
call. For torch's fused kernel, one call per document is faster than any mask; neighboring documents
of equal length share a call. torch.compile sees a single operation, however many documents there
are. Inside `attending` (used by `lm.engine.trunk`), a caller's function computes the attention
instead.

Shapes: T tokens in the row, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from itertools import pairwise
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from ledom.core.errors import CheckpointError
from ledom.model.kernels import (
    causal_attention,
    causal_attention_backward,
    has_varlen,
    kept_numbers,
    varlen_attention,
)
from ledom.model.native import attention as native

__all__ = [
    "IMPLEMENTATION",
    "Attend",
    "attending",
    "is_attending",
    "packed_attention",
    "turn",
    "without_autocast",
    "without_filling",
]

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries [Q, H, D], keys [T, K, D], values [T, K, D]) -> [Q, H, D]. Q is T, but the last
layer may compute only the outputs that are wanted."""

_ATTEND: ContextVar[Attend | None] = ContextVar("attend", default=None)

IMPLEMENTATION = "ledom"
_KNOWN_TENSORS = ("position_ids", "cache_position", "cu_seq_lens_k")
"""Tensors that do not change the attention. Others do: sinks, biases, a selection of keys."""


_TURNS: WeakKeyDictionary[torch.nn.Module, AbstractContextManager[object]] = WeakKeyDictionary()
_ADDING = Lock()


def turn(model: torch.nn.Module) -> AbstractContextManager[object]:
    """Within this block, only this thread runs the model's own modules.

    The modules look up their attention in the model's config, which the model's own pass changes,
    and scaled rotary positions in buffers.
    """
    with _ADDING:
        return _TURNS.setdefault(model, RLock())


def without_autocast(model: torch.nn.Module) -> AbstractContextManager[object]:
    """Within this block, the model computes in its own precision, even under autocast."""
    device = next(model.parameters()).device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Within this block, `attend` computes the attention of passes without boundaries.

    It cannot be an argument of the pass, because some architectures (Nemotron) do not pass
    arguments on to their layers.
    """
    token = _ATTEND.set(attend)
    try:
        yield
    finally:
        _ATTEND.reset(token)


def is_attending() -> bool:
    """Whether an `attending` block is active; models that build their own masks check this.

    >>> with attending(lambda layer, queries, keys, values: queries):
    ...     is_attending()
    True
    """
    return _ATTEND.get() is not None


def without_filling(attend: Attend, count: int) -> Attend:
    """Attention among the first `count` tokens only; the padding after them gets zeros."""

    def attend_first(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if len(q) < len(k):  # the last layer requests only the wanted tokens, without padding
            return attend(layer, q, k[:count], v[:count])
        out = attend(layer, q[:count], k[:count], v[:count])
        return pad(out, (0, 0, 0, 0, 0, len(q) - count))

    return attend_first


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document of a packed row.

    Shapes: query [1, H, T, D]; key and value [1, K, T, D]; the result is [1, T, H, D].
    `cu_seq_lens_q` holds the document boundaries, from 0 to T, on the CPU; without it, each row of
    the batch is a document. Raises `ValueError` for boundaries that do not end at T, and
    `CheckpointError` for an architecture that needs another kind of attention.

    >>> x = torch.randn(1, 2, 5, 4)  # two documents, of two and of three tokens
    >>> boundaries = torch.tensor([0, 2, 5], dtype=torch.int32)
    >>> packed, _ = packed_attention(torch.nn.Module(), x, x, x, None, cu_seq_lens_q=boundaries)
    >>> second = x[:, :, 2:]
    >>> alone, _ = packed_attention(torch.nn.Module(), second, second, second, None)
    >>> torch.allclose(packed[:, 2:], alone, atol=1e-6)
    True
    """
    _refuse_other_attention(module, attention_mask, kwargs)
    # Not read if there are boundaries (in training): torch.compile cannot trace a ContextVar.
    attend = _ATTEND.get() if cu_seq_lens_q is None else None
    if attend is not None:
        if scaling is not None:  # `attend` divides by the root of the head's width
            query = query * (scaling * query.shape[-1] ** 0.5)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        out = attend(module.layer_idx, q, k, v)[None]  # type: ignore[arg-type]
        return out.contiguous(), None  # some architectures use a view of it
    if query.shape[2] != key.shape[2]:
        raise ValueError(
            f"{query.shape[2]} queries for {key.shape[2]} keys: ledom's attention needs whole "
            "texts; to use a cache, call model.set_attn_implementation('sdpa')"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if cu_seq_lens_q is not None and not dropout and has_varlen(value.device, value.dtype):
        return _in_one_call(query, key, value, cu_seq_lens_q, scale), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    return _documents(query, key, value, cu_seq_lens_q, scale, dropout).transpose(1, 2), None


def _refuse_other_attention(
    module: torch.nn.Module, mask: Tensor | None, arguments: Mapping[str, object]
) -> None:
    kind = type(module).__name__
    for name, value in arguments.items():
        changes = isinstance(value, Tensor) and name not in _KNOWN_TENSORS
        if changes or (name == "softcap" and value is not None):
            raise CheckpointError(
                f"{kind}: ledom does not compute attention with {name}; use another model"
            )
    if mask is not None:  # ALiBi, or a selection of keys
        raise CheckpointError(f"{kind}: ledom does not support masks; use another model")


def _in_one_call(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scale: float
) -> Tensor:
    """Attention of all documents at once, on a GPU; the result is [1, T, H, D]."""
    _check_end(boundaries, query)
    # Under autocast, rotary positions leave queries and keys in fp32.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    starts = boundaries.to(query.device, torch.int32)
    longest = int(boundaries.diff().max())
    return varlen_attention(q, k, v, (starts, starts), (longest, longest), True, scale)[0][None]


def _documents(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attention document by document; inputs and result are [batch, H, T, D]."""
    if boundaries is not None and query.device.type == "cpu" and not dropout:
        # Under autocast, rotary positions leave queries and keys in fp32. The kernels, torch's too,
        # silently need the numbers of a head next to each other, in the gradients' layout as well.
        given = (x.to(value.dtype) for x in (query, key, value))
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in given)
        found: Tensor = _packed_cpu(q, k, v, boundaries, scale)[0]
        return found
    sizes = [query.shape[2]] if boundaries is None else boundaries.diff().tolist()
    documents = zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
    parts = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, dropout_p=dropout)
        for q, k, v in documents
    ]
    return torch.cat(parts, dim=2)


def _check_end(boundaries: Tensor, query: Tensor) -> None:
    if boundaries[-1] != query.shape[2]:
        raise ValueError(f"the boundaries end at {boundaries[-1]}, the row at {query.shape[2]}")


def _runs(boundaries: Tensor) -> Iterator[tuple[int, int, int]]:
    """(start, end, number of documents) for each run of neighboring documents of equal length."""
    start, number, size = 0, 0, -1
    for a, b in pairwise(boundaries.tolist()):
        if b - a != size and number:
            yield start, a, number
            start, number = a, 0
        size, number = b - a, number + 1
    if number:
        yield start, int(boundaries[-1]), number


def _rows(x: Tensor, start: int, end: int, documents: int) -> Tensor:
    """Tokens [start, end) of x [1, H, T, D] as a batch of documents [documents, H, L, D]."""
    parts: Tensor = x[0, :, start:end].unflatten(1, (documents, -1))
    return parts.transpose(0, 1)


# A custom operation is opaque to the compiler, which would otherwise recompile for every document
# count.
@torch.library.custom_op("ledom::packed_attention", mutates_args=(), device_types="cpu")
def _packed_cpu(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns the result [1, H, T, D] and the backward pass's data; inputs [1, H, T, D]."""
    _check_end(boundaries, query)
    out, kept = _outputs(query)
    if native.has_native(key, value):
        q, k, v, to = (x[0].transpose(0, 1) for x in (query, key, value, out))
        native.causal_attention(q, k, v, boundaries, scale, to, kept)
        return out, kept
    for start, end, documents in _runs(boundaries):
        q, k, v = (_rows(x, start, end, documents) for x in (query, key, value))
        part = causal_attention(q, k, v, scale, kept[start:end].view(-1))
        _rows(out, start, end, documents).copy_(part)
    return out, kept


@_packed_cpu.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _outputs(query)


def _outputs(query: Tensor) -> tuple[Tensor, Tensor]:
    """Empty buffers: the result [1, H, T, D], and room [T, H numbers] for `kept_numbers`."""
    # In memory the result is [T, H, D], the layout that the output projection reads.
    _, heads, length, width = query.shape
    out = query.new_empty(1, length, heads, width).transpose(1, 2)
    return out, query.new_empty(length, heads * kept_numbers(query.dtype))


@torch.library.custom_op("ledom::packed_attention_backward", mutates_args=(), device_types="cpu")
def _packed_cpu_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    kept: Tensor,
    boundaries: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = tuple(torch.empty_like(x) for x in (query, key, value))
    if native.has_native(key, value):
        given = [x[0].transpose(0, 1) for x in (grad, query, key, value, out)]
        places = [x[0].transpose(0, 1) for x in gradients]
        native.causal_attention_backward(given, kept, boundaries, scale, places)
        return gradients  # type: ignore[return-value]
    for start, end, documents in _runs(boundaries):
        g, q, k, v, o = (_rows(x, start, end, documents) for x in (grad, query, key, value, out))
        found = causal_attention_backward(g, q, k, v, o, kept[start:end].view(-1), scale)
        for whole, part in zip(gradients, found, strict=True):
            _rows(whole, start, end, documents).copy_(part)
    return gradients  # type: ignore[return-value]


@_packed_cpu_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, boundaries, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, boundaries)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, boundaries = ctx.saved_tensors
    return (*_packed_cpu_backward(grad, *tensors, boundaries, ctx.scale), None, None)


_packed_cpu.register_autograd(_backward, setup_context=_save_for_backward)

AttentionInterface.register(IMPLEMENTATION, packed_attention)
