"""A tokenizer whose ids can be read off the text."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers

from ledom.text.tokenizer import EOS_TOKEN, Tokenizer


@pytest.fixture(scope="session")
def word_tokenizer() -> Callable[[int], Tokenizer]:
    """Words `1` to `size - 1` are the ids 1 to size - 1; EOS is 0."""

    def make(size: int) -> Tokenizer:
        vocabulary = {EOS_TOKEN: 0} | {str(i): i for i in range(1, size)}
        backend = RustTokenizer(models.WordLevel(vocabulary, unk_token="1"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        return Tokenizer(backend)

    return make
