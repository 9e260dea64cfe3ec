from itertools import pairwise

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ledom.core.errors import CheckpointError
from ledom.model import attention
from ledom.model.attention import IMPLEMENTATION, packed_attention
from ledom.model.checkpoint import build_model
from varlen import use_varlen

SIZES = [5, 9, 1, 30]


@pytest.fixture(scope="module")
def model(tokenizer, tiny_config):
    """Four query heads over two key-value heads."""
    return build_model(tiny_config, tokenizer, 0).eval()


@pytest.fixture(scope="module")
def plain(model):
    """The same weights, with transformers' own attention."""
    config = type(model.config)(**{**model.config.to_dict(), "attn_implementation": "sdpa"})
    other = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    other.load_state_dict(model.state_dict())
    assert other.config._attn_implementation == "sdpa"
    return other


@pytest.fixture(scope="module")
def documents(tokenizer):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(tokenizer.vocab_size, (1, size), generator=generator) for size in SIZES]


def run_packed(model, documents, boundaries):
    return model(
        input_ids=torch.cat(documents, dim=1),
        position_ids=torch.cat([torch.arange(d.shape[1]) for d in documents])[None],
        use_cache=False,
        cu_seq_lens_q=None if boundaries is None else torch.tensor(boundaries),
    ).logits


@torch.no_grad()
def test_packed_documents_give_the_same_results_as_alone(model, plain, documents):
    packed = run_packed(model, documents, [0, 5, 14, 15, 45])
    for document, logits in zip(documents, packed.split(SIZES, dim=1), strict=True):
        alone = model(input_ids=document, use_cache=False).logits
        theirs = plain(input_ids=document, use_cache=False).logits
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(logits, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_without_boundaries_documents_would_leak(model, documents):
    """Context does change these logits, so the test above can fail."""
    packed = run_packed(model, documents, None)
    alone = model(input_ids=documents[1], use_cache=False).logits
    assert (packed[:, 5:14] - alone).abs().max() > 0.05


@torch.no_grad()
def test_a_batch_of_rows_gives_the_same_results_as_each_row(model, documents):
    rows = torch.cat([documents[3], documents[3].flip(1)])
    both = model(input_ids=rows, use_cache=False).logits
    for row, logits in zip(rows, both, strict=True):
        alone = model(input_ids=row[None], use_cache=False).logits[0]
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)


def naive(query, key, value, boundaries, scale):
    """Softmax attention, one query at a time, in fp64."""
    query, key, value = query.double(), key.double(), value.double()
    heads, length, _ = query.shape[1:]
    group = heads // key.shape[1]
    out = torch.zeros(1, length, heads, value.shape[-1], dtype=torch.float64)
    for head in range(heads):
        for start, end in pairwise(boundaries):
            for at in range(start, end):
                seen = slice(start, at + 1)
                scores = key[0, head // group, seen] @ query[0, head, at] * scale
                weights = torch.exp(scores - scores.max())
                out[0, at, head] = weights / weights.sum() @ value[0, head // group, seen]
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("boundaries", [[0, 7], [0, 2, 3, 7], [0, 2, 4, 5, 6, 7]])
@pytest.mark.parametrize("in_one_call", [False, True], ids=["cpu", "gpu"])
def test_attention_equals_that_by_hand(heads, kv_heads, boundaries, in_one_call, monkeypatch):
    if in_one_call:
        use_varlen(monkeypatch, attention)
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, heads, 7, 8, generator=generator)
    key, value = torch.randn(2, 1, kv_heads, 7, 8, generator=generator)
    out, weights = packed_attention(
        torch.nn.Module(),
        query,
        key,
        value,
        None,
        scaling=0.3,
        cu_seq_lens_q=torch.tensor(boundaries),
    )
    assert weights is None
    assert out.shape == (1, 7, heads, 8)
    torch.testing.assert_close(
        out.double(), naive(query, key, value, boundaries, 0.3), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("last", [12, 300])
@pytest.mark.parametrize("width", [8, 264])  # ledom's kernels support heads up to 256 wide
def test_values_and_derivatives_equal_those_with_a_mask(compiled, dtype, tolerance, last, width):
    """Documents of equal and different lengths, compared with autograd on plain matmuls."""
    boundaries = torch.tensor([0, 3, 6, 7, last])
    generator = torch.Generator().manual_seed(2)
    # Rounded to bf16, so that both sides start from the same numbers.
    tensors = [torch.randn(1, h, last, width, generator=generator).bfloat16() for h in (4, 2, 2)]
    tensors = [tensor.float().requires_grad_() for tensor in tensors]
    weight = torch.randn(1, last, 4, width, generator=generator)

    def packed(query, key, value):
        module = torch.nn.Module()
        return packed_attention(module, query, key, value, None, cu_seq_lens_q=boundaries)[0]

    run = torch.compile(packed, backend="aot_eager", fullgraph=True) if compiled else packed
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    value_found = run(*leaves).float()
    found = torch.autograd.grad((value_found * weight).sum(), leaves)
    document = torch.repeat_interleave(torch.arange(4), boundaries.diff())
    hidden = (document[:, None] != document) | torch.ones(last, last).triu(1).bool()
    query, key, value = tensors
    scores = query @ key.repeat_interleave(2, 1).mT / width**0.5
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    out = (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(value_found, out, atol=tolerance / 3, rtol=0)
    expected = torch.autograd.grad((out * weight).sum(), tensors)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("width", [8, 264])  # ledom's kernels support heads up to 256 wide
def test_a_heads_numbers_may_be_apart_in_memory(width):
    torch.manual_seed(3)
    given, boundaries = torch.randn(3, 1, 2, 9, width), torch.tensor([0, 4, 9])
    found = []
    for tensors in (given, given.mT.contiguous().mT):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        out, _ = packed_attention(torch.nn.Module(), *leaves, None, cu_seq_lens_q=boundaries)
        found.append([out, *torch.autograd.grad(out.pow(2).sum(), leaves)])
    assert leaves[0].stride(-1) == 9
    for ours, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, expected)


def test_boundaries_that_do_not_fill_the_row_are_refused(model, documents):
    with pytest.raises(ValueError, match="the boundaries end at 14, the row at"):
        run_packed(model, documents, [0, 5, 14])


def test_other_attention_is_refused():
    config = AutoConfig.for_model(
        "gemma2", vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION)
    with pytest.raises(CheckpointError, match="ledom does not compute attention with softcap"):
        model(torch.arange(8)[None])
