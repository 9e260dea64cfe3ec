"""The product of many rows with a weight, the way that is fastest on the device.

On a CPU torch gives products in fp32 to MKL, which on processors that are not Intel's reaches half
of what they can; oneDNN, which torch has with it and uses in bf16, reaches all of it, and sums in
fp32 as well. For a few rows its calls cost more than they save.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["add_linear", "linear"]

_ROWS = 32  # fewer go to MKL
# Private to torch, but what its compiler writes for a linear layer; without it, it is plain torch.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, in], weight [out, in] and bias [out] -> [T, out]."""
    if not _for_onednn(x):
        return functional.linear(x, weight, bias)
    out: Tensor = _ONEDNN(x, weight, bias, "none", [], "")  # type: ignore[misc]
    return out


def add_linear(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`total` [T, out] plus `linear`; may be written over."""
    if not _for_onednn(x):
        total.addmm_(x, weight.t())
        return total if bias is None else total.add_(bias)
    out: Tensor = _ONEDNN.binary(x, total, weight, bias, "add")  # type: ignore[union-attr]
    return out


def _for_onednn(x: Tensor) -> bool:
    return (
        _ONEDNN is not None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and len(x) >= _ROWS
    )
