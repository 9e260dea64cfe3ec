"""Matmuls of training in fp32 on a CPU, with compiled kernels.

Outputs and gradients of inputs are computed by ledom's own matmul. The weight is arranged for it
each time, because every step changes it. For gradients of weights, torch's matmul is as fast.

Shapes: T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ledom.model.native.layers import PackedWeight, project
from ledom.model.native.library import library_for

__all__ = ["LEAST_ROWS", "multiplier", "use_fast_products"]

LEAST_ROWS = 512
"""Tokens below which `multiplier` uses torch: arranging the weight would take too long."""


def multiplier(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """A function that multiplies x [T, in] by a weight [out, in]: [T, out], in new memory.

    `rows` is the number of tokens of all calls together.

    >>> multiplier(torch.tensor([[3.0, 4.0]]), 1)(torch.tensor([[1.0, 2.0]]))
    tensor([[11.]])
    """
    weight = weight.detach()
    if rows < LEAST_ROWS or library_for(weight) is None:
        return lambda x: x @ weight.t()
    packed = PackedWeight(weight)
    return lambda x: project(x, packed, name=None)


def use_fast_products(model: nn.Module) -> None:
    """Make the linear layers of a model in fp32 on a CPU use compiled kernels, in both passes.

    Does nothing without compiled kernels.

    >>> layer, x = nn.Linear(2, 1), torch.ones(3, 2)
    >>> use_fast_products(layer)
    >>> layer(x).sum().backward()
    >>> layer.weight.grad
    tensor([[3., 3.]])
    """
    if library_for() is None:
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            # Not by a mode around the pass: torch turns modes off in the backward pass, where a
            # layer may be recomputed.
            module.__class__ = _FastLinear


class _FastLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if not input.is_cpu or input.dtype != torch.float32 or weight.dtype != torch.float32:
            return functional.linear(input, weight, self.bias)
        product: Tensor = _product(input.reshape(-1, input.shape[-1]), weight)
        product = product.view(*input.shape[:-1], weight.shape[0])
        return product if self.bias is None else product + self.bias


# Opaque to the compiler.
@torch.library.custom_op("ledom::product", mutates_args=(), device_types="cpu")
def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, in] and weight [out, in] -> [T, out]."""
    return multiplier(weight, len(x))(x)


@_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    # `len` would make the compiler compile again for each number of tokens.
    return x.new_empty(x.shape[0], weight.shape[0])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    of_x = _product(grad, weight.t()) if ctx.needs_input_grad[0] else None
    of_weight = grad.t() @ x if ctx.needs_input_grad[1] else None
    return of_x, of_weight


_product.register_autograd(_backward, setup_context=_save_for_backward)
