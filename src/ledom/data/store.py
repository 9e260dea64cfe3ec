"""The token store: documents as flat files of ids, one copy for both directions.

    documents -> write_store, or ledom tokenize -> *.ds | *.ds.index | manifest.json -> TokenStore

A `.ds` file, a shard, holds documents as `t1 .. tn EOS` (little-endian uint16 or uint32). Its
`.ds.index` holds the end of each document, in tokens (uint64). This is datatrove's format. The
manifest lists the shards with their counts and checksums; it is written last, so its existence
means that the store is complete. The store is in reading order and does not know about windows,
directions or models.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from mmap import MAP_PRIVATE, PROT_READ, mmap
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ledom.core.errors import InputError
from ledom.core.files import file_hash, write_json, writing
from ledom.core.reading import as_type, exists, read_json
from ledom.text.tokenizer import Tokenizer

__all__ = [
    "MANIFEST",
    "Manifest",
    "ShardEntry",
    "SourceRuns",
    "TokenStore",
    "finalize_shard",
    "read_manifests",
    "token_dtype",
    "write_manifest",
    "write_shard",
    "write_store",
]

MANIFEST = "manifest.json"
_SINGLE_SHARD = "tokens.ds"
_CHUNK_CHARACTERS = 1 << 20  # encoded at a time: enough for all threads, little memory
_BLOCK_BYTES = 1 << 23  # read at a time
_NO_SOURCE = "no source"
_LONGEST_NAME = 200  # in characters; a longer source is a text, such as one to translate
_MOST_RUNS = 100_000  # per manifest, which every reader of the store holds in memory


@dataclass(frozen=True)
class ShardEntry:
    """A shard's entry in the manifest."""

    file: str
    """The file's name in the store's folder; the index file adds `.index` to it."""
    num_documents: int
    num_tokens: int
    max_id: int
    """The largest token id in the shard."""
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a store's manifest.json."""

    num_documents: int
    num_tokens: int
    dtype: Literal["uint16", "uint32"]
    eos_id: int
    vocab_size: int
    tokenizer: str
    shards: list[ShardEntry]
    source: str | None = None
    """The name of the data that the store was made from."""
    sources: list[tuple[str, int]] = field(default_factory=list)
    """The sources of runs of documents: name and number of documents."""
    manifest_sha256: str = ""
    """The hash of the manifest's file, which is not in it. The file contains the shards' checksums,
    so the hash identifies the whole store."""


class Shard:
    """One file of a store: `tokens` are the ids of its documents, `ends` is where each ends.

    Each access maps the file again, so memory does not grow with the number of tokens read.
    """

    def __init__(self, folder: Path, entry: ShardEntry, dtype: np.dtype[Any]) -> None:
        self.file = folder / entry.file
        self.index_file = folder / f"{entry.file}.index"
        self.entry = entry
        self._dtype = dtype
        self._files = (  # with their sizes and checksums
            (self.file, entry.num_tokens * dtype.itemsize, entry.sha256),
            (self.index_file, entry.num_documents * 8, entry.index_sha256),
        )
        for file, size, _ in self._files:
            found = file.stat().st_size if file.is_file() else "nothing"
            if found != size:
                raise InputError(
                    f"the manifest says {size} bytes, found {found}; copy or tokenize it again",
                    path=file,
                )

    @property
    def tokens(self) -> NDArray[Any]:
        """All ids [num_tokens]."""
        return _mapped(self.file, self._dtype)

    @property
    def ends(self) -> NDArray[np.uint64]:
        """The end of each document, EOS included [num_documents]."""
        return _mapped(self.index_file, np.dtype("<u8"))

    def verify(self) -> None:
        """Read every byte; raises an `InputError` that names a file whose checksum differs."""
        for file, _, theirs in self._files:
            if (ours := file_hash(file)) != theirs:
                raise InputError(
                    f"its checksum {ours[:12]}... is not the manifest's {theirs[:12]}...: the file "
                    "has changed; copy or tokenize it again",
                    path=file,
                )


