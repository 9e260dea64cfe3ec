"""The compiled kernels and their fallbacks, against plain torch in doubles."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from ledom.lm.engine.block import Block, Job
from ledom.lm.engine.prefix_tree import PrefixTree, TreeAttention
from ledom.model import native

CPU = torch.device("cpu")


@pytest.fixture(params=["AVX512", "AVX2", "DEFAULT", "none"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Each width of vectors that this processor has, and no compiled kernels; whether there are."""
    capability, levels = torch.backends.cpu.get_cpu_capability(), ["DEFAULT", "AVX2", "AVX512"]
    if request.param == "none":
        monkeypatch.setattr(native, "_library", lambda: None)
        yield False
        return
    if request.param not in levels or levels.index(request.param) > levels.index(capability):
        pytest.skip(f"this processor has {capability}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    native._library.cache_clear()
    assert native._library() is not None
    yield True
    native._library.cache_clear()


@pytest.mark.parametrize("width", [16, 48, 7])
def test_norms_and_gates_are_those_of_torch(width: int, compiled: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, width) * 30, torch.randn(width)
    expected = torch.nn.functional.rms_norm(x.double(), (width,), weight.double(), 1e-5)
    found = native.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    both = torch.cat([x, torch.randn(5, width)], dim=1)
    both[0, :3] = torch.tensor([200.0, -200.0, 0.0])
    expected = silu(both[:, :width].double()) * both[:, width:].double()
    torch.testing.assert_close(native.silu_product(both).double(), expected, atol=1e-6, rtol=1e-5)


def test_gates_of_any_size_are_those_of_torch(compiled: bool) -> None:
    """SiLU of a number far below 0 is 0, and that of -inf is not a number."""
    lowest = torch.finfo(torch.float32).min
    gate = torch.tensor([[-100.0, -1e20, lowest, -torch.inf, torch.nan, torch.inf, 1e20]])
    up = torch.tensor([[1e30, 1e38, 1.0, 1.0, 1.0, -1.0, 1.0]])
    expected = torch.tensor([[0.0, 0.0, 0.0, torch.nan, torch.nan, -torch.inf, 1e20]])
    found = native.silu_product(torch.cat([gate, up], dim=1))
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # of torch, about its speed
def test_weights_in_another_precision_are_read_as_such(compiled: bool) -> None:
    x = torch.tensor([[3.0, 4.0]])  # its mean square is 12.5
    found = native.rms_norm(x, torch.tensor([1.0, -2.0], dtype=torch.bfloat16), 12.5)
    torch.testing.assert_close(found, torch.tensor([[0.6, -1.6]]))
    x, cos = torch.ones(2, 1, 16), torch.full((2, 16), 2.0, dtype=torch.bfloat16)
    native.rotate(x, cos, torch.zeros(16, 2).T)
    assert x.unique().tolist() == [2.0]
    assert not native.has_native(torch.ones(2, 16), torch.ones(2, 16, dtype=torch.bfloat16))


def test_gradients_pass_through(compiled: bool) -> None:
    """They do in torch, which takes over: d(x / |x|) is 0 along x, and SiLU's slope at 0 is 1/2."""
    x = torch.tensor([[3.0, 3.0]], requires_grad=True)
    native.rms_norm(x, torch.tensor([1.0, 1.0]), 0.0).sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros(1, 2))
    weight = torch.ones(2, requires_grad=True)
    native.rms_norm(torch.tensor([[3.0, -3.0]]), weight, 0.0).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, -1.0]
    both = torch.tensor([[0.0, 4.0]], requires_grad=True)
    native.silu_product(both).sum().backward()
    assert both.grad is not None
    assert both.grad.tolist() == [[2.0, 0.0]]
    row = torch.ones(2, 16, requires_grad=True)
    assert not native.has_native(row, row)
    with torch.no_grad():
        assert native.has_native(row, row) is compiled


