"""Finds the tokenizer of a foreign model folder and reads it as a `tokenizers` tokenizer."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer

from ledom.core.errors import CheckpointError, LedomError, in_one_line
from ledom.core.reading import JsonObject, check_regular, read_json_object
from ledom.model.checkpoint import quiet
from ledom.model.foreign.sentencepiece import SPACE, read_sentencepiece
from ledom.model.foreign.tiktoken import read_tiktoken_pickle
from ledom.text.tokenizer import recorded_eos

__all__ = ["TOKENIZER_FILES", "known_eos", "read_tokenizer"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "tokenizer.pkl",
    "tokenizer/tokenizer.pkl",
)
"""The files that a tokenizer is read from: the first that exists. vocab.json needs merges.txt."""

_BEGIN_WITH_BOS = ("Llama", "CodeLlama", "Gemma")
"""transformers' tokenizer classes that put BOS before a text by default."""


def read_tokenizer(place: Path, added: tuple[str, ...] = ()) -> tuple[RustTokenizer, list[Path]]:
    """Load the tokenizer in a folder or a file; also returns the files that it was read from.

    A folder is searched for `TOKENIZER_FILES`, in this order. `added` are tokens to append to those
    of tokenizer.model or vocab.json if no file lists any. Raises `CheckpointError` for a tokenizer
    that is missing, damaged or not of a kind that tokenizer.json can hold.
    """
    if place.is_file():
        return _read_file(place), [place]
    for name in TOKENIZER_FILES:
        file = place / name
        if not file.is_file():
            continue
        backend, files = _read_file(file), [file]
        if name == "vocab.json":
            files.append(file.with_name("merges.txt"))
        if name == "tokenizer.model" or (name == "vocab.json" and not _names_its_kind(place)):
            try:
                _add_tokens(backend, place, added)
                _put_bos_in_front(backend, place)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"{place}: tokenizer_config.json or added_tokens.json is damaged ({error!r}); "
                    "correct it, or name a tokenizer.json with --tokenizer"
                ) from None
        return backend, files
    raise CheckpointError(
        f"{place}: no tokenizer here (tokenizer.json, tokenizer.model, vocab.json with merges.txt, "
        "tokenizer.pkl); name one with --tokenizer"
    )


def _read_file(file: Path) -> RustTokenizer:
    check_regular(file)
    if file.suffix == ".model":
        return read_sentencepiece(file)
    if file.suffix == ".pkl":
        return read_tiktoken_pickle(file)
    try:
        if file.name == "vocab.json":
            known = _names_its_kind(file.parent)
            return _by_transformers(file.parent) if known else _read_byte_level(file)
        return RustTokenizer.from_file(str(file))
    except LedomError:
        raise
    except Exception as error:  # the binding raises bare Exception, transformers many error types
        raise CheckpointError(f"{file}: not a tokenizer: {in_one_line(error)}") from None


def _names_its_kind(folder: Path) -> bool:
    """Whether files next to vocab.json say how it splits a text, which may not be GPT-2's way."""
    named = _read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    return bool(named or _read_json(folder / "config.json").get("model_type"))


def _by_transformers(folder: Path) -> RustTokenizer:
    check_regular(folder / "merges.txt")
    with quiet():
        loaded = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    backend: RustTokenizer | None = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"{folder}: a {type(loaded).__name__} cannot be saved as tokenizer.json, which ledom "
            "needs; name another tokenizer with --tokenizer"
        )
    return backend


def _read_byte_level(file: Path) -> RustTokenizer:
    """Read vocab.json and merges.txt as GPT-2's."""
    merges = file.with_name("merges.txt")
    check_regular(merges)
    backend = RustTokenizer(models.BPE.from_file(str(file), str(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id("<|endoftext|>") is not None:
        backend.add_special_tokens(["<|endoftext|>"])
    return backend


def _add_tokens(backend: RustTokenizer, folder: Path, added: tuple[str, ...]) -> None:
    """Add the tokens that the folder lists, under their ids; if there are none, add `added`."""
    first = backend.get_vocab_size(with_added_tokens=True)
    listed: JsonObject = _read_json(folder / "tokenizer_config.json").get(
        "added_tokens_decoder", {}
    )
    tokens = {int(number): entry for number, entry in listed.items()}
    for content, number in _read_json(folder / "added_tokens.json").items():
        tokens.setdefault(int(number), {"content": content, "special": True})
    if not any(number >= first for number in tokens):
        tokens |= {
            first + place: {"content": name, "special": True} for place, name in enumerate(added)
        }
    known = backend.get_added_tokens_decoder().items()
    user_defined = {(number, piece.content) for number, piece in known if piece.normalized}
    for number, entry in sorted(tokens.items()):
        flags = {flag: bool(entry.get(flag, False)) for flag in ("lstrip", "rstrip", "single_word")}
        special = bool(entry.get("special", True))
        token = AddedToken(str(entry["content"]), normalized=False, special=special, **flags)
        if not special and (number, token.content.replace(" ", SPACE)) in user_defined:
            continue  # it is matched already, after spaces are escaped
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != number:
            raise CheckpointError(
                f"{folder}: the added token {token.content!r} should have the id {number}, but the "
                f"next free one is {backend.token_to_id(token.content)}"
            )


def _put_bos_in_front(backend: RustTokenizer, folder: Path) -> None:
    """Make the tokenizer begin a text with BOS, if the files or their tokenizer class say so."""
    settings = _read_json(folder / "tokenizer_config.json")
    kind = str(settings.get("tokenizer_class", ""))
    bos = settings.get("bos_token", "<s>")
    bos = str(bos["content"] if isinstance(bos, dict) else bos)
    number = backend.token_to_id(bos)
    if number is not None and settings.get("add_bos_token", kind.startswith(_BEGIN_WITH_BOS)):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, number)]
        )


def known_eos(folder: Path, backend: RustTokenizer, config: JsonObject) -> str | None:
    """The document-end token that a folder or a config records, if the tokenizer has it.

    Otherwise, one of the usual tokens if the tokenizer has it, or None.
    """
    names = (recorded_eos(folder, backend, config), "<|endoftext|>", "<|bos|>")
    return next((n for n in names if n is not None and backend.token_to_id(n) is not None), None)


def _read_json(file: Path) -> JsonObject:
    """Read the object in a JSON file; empty if the file is missing."""
    return read_json_object(file) if file.exists() else {}
