"""Reads a pickled `tiktoken.Encoding` (tokenizer.pkl) as a `tokenizers` tokenizer, safely.

The pickle is not unpickled: its opcodes are interpreted here, only those that build plain data. The
only global allowed is `tiktoken.core.Encoding`, which stands for its state. Nothing is imported or
called, whatever the file contains.
"""

from __future__ import annotations

import math
import pickletools
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ledom.core.errors import CheckpointError

__all__ = ["read_tiktoken_pickle"]

_CLASS = "tiktoken.core.Encoding"
_MARK, _OBJECT = object(), object()
_VALUES = {
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    *("BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG"),
}
_CONSTANTS: dict[str, bool | None] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def read_tiktoken_pickle(file: Path) -> RustTokenizer:
    """The tokenizer in a tokenizer.pkl, with the file's ids.

    Raises `CheckpointError` for a pickle that is damaged, or that does more than describe an
    encoding.
    """
    try:
        state = _read_state(file.read_bytes())
        pattern, ranks, special = (
            state[k] for k in ("pat_str", "mergeable_ranks", "special_tokens")
        )
        return _build(str(pattern), dict(ranks), dict(special))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    except Exception as error:  # a damaged pickle may cause any error
        raise CheckpointError(f"{file}: not a pickled tiktoken encoding: {error!r:.200}") from None


def _read_state(data: bytes) -> dict[str, Any]:
    """The state that the pickle would restore the encoding to."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module = str(argument).split(" ") if name == "GLOBAL" else [stack.pop(-2), stack.pop()]
            if ".".join(module) != _CLASS:
                raise CheckpointError(f"the pickle calls {'.'.join(module)}, which is not allowed")
            stack.append(_OBJECT)
        elif name == "BUILD":
            state = stack.pop()
            if stack != [_OBJECT] or not isinstance(state, dict):
                raise CheckpointError("the pickle is not of an encoding")
            return state
        elif name not in ("PROTO", "FRAME"):
            _collect(name, stack)
    raise CheckpointError("the pickle is not of an encoding")


def _collect(name: str, stack: list[Any]) -> None:
    """Apply an opcode that combines items on the stack."""
    if name == "MARK":
        stack.append(_MARK)
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "EMPTY_TUPLE":
        stack.append(())
    elif name == "SETITEM":
        value, key = stack.pop(), stack.pop()
        stack[-1][key] = value
    elif name == "SETITEMS":
        start = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[start + 1 :]
        del stack[start:]
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
    elif name == "NEWOBJ" and stack[-2:] == [_OBJECT, ()]:
        stack.pop()
    else:
        raise CheckpointError(f"the pickle has the operation {name}, which is not allowed")


def _build(pattern: str, ranks: dict[bytes, int], special: dict[str, int]) -> RustTokenizer:
    symbols = bytes_to_unicode()

    def written(token: bytes) -> str:
        return "".join(symbols[byte] for byte in token)

    merges = []
    for token in sorted(ranks, key=lambda token: ranks[token]):
        if len(token) > 1:
            left, right = _parts(token, ranks)
            merges.append((written(left), written(right)))
    vocabulary = {written(token): rank for token, rank in ranks.items()}
    backend = RustTokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(sorted(special, key=lambda token: special[token]))
    for name, number in special.items():
        if backend.token_to_id(name) != number:
            raise CheckpointError(
                f"{name!r} has the id {number}, which leaves a gap in the ids; such encodings are "
                "not supported"
            )
    return backend


def _parts(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens whose merge is this token: its bytes merged by all lower ranks."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [a + b for a, b in pairwise(parts)]
        best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], math.inf))
        if ranks.get(pairs[best], math.inf) >= ranks[token]:
            raise CheckpointError(f"the token {token!r} is not made of two others")
        parts[best : best + 2] = [pairs[best]]
    left, right = parts
    return left, right
