"""Fast matmuls and attention with torch's private operations, each with a public fallback.

No other module calls private operations of torch. The fallbacks give the same results; they are
used on other devices, in other precisions, and if torch lacks the operation.

- torch computes fp32 matmuls with MKL, which reaches half of the peak on AMD processors with
AVX-512. oneDNN reaches all of it, and also sums in fp32. Without AVX-512, MKL is faster.
- Only the private kernel behind `scaled_dot_product_attention` returns the normalizers, which are
  needed to join attention over parts of the keys.

Shapes: T tokens, N documents, H query heads, K key-value heads, Q queries, L keys, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import varlen

__all__ = [
    "Int8Weight",
    "add_linear",
    "attention",
    "causal_attention",
    "causal_attention_backward",
    "filled_rows",
    "has_varlen",
    "kept_numbers",
    "linear",
    "varlen_attention",
]

_ROWS = 32  # with fewer rows, calling oneDNN costs more than it saves
_QUERIES = 128  # queries per block of plain matmuls; a block skips the keys that it may not see
_KEPT_KEYS = 256  # the longest document whose attention weights are kept for the backward pass
_SCORES_BYTES = 64 * 2**20  # maximum memory for a matrix of attention scores
_HALF = (torch.float16, torch.bfloat16)
_WIDE = "AVX512" in torch.backends.cpu.get_cpu_capability()

# A linear layer as torch's compiler emits it, and the kernel of scaled_dot_product_attention with
# its backward pass. Each is None if this torch lacks it.
_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_FLASH: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_FLASH_BACKWARD: Any = getattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None
)
_INT8: Any = getattr(torch.ops.onednn, "qlinear_pointwise", None)
_INT8_PACK: Any = getattr(torch.ops.onednn, "qlinear_prepack", None)

_SHIFT = 128  # the unsigned number that represents an input of 0


class Int8Weight:
    """A weight [out, in] on a CPU, quantized to 7-bit integers with one scale per output.

    Inputs are quantized to 8 bits with one scale per token, so no token's result depends on its
    neighbors. Sums are exact. Weights have 7 bits because processors without VNNI add pairs of
    products in 16 bits: 8-bit weights would overflow silently (2 * 255 * 63 fits).

    >>> weight = Int8Weight(torch.tensor([[63.0, -31.0]]))
    >>> weight(torch.tensor([[127.0, 127.0]]), torch.tensor([1.0]))  # 127 * 63 - 127 * 31 + 1
    tensor([[4065.]])
    """

    _LARGEST, _LARGEST_INPUT = 63, 127

    def __init__(self, weight: Tensor) -> None:
        weight = weight.detach()
        self._scales = _scales(weight, self._LARGEST)[:, 0]
        rounded = (weight / self._scales[:, None]).round_()
        self._plain = (
            _INT8 is None or _INT8_PACK is None or not torch.backends.mkldnn.is_available()
        )
        self._rounded = rounded if self._plain else _INT8_PACK(rounded.to(torch.int8), None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [T, in] and bias [out] in fp32 -> [T, out] in fp32."""
        scales = _scales(x, self._LARGEST_INPUT)
        rounded = (x / scales).round_()
        if self._plain:
            out = (rounded @ self._rounded.t()).mul_(self._scales)
        else:
            # Unsigned, because with AVX-512 oneDNN has no fast matmul for signed inputs.
            shifted = rounded.add_(_SHIFT).to(torch.uint8)
            given = (shifted, 1.0, _SHIFT, self._rounded, self._scales, self._zeros)
            out = _INT8(*given, None, 1.0, 0, torch.float32, "none", [], "")  # fp32, nothing fused
        out.mul_(scales)
        return out if bias is None else out.add_(bias)


def _scales(x: Tensor, largest: int) -> Tensor:
    """The divisor [T, 1] that brings each row of x [T, in] to at most `largest` in magnitude."""
    return x.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny).div_(largest)


def linear(x: Tensor, weight: Tensor | Int8Weight, bias: Tensor | None = None) -> Tensor:
    """x [T, in], weight [out, in] and bias [out] -> [T, out].

    >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([5.0]))
    tensor([[16.]])
    """
    rows = x.shape[0]  # faster than `len`, and called for every matmul
    x = _fill(x, filled_rows(x, weight))
    if isinstance(weight, Int8Weight):
        return weight(x, bias)[:rows]
    if not _for_onednn(x):
        return functional.linear(x, weight, bias)
    out: Tensor = _LINEAR(x, weight, bias, "none", [], "")
    return out[:rows]


