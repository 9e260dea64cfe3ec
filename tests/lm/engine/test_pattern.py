"""The pattern is searched for in the whole text, for any tokenizer and direction."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from itertools import product

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from ledom.core.direction import Direction
from ledom.lm.engine.pattern import PatternSearch
from ledom.text.tokenizer import Tokenizer, train_tokenizer
from stand_ins import sentencepiece_like

TEXT = (
    "  Ava has 12 apples, it's so; naïve café 数学は楽しい数学は楽しい 🎉🎉🎉🎉 so\n\n#### 15 end"
)


def word_piece() -> Tokenizer:
    letters = sorted(set(TEXT) - {" ", "\n"})
    names = ["[UNK]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    backend = RustTokenizer(models.WordPiece({name: i for i, name in enumerate(names)}))
    backend.normalizer, backend.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return Tokenizer(backend, "[SEP]")


TOKENIZERS = {
    "bytes": train_tokenizer([], 257),
    "byte-level BPE": train_tokenizer([TEXT], 280),
    "prepended blank": sentencepiece_like("prepend"),
    "metaspace": sentencepiece_like("metaspace"),
    "word pieces": word_piece(),
    "joined with a blank": train_tokenizer([" \ufffd" * 9], 265),
}


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_searched_text_is_that_of_all_tokens(kind: str, direction: Direction) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = direction.to_model_order(tokenizer.encode(TEXT).ids)
    assert len(ids) > 40
    search = PatternSearch("x", tokenizer, direction)
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(direction.to_reading_order(ids[:end]))
        assert search._text(ids[:end]) == whole
    if kind != "word pieces":
        assert search._num_kept > len(ids) - 24, "most of the text is not decoded again"


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("pattern", [r"A.*end", "has 12 apples, it's so; naïve", r"^Ava", "end$"])
def test_a_pattern_of_many_tokens_is_found(pattern: str, direction: Direction) -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = direction.to_model_order(tokenizer.encode(TEXT.replace("\n", " ")).ids)
    search = PatternSearch(pattern, tokenizer, direction)
    found = [search(ids[:end]) for end in range(1, len(ids) + 1)]
    for end, match in enumerate(found, 1):
        text = tokenizer.decode(direction.to_reading_order(ids[:end]))
        if "\ufffd" not in text:
            text = text.lstrip() if direction is Direction.FORWARD else text.rstrip()
            assert match is bool(re.search(pattern, text))
    assert any(found)


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize(
    "kind", ["bytes", "byte-level BPE", "prepended blank", "joined with a blank"]
)
def test_the_replacement_character_itself_is_found_at_once(kind: str, direction: Direction) -> None:
    """Bytes of an incomplete character decode to the same text."""
    tokenizer, text = TOKENIZERS[kind], "so \ufffd 数"
    ids = direction.to_model_order(tokenizer.encode(text).ids)
    search, plain = PatternSearch("\ufffd", tokenizer, direction), [*range(1, len(ids) + 1)]
    found = next((end for end in plain if search(ids[:end])), None)
    read = tokenizer.decode(direction.to_reading_order(ids[:found]))
    assert read.strip() == ("so \ufffd" if direction is Direction.FORWARD else "\ufffd 数")


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.slow
def test_the_search_waits_only_for_bytes_that_can_be_completed(direction: Direction) -> None:
    tokenizer, some = TOKENIZERS["bytes"], "aÿ€🎉"
    token_of = dict(zip(some.encode(), tokenizer.encode(some).ids, strict=True))
    for read in map(bytes, product(token_of, repeat=3)):
        text = read.decode(errors="replace")
        search = PatternSearch("\ufffd", tokenizer, direction)
        found = search(direction.to_model_order([token_of[byte] for byte in read]))
        if direction is Direction.FORWARD:
            decoder = getincrementaldecoder("utf-8")()
            decoder.errors = "replace"
            decoder.decode(read)
            is_open = bool(decoder.getstate()[0])
        else:
            is_open = 0x80 <= read[0] < 0xC0  # any of these may be the second of two bytes
        assert found == ("\ufffd" in text and not is_open), read


@pytest.mark.parametrize("direction", list(Direction))
def test_white_space_next_to_the_prompt_does_not_count(direction: Direction) -> None:
    tokenizer = TOKENIZERS["bytes"]
    search = PatternSearch(r"\s", tokenizer, direction)
    ids = tokenizer.encode(" \n" * 20 + "a\n").ids
    found = [search(ids[:end]) for end in range(1, len(ids) + 1)]
    assert found == [False] * (len(ids) - 1) + [True]
