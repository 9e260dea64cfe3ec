"""The fastest matmuls and attention, compared with torch in fp64 and their public fallbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ledom.model import kernels
from ledom.model.checkpoint import build_model
from ledom.model.kernels import add_linear, linear
from ledom.model.presets import ModelConfig
from ledom.text.tokenizer import Tokenizer
from ledom.train.objective import token_losses
from varlen import use_varlen


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_matmuls_equal_plain_torch(
    rows: int, dtype: torch.dtype, has_bias: bool, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This covers processors with and without AVX-512."""
    monkeypatch.setattr(kernels, "_WIDE", wide)
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


@pytest.mark.parametrize(
    ("rows", "filled"),
    [(1, 1), (31, 31), (32, 32), (33, 40), (100, 104), (500, 512), (4000, 4096), (4097, 4352)],
)
def test_matmuls_use_few_different_numbers_of_rows(
    rows: int, filled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN keeps code for each number of rows."""
    x, weight = torch.ones(rows, 4), torch.ones(3, 4)
    monkeypatch.setattr(kernels, "_WIDE", True)
    assert kernels.filled_rows(x, weight) == filled
    assert kernels.filled_rows(x.double(), weight.double()) == rows
    monkeypatch.setattr(kernels, "_WIDE", False)
    assert kernels.filled_rows(x, weight) == rows
    assert kernels.filled_rows(x, kernels.Int8Weight(weight)) == filled


def test_the_inputs_may_be_views() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 96), torch.randn(160, 48)
    with torch.inference_mode():
        found = linear(x[:, ::2], weight[::2])
    assert torch.allclose(found, x[:, ::2] @ weight[::2].t(), atol=1e-4)


@pytest.mark.parametrize("private", [True, False])
def test_int8_matmuls_equal_integer_matmuls(private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with numpy integers, for one row and many, and for rows and outputs of zeros."""
    if not private:
        monkeypatch.setattr(kernels, "_INT8", None)
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(70, 96)), rng.normal(size=(40, 96))
    x[3], weight[5] = 0, 0
    x, weight = x.astype(np.float32), weight.astype(np.float32)

    def rounded(values: Any, largest: int) -> tuple[Any, Any]:
        scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(largest)
        scales[scales == 0] = 1
        return np.rint(values / scales).astype(np.int64), scales.astype(np.float64)

    (x_int, x_scale), (w_int, w_scale) = rounded(x, 127), rounded(weight, 63)
    expected = (x_int @ w_int.T) * x_scale * w_scale.T
    product = kernels.Int8Weight(torch.from_numpy(weight))
    found = product(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    alone = [product(torch.from_numpy(row[None]))[0].numpy() for row in x]
    np.testing.assert_array_equal(alone, found)  # bit-identical
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert 0 < np.abs(found - exact).mean() < 0.03 * np.abs(exact).mean()


@pytest.mark.parametrize("sign", [1, -1])
def test_int8_sums_do_not_overflow(sign: int) -> None:
    """All numbers are at their maximum: with only 16 bits, the sums would be wrong."""
    product = kernels.Int8Weight(torch.full((8, 512), 63.0))
    x = torch.full((64, 512), sign * 127.0)
    assert torch.equal(product(x), torch.full((64, 8), sign * 127.0 * 63 * 512))
    bias, total = torch.arange(8.0), torch.ones(64, 8)
    assert torch.equal(add_linear(total, x, product, bias)[0], sign * 127.0 * 63 * 512 + 1 + bias)
    assert torch.equal(linear(x, product, bias)[0], sign * 127.0 * 63 * 512 + bias)


def test_int8_inputs_are_unsigned(monkeypatch: pytest.MonkeyPatch) -> None:
    """With AVX-512, oneDNN runs signed inputs in reference code, hundreds of times slower."""
    product, run, seen = kernels.Int8Weight(torch.ones(8, 16)), kernels._INT8, list[torch.dtype]()
    if product._plain:
        pytest.skip("this torch has no integer matmul")

    def watched(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(x.dtype)
        out: torch.Tensor = run(x, *rest)
        return out

    monkeypatch.setattr(kernels, "_INT8", watched)
    assert torch.equal(product(torch.ones(3, 16)), torch.full((3, 8), 16.0))
    assert seen == [torch.uint8]


PRIVATE = ("_LINEAR", "_FLASH", "_FLASH_BACKWARD")


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a function as if torch lacked the private operations."""

    def run(function: Callable[..., Any], *arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            for name in PRIVATE:
                patch.setattr(kernels, name, None)
            return function(*arguments)

    return run


def test_this_torch_has_the_private_operations() -> None:
    """Otherwise the comparisons below would be meaningless."""
    assert all(getattr(kernels, name) is not None for name in PRIVATE)


def test_without_onednn_plain_torch_is_used(public: Callable[..., Any]) -> None:
    x, weight = torch.randn(64, 48), torch.randn(80, 48)
    assert torch.equal(public(linear, x, weight), torch.nn.functional.linear(x, weight))
    added = public(add_linear, torch.zeros(64, 80), x, weight)
    assert torch.equal(added, torch.zeros(64, 80).addmm_(x, weight.t()))


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_normalizers_work_without_the_kernel(
    public: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, heads: int, masked: bool
) -> None:
    """This is the code for other devices, a few queries at a time."""
    torch.manual_seed(0)
    q = torch.randn(1, heads, 50, 16)
    k, v = torch.randn(2, 1, 2, 70, 16)
    mask = torch.full((50, 70), -torch.inf).triu(21) if masked else None
    monkeypatch.setattr(kernels, "_SCORES_BYTES", 4 * heads * 70 * 7)
    for ours, theirs in zip(
        kernels.attention(q, k, v, mask), public(kernels.attention, q, k, v, mask), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("length", [3, 200, 300])
def test_causal_attention_and_derivatives_work_without_the_kernels(
    public: Callable[..., Any], length: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    q, k, v, grad = torch.randn(4, 2, 3, length, 8, dtype=dtype)

    def values_and_derivatives() -> tuple[Tensor, ...]:
        kept = q.new_empty(q.shape[:-1].numel() * kernels.kept_numbers(dtype))
        out = kernels.causal_attention(q, k, v, 0.3, kept)
        return out, *kernels.causal_attention_backward(grad, q, k, v, out, kept, 0.3)

    for ours, theirs in zip(values_and_derivatives(), public(values_and_derivatives), strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_saved_attention_weights_give_bit_identical_derivatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, k, v, grad = torch.randn(4, 2, 3, 200, 8, dtype=torch.bfloat16)
    found = []
    for kept_keys in (200, 199):
        monkeypatch.setattr(kernels, "_KEPT_KEYS", kept_keys)
        kept = torch.full((2 * 3 * 200 * kept_keys,), torch.nan, dtype=torch.bfloat16)
        out = kernels.causal_attention(q, k, v, 0.3, kept)
        assert kept.isnan().all() == (kept_keys < 200)
        found.append((out, *kernels.causal_attention_backward(grad, q, k, v, out, kept, 0.3)))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_a_models_losses_and_gradients_work_without_the_kernels(
    public: Callable[..., Any], tokenizer: Tokenizer, tiny_config: ModelConfig
) -> None:
    model = build_model(tiny_config, tokenizer, 0)
    ids = torch.randint(tokenizer.vocab_size, (41,), generator=torch.Generator().manual_seed(0))

    def losses_and_gradients() -> tuple[Tensor, ...]:
        places = torch.arange(40)
        losses = token_losses(model, ids[:-1], places % 20, torch.tensor([0, 20, 40]), ids[1:])
        return losses, *torch.autograd.grad(losses.sum(), [*model.parameters()])

    for ours, theirs in zip(losses_and_gradients(), public(losses_and_gradients), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("causal", [False, True])
def test_segments_of_a_row_on_a_gpu(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(70, 4, 64, generator=generator).bfloat16()
    k, v = torch.randn(2, 90, 2, 64, generator=generator).bfloat16()
    starts = tuple(torch.tensor(x, dtype=torch.int32) for x in ([0, 30, 70], [0, 45, 90]))
    place = torch.device("cuda")
    assert kernels.has_varlen(place, q.dtype)

    def attend(place: str) -> tuple[Tensor, Tensor]:
        there = tuple(x.to(place) for x in starts)
        tensors = (x.to(place) for x in (q, k, v))
        return kernels.varlen_attention(*tensors, there, (40, 45), causal)  # type: ignore[arg-type]

    found = attend("cuda")
    use_varlen(monkeypatch, kernels)
    for one, other in zip(found, attend("cpu"), strict=True):
        torch.testing.assert_close(one.cpu().float(), other.float(), atol=2e-2, rtol=2e-2)
