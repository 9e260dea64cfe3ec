"""Builds model inputs from token stores: windows, mixtures of sources, packed batches.

    TokenStore -> Windows (the i-th) -> Batches (those of a step) -> pack (in a direction)

Everything is random access and nothing is materialized. A batch depends only on the seed and the
step, so a run resumes from its step number, on any number of ranks. Windows are in reading order;
one copy of the data serves both directions.

Shapes: L predicted tokens in a window, T tokens in a packed batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.data.store import TokenStore

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch", "Batches", "PackedBatch", "Packing", "Windows", "pack"]

Packing = Literal["documents", "fixed"]

_BLOCK_DOCUMENTS = 1024  # documents per block; one window count is kept per block
_ROUNDS = 6  # rounds of the Feistel network


class Windows(Sequence[NDArray[np.int64]]):
    """The windows of a store, in its order. A window of L predicted tokens has L + 1 ids.

    `documents`: a document with EOS on both sides, or a part of one that is longer than `seq_len`;
    L is at most `seq_len`. The index is read once; 8 bytes per 1,024 documents are kept.
    `fixed`: consecutive stretches of `seq_len` tokens of a shard, across documents; what is
    left at a shard's end is not used. It reads no index and takes no memory.

    With either packing, a window begins with the id before the first predicted one, or with EOS at
    the start of a shard. So every token is predicted once in both directions.
    """

    def __init__(self, store: TokenStore, seq_len: int, packing: Packing = "documents") -> None:
        self.store = store
        self.seq_len = seq_len
        self._blocks: list[NDArray[np.int64]] = []  # per shard: windows up to each block's end
        if packing == "documents":
            for shard in store.shards:
                ends, count = shard.ends, shard.entry.num_documents
                blocks = range(0, count, _BLOCK_DOCUMENTS)
                last = [int(_block(ends, first, seq_len)[1][-1]) for first in blocks]
                self._blocks.append(np.cumsum(last))
            counts = [int(blocks[-1]) for blocks in self._blocks]
        else:
            counts = [shard.entry.num_tokens // seq_len for shard in store.shards]
        self._shard_ends = np.cumsum(counts)
        if not len(self):
            raise InputError(
                f"no window of {seq_len} tokens fits; lower train.seq_len, or set data.packing to "
                "documents",
                path=store.folder,
            )

    def __len__(self) -> int:
        return int(self._shard_ends[-1])

    def __getitem__(self, index: int) -> NDArray[np.int64]:  # type: ignore[override]
        """The ids of a window [L + 1]."""
        number, start, end = self._span(index)
        tokens = self.store.shards[number].tokens[max(start - 1, 0) : end].astype(np.int64)
        return tokens if start > 0 else np.concatenate([[self.store.eos_id], tokens])

    def size(self, index: int) -> int:
        """The number L of tokens that a window predicts, without reading them."""
        _, start, end = self._span(index)
        return end - start

    def documents(self, index: int) -> NDArray[np.int64]:
        """The number of the document in the store for each predicted token of a window [L].

        They are in reading order, and the same for both directions: read backwards, a document ends
        with the prediction of the EOS before it, which counts as part of the document.
        """
        number, start, end = self._span(index)
        ends = self.store.shards[number].ends
        before = sum(shard.entry.num_documents for shard in self.store.shards[:number])
        return np.searchsorted(ends, np.arange(start, end, dtype=np.uint64), side="right") + before

    def _span(self, index: int) -> tuple[int, int, int]:
        """The shard of a window, and the [start, end) of the shard's tokens that it predicts."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard, index = _find(self._shard_ends, index)
        if not self._blocks:
            return shard, index * self.seq_len, (index + 1) * self.seq_len
        block, index = _find(self._blocks[shard], index)
        ends = self.store.shards[shard].ends
        boundaries, windows = _block(ends, block * _BLOCK_DOCUMENTS, self.seq_len)
        document, piece = _find(windows, index)
        start = int(boundaries[document]) + piece * self.seq_len
        return shard, start, min(start + self.seq_len, int(boundaries[document + 1]))


def _find(totals: NDArray[np.int64], index: int) -> tuple[int, int]:
    """The group of an item and its number there, given the running totals of group sizes."""
    group = int(np.searchsorted(totals, index, side="right"))
    return group, index - (int(totals[group - 1]) if group else 0)


