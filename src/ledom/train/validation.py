"""What a validation measures: the loss over some windows, and where in them it arises.

    windows of the validation store -> losses -> ValidationStats -> keys of a row of metrics.jsonl

The windows are the same in both directions, and so are the tokens: twins can be compared window by
window. This module takes losses as an array and knows nothing of models, recipes or devices.

Shapes: T predicted tokens of a packed batch, in model order.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction
from ledom.data.packing import PackedBatch, Windows

__all__ = ["ValidationStats"]

_MAX_BLOCKS = 512  # so that a row stays a few kB, however many windows are read
_MAX_SOURCES = 32
_OTHERS = "other sources"
_DIGITS = 6  # of losses: far finer than any difference that is shown


class ValidationStats:
    """Losses added up over validation windows: in all, by position, by source and by window.

    Position is how many tokens the model has read behind the first, since attention last stopped,
    in the order in which it reads; binned in powers of two: 0, 1, 2-3, 4-7 and so on.
    """

    def __init__(self, windows: Windows, most: int) -> None:
        """Of the store's windows at most `most`, spread evenly over it."""
        self.windows = windows
        count = min(len(windows), most)
        self.numbers: list[int] = (np.arange(count) * len(windows) // count).tolist()
        self._num_blocks = min(count, _MAX_BLOCKS)
        self._sources, self._source_of = _numbered(windows.store.document_sources())
        # The first token has position 0, the last seq_len - 1.
        self._num_positions = 1 + max(windows.seq_len - 1, 0).bit_length()
        groups = self._num_positions + len(self._sources) + self._num_blocks
        self._sums = np.zeros((2, groups))  # of losses, of tokens
        self._digest = hashlib.sha256()

    def read(self, places: Sequence[int]) -> list[NDArray[np.int64]]:
        """The ids of the windows at some places in `numbers`, each place once and in order."""
        read = [self.windows[self.numbers[place]] for place in places]
        for window in read:
            self._digest.update(len(window).to_bytes(8, "little"))
            self._digest.update(window.astype("<i8").tobytes())
        return read

    def add(
        self,
        places: Sequence[int],
        batch: PackedBatch,
        losses: NDArray[np.float64],
        direction: Direction,
    ) -> None:
        """Losses [T] of the windows at some places, packed in that order."""
        lengths = np.diff(batch.boundaries)
        positions = np.arange(len(losses)) - np.repeat(batch.boundaries[:-1], lengths)
        groups = [np.frexp(positions)[1]]  # the exponent is the number of bits: the bin
        documents = [self.windows.documents(self.numbers[place]) for place in places]
        if self._sources:
            of_token = np.concatenate([direction.to_model_order(d) for d in documents])
            groups.append(self._source_of[of_token] + self._num_positions)
        blocks = np.array(places) * self._num_blocks // len(self.numbers)
        first_block = self._num_positions + len(self._sources)
        groups.append(np.repeat(blocks, [len(d) for d in documents]) + first_block)
        for group in groups:
            size = self._sums.shape[1]
            self._sums[0] += np.bincount(group, losses, size)
            self._sums[1] += np.bincount(group, minlength=size)

    def row(self, total: Callable[..., list[float]]) -> dict[str, Any]:
        """The keys of a row of metrics; `total` adds numbers up over the processes of a run.

        Losses are in nats per token. See docs/formats.md.
        """
        losses, tokens = np.array(total(*self._sums.ravel())).reshape(self._sums.shape)
        boundaries = np.cumsum([self._num_positions, len(self._sources)])
        by_position, by_source, by_window = (
            _means(*part)
            for part in zip(np.split(losses, boundaries), np.split(tokens, boundaries), strict=True)
        )
        # Every token is in one bin.
        position_tokens = tokens[: self._num_positions].sum()
        starts = [str((1 << bits) >> 1) for bits in range(self._num_positions)]
        row: dict[str, Any] = {
            "valid_loss": float(losses[: self._num_positions].sum() / position_tokens),
            "valid_tokens": int(position_tokens),
            "valid_data": self._digest.hexdigest()[:16],
        }
        for name, labels, (means, counts) in (
            ("position", starts, by_position),
            ("source", self._sources, by_source),
        ):
            read = [place for place, count in enumerate(counts) if count and labels]
            if read:
                row[f"valid_loss_by_{name}"] = {labels[place]: means[place] for place in read}
                row[f"valid_tokens_by_{name}"] = {labels[place]: counts[place] for place in read}
        row["valid_loss_by_window"], row["valid_tokens_by_window"] = by_window
        return row


def _means(losses: NDArray[np.float64], tokens: NDArray[np.float64]) -> tuple[Any, Any]:
    means = np.round(losses / np.maximum(tokens, 1), _DIGITS)
    return means.tolist(), tokens.astype(int).tolist()


def _numbered(sources: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The names of the sources with most documents, and of each document the place of its own."""
    names = [name for name, _ in Counter(sources).most_common()]
    if len(names) > _MAX_SOURCES:
        names = [*names[: _MAX_SOURCES - 1], _OTHERS]
    places = {name: place for place, name in enumerate(names)}
    return names, np.array([places.get(name, len(names) - 1) for name in sources], np.int64)
