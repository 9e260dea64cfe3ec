"""The kernels of `native.layers` and their fallbacks, compared with torch in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from ledom.model.native import layers
from ledom.model.native.attention import has_native
from ledom.model.native.layers import PackedWeight


@pytest.mark.parametrize("width", [16, 48, 7])
def test_norms_and_gates_equal_torch(width: int, compiled: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, width) * 30, torch.randn(width)
    expected = rms_norm(x.double(), (width,), weight.double(), 1e-5)
    found = layers.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    both = torch.cat([x, torch.randn(5, width)], dim=1)
    both[0, :3] = torch.tensor([200.0, -200.0, 0.0])
    expected = silu(both[:, :width].double()) * both[:, width:].double()
    torch.testing.assert_close(layers.silu_product(both).double(), expected, atol=1e-6, rtol=1e-5)


def test_gates_of_any_size_equal_torch(compiled: bool) -> None:
    """SiLU of a number far below 0 is 0, and SiLU of -inf is NaN."""
    lowest = torch.finfo(torch.float32).min
    gate = torch.tensor([[-100.0, -1e20, lowest, -torch.inf, torch.nan, torch.inf, 1e20]])
    up = torch.tensor([[1e30, 1e38, 1.0, 1.0, 1.0, -1.0, 1.0]])
    expected = torch.tensor([[0.0, 0.0, 0.0, torch.nan, torch.nan, -torch.inf, 1e20]])
    found = layers.silu_product(torch.cat([gate, up], dim=1))
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch warns about speed
def test_weights_in_another_precision_are_read_correctly(compiled: bool) -> None:
    x = torch.tensor([[3.0, 4.0]])  # its mean square is 12.5
    found = layers.rms_norm(x, torch.tensor([1.0, -2.0], dtype=torch.bfloat16), 12.5)
    torch.testing.assert_close(found, torch.tensor([[0.6, -1.6]]))
    x, cos = torch.ones(2, 1, 16), torch.full((2, 16), 2.0, dtype=torch.bfloat16)
    layers.rotate(x, cos, torch.zeros(16, 2).T)
    assert x.unique().tolist() == [2.0]
    assert not has_native(torch.ones(2, 16), torch.ones(2, 16, dtype=torch.bfloat16))


def test_gradients_pass_through(compiled: bool) -> None:
    """torch takes over: d(x / |x|) is 0 along x, and SiLU's slope at 0 is 1/2."""
    x = torch.tensor([[3.0, 3.0]], requires_grad=True)
    layers.rms_norm(x, torch.tensor([1.0, 1.0]), 0.0).sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros(1, 2))
    weight = torch.ones(2, requires_grad=True)
    layers.rms_norm(torch.tensor([[3.0, -3.0]]), weight, 0.0).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, -1.0]
    both = torch.tensor([[0.0, 4.0]], requires_grad=True)
    layers.silu_product(both).sum().backward()
    assert both.grad is not None
    assert both.grad.tolist() == [[2.0, 0.0]]
    row = torch.ones(2, 16, requires_grad=True)
    assert not has_native(row, row)
    with torch.no_grad():
        assert has_native(row, row) is compiled


def test_only_the_given_heads_are_rotated(compiled: bool) -> None:
    torch.manual_seed(0)
    x, cos, sin = torch.randn(3, 5, 16), torch.randn(3, 16), torch.randn(3, 16)
    turned = torch.cat([-x[..., 8:], x[..., :8]], dim=-1)
    expected = x * cos[:, None] + turned * sin[:, None]
    found = x.clone()
    layers.rotate(found[:, :4], cos, sin)
    torch.testing.assert_close(found[:, :4], expected[:, :4])
    assert torch.equal(found[:, 4], x[:, 4])