@pytest.mark.parametrize("vocabulary", [3, 700, 70_001])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1e-30])
def test_draws_invert_the_cumulative_distribution(
    vocabulary: int, temperature: float, compiled: bool
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, vocabulary) * torch.tensor([0.1, 1, 1, 3, 30, 1])[:, None]
    levels = [0.0, 0.3, 0.999999, 0.5, 0.7, -1.0]
    found = native.draw(logits, temperature, levels)
    if not compiled:
        assert found is None
        return
    assert found is not None
    tokens, certainties, highest = found
    exact = logits.double()
    below = (exact / temperature).softmax(-1).cumsum(-1)
    for row, (token, level) in enumerate(zip(tokens, levels, strict=True)):
        if level < 0:
            assert token == logits[row].argmax()
        else:
            assert below[row, token] > level - 1e-5
            assert token == 0 or below[row, token - 1] <= level + 1e-5
    expected = -exact.log_softmax(-1).mean(-1) - np.log(vocabulary)
    torch.testing.assert_close(torch.tensor(certainties).double(), expected, atol=1e-5, rtol=1e-5)
    assert highest == pytest.approx((logits.amax(-1) / temperature).tolist())


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_draws_from_odd_logits_are_seen(odd: float) -> None:
    logits = torch.zeros(2, 100)
    logits[1, 50] = odd
    found = native.draw(logits, 1.0, [0.5, 0.5])
    assert found is not None
    tokens, certainties, _ = found
    assert [np.isfinite(one) for one in certainties] == [True, False]
    assert tokens[0] == 50
    assert 0 <= tokens[1] < 100


def test_only_the_given_heads_are_rotated(compiled: bool) -> None:
    torch.manual_seed(0)
    x, cos, sin = torch.randn(3, 5, 16), torch.randn(3, 16), torch.randn(3, 16)
    turned = torch.cat([-x[..., 8:], x[..., :8]], dim=-1)
    expected = x * cos[:, None] + turned * sin[:, None]
    found = x.clone()
    native.rotate(found[:, :4], cos, sin)
    torch.testing.assert_close(found[:, :4], expected[:, :4])
    assert torch.equal(found[:, 4], x[:, 4])


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention in doubles: [Q, H, D], [T, K, D] twice and [Q, T] -> [Q, H, D]."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)


@pytest.mark.parametrize(
    ("width", "heads"), [(16, (2, 1)), (32, (6, 2)), (48, (7, 1)), (256, (2, 2))]
)
@pytest.mark.parametrize("spread", [1.0, 12.0])
def test_attention_in_a_tree(
    width: int, heads: tuple[int, int], spread: float, compiled: bool
) -> None:
    """Shared segments of more than a piece of keys, queries with gaps, and scores far apart."""
    torch.manual_seed(0)
    shared = list(range(300))
    texts = [[1, 2, 3], *(shared + [400 + i] * n for i, n in enumerate((1, 70, 17)))]
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


def test_a_query_does_not_depend_on_its_neighbors(compiled: bool) -> None:
    """Bit by bit: alone, and among the queries of other texts."""
    if not compiled:
        pytest.skip("torch's own kernel does")
    torch.manual_seed(0)
    lengths = (5, 61, 130)
    texts = [[i] * n for i, n in enumerate(lengths)]
    rows = [torch.randn(n, 4, 32) for n in lengths]
    q = k = v = torch.cat(rows)
    together = TreeAttention(PrefixTree.build(texts), None, CPU, torch.float32)(0, q, k, v)
    for text, row, found in zip(texts, rows, together.split(lengths), strict=True):
        alone = TreeAttention(PrefixTree.build([text]), None, CPU, torch.float32)(0, row, row, row)
        assert torch.equal(alone, found)


