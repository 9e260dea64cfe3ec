"""Losses and gradients in chunks of tokens equal those of all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import CohereConfig, CohereForCausalLM

from ledom.model.checkpoint import build_model
from ledom.train import objective as module
from ledom.train.objective import token_losses, working_bytes

NUM_TOKENS = 45


@pytest.fixture(
    params=[(7, True), (7, False), (1024, True)], ids=["chunks", "chunks again", "one chunk"]
)
def chunks(request, monkeypatch):
    """Seven chunks plus a remainder, or a single one; logits kept or recomputed."""
    rows, kept = request.param
    monkeypatch.setattr(module, "_LEAST_ROWS", rows)
    monkeypatch.setattr(module, "_LOGITS_BYTES", 1)
    monkeypatch.setattr(module, "_KEPT_BYTES", 2**20 if kept else 0)


def batch(vocab_size):
    """Ids, positions, boundaries and targets of two documents in one row."""
    ids = torch.randint(vocab_size, (NUM_TOKENS + 1,), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(20), torch.arange(NUM_TOKENS - 20)])
    return ids[:-1], positions, torch.tensor([0, 20, NUM_TOKENS], dtype=torch.int32), ids[1:]


def gradients(model, losses):
    """The gradients of a sum that weights every token differently."""
    model.zero_grad()
    (losses * torch.linspace(-1, 2, len(losses))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def plain_losses(model, ids, positions, boundaries, targets):
    reads = {"input_ids": ids[None], "position_ids": positions[None], "use_cache": False}
    logits = model(**reads, cu_seq_lens_q=boundaries).logits[0]
    return cross_entropy(logits.float(), targets, reduction="none")


@pytest.mark.slow
def test_losses_and_gradients_equal_those_of_all_logits_at_once(chunks, tokenizer, tiny_config):
    model = build_model(tiny_config, tokenizer, seed=3)
    given = batch(tokenizer.vocab_size)
    expected, losses = plain_losses(model, *given), token_losses(model, *given)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=0)
    wanted, found = gradients(model, expected), gradients(model, losses)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_losses_stay_in_fp32_under_autocast(chunks, tokenizer, tiny_config):
    model = build_model(tiny_config, tokenizer, seed=3)
    given = batch(tokenizer.vocab_size)
    expected = gradients(model, plain_losses(model, *given))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = token_losses(model, *given)
    assert losses.dtype == torch.float32
    for name, gradient in gradients(model, losses).items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.05 * expected[name].norm(), name


def test_logits_beyond_a_projection_use_the_models_own_code(tokenizer):
    config = CohereConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        logit_scale=0.25,
        attn_implementation="ledom",
    )
    torch.manual_seed(0)
    model, given = CohereForCausalLM(config), batch(tokenizer.vocab_size)
    expected = plain_losses(model, *given)
    torch.testing.assert_close(token_losses(model, *given), expected)
    model.logit_scale = 1.0
    assert (plain_losses(model, *given) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_logits_give_bit_identical_gradients(dtype, tokenizer, tiny_config, monkeypatch):
    model = build_model(tiny_config, tokenizer, seed=3)
    found = []
    for kept in (0, 2**20):
        monkeypatch.setattr(module, "_KEPT_BYTES", kept)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            losses = token_losses(model, *batch(tokenizer.vocab_size))
        found.append(gradients(model, losses))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_working_memory_covers_one_chunk_and_the_kept_logits(monkeypatch):
    monkeypatch.setattr(module, "_LEAST_ROWS", 100)
    monkeypatch.setattr(module, "_LOGITS_BYTES", 1)
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    # In fp32: logits, the weight's gradient and its increment; or logits and their exponentials.
    assert working_bytes(50, 10, 80, 4) == 4 * (50 * 10 + 2 * 10 * 80)
    assert working_bytes(1000, 10, 2, 4) == 4 * 2 * 100 * 10 + 4 * 10 * 2  # a copy of the weight
    assert working_bytes(1000, 10, 80, 4) == 4 * (100 * 10 + 2 * 10 * 80 + 2 * 10 * 80)
    # In bf16, the derivative is next to the logits, and the increment is half as large.
    assert working_bytes(1000, 10, 80, 2) == (4 + 2) * 100 * 10 + (4 + 2) * 10 * 80
    monkeypatch.setattr(module, "_KEPT_BYTES", 2 * 50 * 10)
    assert working_bytes(50, 10, 2, 2) == 2 * 50 * 10 + 2 * 4 * 50 * 10
    assert working_bytes(51, 10, 2, 2) == 2 * 4 * 51 * 10


class Memory(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make."""

    def __init__(self, *given):
        super().__init__()
        self.given = {x.untyped_storage().data_ptr() for x in given}
        self.alive = WeakIdKeyDictionary()
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if storage.data_ptr() not in self.given:
                    self.alive[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self.alive.values()))
        return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_tensors_in_use_fit_into_the_working_memory(dtype, kept, frozen, monkeypatch):
    """A frozen weight, as with adapters, gets no gradient and takes no memory for one."""
    monkeypatch.setattr(module, "_LEAST_ROWS", 32)
    monkeypatch.setattr(module, "_LOGITS_BYTES", 1)
    monkeypatch.setattr(module, "_KEPT_BYTES", 2**30 if kept else 0)
    torch.manual_seed(0)
    hidden = torch.randn(128, 64, dtype=dtype, requires_grad=True)
    weight = torch.randn(1000, 64).div(8).to(dtype).requires_grad_(not frozen)
    targets = torch.randint(1000, (128,))
    with Memory(hidden, weight, targets) as used:
        module._ProjectedLosses.apply(hidden, weight, targets).sum().backward()
    exact = weight.detach().double()
    slopes = (hidden.detach().double() @ exact.T).softmax(-1) - torch.eye(1000)[targets]
    torch.testing.assert_close(hidden.grad.double(), slopes @ exact, atol=0.01, rtol=0)
    assert (weight.grad is None) is frozen
    planned = working_bytes(128, 1000, 64, dtype.itemsize)
    if frozen:
        assert used.peak < planned - 1000 * 64 * 4
    else:
        assert 0.75 * planned <= used.peak <= 1.1 * planned