def _mapped(file: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A file's numbers, read where they are used. Some FUSE file systems refuse shared mappings,
    which `np.memmap` uses."""
    with file.open("rb") as opened:
        return np.frombuffer(mmap(opened.fileno(), 0, MAP_PRIVATE, PROT_READ), dtype)


class TokenStore:
    """A finished store: `manifest` has its counts, dtype and tokenizer, `shards` its files.

    Opening it compares only sizes; `verify` reads every byte. Raises `InputError` for a folder
    without a manifest, a file whose size differs from the manifest, or ids outside the vocabulary.

    >>> import tempfile
    >>> from ledom.text.tokenizer import train_tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_store(folder, ["so", "a"], train_tokenizer([], 257))
    ...     store = TokenStore(folder)
    ...     store.verify()
    ...     store.shards[0].ends.tolist(), int(store.shards[0].tokens[2]) == store.eos_id
    ([3, 5], True)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not exists(self.folder / MANIFEST):
            raise InputError(
                f"no {MANIFEST}: not a finished token store; let ledom tokenize finish it",
                path=self.folder,
            )
        self.manifest = _read_manifest(self.folder / MANIFEST)
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        self.shards = tuple(Shard(self.folder, entry, dtype) for entry in self.manifest.shards)
        self.check_ids(self.manifest.vocab_size, "tokenize again with the right tokenizer")

    @property
    def eos_id(self) -> int:
        """The document-end token."""
        return self.manifest.eos_id

    def check_ids(self, vocab_size: int, remedy: str) -> None:
        """Raise `InputError` if a token is outside a vocabulary of this size."""
        for shard in self.shards:
            if shard.entry.max_id >= vocab_size:
                raise InputError(
                    f"it has the token id {shard.entry.max_id}, the vocabulary ends at "
                    f"{vocab_size - 1}; {remedy}",
                    path=shard.file,
                )

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Compare every `world_size`-th shard with its checksum, so that ranks share the work."""
        for shard in self.shards[rank::world_size]:
            shard.verify()

    def document_sources(self) -> list[str]:
        """The name of each document's source; empty if the manifest has no sources."""
        return [name for name, count in self.manifest.sources for _ in range(count)]


def _read_manifest(file: Path) -> Manifest:
    contents = read_json(file) | {"manifest_sha256": file_hash(file)}
    return as_type(contents, Manifest, file)


def write_store(
    folder: str | Path,
    texts: Iterable[str],
    tokenizer: Tokenizer,
    source: str | None = None,
    sources: Iterable[tuple[str, int]] = (),
) -> TokenStore:
    """Tokenize texts into a new one-shard store; `source` and `sources` go into its `Manifest`.

    Raises `OutputError` if the folder cannot be written or the disk is full, and `InputError` if
    there are no texts.

    >>> import tempfile
    >>> from ledom.text.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer(["so"], 257)  # a token per byte, and EOS
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = write_store(f"{folder}/store", ["so", "ok"], tokenizer)
    ...     store.manifest.num_documents, store.manifest.num_tokens
    (2, 6)
    """
    folder = Path(folder)
    file = folder / _SINGLE_SHARD
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        write_shard(file, texts, tokenizer)
    shard = finalize_shard(file, token_dtype(tokenizer))
    return write_manifest(folder, [shard], tokenizer, source, sources)


def write_manifest(
    folder: Path,
    shards: Iterable[ShardEntry],
    tokenizer: Tokenizer,
    source: str | None = None,
    sources: Iterable[tuple[str, int]] = (),
) -> TokenStore:
    """Finish a store once all shards are written; shards without documents are left out.

    >>> from ledom.text.tokenizer import train_tokenizer
    >>> write_manifest(Path("empty"), [], train_tokenizer([], 257))
    Traceback (most recent call last):
    ledom.core.errors.InputError: empty: there are no documents to tokenize
    """
    kept = [shard for shard in shards if shard.num_documents]
    if not kept:
        raise InputError("there are no documents to tokenize", path=source or folder)
    manifest = Manifest(
        num_documents=sum(shard.num_documents for shard in kept),
        num_tokens=sum(shard.num_tokens for shard in kept),
        dtype="uint16" if token_dtype(tokenizer).itemsize == 2 else "uint32",
        eos_id=tokenizer.eos_id,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.fingerprint,
        shards=kept,
        source=source,
        sources=list(sources),
    )
    empty: tuple[Any, ...] = (None, "", [])
    contents = {key: value for key, value in asdict(manifest).items() if value not in empty}
    write_json(folder / MANIFEST, contents)
    return TokenStore(folder)


def finalize_shard(file: Path, dtype: np.dtype[Any]) -> ShardEntry:
    """Read a written shard and return its counts and checksums.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "tokens.ds")
    ...     np.array([3, 7, 0], "<u2").tofile(file)
    ...     np.array([3], "<u8").tofile(f"{file}.index")
    ...     found = finalize_shard(file, np.dtype("<u2"))
    ...     found.num_documents, found.num_tokens, found.max_id
    (1, 3, 7)
    """
    digest, num_tokens, max_id = hashlib.sha256(), 0, -1
    with file.open("rb") as source:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            ids = np.frombuffer(block, dtype)
            num_tokens += len(ids)
            max_id = max(max_id, int(ids.max()))
    index = Path(f"{file}.index")
    return ShardEntry(
        file=file.name,
        num_documents=index.stat().st_size // 8,
        num_tokens=num_tokens,
        max_id=max_id,
        sha256=digest.hexdigest(),
        index_sha256=file_hash(index),
    )


def token_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The dtype in which a tokenizer's ids are stored: two bytes if they fit, else four.

    >>> from ledom.text.tokenizer import train_tokenizer
    >>> token_dtype(train_tokenizer(["so"], 257))
    dtype('uint16')
    """
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def write_shard(file: Path, texts: Iterable[str], tokenizer: Tokenizer) -> None:
    """Write the ids of each text, followed by EOS, to a shard, and its index next to it.

    >>> import tempfile
    >>> from ledom.text.tokenizer import train_tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_shard(Path(folder, "a.ds"), ["so", "so so"], train_tokenizer(["so"], 258))
    ...     np.fromfile(Path(folder, "a.ds.index"), "<u8").tolist()  # EOS included
    [2, 6]
    """
    dtype = token_dtype(tokenizer)
    ends = array("Q", [0])
    with file.open("wb") as out:
        for chunk in _chunks(texts):
            for ids in tokenizer.encode_ids(chunk):
                ids.append(tokenizer.eos_id)
                out.write(np.array(ids, dtype).tobytes())
                ends.append(ends[-1] + len(ids))
    # Not `tofile`, which on a full disk writes only part of the last 4 KB, without an error.
    Path(f"{file}.index").write_bytes(np.array(ends[1:], "<u8").tobytes())


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Group texts into lists of about `_CHUNK_CHARACTERS`, because texts can have any length."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


class SourceRuns:
    """Counts runs of documents with the same source, for a manifest.

    >>> made = SourceRuns()
    >>> for source in ("web", "web", None):
    ...     made.add(source)
    >>> made.named("my store")
    [('web', 2), ('no source', 1)]
    """

    def __init__(self) -> None:
        self.runs: list[tuple[str, int]] = []

    def add(self, source: object, count: int = 1) -> None:
        """Count more documents of one source; anything but a short text is no source."""
        name = source if isinstance(source, str) and len(source) <= _LONGEST_NAME else ""
        name = name or _NO_SOURCE
        if self.runs and self.runs[-1][0] == name:
            count += self.runs.pop()[1]
        if len(self.runs) <= _MOST_RUNS:  # further ones are not counted
            self.runs.append((name, count))

    def named(self, place: object) -> list[tuple[str, int]]:
        """The runs; empty if no document has a source, or if there are too many to keep.

        In the latter case, it logs a warning in which `place` names the documents.
        """
        if len(self.runs) > _MOST_RUNS:
            logging.getLogger("ledom").warning(
                "%s: the source changes more than %d times between documents, so the store "
                "does not keep it, and validation cannot tell the sources apart; sort by source",
                *(place, _MOST_RUNS),
            )
            return []
        return self.runs if any(name != _NO_SOURCE for name, _ in self.runs) else []


def read_manifests(folder: Path) -> dict[str, Manifest]:
    """The manifests of a folder's token stores, by their path in it (`.` for the folder itself).

    >>> import tempfile
    >>> from ledom.text.tokenizer import train_tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_store(f"{folder}/train", ["so"], train_tokenizer([], 257))
    ...     [(name, found.num_tokens) for name, found in read_manifests(Path(folder)).items()]
    [('train', 3)]
    """
    files = sorted([*folder.glob(MANIFEST), *folder.glob(f"*/{MANIFEST}")])
    return {str(file.parent.relative_to(folder)): _read_manifest(file) for file in files}