def test_weights_need_not_be_contiguous(compiled: bool) -> None:
    """A norm may be every second element of a larger tensor, or one expanded element."""
    torch.manual_seed(0)
    x, cos, sin = torch.randn(3, 16), torch.randn(16, 3).t(), torch.randn(16, 3).t()
    for weight in (torch.randn(32)[::2], torch.randn(1).expand(16)):
        norm, same = (weight, 1e-5), (weight.clone(), 1e-5)
        assert torch.equal(layers.rms_norm(x, *norm), layers.rms_norm(x, *same))
        if compiled:
            packed = PackedWeight(torch.randn(16, 16))
            found = layers.project(x, packed, norm, (cos, sin, 1))
            turned = cos.contiguous(), sin.contiguous(), 1
            assert torch.equal(found, layers.project(x, packed, same, turned))
            found, expected = x.clone(), x.clone()
            up = PackedWeight(torch.randn(32, 16))
            layers.finish_layer(found, x, packed, norm, up, packed)
            layers.finish_layer(expected, x, packed, same, up, packed)
            assert torch.equal(found, expected)


SIZES = [(1, 7, 5), (6, 64, 64), (13, 48, 130), (400, 192, 320)]  # T, in, out


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "depth", "width"), SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_projections(rows: int, depth: int, width: int, biased: bool, compiled: bool) -> None:
    if not compiled:
        pytest.skip("there is no fallback: the trunk uses other matmuls")
    torch.manual_seed(0)
    x, weight = torch.randn(rows, depth), torch.randn(width, depth)
    bias = torch.randn(width) if biased else None
    packed = PackedWeight(weight, bias)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    torch.testing.assert_close(layers.project(x, packed).double(), expected, atol=1e-4, rtol=1e-4)
    norm = torch.randn(depth), 1e-5
    normal = rms_norm(x.double(), (depth,), norm[0].double(), norm[1])
    expected = normal @ weight.double().T + (0 if bias is None else bias.double())
    found = layers.project(x, packed, norm)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)
    alone = layers.project(x[-1:], packed, norm)
    assert torch.equal(alone, found[-1:])  # bit-identical in any batch


def test_a_projection_rotates_its_first_heads(compiled: bool) -> None:
    if not compiled:
        pytest.skip("there is no fallback: the trunk uses other matmuls")
    torch.manual_seed(0)
    x, weight = torch.randn(200, 24), torch.randn(5 * 16, 24)
    cos, sin = torch.randn(200, 16), torch.randn(200, 16)
    packed = PackedWeight(weight)
    found = layers.project(x, packed, None, (cos, sin, 3))
    expected = layers.project(x, packed).unflatten(1, (5, 16))
    layers.rotate(expected[:, :3], cos, sin)
    assert torch.equal(found, expected.flatten(1))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 8, 397])
@pytest.mark.parametrize(("width", "attended", "inner"), [(48, 32, 40), (64, 96, 200)])
def test_the_end_of_a_layer_equals_torch(
    rows: int, width: int, attended: int, inner: int, compiled: bool
) -> None:
    if not compiled:
        pytest.skip("there is no fallback: the trunk uses other matmuls")
    torch.manual_seed(0)
    hidden, x = torch.randn(rows, width), torch.randn(rows, attended)
    out, bias = torch.randn(width, attended) / 9, torch.randn(width)
    up, down = torch.randn(2 * inner, width) / 9, torch.randn(width, inner) / 9
    norm = torch.randn(width), 1e-5
    expected = hidden.double() + x.double() @ out.double().T + bias
    normal = rms_norm(expected, (width,), norm[0].double(), norm[1])
    gate, other = (normal @ up.double().T).chunk(2, dim=1)
    expected = expected + (silu(gate) * other) @ down.double().T
    packed = PackedWeight(out, bias), norm, PackedWeight(up), PackedWeight(down)
    found = hidden.clone()
    layers.finish_layer(found, x, *packed)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)
    alone = hidden[-1:].clone()
    layers.finish_layer(alone, x[-1:], *packed)
    assert torch.equal(alone, found[-1:])  # bit-identical in any batch


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_any_bit(threads: int) -> None:
    torch.manual_seed(0)
    packed, norm = PackedWeight(torch.randn(100, 32)), (torch.randn(32), 1e-5)
    weights = PackedWeight(torch.randn(32, 100)), norm, PackedWeight(torch.randn(80, 32))
    x, down = torch.randn(450, 32), PackedWeight(torch.randn(32, 40))

    def computed() -> tuple[Tensor, Tensor]:
        projected, hidden = layers.project(x, packed, norm), x.clone()
        layers.finish_layer(hidden, projected, *weights, down)
        return projected, hidden

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = computed()
        torch.set_num_threads(threads)
        found = computed()
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, found, expected))
