"""The texts of tokens add up to the whole text, whatever the tokenizer does at token starts."""

from __future__ import annotations

from itertools import permutations, product

import pytest
from fastapi.testclient import TestClient
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from ledom.core.direction import Direction
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Generation
from ledom.serve.writing import Token, cut_at_stops, token_texts, tokens_of, written_tokens
from ledom.text.tokenizer import Tokenizer
from stand_ins import sentencepiece_like


def texts(lm: FakeLanguageModel, prompt: str, made: Generation) -> list[str]:
    return [token.text for token in written_tokens(lm, prompt, made, count=0)]


@pytest.mark.parametrize("form", ["prepend", "metaspace"])
def test_tokens_keep_the_spaces_that_sentencepiece_puts_at_their_start(form: str) -> None:
    tokenizer = sentencepiece_like(form)
    forward, reverse = (FakeLanguageModel(tokenizer, direction) for direction in Direction)
    ids = tokenizer.encode("upon a time").ids
    found = token_texts(forward, ids)
    assert "".join(found[i] for i in ids) == " upon a time"
    assert "".join(texts(forward, "Once", Generation(" upon a time", ids, "length"))) == (
        " upon a time"
    )
    assert "".join(texts(forward, "", Generation("upon a time", ids, "stop"))) == "upon a time"
    twice = tokenizer.encode("  a time").ids
    assert "".join(texts(forward, "", Generation("", twice, "stop"))) == tokenizer.decode(twice)
    # A reverse model that has not ended its text may still write before the space.
    assert "".join(texts(reverse, "it is", Generation("upon a time", ids, "length"))) == (
        " upon a time"
    )
    assert "".join(texts(reverse, "it is", Generation("upon a time", ids, "stop"))) == "upon a time"


def test_tokens_of_a_vocabulary_without_letters_have_texts() -> None:
    backend = RustTokenizer(models.WordLevel({"4": 0, "</s>": 1}))
    backend.add_special_tokens(["</s>"])
    lm = FakeLanguageModel(Tokenizer(backend, "</s>"), "reverse")
    assert token_texts(lm, [0, 1]) == {0: "4", 1: "</s>"}
    assert texts(lm, "4", Generation("4", [0], "length")) == ["4"]


@pytest.mark.parametrize("direction", Direction)
def test_a_shared_character_belongs_to_its_last_token(direction: Direction) -> None:
    lm = FakeLanguageModel(direction=direction)  # a token per byte
    made = Generation("é😀 b", lm.tokenizer.encode("é😀 b").ids, "stop")
    assert texts(lm, "", made) == ["", "é", "", "", "", "😀", " ", "b"]
    cut = Generation("é", made.ids[:4], "length")  # two of the four bytes of 😀
    assert texts(lm, "", cut)[:3] == ["", "é", ""]


def test_a_stop_string_cuts_tokens_by_their_texts() -> None:
    tokens = [Token(i, 0.0, text) for i, text in enumerate([" a", "", "é", " time"])]
    for text, count in ((" aé time", 4), (" aé", 3), (" a", 1), (" ", 1), ("", 0)):
        assert tokens_of(tokens, text, Direction.FORWARD) == tokens[:count]
    for text, count in ((" aé time", 4), ("é time", 3), (" time", 1), ("me", 1), ("", 0)):
        assert tokens_of(tokens, text, Direction.REVERSE) == tokens[len(tokens) - count :]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["forward", "reverse"])
def test_offsets_are_positions_in_the_text(client: TestClient, model: str) -> None:
    body = {"model": model, "prompt": "é b", "max_tokens": 0, "echo": True, "logprobs": 0}
    found = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    ids = client.post("/tokenize", json={"prompt": "é b", "model": model}).json()["tokens"]
    assert len(found["tokens"]) == len(ids)
    text = "é b"
    for name, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if name.isascii():
            assert text.startswith(name, offset)


@pytest.mark.slow
def test_the_token_after_a_text_is_added(client: TestClient) -> None:
    """Clients drop it; without it, they would drop the last token of the text."""
    for prompt in ("7 + 1", [10, 11, 12]):
        body = {"model": "reverse", "prompt": prompt, "echo": True, "logprobs": 0}
        one, none = (
            client.post("/v1/completions", json=body | {"max_tokens": count}).json()["choices"][0]
            for count in (1, 0)
        )
        assert one["logprobs"]["tokens"] == [*none["logprobs"]["tokens"], "<|end|>"]


def first_completed(text: str, stops: tuple[str, ...]) -> str:
    """The text before the stop that is completed first when writing character by character."""
    for end in range(1, len(text) + 1):
        if lengths := [len(stop) for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(lengths)]
    return text


def test_of_several_stops_the_first_completed_one_counts() -> None:
    stops = ["bc", "ab", "cab", "b", "xx", "abcab"]
    for chosen in permutations(stops, 2):
        for letters in product("abc", repeat=5):
            made = Generation("".join(letters), [], "length")
            kept = cut_at_stops(made, chosen, Direction.FORWARD)
            assert kept.text == first_completed(made.text, chosen)
            assert kept.finish_reason == ("length" if kept.text == made.text else "stop")
            # A reverse model writes the mirror image.
            mirrored = [stop[::-1] for stop in chosen]
            made = Generation(made.text[::-1], [], "length")
            assert cut_at_stops(made, mirrored, Direction.REVERSE).text == kept.text[::-1]
