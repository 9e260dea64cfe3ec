"""Removes the dummy prefix, the space that tokenizers like sentencepiece's put before a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

__all__ = ["WithoutPrefix"]


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
