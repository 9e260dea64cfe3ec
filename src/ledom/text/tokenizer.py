"""Converts text to token ids and back, always in reading order, with character offsets.

A `Tokenizer` wraps a Hugging Face `tokenizers.Tokenizer` (the file tokenizer.json). It has two
kinds of special tokens: EOS, which ends every document, and BOS tokens, which its post-processor
puts before a text. It has no direction: a reverse model uses its forward twin's tokenizer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from ledom.core.errors import CheckpointError, InputError
from ledom.core.files import write_atomically, write_json
from ledom.core.reading import JsonObject, check_regular, check_surrogates, read_json_object
from ledom.text.dummy_prefix import WithoutPrefix, ids_inside

__all__ = ["Encoding", "Tokenizer", "recorded_eos", "refuse_to_replace", "train_tokenizer"]

EOS_TOKEN = "<|end|>"

_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's
# One digit per token (with the space before it, if any), so that models can see the digits.
_PIECES_OF_DIGITS = _PIECES.replace(r"\p{N}+", r"\p{N}", 1)


@dataclass(frozen=True)
class Encoding:
    """Token ids of one text and their [start, end) character offsets, in reading order.

    >>> train_tokenizer([], 257).encode("2+2").offsets  # a token per byte
    [(0, 1), (1, 2), (2, 3)]
    """

    ids: list[int]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """A byte-level (or any other) subword tokenizer with a document-end token.

    >>> tokenizer = train_tokenizer(["so so so"], 260)
    >>> tokenizer.pieces(tokenizer.encode("so so").ids)
    ['so', ' so']
    """

    def __init__(self, backend: RustTokenizer, eos_token: str = EOS_TOKEN) -> None:
        # Some files enable these; each would silently change a text's ids.
        backend.no_padding()
        backend.no_truncation()
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None  # random merges (BPE dropout)
        self._backend = backend
        self._fingerprint: str | None = None
        """The last `fingerprint`, unless a caller holds the backend and may change it."""
        self._is_shared = True
        self._without_prefix = WithoutPrefix()
        self._sizes: dict[int, int] = {}  # `vocab_size` by the number of tokens
        self.eos_token = eos_token
        eos_id = backend.token_to_id(eos_token)
        if eos_id is None:
            default = ", the default if its files name no EOS" if eos_token == EOS_TOKEN else ""
            raise CheckpointError(
                f"the tokenizer has no token {eos_token!r}{default}; it ends every document, so "
                "name the right one as eos_token (of a model), --eos-token (of a command) or "
                "data.eos_token (in a recipe)"
            )
        self.eos_id: int = eos_id
        with _refused(backend, [eos_token]):  # a text that any tokenizer with this EOS can encode
            first = backend.encode(eos_token)
        self.bos_tokens = list(first.tokens[: [*first.special_tokens_mask, 0].index(0)])
        """The special tokens that the post-processor puts before a text, such as `<s>`; empty for
        GPT-2's tokenizer and ledom's own. As in transformers 5, `add_bos_token` in
        tokenizer_config.json has no effect on a tokenizer.json."""

    @classmethod
    def load(cls, path: str | Path, eos_token: str | None = None) -> Tokenizer:
        """Load tokenizer.json from a file or a checkpoint folder.

        `eos_token` defaults to the one recorded in the files next to it, or to `<|end|>`.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     train_tokenizer(["so"], 258).save(folder)
        ...     Tokenizer.load(folder).vocab_size
        258
        """
        path = Path(path)
        file = path / "tokenizer.json" if os.path.isdir(path) else path
        try:
            check_regular(file)
        except InputError as error:
            raise CheckpointError(f"{error}; a checkpoint needs its tokenizer.json") from None
        try:
            backend = RustTokenizer.from_file(str(file))
        except UnicodeEncodeError:  # the file's name, not the file, is at fault
            raise
        except Exception as error:  # the binding raises bare Exception
            raise CheckpointError(f"{file}: not a tokenizer.json: {error}") from None
        loaded = cls(backend, eos_token or recorded_eos(file.parent, backend) or EOS_TOKEN)
        loaded._is_shared = False
        return loaded

    @property
    def backend(self) -> RustTokenizer:
        """The underlying `tokenizers.Tokenizer`; the caller may change it."""
        self._is_shared = True
        return self._backend

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, and tokenizer_config.json with the name of EOS, into a folder."""
        folder = Path(folder)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos_token,
            "pad_token": self.eos_token,
            "clean_up_tokenization_spaces": False,
        }
        write_json(folder / "tokenizer_config.json", config)
        with write_atomically(folder / "tokenizer.json") as out:
            out.write(self._backend.to_str(pretty=True))

    @property
    def vocab_size(self) -> int:
        """The largest id + 1, including added tokens; ids may have gaps."""
        count = self._backend.get_vocab_size(with_added_tokens=True)
        if count not in self._sizes:  # this takes long for a large vocabulary
            ids = self._backend.get_vocab(with_added_tokens=True).values()
            self._sizes[count] = max(ids) + 1
        return self._sizes[count]

    @property
    def special_ids(self) -> set[int]:
        """The ids of the special tokens.

        >>> train_tokenizer([], 257).special_ids == {train_tokenizer([], 257).eos_id}
        True
        """
        added = self._backend.get_added_tokens_decoder()
        return {number for number, token in added.items() if token.special}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary and merges; equal for equal tokenizers.

        >>> train_tokenizer([], 257).fingerprint == train_tokenizer(["so"], 257).fingerprint
        True
        """
        if self._fingerprint is None or self._is_shared:  # this takes 0.1 s for 128k tokens
            self._fingerprint = hashlib.sha256(self._backend.to_str().encode()).hexdigest()
        return self._fingerprint

    def spell_out_special_tokens(self) -> None:
        """From now on, encode the names of special tokens in texts as plain text.

        Use this for untrusted texts; otherwise `<|end|>` in a text would end the document.

        >>> tokenizer = train_tokenizer([], 257)
        >>> len(tokenizer.encode("<|end|>").ids)
        1
        >>> tokenizer.spell_out_special_tokens()
        >>> len(tokenizer.encode("<|end|>").ids)
        7
        """
        self._backend.encode_special_tokens = True

    @property
    def spells_out_special_tokens(self) -> bool:
        """Whether `spell_out_special_tokens` has been called."""
        return bool(self._backend.encode_special_tokens)

    def encode(self, text: str) -> Encoding:
        """Encode a text without special tokens; offsets count characters.

        Raises `InputError` for half a surrogate pair, which represents no character.

        >>> train_tokenizer([], 257).encode("né").offsets  # a token per byte: é takes two
        [(0, 1), (1, 2), (1, 2)]
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode many texts in parallel; see `encode`."""
        with _refused(self._backend, texts):
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [Encoding(e.ids, e.offsets) for e in encodings]

    def token_id(self, token: str) -> int:
        """The id of a token by its text; raises `CheckpointError` if the vocabulary lacks it.

        >>> tokenizer = train_tokenizer([], 257)
        >>> tokenizer.token_id("<|end|>") == tokenizer.eos_id
        True
        """
        found = self._backend.token_to_id(token)
        if found is None:
            raise CheckpointError(f"the tokenizer has no token {token!r}; name one that it has")
        return int(found)

    def encode_inside(self, text: str) -> list[int]:
        """The ids of a text that continues a document, without the tokenizer's dummy prefix.

        Tokenizers like sentencepiece's put a space before a text (the dummy prefix), and some also
        before each word or after each added token; only the first one is wrong inside a document.
        If a token of ab ends after a, ids(a) + encode_inside(b) equals ids(ab).

        >>> tokenizer = train_tokenizer(["so so"], 260)
        >>> tokenizer.encode_inside(" so") == tokenizer.encode("so so").ids[1:]
        True
        """
        if (inside := self._without_prefix(self._backend)) is self._backend:
            return self.encode_ids([text])[0]
        with _refused(self._backend, [text]):
            return ids_inside(self._backend, inside, text)

    def encode_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts in parallel, without offsets: a third faster than `encode_batch`."""
        with _refused(self._backend, texts):
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [e.ids for e in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids in reading order; special tokens are left out.

        >>> tokenizer = train_tokenizer([], 257)
        >>> tokenizer.decode([*tokenizer.encode("so").ids, tokenizer.eos_id])
        'so'
        """
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, in reading order; joined, they give the whole text.

        If tokens share a character, the last one gets it and the others are empty.

        >>> tokenizer = train_tokenizer([], 257)  # a token per byte: é takes two
        >>> tokenizer.pieces(tokenizer.encode("né").ids)
        ['n', '', 'é']
        """
        found, whole, special = [""] * len(ids), self.decode(ids), self.special_ids
        places = [place for place, number in enumerate(ids) if number not in special]
        kept = [ids[place] for place in places]
        before = start = num_chars = 0  # decoded with the piece before it, which keeps a space
        for end in range(1, len(kept)):
            text = self.decode(kept[before:end])
            piece = text[len(self.decode(kept[before:start])) :]
            # U+FFFD represents itself, unless one of the next bytes completes a character.
            is_open = text.endswith("\ufffd") and any(
                len(self.decode(kept[before:later])) <= len(text)
                for later in range(end + 1, min(end + 3, len(kept)) + 1)
            )
            if is_open or not whole.startswith(piece, num_chars):
                continue
            found[places[end - 1]] = piece
            num_chars += len(piece)
            before, start = start if piece else before, end
        if places:
            found[places[-1]] = whole[num_chars:]
        return found

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text that `ids` add after the ids `before`.

        Both are decoded together, because `ids` alone could lose a leading space.

        >>> tokenizer = train_tokenizer(["so so"], 260)
        >>> first, second = tokenizer.encode("so so").ids
        >>> tokenizer.decode_after([first], [second])
        ' so'
        """
        alone, together = self.decode(before), self.decode([*before, *ids])
        if together.startswith(alone):
            return together[len(alone) :]
        # Invalid UTF-8 where they meet changes the text before it: decode after another text.
        other = self.neighbor
        return self.decode([*other, *ids])[len(self.decode(other)) :]

    @cached_property
    def neighbor(self) -> list[int]:
        """The ids of a letter, after which others are decoded as inside a text.

        A token alone could lose a leading space. Empty if the vocabulary has no such letter.

        >>> tokenizer = train_tokenizer([], 257)
        >>> tokenizer.decode(tokenizer.neighbor)
        'a'
        """
        try:
            return self.encode("a").ids
        except InputError:
            return []


def refuse_to_replace(folder: Path) -> None:
    """Raise `InputError` if a model or a token store depends on the folder's tokenizer.json.

    >>> refuse_to_replace(Path("no-such-folder"))  # nothing there depends on a tokenizer
    """
    for name, owner in (("config.json", "a model"), ("manifest.json", "a token store")):
        if (folder / name).exists():
            raise InputError(
                f"holds {owner} ({name}), whose tokenizer would be replaced; give another folder",
                path=folder,
            )


def train_tokenizer(texts: Iterable[str], vocab_size: int, split_digits: bool = True) -> Tokenizer:
    """Train a byte-level BPE tokenizer; with `split_digits`, every digit is a separate token.

    Every byte is in the vocabulary, so any text round-trips. Raises `InputError` for a `vocab_size`
    below 257 or above a million, and for half a surrogate pair in a text.

    >>> tokenizer = train_tokenizer(["one two"], 260)
    >>> tokenizer.decode(tokenizer.encode("two").ids)
    'two'
    """
    if not 257 <= vocab_size <= 1_000_000:  # the trainer allocates room for all
        raise InputError(f"vocab_size is {vocab_size}; give 257 (256 bytes and EOS) to 1,000,000")
    backend = RustTokenizer(models.BPE())
    pieces = Regex(_PIECES_OF_DIGITS if split_digits else _PIECES)
    split = pre_tokenizers.Split(pieces, "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(map(check_surrogates, texts), trainer)
    return Tokenizer(backend)


@contextmanager
def _refused(backend: RustTokenizer, texts: Sequence[str]) -> Iterator[None]:
    """Raise `InputError` for a text that the backend rejects: one with half a surrogate pair, or
    with a character that is not in a vocabulary without a token for unknown text."""
    try:
        yield
    except (TypeError, UnicodeEncodeError):
        for text in texts:
            check_surrogates(text)
        raise
    except Exception as error:  # the binding raises bare Exception
        for text in texts if len(texts) > 1 else ():  # find the one to name
            with _refused(backend, [text]):
                backend.encode(text, add_special_tokens=False)
        raise InputError(f"the tokenizer cannot encode {texts[0]!r:.60}: {error}") from None


def recorded_eos(
    folder: Path, backend: RustTokenizer, config: JsonObject | None = None
) -> str | None:
    """The EOS token in a folder's files: as text, in an object, or by its id in config.json.

    `config` replaces the folder's config.json. Raises `CheckpointError` if the name is not text.

    >>> recorded_eos(Path("no-folder"), train_tokenizer([], 257).backend, {"eos_token_id": [0]})
    '<|end|>'
    """

    def contents(name: str) -> JsonObject:
        return read_json_object(folder / name) if (folder / name).exists() else {}

    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        value = contents(name).get("eos_token")
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            return token
        if token is not None:
            file = folder / name
            raise CheckpointError(f"{file}: eos_token is {value!r}; it must be the text of a token")
    number = (contents("config.json") if config is None else config).get("eos_token_id")
    number = number[0] if isinstance(number, list) and number else number
    return backend.id_to_token(number) if type(number) is int and 0 <= number < 2**32 else None
