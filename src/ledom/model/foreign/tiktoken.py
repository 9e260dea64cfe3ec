"""Safely converts a pickled `tiktoken.Encoding` (tokenizer.pkl) to a `tokenizers` tokenizer.

The only global that the pickle may name is `tiktoken.core.Encoding`, which is replaced by an empty
class. So nothing is imported or called, whatever the file contains.
"""

from __future__ import annotations

import math
import pickle
import re
from io import BytesIO
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ledom.core.errors import CheckpointError

__all__ = ["read_tiktoken_pickle"]

_ATOM = re.compile(
    r"(\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|[^\\])(\{\d+(?:,\d*)?\}\+)?", re.DOTALL
)
"""A part of a pattern, and its possessive repetition."""


class _Encoding:
    """A stand-in for tiktoken's class that only stores the state."""

    def __setstate__(self, state: dict[str, object] | str) -> None:
        if isinstance(state, str):
            raise CheckpointError(
                f"the pickle only names tiktoken's encoding {state!r}; give its tokenizer.json "
                "with --tokenizer"
            )
        vars(self).update(state)


class _Reader(pickle.Unpickler):
    """Unpickles only plain data and `_Encoding`s; a pickle cannot import or call anything else."""

    def find_class(self, module: str, name: str) -> type[_Encoding]:
        if (module, name) != ("tiktoken.core", "Encoding"):
            raise CheckpointError(f"the pickle calls {module}.{name}, which is not allowed")
        return _Encoding


def read_tiktoken_pickle(file: Path) -> RustTokenizer:
    """Load the tokenizer from a tokenizer.pkl, with the file's ids.

    Raises `CheckpointError` for a pickle that is damaged, or that does more than describe an
    encoding.
    """
    try:
        read = _Reader(BytesIO(file.read_bytes())).load()
        if not isinstance(read, _Encoding):
            raise CheckpointError("the pickle does not contain an encoding")
        state = vars(read)
        pattern, ranks, special = (
            state[k] for k in ("pat_str", "mergeable_ranks", "special_tokens")
        )
        return _build(str(pattern), dict(ranks), dict(special))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    except Exception as error:  # a damaged pickle may cause any error
        raise CheckpointError(f"{file}: not a pickled tiktoken encoding: {error!r:.200}") from None


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
            pre_tokenizers.Split(Regex(_in_oniguruma(pattern)), "isolated"),
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


def _in_oniguruma(pattern: str) -> str:
    """A pattern of tiktoken in the syntax of `tokenizers`' engine, Oniguruma.

    There, a plus after {1,3} is another repetition, and ^ and $ match at the ends of each line.

    >>> _in_oniguruma(r"\\p{N}{1,3}+|\\s++$")
    '(?>\\\\p{N}{1,3})|\\\\s++\\\\z'
    """

    def written(found: re.Match[str]) -> str:
        atom, count = found.groups()
        if count is None:
            return {"^": r"\A", "$": r"\z"}.get(atom, atom)
        if atom == ")":
            raise CheckpointError(
                f"the pattern repeats a group with {count}, which ledom does not read; give a "
                "tokenizer.json with --tokenizer"
            )
        return f"(?>{atom}{count.removesuffix('+')})"

    return _ATOM.sub(written, pattern)


def _parts(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that merge into this token: its bytes, merged by all lower ranks."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [a + b for a, b in pairwise(parts)]
        best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], math.inf))
        if ranks.get(pairs[best], math.inf) >= ranks[token]:
            raise CheckpointError(f"the token {token!r} is not a merge of two others")
        parts[best : best + 2] = [pairs[best]]
    left, right = parts
    return left, right
