"""The computations of a decoder layer except attention: norms, matmuls, rotary positions, gates.

`PackedWeight` arranges a weight for a matmul that reads it sequentially. This was faster than
oneDNN and MKL on two processors, especially for few rows. `PackedWeight`, `project` and
`finish_layer` need compiled kernels; the other functions fall back to plain torch.

Shapes: T tokens, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ledom.model.native.library import library_for, workspace

__all__ = ["PackedWeight", "finish_layer", "project", "rms_norm", "rotate", "silu_product"]

_TILE_ROWS = 6  # ROWS in vectors.h
_BLOCK = 192  # rows that go through a layer's steps while in the processor's cache
_Norm = tuple[Tensor, float]
"""A norm's weight [width], and its epsilon, which is added to the mean square."""


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Divide x [T, width] by the root of its mean square; multiply by the weight [width].

    >>> rms_norm(torch.tensor([[1.0, -1.0]]), torch.tensor([1.0, 2.0]), 0.0)
    tensor([[ 1., -2.]])
    """
    native = library_for(x, weight)
    if native is None:
        return functional.rms_norm(x, weight.shape, weight, epsilon)
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty_like(x)
    given = (x.data_ptr(), weight.data_ptr(), out.data_ptr(), *x.shape, epsilon)
    native.rms_norm(*given, _threads(len(x)))
    return out


def silu_product(x: Tensor) -> Tensor:
    """SiLU of the first half of each row of x [T, 2 * width], times the second half.

    >>> silu_product(torch.tensor([[0.0, 5.0]]))
    tensor([[0.]])
    """
    native = library_for(x)
    if native is None:
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)
    x = x.contiguous()
    out = x.new_empty(len(x), x.shape[1] // 2)
    native.silu_product(x.data_ptr(), out.data_ptr(), *out.shape, _threads(len(x)))
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Apply rotary positions [T, D] in place to heads [T, heads, D], parts of wider rows.

    Dimension i is paired with i + D / 2.

    >>> x = torch.tensor([[[1.0, 2.0]]])
    >>> rotate(x, torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    >>> x
    tensor([[[-2.,  1.]]])
    """
    heads, width = x.shape[1:]
    half = width // 2
    native = library_for(x, cos, sin)
    if native is None:
        cos, sin, before = cos[:, None], sin[:, None], x.clone()
        x.mul_(cos)
        x[..., :half].addcmul_(before[..., half:], sin[..., :half], value=-1)
        x[..., half:].addcmul_(before[..., :half], sin[..., half:])
        return
    cos, sin = cos.contiguous(), sin.contiguous()
    given = (x.data_ptr(), cos.data_ptr(), sin.data_ptr(), len(x), x.stride(0), heads, width)
    native.rotate(*given, _threads(len(x)))


class PackedWeight:
    """A weight [out, in] and its bias [out], arranged for `project` and `finish_layer`.

    The copy is in panels [out / P, in, P], where P columns fill the processor's vectors; the last
    panel is padded with zeros. Needs compiled kernels.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        native = library_for(weight.detach())
        assert native is not None
        panel = native.panel_width()
        self.width, self.depth = weight.shape
        missing = -self.width % panel
        self.panels = weight.new_empty((self.width + missing) // panel, self.depth, panel)
        given = (weight.data_ptr(), *weight.stride(), *weight.shape, self.panels.data_ptr())
        native.pack_weight(*given, torch.get_num_threads())
        self.bias = None if bias is None else functional.pad(bias.detach(), (0, missing))


def project(
    x: Tensor,
    weight: PackedWeight,
    norm: _Norm | None = None,
    rotary: tuple[Tensor, Tensor, int] | None = None,
    name: str | None = "product",
) -> Tensor:
    """Matmul of x [T, in], normalized by `rms_norm` if `norm` is given, and a weight: [T, out].

    `rotary` holds cosines [T, D], sines [T, D] and a number of heads: that many heads at the
    beginning of each row get rotary positions; see `rotate`. The result is in the `workspace` of
    this `name`; without one, it has its own memory.
    """
    native = library_for(x, weight.panels)
    assert native is not None
    x, rows, threads = x.contiguous(), len(x), _threads(len(x))
    shape = rows, weight.width
    out = x.new_empty(shape) if name is None else workspace(name, *shape)
    scale, epsilon = norm or (None, 0.0)
    cos, sin, heads = rotary or (None, None, 0)
    scale, cos, sin = (None if y is None else y.contiguous() for y in (scale, cos, sin))
    scratch = workspace("scratch", threads * _BLOCK * weight.depth if norm else 0)
    native.project(
        *(x.data_ptr(), rows, weight.depth, _address(scale), epsilon),
        *(weight.panels.data_ptr(), _address(weight.bias), weight.width),
        *(_address(cos), _address(sin), heads, 0 if cos is None else cos.shape[1]),
        *(out.data_ptr(), scratch.data_ptr(), _BLOCK, threads),
    )
    return out


def finish_layer(
    hidden: Tensor,
    attended: Tensor,
    out: PackedWeight,
    norm: _Norm,
    up: PackedWeight,
    down: PackedWeight,
) -> None:
    """Add a layer's attention and feed-forward part to the residual stream, in place.

    `hidden` is [T, width]; the attention's result `attended` [T, H * D] is multiplied by `out`.
    `up` [2 * inner, width] holds the gates' weights, then the other ones; see `silu_product`.
    """
    native = library_for(hidden, attended)
    assert native is not None
    rows, threads, inner = len(hidden), _threads(len(hidden)), down.depth
    attended, scale, epsilon = attended.contiguous(), norm[0].contiguous(), norm[1]
    scratch = workspace("scratch", threads * _BLOCK * (up.depth + up.width))
    native.finish_layer(
        *(hidden.data_ptr(), rows, up.depth, attended.data_ptr(), out.depth),
        *(out.panels.data_ptr(), _address(out.bias), scale.data_ptr(), epsilon),
        *(up.panels.data_ptr(), inner, down.panels.data_ptr()),
        *(scratch.data_ptr(), _BLOCK, threads),
    )


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _threads(rows: int) -> int:
    """The number of threads for this many rows; each should fill at least a register tile."""
    return max(1, min(torch.get_num_threads(), rows // _TILE_ROWS))
