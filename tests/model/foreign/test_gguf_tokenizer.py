"""Tokenizers in GGUF files: the ids are those of the model's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ledom.core.errors import CheckpointError
from ledom.model.foreign.gguf import own_tokenizer
from ledom.text.tokenizer import Tokenizer

FILE = Path("x.gguf")
SYMBOLS = bytes_to_unicode()


class Field:
    """A GGUF reader's field."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def contents(self) -> Any:
        return self.value


def fields(kind: str, tokens: list[str], architecture: str = "llama", **others: Any) -> Any:
    named = {"model": kind, "tokens": tokens, **others}
    found = {f"tokenizer.ggml.{key}": Field(value) for key, value in named.items()}
    return found | {"general.architecture": Field(architecture)}


def bos_first(backend: RustTokenizer) -> RustTokenizer:
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return backend


def tokens_of(backend: RustTokenizer, text: str) -> list[str]:
    return list(backend.encode(text, add_special_tokens=False).tokens)


# text, score, type: 1 normal, 2 unknown, 3 control, 4 user-defined
PIECES = [
    *[
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("  ", -1000.0, 4),
        ("[X]", -1000.0, 4),
    ],
    *[("▁a", -1.0, 1), ("▁", -2.0, 1), ("a", -3.0, 1)],
]


def sentencepiece(**others: Any) -> RustTokenizer:
    texts, scores, kinds = map(list, zip(*PIECES, strict=True))
    known = fields("llama", texts, scores=scores, token_type=kinds, **others)
    start = bos_first(RustTokenizer(models.BPE({text: i for i, text in enumerate(texts)}, [])))
    return own_tokenizer(FILE, start, known)


@pytest.mark.parametrize(
    ("text", "with_prefix", "without"),
    [
        ("a", ["▁a"], ["a"]),
        (" a", ["▁", "▁a"], ["▁a"]),  # the prefix also precedes a space
        ("a   a", ["▁a", "▁▁", "▁a"], ["a", "▁▁", "▁a"]),
        ("a[X]a", ["▁a", "[X]", "a"], ["a", "[X]", "a"]),
        ("a</s>", ["▁a", "</s>"], ["a", "</s>"]),
    ],
)
def test_sentencepiece_models(text: str, with_prefix: list[str], without: list[str]) -> None:
    assert tokens_of(sentencepiece(), text) == with_prefix
    assert tokens_of(sentencepiece(add_space_prefix=False), text) == without
    assert Tokenizer(sentencepiece(), "</s>").bos_tokens == ["<s>"]


def test_equal_pieces_are_refused() -> None:
    known = fields("llama", ["a", "a"], scores=[0.0, 0.0], token_type=[1, 1])
    with pytest.raises(CheckpointError, match=r"x\.gguf: two of its tokens are the same"):
        own_tokenizer(FILE, RustTokenizer(models.BPE({"a": 0}, [])), known)


def byte_level(architecture: str = "llama", **others: Any) -> RustTokenizer:
    """As by transformers; no merge makes the token `ab`."""
    names = ["<|bos|>", "<|end|>", *SYMBOLS.values(), "ab", "Ã©"]
    vocabulary = {name: number for number, name in enumerate(names)}
    start = RustTokenizer(models.BPE(vocabulary, [("Ã", "©")]))
    start.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    start.decoder = decoders.ByteLevel()
    start.add_special_tokens(names[:2])
    start.add_special_tokens(["<|endoftext|>"])  # which the file does not have
    return own_tokenizer(FILE, start, fields("gpt2", names, architecture, bos_token_id=0, **others))


@pytest.mark.parametrize(
    ("split", "word", "bos"),
    [
        ("llama-bpe", ["ab"], ["<|bos|>"]),
        ("tekken", ["ab"], ["<|bos|>"]),
        ("gpt-2", ["a", "b"], []),
    ],
)
def test_whole_words_and_bos_as_by_llama_cpp(split: str, word: list[str], bos: list[str]) -> None:
    backend = byte_level(pre=split)
    assert tokens_of(backend, "ab") == word
    assert Tokenizer(backend, "<|end|>").bos_tokens == bos
    assert Tokenizer(byte_level(pre=split, add_bos_token=False), "<|end|>").bos_tokens == []
    assert backend.token_to_id("<|endoftext|>") is None


def test_qwen_composes_characters() -> None:
    assert tokens_of(byte_level(pre="qwen2"), "e\u0301") == ["Ã©"]
    assert tokens_of(byte_level(pre="gpt-2"), "e\u0301") == ["e", SYMBOLS[0xCC], SYMBOLS[0x81]]


def test_a_file_that_names_no_split_is_refused_unless_it_is_gpt2s() -> None:
    assert tokens_of(byte_level("gpt2"), "ab") == ["a", "b"]
    with pytest.raises(CheckpointError, match="does not say how it splits a text; name the model"):
        byte_level("qwen2")
    with pytest.raises(CheckpointError, match="splits a text as 'new', which transformers does"):
        byte_level(pre="new")
