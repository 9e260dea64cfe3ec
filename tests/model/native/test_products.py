"""Matmuls of training with kernels, compared with torch's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ledom.model.native import products
from ledom.model.native.products import LEAST_ROWS, multiplier, use_fast_products


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call of the kernel."""
    rows: list[int] = []

    def project(x: Tensor, *given: object, **options: object) -> Tensor:
        rows.append(len(x))
        return kernel(x, *given, **options)  # type: ignore[arg-type]

    kernel = products.project
    monkeypatch.setattr(products, "project", project)
    return rows


def gradients(run: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The result of a pass, and the gradients of its input and of the layer's parameters."""
    out = run(x)
    scale = torch.arange(out.numel(), dtype=out.dtype).view(out.shape).sin()
    return [out, *torch.autograd.grad((out * scale).sum(), [x, *layer.parameters()])]


@pytest.mark.slow
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(LEAST_ROWS + 5, 24), (2, LEAST_ROWS, 24), (3, 24)])
def test_linear_layers_equal_torch(
    bias: bool, shape: tuple[int, ...], compiled: bool, multiplied: list[int]
) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 70, bias=bias), torch.randn(shape, requires_grad=True)
    use_fast_products(layer)
    found = gradients(layer, layer, x)
    rows = x.numel() // 24
    assert multiplied == ([rows, rows] if compiled and rows >= LEAST_ROWS else [])
    expected = gradients(layer.double(), layer, x.detach().double().requires_grad_())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-5)


def test_a_frozen_weight_gets_no_gradient(compiled: bool) -> None:
    layer, x = nn.Linear(16, 16), torch.randn(LEAST_ROWS, 16, requires_grad=True)
    layer.weight.requires_grad_(False)
    use_fast_products(layer)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(LEAST_ROWS, -1))
    assert layer.weight.grad is None


def test_other_precisions_and_devices_stay_with_torch(multiplied: list[int]) -> None:
    layer, x = nn.Linear(16, 16), torch.randn(LEAST_ROWS, 16)
    use_fast_products(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.to("meta")(x.to("meta").double()).is_meta
    assert not multiplied


@pytest.mark.slow
def test_compiled_and_recomputed_layers_equal_torch(multiplied: list[int]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 32), torch.randn(LEAST_ROWS, 32, requires_grad=True)
    expected = gradients(layer, layer, x)
    use_fast_products(layer)
    whole = torch.compile(layer, backend="aot_eager", fullgraph=True)
    recomputed: Callable[[Tensor], Tensor] = lambda x: checkpoint(layer, x, use_reentrant=False)  # noqa: E731
    for run in (whole, recomputed):
        for ours, theirs in zip(gradients(run, layer, x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    if products.library_for() is not None:
        assert len(multiplied) == 5  # two passes each, and the recomputation


@pytest.mark.slow
def test_another_number_of_tokens_is_not_compiled_again() -> None:
    """As with plain layers: the second number makes the compiler support any."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    layer = nn.Linear(8, 8)
    use_fast_products(layer)
    run = torch.compile(layer, backend=backend)
    for rows in range(600, 605):
        assert run(torch.ones(rows, 8)).shape == (rows, 8)
    assert len(graphs) <= 2


def test_layers_can_be_copied_and_pickled(compiled: bool) -> None:
    layer, x = nn.Linear(8, 8), torch.randn(LEAST_ROWS, 8)
    use_fast_products(layer)
    expected = layer(x)
    other = copy.deepcopy(layer)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(other(x), expected)


def test_a_multiplier_sees_the_weight_as_it_was(compiled: bool) -> None:
    weight, x = torch.randn(33, 16), torch.randn(LEAST_ROWS, 16)
    for view in (weight, weight[:, :16], weight.t().contiguous().t()):
        torch.testing.assert_close(multiplier(view, LEAST_ROWS)(x), x @ weight.t())
    first, second = (multiplier(w, LEAST_ROWS)(x) for w in (weight, -weight))
    torch.testing.assert_close(first, -second)  # each in its own memory
