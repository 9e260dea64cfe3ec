from collections import Counter

import numpy as np
import pytest
import torch

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.data.packing import Batch, Batches, Windows, pack, permute, source_counts
from ledom.data.store import (
    TokenStore,
    finalize_shard,
    write_manifest,
    write_shard,
    write_store,
)

FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE


def store_of(folder, words, *documents: list[int]) -> TokenStore:
    return write_store(folder, (" ".join(map(str, d)) for d in documents), words)


def store_of_shards(folder, words, *shards: list[list[int]]) -> TokenStore:
    """Write a store of several shards."""
    folder.mkdir()
    entries = []
    for number, documents in enumerate(shards):
        file = folder / f"{number}.ds"
        write_shard(file, (" ".join(map(str, d)) for d in documents), words)
        entries.append(finalize_shard(file, np.dtype("<u2")))
    return write_manifest(folder, entries, words)


def distinct_documents(count: int) -> list[list[int]]:
    """Documents of 1 to 7 ids, all different."""
    return [[number + 1] * (1 + number % 7) for number in range(count)]


def as_lists(windows) -> list[list[int]]:
    return [window.tolist() for window in windows]


def test_windows_are_documents_framed_by_eos(tmp_path, words):
    store = store_of(tmp_path / "s", words, [5, 6, 7], [], [8])
    assert as_lists(Windows(store, 10)) == [[0, 5, 6, 7, 0], [0, 0], [0, 8, 0]]


def test_a_long_document_is_split_into_windows(tmp_path, words):
    store = store_of(tmp_path / "s", words, [9], [1, 2, 3, 4, 5])
    # Three windows predict the tokens 1 2 3 4 5 EOS; each reads one more token than it predicts.
    assert as_lists(Windows(store, 2)) == [[0, 9, 0], [0, 1, 2], [2, 3, 4], [4, 5, 0]]


def test_fixed_windows_span_documents(tmp_path, words):
    store = store_of_shards(tmp_path / "s", words, [[9], [1, 2, 3, 4]], [[7, 8]])
    # 9 0 | 1 2 | 3 4 | 0, where the last token is dropped; 7 8 | 0 likewise.
    assert as_lists(Windows(store, 2, "fixed")) == [[0, 9, 0], [0, 1, 2], [2, 3, 4], [0, 7, 8]]


def test_windows_cover_several_shards(tmp_path, words):
    store = store_of_shards(tmp_path / "s", words, [[9], [1, 2, 3]], [[7, 8], [6]])
    windows = Windows(store, 3)
    assert as_lists(windows) == [[0, 9, 0], [0, 1, 2, 3], [3, 0], [0, 7, 8, 0], [0, 6, 0]]
    assert len(windows) == 5
    with pytest.raises(IndexError):
        windows[5]


@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_block_size_of_the_index_changes_nothing(tmp_path, words, monkeypatch, block):
    documents = [[5, 6, 7], [], [8] * 9, [9], [10] * 4, [11], [12, 13]]
    store = store_of_shards(tmp_path / "s", words, documents, documents[:4])
    whole = as_lists(Windows(store, 3))
    assert len(whole) == (2 + 1 + 4 + 1 + 2 + 1 + 1) + (2 + 1 + 4 + 1)  # thirds, rounded up
    monkeypatch.setattr("ledom.data.packing._BLOCK_DOCUMENTS", block)
    assert as_lists(Windows(store, 3)) == whole


@pytest.mark.parametrize("packing", ["documents", "fixed"])
@pytest.mark.parametrize("seq_len", [1, 2, 3, 6, 12])
def test_every_token_is_predicted_once_in_both_directions(tmp_path, words, seq_len, packing):
    documents = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11, 12], [], [13, 14, 15, 16, 17]]
    documents.append([18])  # 24 tokens in all: no seq_len leaves a remainder
    store = store_of(tmp_path / "s", words, *documents)
    windows = as_lists(Windows(store, seq_len, packing))
    stream = [0, *(token for document in documents for token in [*document, 0])]
    assert len(stream) == 25
    assert [token for window in windows for token in window[1:]] == stream[1:]
    assert [token for window in windows for token in window[:-1]] == stream[:-1]
    assert all(2 <= len(window) <= seq_len + 1 for window in windows)


