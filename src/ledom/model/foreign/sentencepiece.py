"""Converts a sentencepiece model (tokenizer.model) to a `tokenizers` tokenizer.

The package sentencepiece is not needed. The file is a protobuf (sentencepiece_model.proto). These
fields are read: 1, the pieces (text, score, type); of 2, the trainer's settings, the kind of model
(3) and spaces after words (24); of 3, the normalizer's settings, its rules (2),
dummy prefix (3), removal of white space (4) and escaping (5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ledom.core.errors import CheckpointError

__all__ = ["SPACE", "USER_DEFINED", "build_sentencepiece", "read_sentencepiece"]

_NORMAL, _UNKNOWN, _CONTROL, USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_BPE = 2
SPACE = "▁"
"""sentencepiece's sign for a space."""
Piece = tuple[str, float, int]
"""A piece's text, score and type."""


def read_sentencepiece(file: Path) -> Tokenizer:
    """Load the tokenizer from a BPE model's file; see `build_sentencepiece`.

    Raises `CheckpointError` for a damaged file, another kind of model, or a normalizer that changes
    more than spaces.
    """
    try:
        pieces, trainer, normalizer = _read(file.read_bytes())
    except (AttributeError, ValueError, LookupError, TypeError, struct.error) as error:
        raise CheckpointError(f"{file}: not a sentencepiece model: {error!r}") from None
    _check(file, pieces, trainer, normalizer)
    return build_sentencepiece(pieces, bool(normalizer.get(3, 1)))


def build_sentencepiece(pieces: list[Piece], prefix: bool) -> Tokenizer:
    """The tokenizer of a BPE model, given its pieces in the order of their ids.

    `prefix` tells whether it puts a space (the dummy prefix) before a text. The result differs from
    sentencepiece only if this space touches a user-defined piece, such as a piece of several
    spaces: the piece is then found as in a text without the prefix.

    >>> pieces = [("<unk>", 0.0, 2), ("▁", -2.0, 1), ("a", -3.0, 1), ("▁a", -1.0, 1)]
    >>> build_sentencepiece(pieces, prefix=True).encode("a a").tokens
    ['▁a', '▁a']
    """
    vocabulary = {text: number for number, (text, _, _) in enumerate(pieces)}
    unknown = next((text for text, _, kind in pieces if kind == _UNKNOWN), None)
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(pieces, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=any(kind == _BYTE for _, _, kind in pieces),
        )
    )
    backend.normalizer = normalizers.Replace(" ", SPACE)
    if prefix:  # the first of these puts a prefix at the start of a text, even before a space
        schemes = ((" ", "first"), (SPACE, "never"))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(*scheme, split=False) for scheme in schemes]
        )
    strip: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_special_tokens([t for t, _, kind in pieces if kind in (_UNKNOWN, _CONTROL)])
    # A piece with a literal space matches nothing, because spaces are escaped first.
    matched = [text for text, _, kind in pieces if kind == USER_DEFINED and " " not in text]
    backend.add_tokens([AddedToken(text, normalized=True) for text in matched])
    return backend


def _read(data: bytes) -> tuple[list[Piece], dict[int, Any], dict[int, Any]]:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(data):
        if field == 1:
            entry = dict(_fields(value))
            score = struct.unpack("<f", entry[2])[0] if 2 in entry else 0.0
            pieces.append((entry[1].decode("utf-8"), score, entry.get(3, _NORMAL)))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("no pieces")
    return pieces, trainer, normalizer


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a message's fields: an int for a varint, otherwise bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value: Any
            value, place = _varint(data, place)
        else:
            if kind == 2:
                size, place = _varint(data, place)
            else:
                size = {1: 8, 5: 4}[kind]
            value, place = data[place : place + size], place + size
            if place > len(data):
                raise ValueError("truncated")
        yield key >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _check(
    file: Path, pieces: list[Piece], trainer: dict[int, Any], normalizer: dict[int, Any]
) -> None:
    faults = {
        "its kind is not BPE": trainer.get(3, 1) != _BPE,
        "two pieces are the same": len({text for text, _, _ in pieces}) != len(pieces),
        "its normalizer rewrites characters": bool(normalizer.get(2)),
        "it removes spaces": bool(normalizer.get(4, 1)),
        "it keeps spaces as they are": not normalizer.get(5, 1),
        "it writes spaces after words": bool(trainer.get(24, 0)),
    }
    for fault, is_so in faults.items():
        if is_so:
            raise CheckpointError(
                f"{file}: {fault}, which ledom cannot read; give a tokenizer.json with --tokenizer"
            )


def _merges(pieces: list[Piece], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every split of a piece into two other pieces, ordered by the piece's score, best first."""
    mergeable = {text for text, _, kind in pieces if kind == _NORMAL}
    found = []
    for text, score, kind in pieces:
        if kind != _NORMAL:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in mergeable and right in mergeable:
                rank = (-score, vocabulary[text], vocabulary[left], vocabulary[right])
                found.append((rank, (left, right)))
    return [pair for _, pair in sorted(found)]