def _block(
    ends: NDArray[np.uint64], first: int, seq_len: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For a block of n documents: their boundaries [n + 1], and the number of windows up to and
    including each document [n]."""
    before = ends[first - 1 : first] if first else np.zeros(1, np.uint64)
    boundaries = np.concatenate([before, ends[first : first + _BLOCK_DOCUMENTS]]).astype(np.int64)
    return boundaries, np.cumsum(-(np.diff(boundaries) // -seq_len))


@dataclass(frozen=True)
class Batch:
    """The training data of one step, over all ranks. A window is read only when indexed."""

    windows: Sequence[NDArray[np.int64]]
    """The ids, in reading order."""
    sizes: list[int]
    """The number of tokens that each window predicts."""

    def loss(self, losses: Tensor) -> Tensor:
        """How much some of the batch's token losses [T] add to its mean loss per token.

        >>> import torch
        >>> Batch(windows=[], sizes=[3, 1]).loss(torch.tensor([1.0, 2.0]))  # (1 + 2) / 4
        tensor(0.7500)
        """
        return losses.sum() / sum(self.sizes)


class _Picked(Sequence[NDArray[np.int64]]):
    """Windows of several sources, each read only when indexed."""

    def __init__(self, picks: Sequence[tuple[Windows, int]]) -> None:
        self._picks = picks

    def __len__(self) -> int:
        return len(self._picks)

    def __getitem__(self, place: int) -> NDArray[np.int64]:  # type: ignore[override]
        source, window = self._picks[place]
        return source[window]


class Batches:
    """The global batches of a run: windows of several sources, mixed by weight.

    For every n, the number of a source's windows among the first n differs from its exact share by
    less than the number of sources. Each pass over a source reads every window once, in a new
    order. A rank reads only its own part of a batch.
    """

    def __init__(
        self, sources: Sequence[tuple[Windows, float]], batch_size: int, seed: int
    ) -> None:
        """`sources` are windows with their weights; `batch_size` is in windows, over all ranks."""
        self.windows = [windows for windows, _ in sources]
        self.batch_size = batch_size
        self.seed = seed
        shares = [Fraction(str(weight)) for _, weight in sources]  # as written, not as a float
        scale = lcm(*(share.denominator for share in shares))
        self._weights = [int(share * scale) for share in shares]

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step."""
        picks = [(self.windows[source], window) for source, window in self.picks(step)]
        return Batch(_Picked(picks), [source.size(window) for source, window in picks])

    def picks(self, step: int) -> list[tuple[int, int]]:
        """The (source, window) of each window of a step's batch, source by source."""
        first = source_counts(self._weights, step * self.batch_size)
        last = source_counts(self._weights, (step + 1) * self.batch_size)
        chosen: list[tuple[int, int]] = []
        for source, (start, end) in enumerate(zip(first, last, strict=True)):
            size = len(self.windows[source])
            passes, places = np.divmod(np.arange(start, end, dtype=np.int64), size)
            for number in np.unique(passes).tolist():
                key = (self.seed, source, number)
                order = permute(places[passes == number], size, key)
                chosen += [(source, window) for window in order.tolist()]
        return chosen


def source_counts(weights: Sequence[int], count: int) -> list[int]:
    """The number of windows from each source among the first `count`.

    Each source gets its rounded share of what the sources before it left. When `count` grows by
    one, exactly one source's number does.
    """
    rest, total = count, sum(weights)
    counts = []
    for weight in weights:
        taken = (2 * rest * weight + total) // (2 * total)
        counts.append(taken)
        rest, total = rest - taken, total - weight
    return counts


def permute(numbers: NDArray[np.int64], size: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """Apply a pseudo-random permutation of range(size), chosen by `key`, to some numbers.

    A Feistel network over the next power of 4, walked until the value is in range (Black and
    Rogaway 2002, cycle-walking), needs no table of `size` numbers.
    """
    half = np.uint64((max(size - 1, 0).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    values = numbers.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        values[outside] = (left << half) | right
        outside = values >= size
    return values.astype(np.int64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele et al. 2014): every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class PackedBatch:
    """Windows packed end to end in one row, in model order.

    >>> batch = pack([np.array([0, 5, 6, 0])], Direction.FORWARD, eos_id=0)
    >>> batch.inputs.tolist(), batch.targets.tolist(), batch.boundaries.tolist()
    ([0, 5, 6], [5, 6, 0], [0, 3])
    """

    inputs: NDArray[np.int64]
    """The ids that the model reads [T]."""
    targets: NDArray[np.int64]
    """The ids that it predicts there [T]."""
    positions: NDArray[np.int64]
    """[T] position ids."""
    boundaries: NDArray[np.int64]
    """Offsets from 0 to T: attention stays between one boundary and the next."""


def pack(
    windows: Sequence[NDArray[np.int64]],
    direction: Direction,
    eos_id: int,
    mask_across_documents: bool = True,
    reset_position_ids: bool = True,
) -> PackedBatch:
    """Pack windows into one row for a model of this direction.

    EOS precedes each document in either model order, so a document starts at each EOS that is read.
    Attention stops and positions restart there, unless switched off, and always between windows.

    >>> pack([np.array([0, 5, 6, 0])], Direction.REVERSE, eos_id=0).inputs.tolist()
    [0, 6, 5]
    """
    ordered = [direction.to_model_order(window) for window in windows]
    inputs = np.concatenate([window[:-1] for window in ordered])
    targets = np.concatenate([window[1:] for window in ordered])
    window_starts = np.cumsum([0, *(len(window) - 1 for window in ordered[:-1])])
    starts_document = inputs == eos_id
    starts_document[window_starts] = True
    document_starts = np.flatnonzero(starts_document)
    position_starts = document_starts if reset_position_ids else window_starts
    attention_starts = document_starts if mask_across_documents else window_starts
    lengths = np.diff(position_starts, append=len(inputs))
    return PackedBatch(
        inputs=inputs,
        targets=targets,
        positions=np.arange(len(inputs)) - np.repeat(position_starts, lengths),
        boundaries=np.append(attention_starts, len(inputs)),
    )