@pytest.mark.parametrize(("width", "heads"), [(16, (2, 1)), (32, (6, 2)), (64, (14, 2))])
def test_attention_over_caches(width: int, heads: tuple[int, int], compiled: bool) -> None:
    """Prompts of several lengths, one of which two texts share, and texts that end."""
    torch.manual_seed(0)
    layers, lengths, prompt_of = 2, (3, 300, 16), [0, 1, 1, 2]
    prompts = [(None, *torch.randn(2, layers, heads[1], n, width)) for n in lengths]
    jobs = [Job([1], prompt, text, ()) for text, prompt in enumerate(prompt_of)]
    block = Block(jobs, prompts, prompt_of)
    seen = {job.sample: [x.clone() for x in prompts[job.place][1:]] for job in jobs}
    for step in range(40):
        if step == 35:
            block.drop([0])  # and with it a prompt
        block.reserve()
        new = torch.randn(2, len(block.jobs), layers, heads[1], width)
        for place, job in enumerate(block.jobs):
            for which in range(2):
                grown = [seen[job.sample][which], new[which, place][:, :, None]]
                seen[job.sample][which] = torch.cat(grown, dim=2)
        for layer in range(layers):
            q = torch.randn(len(block.jobs), heads[0] + 1, width)[:, 1:]
            out = torch.empty(q.shape)
            block.attend(layer, q, new[0, :, layer], new[1, :, layer], out)
            for place, job in enumerate(block.jobs):
                keys, values = (x[layer].transpose(0, 1) for x in seen[job.sample])
                everything = torch.ones(1, len(keys), dtype=torch.bool)
                expected = attended(q[place : place + 1], keys, values, everything)
                torch.testing.assert_close(out[place].double(), expected[0], atol=1e-4, rtol=1e-4)
        block.age += 1
    for place, job in enumerate(block.jobs):
        assert all(map(torch.equal, block.copy(place), seen[job.sample]))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_bit(threads: int) -> None:
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


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and no kernels loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    yield tmp_path / "ledom"
    native._library.cache_clear()


def test_the_kernels_are_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native._library() is not None
    (file,) = fresh.iterdir()
    native._library.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native._library() is not None
    assert list(fresh.iterdir()) == [file]


@pytest.mark.usefixtures("fresh")
def test_the_compiler_may_have_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -O2 -D'SOME NAME=1'")
    assert native._library() is not None


def test_threads_that_compile_at_the_same_time(fresh: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: native._loaded(), range(2))
    assert first.rms_norm
    assert second.rms_norm
    assert len(list(fresh.iterdir())) == 1


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler", "cc 'an open quote"])
def test_without_a_compiler_plain_torch_takes_over(
    compiler: str, fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.INFO, logger="ledom"):
        assert native.silu_product(torch.tensor([[0.0, 5.0]])).tolist() == [[0.0]]
    assert "no compiled kernels" in caplog.text
    assert compiler in caplog.text
    assert caplog.text.count("\n") == 1
    assert list(fresh.iterdir()) == []


def test_a_damaged_library_is_compiled_again(fresh: Path) -> None:
    assert native._library() is not None
    (file,) = fresh.iterdir()
    damaged = file.read_bytes()[:100]
    file.unlink()
    file.write_bytes(damaged)
    native._library.cache_clear()
    assert native._library() is not None


@pytest.mark.parametrize("there", ["a file", "a folder without room"])
def test_a_cache_that_cannot_be_written_is_done_without(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there == "a file":
        (tmp_path / "ledom").write_text("a file where the folder should be")
    else:
        (tmp_path / "ledom").symlink_to("/proc/self")  # nobody can write there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    try:
        assert native._library() is not None
    finally:
        native._library.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cache_folder", lambda: None)
    assert native._library() is not None


@pytest.mark.parametrize("name", ["a home", "дом", "caf\udce9"])  # the last: a byte, not UTF-8
def test_a_cache_folder_of_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    native._library.cache_clear()
    try:
        assert native._library() is not None
    finally:
        native._library.cache_clear()
    assert len(list((tmp_path / name / "ledom").iterdir())) == 1
