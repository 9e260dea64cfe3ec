"""The token store: documents as one flat file of ids, and batches of it in a fixed order.

    documents -> write_store -> tokens.ds | tokens.ds.index | manifest.json -> TokenStore -> batches

tokens.ds holds every document as `t1 .. tn EOS` (little-endian uint16 or uint32), tokens.ds.index
the end of each (uint64): datatrove's format. The manifest is written last, so its existence means
the store is complete. One copy serves both directions: the store is in reading order, and what
turns it round is the training loop. It knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ledom.errors import InputError, OutputError
from ledom.model.tokenizer import Tokenizer
from ledom.records import write_atomically

__all__ = ["Batches", "TokenStore", "write_store"]

_TOKENS, _INDEX, _MANIFEST = "tokens.ds", "tokens.ds.index", "manifest.json"
_CHUNK = 1024  # documents encoded at a time


def write_store(
    folder: str | Path, texts: Iterable[str], tokenizer: Tokenizer, **notes: Any
) -> TokenStore:
    """Tokenise texts into a new store; `notes` are kept in its manifest.

    Raises `OutputError` when the place cannot be written or the disk is full.
    """
    folder = Path(folder)
    try:
        manifest = _write_tokens(folder, texts, tokenizer)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error}") from error
    with write_atomically(folder / _MANIFEST) as manifest_file:
        json.dump({**manifest, **notes}, manifest_file, indent=1)
    return TokenStore(folder)


def _write_tokens(folder: Path, texts: Iterable[str], tokenizer: Tokenizer) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    ends: list[int] = []
    total = 0
    digest = hashlib.sha256()
    with (folder / _TOKENS).open("wb") as out:
        for chunk in _chunks(texts):
            for encoding in tokenizer.encode_batch(chunk):
                data = np.array([*encoding.ids, tokenizer.eos_id], dtype).tobytes()
                out.write(data)
                digest.update(data)
                total += len(encoding.ids) + 1
                ends.append(total)
    np.array(ends, np.uint64).tofile(folder / _INDEX)
    return {
        "num_documents": len(ends),
        "num_tokens": total,
        "dtype": np.dtype(dtype).name,
        "eos_id": tokenizer.eos_id,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "sha256": digest.hexdigest(),
    }


def _chunks(texts: Iterable[str]) -> Iterable[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class TokenStore:
    """A finished store, memory-mapped. `manifest` holds its counts, dtype and tokenizer."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.manifest: dict[str, Any] = json.loads((self.folder / _MANIFEST).read_text())
        except FileNotFoundError:
            raise InputError("no manifest.json: not a finished token store", path=folder) from None
        except json.JSONDecodeError as error:
            raise InputError(f"manifest.json is not JSON: {error}", path=folder) from None
        dtype = np.dtype(self.manifest["dtype"])
        expected = {
            _TOKENS: self.manifest["num_tokens"] * dtype.itemsize,
            _INDEX: self.manifest["num_documents"] * 8,
        }
        for name, size in expected.items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size != size:
                found = file.stat().st_size if file.is_file() else "nothing"
                raise InputError(
                    f"the manifest says {size} bytes, found {found}; tokenise again", path=file
                )
        self.tokens: NDArray[Any] = np.memmap(self.folder / _TOKENS, dtype, mode="r")
        self.ends: NDArray[np.uint64] = np.fromfile(self.folder / _INDEX, np.uint64)

    @classmethod
    def exists(cls, folder: str | Path) -> bool:
        """Whether the folder holds a finished store."""
        return (Path(folder) / _MANIFEST).is_file()

    @property
    def eos_id(self) -> int:
        """The document-end token."""
        return int(self.manifest["eos_id"])


@dataclass(frozen=True)
class Batches:
    """Batches of windows of a store, in an order that depends only on `seed`.

    A window is a document framed by EOS on both sides, or a stretch of one that is longer than
    `seq_len`; it predicts at most `seq_len` tokens. Batch `step` is found without reading those
    before it, so a run resumes by its step number alone.
    """

    store: TokenStore
    batch_size: int
    """Windows in a batch."""
    seq_len: int
    """Most tokens that a window predicts."""
    seed: int | None
    """Seed of the shuffle; None keeps the store's order."""

    def __post_init__(self) -> None:
        ends = self.store.ends.astype(np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        # The frame's first EOS is put in front of a document's first window, so a document of n
        # ids (its EOS included) has n + 1 framed ids and predicts n of them in either direction.
        counts = np.maximum(1, -(-(ends - starts) // self.seq_len))
        documents = np.repeat(np.arange(len(ends)), counts)
        piece = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
        window_starts = starts[documents] + piece * self.seq_len
        window_ends = np.minimum(window_starts + self.seq_len, ends[documents])
        object.__setattr__(self, "_windows", np.stack([window_starts, window_ends], axis=1))

    @property
    def windows(self) -> NDArray[np.int64]:
        """[num_windows, 2]: the store's [start, end) that each window predicts (read forward)."""
        windows: NDArray[np.int64] = self.__dict__["_windows"]
        return windows

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the store."""
        return max(1, len(self.windows) // self.batch_size)

    def __getitem__(self, step: int) -> list[NDArray[np.int64]]:
        """The windows of a batch: framed ids in reading order, one more than they predict."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        return [self._window(*self.windows[i]) for i in chosen]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        cached: dict[int, NDArray[np.int64]] = self.__dict__.setdefault("_orders", {})
        if epoch not in cached:
            cached.clear()
            count = len(self.windows)
            cached[epoch] = (
                np.arange(count)
                if self.seed is None
                else np.random.default_rng([self.seed, epoch]).permutation(count)
            )
        return cached[epoch]

    def _window(self, start: int, end: int) -> NDArray[np.int64]:
        tokens = self.store.tokens[max(start - 1, 0) : end].astype(np.int64)
        # The first id of all has no EOS before it in the file; every other document does.
        return tokens if start > 0 else np.concatenate([[self.store.eos_id], tokens])
