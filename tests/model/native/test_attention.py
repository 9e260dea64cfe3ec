"""The kernels of `native.attention` and their fallbacks, compared with torch in fp64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ledom.lm.engine.block import Block, Job, attend_to
from ledom.model.native import attention as native
from ledom.model.prefix_tree import PrefixTree
from ledom.model.tree_attention import TreeAttention

CPU = torch.device("cpu")
SOURCE = Path(native.__file__).with_suffix(".c").read_text()
PIECE = int(SOURCE.split("#define PIECE ")[1].split()[0])  # keys read at a time


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention in fp64: [Q, H, D], [T, K, D] twice and [Q, T] -> [Q, H, D]."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)


@pytest.mark.parametrize(
    ("width", "heads"), [(8, (2, 1)), (27, (6, 2)), (32, (6, 2)), (48, (7, 1)), (256, (2, 2))]
)
@pytest.mark.parametrize("spread", [1.0, 12.0])
@pytest.mark.slow
def test_attention_in_a_prefix_tree(
    width: int, heads: tuple[int, int], spread: float, compiled: bool
) -> None:
    """Shared segments longer than one piece of keys, queries with gaps, and extreme scores."""
    torch.manual_seed(0)
    shared = list(range(PIECE + 44))
    texts = [[1, 2, 3], *(shared + [2 * PIECE + i] * n for i, n in enumerate((1, 70, 17)))]
    tree = PrefixTree.build(texts)
    total = len(tree.ids)
    q, k, v = (torch.randn(total, n, width) for n in (heads[0], heads[1], heads[1]))
    q *= spread
    sees = torch.zeros(total, total, dtype=torch.bool)
    for places in tree.places:
        for at, place in enumerate(places):
            sees[place, places[: at + 1]] = True
    expected = attended(q, k, v, sees)
    wanted = np.arange(0, total, 3)[2:]
    attention = TreeAttention(tree, wanted, CPU, torch.float32)
    apart = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (k, v)]  # head by head
    for keys, values in ((k, v), apart):
        torch.testing.assert_close(
            attention(0, q, keys, values).double(), expected, atol=1e-4, rtol=1e-4
        )
        some = attention(1, q[torch.from_numpy(wanted)], keys, values)
        torch.testing.assert_close(some.double(), expected[wanted], atol=1e-4, rtol=1e-4)
    assert ("_NativePlan" in str(attention._plans)) is compiled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "heads"), [(8, (4, 4)), (27, (6, 2)), (32, (4, 4)), (33, (3, 1)), (47, (7, 1))]
)
def test_a_query_does_not_depend_on_its_neighbors(
    width: int, heads: tuple[int, int], compiled: bool
) -> None:
    """The results are bit-identical alone and among other texts, with or without shared keys."""
    if not compiled:
        pytest.skip("torch's own kernel depends on neighbors")
    torch.manual_seed(0)
    shared = [9] * (PIECE - 30)
    texts = [[1] * 5, [2] * 61, [3] * 130, *([8] * 16 + [n] * n for n in (29, 68))]
    texts += [shared + [10] * 17, *(shared + [10] * 70 + [n] * n for n in (20, PIECE))]
    tree = PrefixTree.build(texts)
    assert max(map(len, tree.ancestors)) == 2
    q = torch.randn(len(tree.ids), heads[0], width) * 3
    k, v = q[:, : heads[1]].contiguous(), q[:, -heads[1] :].contiguous()
    together = TreeAttention(tree, None, CPU, torch.float32)(0, q, k, v)
    for text, places in zip(texts, map(torch.from_numpy, tree.places), strict=True):
        own = [x[places] for x in (q, k, v)]
        alone = TreeAttention(PrefixTree.build([text]), None, CPU, torch.float32)(0, *own)
        assert torch.equal(alone, together[places])


@pytest.mark.parametrize(("width", "heads"), [(8, (2, 1)), (27, (6, 2)), (64, (14, 2))])
@pytest.mark.slow
def test_attention_over_kv_caches(width: int, heads: tuple[int, int], compiled: bool) -> None:
    """Prompts of several lengths, one shared by two texts, and texts that end."""
    torch.manual_seed(0)
    layers, lengths, prompt_of = 2, (3, PIECE + 44, 16), [0, 1, 1, 2]
    prompts = [(None, *torch.randn(2, layers, heads[1], n, width)) for n in lengths]
    jobs = [Job([1], prompt, text, ()) for text, prompt in enumerate(prompt_of)]
    block = Block(jobs, prompts, prompt_of)
    seen = {job.sample: [x.clone() for x in prompts[job.place][1:]] for job in jobs}
    for step in range(40):
        if step == 35:
            block.drop([0])  # which also drops a prompt
        block.reserve()
        new = torch.randn(2, len(block.jobs), layers, heads[1], width)
        for place, job in enumerate(block.jobs):
            for which in range(2):
                grown = [seen[job.sample][which], new[which, place][:, :, None]]
                seen[job.sample][which] = torch.cat(grown, dim=2)
        for layer in range(layers):
            q = torch.randn(len(block.jobs), heads[0] + 1, width)[:, 1:]
            out = attend_to([block])(layer, q, new[0, :, layer], new[1, :, layer])
            for place, job in enumerate(block.jobs):
                keys, values = (x[layer].transpose(0, 1) for x in seen[job.sample])
                everything = torch.ones(1, len(keys), dtype=torch.bool)
                expected = attended(q[place : place + 1], keys, values, everything)
                torch.testing.assert_close(out[place].double(), expected[0], atol=1e-4, rtol=1e-4)
                if compiled:  # the same bits as reading the whole text
                    tree, last = PrefixTree.build([[1] * len(keys)]), np.array([len(keys) - 1])
                    reads = TreeAttention(tree, last, CPU, torch.float32)
                    assert torch.equal(reads(0, q[place : place + 1], keys, values)[0], out[place])
        block.age += 1
    for place, job in enumerate(block.jobs):
        assert all(map(torch.equal, block.copy(place), seen[job.sample]))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_any_bit(threads: int) -> None:
    before = torch.get_num_threads()
    torch.manual_seed(0)
    x = torch.randn(65, 6, 32)
    tree = PrefixTree.build([[1] * 60, [2] * 5])
    expected = TreeAttention(tree, None, CPU, torch.float32)(0, x, x, x)
    try:
        torch.set_num_threads(threads)
        found = TreeAttention(tree, None, CPU, torch.float32)(0, x, x, x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("width", [5, 16, 60, 64, 256])
@pytest.mark.parametrize("lengths", [(1, 5, 48, 49), (257, 3), (600,)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_gradients_of_causal_attention(
    width: int, lengths: tuple[int, ...], scale: float | None, compiled: bool
) -> None:
    """Blocks of queries and of keys, whole and in part, and heads that are apart in memory."""
    torch.manual_seed(0)
    total, heads, scale = sum(lengths), 2, scale or width**-0.5
    grad, q, k, v = torch.randn(4, total, heads, width)
    if not compiled:
        assert not native.has_native(k, v)
        return
    q, k = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k))
    boundaries = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    parts = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in exact), strict=True)
    documents = [scaled_dot_product_attention(*x, is_causal=True, scale=scale) for x in parts]
    expected = torch.cat(documents, dim=1).transpose(0, 1)
    out, normalizers = torch.empty(total, heads, width), torch.empty(total, heads)
    native.causal_attention(q, k, v, boundaries, scale, out, normalizers)
    torch.testing.assert_close(out.double(), expected.detach(), atol=1e-4, rtol=1e-4)
    found = [torch.full_like(x, torch.nan) for x in (q, k, v)]
    native.causal_attention_backward([grad, q, k, v, out], normalizers, boundaries, scale, found)
    for ours, theirs in zip(
        found, torch.autograd.grad(expected, exact, grad.double()), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-4, rtol=1e-4)
