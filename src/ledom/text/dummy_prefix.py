"""Removes the dummy prefix, the space that tokenizers like sentencepiece's put before a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer

__all__ = ["WithoutPrefix", "ids_inside"]


@dataclass
class WithoutPrefix:
    """Keeps the copy of `without_prefix`, and makes it again if a caller changes the tokenizer.

    >>> from tokenizers import models, pre_tokenizers
    >>> backend, inside = Tokenizer(models.WordLevel({"?": 0}, "?")), WithoutPrefix()
    >>> backend.pre_tokenizer = pre_tokenizers.Metaspace("_")
    >>> inside(backend).encode("so").tokens, backend.add_tokens(["so"])
    (['?'], 1)
    >>> inside(backend).encode("so").tokens
    ['so']
    """

    _known: object = None
    _copy: Tokenizer | None = None

    def __call__(self, backend: Tokenizer) -> Tokenizer:
        parts = backend.normalizer, backend.pre_tokenizer
        state = [part and part.__getstate__() for part in parts]
        state.append(repr(backend.get_added_tokens_decoder()))
        if self._copy is None or state != self._known:
            self._copy, self._known = without_prefix(backend), state
        self._copy.encode_special_tokens = backend.encode_special_tokens
        return self._copy


def without_prefix(backend: Tokenizer) -> Tokenizer:
    """A copy of the tokenizer without its dummy prefix; the tokenizer itself if it has none.

    >>> from tokenizers import models, normalizers
    >>> backend = Tokenizer(models.BPE({"_": 0, "a": 1}, []))
    >>> without_prefix(backend) is backend
    True
    >>> backend.normalizer = normalizers.Prepend("_")
    >>> backend.encode("a").tokens, without_prefix(backend).encode("a").tokens
    (['_', 'a'], ['a'])
    """
    settings = json.loads(backend.to_str())  # no file
    inside = settings | {part: _inside(settings[part]) for part in ("normalizer", "pre_tokenizer")}
    return backend if inside == settings else Tokenizer.from_str(json.dumps(inside))


def ids_inside(backend: Tokenizer, inside: Tokenizer, text: str) -> list[int]:
    """The ids of a text without the space before its first word; `inside` has no dummy prefix.

    Some tokenizers also put a space before each word, or after each added token.

    >>> from tokenizers import models, pre_tokenizers
    >>> backend = Tokenizer(models.WordLevel({"?": 0, "_so": 1, "so": 2}, "?"))
    >>> words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("_")]
    >>> backend.pre_tokenizer = pre_tokenizers.Sequence(words)
    >>> [ids_inside(backend, without_prefix(backend), text) for text in ("so so", " so so")]
    [[2, 1], [1, 1]]
    """
    found, whole = (  # the batch call, unlike `encode`, lets other threads run
        each.encode_batch([text], add_special_tokens=False)[0] for each in (inside, backend)
    )
    later = {start: i for i, start in reversed([*_word_starts(whole)])}
    spaced = text[:1].isspace()  # then the first word counts too
    for i, start in _word_starts(found):
        if start > 0 and start in later and (i > 0 or spaced):
            return [*found.ids[:i], *whole.ids[later[start] :]]
    return list(found.ids)


def _word_starts(encoding: Encoding) -> Iterator[tuple[int, int]]:
    """Each word's first token and character; words that have no characters are left out.

    Words are the parts that a tokenizer never merges; added tokens are among them.
    """
    first, words = None, [None, *encoding.word_ids]
    for i, (start, end) in enumerate(encoding.offsets):
        if words[i] != words[i + 1]:
            first = i
        if first is not None and start < end:  # the space before it may have no character
            yield first, start
            first = None


def _inside(part: Any) -> Any:
    """A normalizer or pre-tokenizer of tokenizer.json without its dummy prefix."""
    match part:
        case {"type": "Sequence", "normalizers": parts}:
            kept = [inner for inner in map(_inside, parts) if inner is not None]
            return part | {"normalizers": kept}
        case {"type": "Sequence", "pretokenizers": parts}:
            return part | {"pretokenizers": [_inside(inner) for inner in parts]}
        case {"type": "Prepend"}:
            return None
        case {"type": "Metaspace"}:
            return part | {"prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return part | {"add_prefix_space": False}
    return part
