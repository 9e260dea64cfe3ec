import pytest
import torch

from ledom.lm.engine.kernels import add_linear, linear


@pytest.mark.parametrize("rows", [1, 31, 32, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_are_those_of_plain_torch(rows: int, dtype: torch.dtype, has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, total = (
        torch.randn(size, dtype=dtype) for size in ((rows, 48), (80, 48), (rows, 80))
    )
    bias = torch.randn(80, dtype=dtype) if has_bias else None
    expected = torch.nn.functional.linear(x.double(), weight.double())
    if bias is not None:
        expected += bias
    tolerance = 1e-4 if dtype == torch.float32 else 0.5
    with torch.inference_mode():
        found = linear(x, weight, bias)
        added = add_linear(total.clone(), x, weight, bias)
    assert found.dtype == added.dtype == dtype
    assert (found - expected).abs().max() < tolerance
    assert (added - expected - total).abs().max() < tolerance


def test_the_inputs_may_be_views() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 96), torch.randn(160, 48)
    with torch.inference_mode():
        found = linear(x[:, ::2], weight[::2])
    assert torch.allclose(found, x[:, ::2] @ weight[::2].t(), atol=1e-4)


def test_without_onednn_it_is_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(64, 48), torch.randn(80, 48)
    monkeypatch.setattr("ledom.lm.engine.kernels._ONEDNN", None)
    assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))
    assert torch.equal(
        add_linear(torch.zeros(64, 80), x, weight), torch.zeros(64, 80).addmm_(x, weight.t())
    )
