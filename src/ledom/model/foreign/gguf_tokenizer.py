"""The tokenizer of a GGUF file, with the ids that the model's own tokenizer gives.

transformers' version of it serves as a start, but it takes Llama's rules for every sentencepiece
model, and GPT-2's for every other, except for how they split a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import normalizers, pre_tokenizers, processors

from ledom.core.errors import CheckpointError
from ledom.model.foreign.sentencepiece import SPACE, USER_DEFINED, build_sentencepiece

__all__ = ["own_tokenizer"]

_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_LIKE_GPT2 = {"gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion"}
_LIKE_LLAMA3 = {
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    *("jina-v5-nano", "tekken"),
}
"""Names of splits for which llama.cpp looks up whole words before it merges, and adds BOS."""
_NFC = {"qwen2", "qwen35"}
"""Names of splits whose tokenizers compose characters first; llama.cpp does not."""


def own_tokenizer(file: Path, tokenizer: RustTokenizer, fields: Any) -> RustTokenizer:
    """The tokenizer that a file's fields describe, given transformers' version of it.

    Raises `CheckpointError` if the file names no way to split a text, or an unknown one.
    """
    prefix = "tokenizer.ggml."
    found = {
        key.removeprefix(prefix): field.contents()
        for key, field in fields.items()
        if key.startswith(prefix)
    }
    written = json.loads(tokenizer.to_str())  # no file
    size = len(found["tokens"])
    written["added_tokens"] = [t for t in written["added_tokens"] if t["id"] < size]
    own = RustTokenizer.from_str(json.dumps(written))
    if found.get("model") == "llama" and {"scores", "token_type"} <= found.keys():
        whole = _sentencepiece(file, found)
        whole.post_processor = own.post_processor
        return whole
    if found.get("model") == "gpt2":
        _set_byte_level(file, own, found, fields["general.architecture"].contents())
    return own


def _sentencepiece(file: Path, found: Mapping[str, Any]) -> RustTokenizer:
    """The tokenizer of a sentencepiece model, whose pieces the file has."""
    pieces = [
        # llama.cpp's converter writes the spaces of user-defined pieces as they are
        (text.replace(" ", SPACE) if kind == USER_DEFINED else text, score, kind)
        for text, score, kind in zip(
            *(found[key] for key in ("tokens", "scores", "token_type")), strict=True
        )
    ]
    if len({text for text, _, _ in pieces}) < len(pieces):
        raise CheckpointError(
            f"{file}: two of its tokens are the same; name the model's tokenizer.json with "
            "--tokenizer"
        )
    return build_sentencepiece(pieces, bool(found.get("add_space_prefix", True)))


def _set_byte_level(
    file: Path, own: RustTokenizer, found: Mapping[str, Any], architecture: str
) -> None:
    """Make a byte-level tokenizer follow the rules that belong to the name of its split."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        raise CheckpointError(
            f"{file}: this version of transformers may split a text differently than the model; "
            "upgrade transformers, or name the model's tokenizer.json with --tokenizer"
        ) from None
    split = found.get("pre", "gpt-2" if architecture == "gpt2" else None)
    if split in _DIGITS_APART:
        own.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
    elif split not in {*_LIKE_GPT2, *GGUF_PRE_TOKENIZER_SPLITS}:
        how = f"splits a text as {split!r}, which transformers does not know"
        raise CheckpointError(
            f"{file}: its tokenizer {how if split else 'does not say how it splits a text'}; name "
            "the model's tokenizer.json with --tokenizer"
        )
    if split in _NFC:
        own.normalizer = normalizers.NFC()
    if split in _LIKE_LLAMA3:
        own.model.ignore_merges = True
        bos = found.get("bos_token_id")
        if bos is not None and "add_bos_token" not in found:
            name = found["tokens"][bos]
            own.post_processor = processors.TemplateProcessing(
                single=f"{name} $A", special_tokens=[(name, bos)]
            )
