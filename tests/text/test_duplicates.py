"""Near duplicates: similarity by hand, what does not count, and the index vs. all pairs."""

from __future__ import annotations

import random
import sys

import pytest

from ledom.core.errors import InputError, MissingExtraError
from ledom.text.duplicates import NearDuplicates

pytest.importorskip("datasketch")
WORDS = [f"w{i}" for i in range(40)]
TEXT = " ".join(WORDS)  # 36 n-grams of five words


@pytest.mark.parametrize(("similarity", "is_found"), [(0.84, True), (0.85, False)])
def test_one_different_word_among_forty(similarity: float, is_found: bool) -> None:
    """The third word from the end is in three n-grams, so 33 of 36 + 3 are shared: 0.846."""
    seen = NearDuplicates(similarity)
    seen.add(TEXT)
    other = " ".join([*WORDS[:37], "x", *WORDS[38:]])
    assert (seen.find(other) is not None) is is_found


def test_hardly_any_pair_at_the_limit_is_missed() -> None:
    """33 of 39 n-grams are shared, as above; the index once missed 24 of these 200 pairs."""
    texts = [[f"{word}{number}" for word in WORDS] for number in range(200)]
    seen = NearDuplicates(0.84)
    for words in texts:
        seen.add(" ".join(words))
    found = [seen.find(" ".join([*words[:37], "x", *words[38:]])) for words in texts]
    assert found == [" ".join(words) for words in texts]


def test_letter_case_and_punctuation_do_not_count() -> None:
    seen = NearDuplicates(1.0)
    seen.add("Ava has 3 pens, and 2.5 liters of ink. How much?")
    assert seen.find("ava HAS 3 pens and 2.5 liters of ink; how much")
    assert seen.find("Ava has 3 pens, and 2.6 liters of ink. How much?") is None


def test_the_signs_of_a_calculation_count() -> None:
    for one, other in (("3 + 4", "3 * 4"), ("12-5", "12/5"), ("20% of 50", "20 of 50")):
        seen = NearDuplicates()
        seen.add(f"What is {one}?")
        assert seen.find(f"what is {one}")
        assert seen.find(f"What is {other}?") is None


def test_characters_are_the_words_of_scripts_without_spaces() -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E28)))  # as above: 40 words, one changed
    seen = NearDuplicates(0.84)
    seen.add(text)
    assert seen.find(text[:37] + "x" + text[38:])


def test_texts_of_fewer_words_than_an_n_gram_are_compared_whole() -> None:
    seen = NearDuplicates(0.5)
    seen.add("What is 2?")
    assert seen.find("what is 2") == "What is 2?"
    assert seen.find("What is 3?") is None
    assert seen.find("") is None


def test_the_most_similar_is_found_or_the_first_of_equals() -> None:
    near, nearer = f"x {' '.join(WORDS[1:])}", f"{' '.join(WORDS)} y"
    seen = NearDuplicates(0.8)
    for text in (near, nearer, nearer.upper()):
        seen.add(text)
    assert seen.find(TEXT) == nearer


def test_the_index_finds_the_same_as_comparing_all_pairs() -> None:
    """Texts with a similarity of 0.95 (one more word at the end) among many others."""
    rng = random.Random(1)
    texts = [" ".join(str(rng.randrange(1000)) for _ in range(30)) for _ in range(60)]
    seen = NearDuplicates(0.8)
    for text in texts:
        seen.add(text)
    assert [seen.find(f"{text} more") for text in texts] == texts


@pytest.mark.parametrize("similarity", [0, -1, 1.01, float("nan")])
def test_a_similarity_out_of_range_is_refused(similarity: float) -> None:
    with pytest.raises(InputError, match=r"similarity is .*; it must lie in \(0, 1\]"):
        NearDuplicates(similarity)


def test_without_datasketch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MissingExtraError, match=r"datasketch .*ledom\[data\]"):
        NearDuplicates()
