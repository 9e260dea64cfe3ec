import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from ledom.model.checkpoint import build_model
from ledom.train.optim import Muon, OptimConfig, build_optimizers, orthogonalize, schedule


def orthonormal(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator))[0]


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (16, 64), (64, 16), (1, 8), (8, 1)])
def test_singular_values_approach_one_and_the_axes_stay(rows, columns):
    rank = min(rows, columns)
    left, right = orthonormal(rows, rank, 0), orthonormal(columns, rank, 1)
    matrix = left @ torch.diag(torch.linspace(0.05, 3, rank)) @ right.T
    result = orthogonalize(matrix)
    assert result.shape == matrix.shape
    in_axes = left.T @ result @ right
    assert 0.5 < in_axes.diagonal().min() <= in_axes.diagonal().max() < 1.5
    assert (in_axes - torch.diag(in_axes.diagonal())).abs().max() < 1e-4
    values = torch.linalg.svdvals(result)
    assert 0.5 < values.min() <= values.max() < 1.5


def test_a_zero_gradient_stays_zero():
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("step", "share"),
    # Ten steps up, fifty on the plateau, forty down.
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 1.0), (80, 0.5), (99, 0.025)],
)
@pytest.mark.parametrize("decay", [{"decay_steps": 40}, {}])
def test_the_schedule_equals_that_by_hand(step, share, decay):
    config = OptimConfig(steps=100, warmup_steps=10, **decay)
    assert schedule(config, step) == pytest.approx(share)


def test_a_schedule_may_have_no_warmup_or_decay():
    config = OptimConfig(steps=3, warmup_steps=0, decay_steps=0)
    assert [schedule(config, step) for step in range(3)] == [1, 1, 1]


def test_the_schedule_of_very_short_runs_is_never_zero():
    for steps in (1, 2, 5):
        config = OptimConfig(steps=steps)
        assert all(0 < schedule(config, step) <= 1 for step in range(steps))


def test_the_scale_uses_outputs_and_inputs_in_either_layout(tokenizer):
    """GPT-2's first feed-forward matrix is [8, 32] for 8 inputs and 32 outputs: sqrt(4) = 2."""
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=tokenizer.vocab_size)
    model = AutoModelForCausalLM.from_config(config)
    muon, _ = build_optimizers(model, OptimConfig(steps=1, muon_lr=0.1))
    widening, narrowing = (
        getattr(model.transformer.h[0].mlp, n).weight for n in ("c_fc", "c_proj")
    )
    assert widening.shape == (8, 32)
    before = [weight.detach().clone() for weight in (widening, narrowing)]
    for weight in (widening, narrowing):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    muon.step()
    for weight, old, scale in zip((widening, narrowing), before, (2.0, 1.0), strict=True):
        # Momentum starts at zero, so the direction is the gradient's, whatever its length.
        expected = old - 0.1 * scale * orthogonalize(weight.grad)
        torch.testing.assert_close(weight.detach(), expected, atol=1e-5, rtol=0)


def test_each_weight_goes_to_the_right_optimizer(tokenizer, tiny_config):
    model = build_model(tiny_config, tokenizer, 0)
    names = {id(weight): name for name, weight in model.named_parameters()}
    muon, adamw = (
        {names[id(weight)] for group in optimizer.param_groups for weight in group["params"]}
        for optimizer in build_optimizers(model, OptimConfig(steps=1))
    )
    matrices = [f"self_attn.{x}_proj" for x in "qkvo"]
    matrices += [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert muon == {f"model.layers.{layer}.{m}.weight" for layer in (0, 1) for m in matrices}
    norms = {
        f"model.layers.{layer}.{norm}_layernorm.weight"
        for layer in (0, 1)
        for norm in ("input", "post_attention")
    }
    assert adamw == norms | {"model.embed_tokens.weight", "model.norm.weight"}


def test_rates_and_decay_come_from_the_config(tokenizer, tiny_config):
    model = build_model(tiny_config, tokenizer, 0)
    config = OptimConfig(steps=1, muon_lr=0.3, adamw_lr=0.2, weight_decay=0.1)
    muon, adamw = build_optimizers(model, config)
    assert (muon.param_groups[0]["lr"], muon.param_groups[0]["weight_decay"]) == (0.3, 0.1)
    assert (adamw.param_groups[0]["lr"], adamw.param_groups[0]["weight_decay"]) == (0.2, 0)


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Five quintic steps on the singular values, where each step is a scalar polynomial."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ np.diag(values) @ right


@pytest.mark.parametrize(("rows", "columns"), [(6, 4), (4, 6), (5, 5)])
def test_muon_steps_equal_those_by_svd(rows, columns):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(rows, columns))
    gradients = rng.normal(size=(3, rows, columns))
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, momentum = start, np.zeros_like(start)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        update = newton_schulz(0.1 * gradient + 0.9 * momentum)  # Nesterov
        scale = np.sqrt(max(1, rows / columns))
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * scale * update
        np.testing.assert_allclose(weight.detach().numpy(), expected, atol=2e-5)
        np.testing.assert_array_equal(weight.grad.numpy(), gradient.astype(np.float32))


def test_a_weight_without_a_gradient_stays_unchanged():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    Muon([weight]).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))