def filled_rows(x: Tensor, weight: Tensor | Int8Weight) -> int:
    """The number of rows that x [T, in] should have for a matmul: T, or up to 1/16 more.

    For each new number of rows, oneDNN generates code, which takes about a millisecond, and keeps
    0.6 MB of it, for up to a thousand of them. So there should be few different numbers.

    >>> filled_rows(torch.ones(1, 2), torch.ones(3, 2))
    1
    """
    rows = x.shape[0]
    if rows < _ROWS or not (isinstance(weight, Int8Weight) or _for_onednn(x)):
        return rows
    step = max(8, 1 << (rows.bit_length() - 5))
    return -(-rows // step) * step


def _fill(x: Tensor, rows: int) -> Tensor:
    """x [T, width] padded with rows of zeros to [rows, width]; x itself if it fits already."""
    missing = rows - x.shape[0]
    return functional.pad(x, (0, 0, 0, missing)) if missing else x


def add_linear(
    total: Tensor, x: Tensor, weight: Tensor | Int8Weight, bias: Tensor | None = None
) -> Tensor:
    """`total` [T, out] plus `linear`; `total` may be overwritten.

    >>> add_linear(torch.tensor([[1.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([[12.]])
    """
    if isinstance(weight, Int8Weight):
        return total.add_(linear(x, weight, bias))
    if not _for_onednn(x):
        total.addmm_(x, weight.t())
        return total if bias is None else total.add_(bias)
    rows, filled = x.shape[0], filled_rows(x, weight)
    out: Tensor = _LINEAR.binary(_fill(x, filled), _fill(total, filled), weight, bias, "add")
    return out[:rows]


def _for_onednn(x: Tensor) -> bool:
    return (
        _WIDE
        and _LINEAR is not None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[0] >= _ROWS
    )


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention's result [1, H, Q, D] and the log normalizers [1, H, Q] in fp32.

    q is [1, H, Q, D], k and v are [1, K, L, D]; the mask [Q, L] is added to the scores.

    >>> one = torch.ones(1, 1, 1, 4)
    >>> attention(one, one, 3 * one)
    (tensor([[[[3., 3., 3., 3.]]]]), tensor([[[2.]]]))
    """
    if q.device.type != "cpu" or _FLASH is None:
        return _plain_attention(q, k, v, mask)
    out, normalizers = _FLASH(q, k, v, attn_mask=mask)
    return out, normalizers


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    rows = max(1, _SCORES_BYTES // (4 * q.shape[1] * k.shape[2]))
    results, normalizers = [], []
    for start in range(0, q.shape[2], rows):
        part = q[:, :, start : start + rows].float() * q.shape[-1] ** -0.5
        scores = part @ k.float().transpose(-1, -2)
        if mask is not None:
            scores = scores + mask[start : start + rows]
        normalizers.append(scores.logsumexp(-1))
        results.append(scores.softmax(-1).to(v.dtype) @ v)
    return torch.cat(results, dim=2), torch.cat(normalizers, dim=2)


def has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is `varlen_attention`: flash attention on a GPU, in half precision.

    >>> has_varlen(torch.device("cpu"), torch.bfloat16)
    False
    """
    return device.type == "cuda" and dtype in _HALF


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    causal: bool,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention within segments; returns [Q, H, D] and the log normalizers [Q, H] in fp32.

    Segment n of the queries [Q, H, D] sees segment n of k and v [L, K, D]. With `causal`, the last
    query sees the whole segment, the query before it one key fewer, and so on. `starts` are the
    boundaries of the query segments and of the key segments [segments + 1] in int32; `longest` are
    the lengths of the longest of each. Needs `has_varlen`.
    """
    found: tuple[Tensor, Tensor] = varlen.varlen_attn(  # type: ignore[assignment]
        q,
        k,
        v,
        *starts,
        *longest,
        return_aux=varlen.AuxRequest(lse=True),
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=True,
    )
    out, normalizers = found
    # torch 2.13 documents [Q, H], but its flash attention returns [H, Q].
    return out, normalizers.t() if len(normalizers) == q.shape[1] else normalizers


def kept_numbers(dtype: torch.dtype) -> int:
    """The count of numbers that `causal_attention` keeps per head and token, in the inputs' dtype.

    The private kernel returns log normalizers. It is slow in bf16 (its backward pass takes four
    times as long for heads of width 32). Plain matmuls take half of that time. They keep the
    attention weights of short documents and recompute those of longer ones.

    >>> kept_numbers(torch.bfloat16)
    256
    """
    return 1 if _has_fused(dtype) else _KEPT_KEYS


def _has_fused(dtype: torch.dtype) -> bool:
    return _FLASH is not None and _FLASH_BACKWARD is not None and dtype == torch.float32


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, kept: Tensor) -> Tensor:
    """Causal attention within each of N documents on a CPU; inputs and result [N, H, L, D].

    `kept` [N H L numbers] receives the data for the backward pass (see `kept_numbers`). In bf16,
    scores are rounded before the softmax, because torch has no bf16 matmul with fp32 outputs on a
    CPU. The result's mean error is 2 (scores up to 5) to 5 times (scores up to 40) the fused
    kernel's.

    >>> one = torch.ones(1, 1, 2, 4)
    >>> causal_attention(one, one, one, 0.5, torch.empty(2)).shape
    torch.Size([1, 1, 2, 4])
    """
    shape = q.shape
    if _has_fused(q.dtype):
        out, normalizers = _FLASH(q, k, v, is_causal=True, scale=scale)
        kept.view(shape[:-1]).copy_(normalizers)
        fused: Tensor = out
        return fused
    q, k, v = (x.reshape(-1, *shape[2:]) for x in (q * scale, k, v))
    found = torch.empty_like(q)
    for block, keys, place in _blocks(kept, len(q), shape[2]):
        weights = _weights(q[:, block], k[:, keys], block.start, place)
        found[:, block] = torch.bmm(weights, v[:, keys])
    return found.view(shape)


def causal_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, kept: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, from the inputs, result and `kept` of `causal_attention`.

    >>> one, kept = torch.ones(1, 1, 2, 4), torch.empty(2)
    >>> out = causal_attention(one, one, one, 0.5, kept)
    >>> causal_attention_backward(one, one, one, one, out, kept, 0.5)[2][0, 0, :, 0]
    tensor([1.5000, 0.5000])
    """
    if _has_fused(q.dtype):
        fused: tuple[Tensor, Tensor, Tensor] = _FLASH_BACKWARD(
            grad, q, k, v, out, kept.view(q.shape[:-1]), 0.0, True, scale=scale
        )
        return fused
    shape = q.shape
    g, q, k, v = (x.reshape(-1, *shape[2:]) for x in (grad, q * scale, k, v))
    of_query = torch.empty_like(q)
    of_key, of_value = (torch.empty(x.shape, dtype=torch.float32) for x in (k, v))
    for block, keys, place in _blocks(kept, len(q), shape[2]):
        weights = _weights(q[:, block], k[:, keys], block.start) if place is None else place
        of_weights = torch.bmm(g[:, block], v[:, keys].mT)
        slopes = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_query[:, block] = torch.bmm(slopes, k[:, keys]).mul_(scale)
        for total, factor, rows in ((of_key, slopes, q), (of_value, weights, g)):
            share = torch.bmm(factor.mT, rows[:, block])
            if keys.stop == shape[2]:
                total.copy_(share)
            else:
                total[:, keys] += share
    of_key, of_value = of_key.to(k.dtype), of_value.to(v.dtype)
    return of_query.view(shape), of_key.view(shape), of_value.view(shape)


def _blocks(kept: Tensor, rows: int, length: int) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Each block's queries, its visible keys, and the place of its weights [rows, block, keys].

    The last block comes first because it sees all keys, so sums over blocks need not begin with
    zeros. The weights of documents longer than `_KEPT_KEYS` are not kept.
    """
    end = 0
    for start in reversed(range(0, length, _QUERIES)):
        stop = min(start + _QUERIES, length)
        begin, end = end, end + rows * (stop - start) * stop
        place = kept[begin:end].view(rows, stop - start, stop) if length <= _KEPT_KEYS else None
        yield slice(start, stop), slice(stop), place


def _weights(query: Tensor, key: Tensor, start: int, out: Tensor | None = None) -> Tensor:
    """Causal attention weights [rows, block, keys] of scaled queries from index `start` on."""
    scores = torch.bmm(query, key.mT)
    block = query.shape[1]
    later = torch.full((block, block), -torch.inf, dtype=scores.dtype).triu_(1)
    scores[:, :, start:].add_(later)  # takes half the time of masked_fill
    return torch.softmax(scores, dim=-1, out=out)
