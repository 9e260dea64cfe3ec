"""A tokenizer whose ids can be read from the text, and documents for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers

from ledom.data.store import TokenStore
from ledom.text.tokenizer import EOS_TOKEN, Tokenizer
from number_documents import NUMBERS, Make, write_numbers


@pytest.fixture(scope="session")
def word_tokenizer() -> Callable[[int], Tokenizer]:
    """The words `1` to `size - 1` have the ids 1 to size - 1; EOS is 0."""

    def make(size: int) -> Tokenizer:
        vocabulary = {EOS_TOKEN: 0} | {str(i): i for i in range(1, size)}
        backend = RustTokenizer(models.WordLevel(vocabulary, unk_token="1"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        return Tokenizer(backend)

    return make


@pytest.fixture(scope="session")
def words(word_tokenizer: Callable[[int], Tokenizer]) -> Tokenizer:
    return word_tokenizer(1000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Forty documents of two numbers each."""
    file = tmp_path / "documents.jsonl"
    write_numbers(file, NUMBERS)
    return file


@pytest.fixture
def make(tmp_path: Path, words: Tokenizer, file: Path) -> Make:
    """Tokenize the file, or other documents, into the folder `s`."""
    from ledom.data.documents import open_documents
    from ledom.data.tokenize import Execution, tokenize

    def run(execution: Execution | None = None, documents: object = None) -> TokenStore | None:
        given = documents or open_documents([str(file)])
        return tokenize(given, words, tmp_path / "s", execution or Execution())

    return run