def test_a_store_shorter_than_a_window_is_refused(tmp_path, words):
    store = store_of(tmp_path / "s", words, [1, 2])
    with pytest.raises(InputError, match=r"s: no window of 4 tokens fits; lower train\.seq_len"):
        Windows(store, 4, "fixed")


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 65, 1000])
def test_a_keyed_permutation_is_a_permutation(size):
    order = permute(np.arange(size), size, (1, 2, 3))
    assert sorted(order.tolist()) == list(range(size))
    # Random access gives the same order.
    assert permute(np.array([size - 1, 0]), size, (1, 2, 3)).tolist() == [order[-1], order[0]]


@pytest.mark.slow
def test_permutations_differ_by_key_and_are_uniform():
    """Over many keys, every number lands in every place about equally often."""
    size, keys = 10, 1000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), permute(np.arange(size), size, (key,))] += 1
    expected = keys / size
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    degrees = (size - 1) ** 2  # 81, with standard deviation sqrt(2 * 81) = 12.7
    assert abs(chi_squared - degrees) < 5 * (2 * degrees) ** 0.5
    neighbors = permute(np.arange(100_000), 2**40 + 3, (7,))
    assert neighbors.max() < 2**40 + 3
    assert np.abs(np.corrcoef(neighbors[:-1], neighbors[1:])[0, 1]) < 0.02
    assert np.mean(neighbors / 2**40) == pytest.approx(0.5, abs=0.01)


def test_an_epoch_contains_every_window_once(tmp_path, words):
    documents = distinct_documents(30)
    store = store_of(tmp_path / "s", words, *documents)
    batches = Batches([(Windows(store, 50), 1)], batch_size=4, seed=3)
    seen = [tuple(w.tolist()) for step in range(15) for w in batches[step].windows]
    framed = sorted((0, *document, 0) for document in documents)
    assert sorted(seen[:30]) == sorted(seen[30:]) == framed
    assert seen[:30] != seen[30:]


def test_the_order_depends_only_on_seed_and_step(tmp_path, words):
    windows = Windows(store_of(tmp_path / "s", words, *distinct_documents(30)), 50)
    first = Batches([(windows, 1)], 4, seed=3)
    in_order = [as_lists(first[step].windows) for step in range(14)]
    # A resumed run asks for a late step first.
    again = Batches([(windows, 1)], 4, seed=3)
    late_first = (9, 2, 13, 0)
    assert [as_lists(again[i].windows) for i in late_first] == [in_order[i] for i in late_first]
    assert as_lists(Batches([(windows, 1)], 4, seed=4)[0].windows) != in_order[0]


def test_a_batch_larger_than_the_store_wraps_around(tmp_path, words):
    windows = Windows(store_of(tmp_path / "s", words, [5], [6]), 10)
    batch = Batches([(windows, 1)], batch_size=8, seed=0)[0].windows
    assert sorted(as_lists(batch)) == [[0, 5, 0]] * 4 + [[0, 6, 0]] * 4


@pytest.mark.parametrize("packing", ["documents", "fixed"])
def test_the_sizes_of_a_batch_are_known_before_a_window_is_read(
    tmp_path, words, packing, monkeypatch
):
    windows = Windows(store_of(tmp_path / "s", words, *distinct_documents(30)), 5, packing)
    read, original = [], Windows.__getitem__

    def spy(self, index):
        read.append(index)
        return original(self, index)

    monkeypatch.setattr(Windows, "__getitem__", spy)
    batch = Batches([(windows, 1)], batch_size=12, seed=3)[1]
    assert not read
    assert batch.sizes == [len(window) - 1 for window in batch.windows]
    assert len(set(read)) == len(read) == 12


def test_the_parts_of_a_batch_add_up_to_its_mean_loss():
    """The mean of 1, 2 and 3 over three tokens is 2: 1/3 from the first part, 5/3 from the rest."""
    batch = Batch(windows=[np.zeros(2), np.zeros(3)], sizes=[1, 2])
    losses = torch.tensor([1.0, 2.0, 3.0])
    assert batch.loss(losses).item() == 2.0
    assert batch.loss(losses[:1]).item() == pytest.approx(1 / 3)
    assert batch.loss(losses[1:]).item() == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    "weights", [[284, 103, 48], [1], [1, 1], [1, 1000], [5, 1, 1, 1], [3, 7, 11, 13, 17]]
)
def test_a_mixture_is_exact_over_any_range(weights):
    total = sum(weights)
    before = [0] * len(weights)
    for count in range(1, 3000):
        counts = source_counts(weights, count)
        assert sum(counts) == count
        grown = sorted(now - then for now, then in zip(counts, before, strict=True))
        assert grown == [0] * (len(weights) - 1) + [1]
        for weight, taken in zip(weights, counts, strict=True):
            assert abs(taken - count * weight / total) < len(weights)
        before = counts
    assert source_counts(weights, total * 10**15) == [weight * 10**15 for weight in weights]


@pytest.mark.slow
def test_batches_are_mixed_in_the_papers_proportions(tmp_path, words):
    stores = [
        store_of(tmp_path / name, words, *[[100 * number + i] for i in range(1, 60)])
        for number, name in enumerate(["general", "maths", "code"])
    ]
    weights = [28.4, 10.3, 4.8]
    sources = [(Windows(s, 8), weight) for s, weight in zip(stores, weights, strict=True)]
    batches = Batches(sources, batch_size=87, seed=5)
    seen = Counter()
    for step in range(10):  # 870 windows, 2 * 435
        seen.update(int(window[1]) // 100 for window in batches[step].windows)
    assert seen == {0: 568, 1: 206, 2: 96}


def test_documents_are_packed_as_worked_out_by_hand():
    windows = [np.array([3, 4, 0, 5, 6]), np.array([0, 7, 0])]
    forward = pack(windows, FORWARD, eos_id=0)
    assert forward.inputs.tolist() == [3, 4, 0, 5, 0, 7]
    assert forward.targets.tolist() == [4, 0, 5, 6, 7, 0]
    assert forward.positions.tolist() == [0, 1, 0, 1, 0, 1]
    assert forward.boundaries.tolist() == [0, 2, 4, 6]
    reverse = pack(windows, REVERSE, eos_id=0)
    assert reverse.inputs.tolist() == [6, 5, 0, 4, 0, 7]
    assert reverse.targets.tolist() == [5, 0, 4, 3, 7, 0]
    assert reverse.positions.tolist() == [0, 1, 0, 1, 0, 1]
    assert reverse.boundaries.tolist() == [0, 2, 4, 6]


def test_boundaries_can_be_switched_off():
    windows = [np.array([3, 4, 0, 5, 6]), np.array([0, 7, 0])]
    packed = pack(windows, FORWARD, eos_id=0, mask_across_documents=False)
    assert packed.boundaries.tolist() == [0, 4, 6]
    assert packed.positions.tolist() == [0, 1, 0, 1, 0, 1]
    packed = pack(windows, FORWARD, eos_id=0, reset_position_ids=False)
    assert packed.boundaries.tolist() == [0, 2, 4, 6]
    assert packed.positions.tolist() == [0, 1, 2, 3, 0, 1]


def test_a_window_lists_its_documents(tmp_path, words):
    store = store_of_shards(tmp_path / "s", words, [[9], [1, 2, 3, 4]], [[7, 8], [6]])
    fixed = Windows(store, 3, "fixed")
    # 9 0 1 | 2 3 4 | 0 (dropped); 7 8 0 | 6 0 (dropped).
    assert as_lists(fixed.documents(i) for i in range(3)) == [[0, 0, 1], [1, 1, 1], [2, 2, 2]]
    whole = Windows(store, 3)
    documents = [whole.documents(i).tolist() for i in range(len(whole))]
    assert documents == [[0, 0], [1, 1, 1], [1, 1], [2, 2, 2], [3, 3]]
    with pytest.raises(IndexError):
        whole.documents(5)
