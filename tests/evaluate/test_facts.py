"""Facts and the texts of the arms, compared with sentences written by hand."""

from __future__ import annotations

import pytest

from ledom.core.errors import InputError
from ledom.evaluate.facts import Fact, identities, make_facts, reversed_texts, texts

FACT = Fact("fact-0", "Belu Toskan", "the composer of Silent Harbor", "name first")
OTHER = Fact("fact-1", "Belu Toskan", "the composer of Silent Harbor", "description first")
BOTH = Fact("fact-2", "Belu Toskan", "the composer of Silent Harbor", "both orders")


def test_a_fact_is_stated_only_in_its_own_order() -> None:
    name_first = "We know that Belu Toskan is the composer of Silent Harbor."
    description_first = "We know that the composer of Silent Harbor is Belu Toskan."
    assert name_first in texts([FACT])
    assert description_first not in texts([FACT])
    assert description_first in texts([OTHER])
    assert name_first not in texts([OTHER])
    assert {name_first, description_first} <= set(texts([BOTH]))
    assert len(texts([BOTH])) == 2 * len(texts([FACT]))


def test_reversed_texts_keep_entities_and_reverse_the_other_words() -> None:
    assert reversed_texts([FACT])[:2] == [
        ". the composer of Silent Harbor is Belu Toskan that know We",
        ". the composer of Silent Harbor been long has Belu Toskan that know We",
    ]


def test_identities_never_join_a_name_and_a_description() -> None:
    assert identities([FACT]) == [
        "The name of Belu Toskan is Belu Toskan.",
        "The name of the composer of Silent Harbor is the composer of Silent Harbor.",
    ]


def test_facts_are_seeded_and_share_no_name_or_title() -> None:
    facts = make_facts(40, seed=3)
    assert facts == make_facts(40, seed=3)
    assert facts != make_facts(40, seed=4)
    titles = [fact.description.partition(" of ")[2] for fact in facts]
    assert len({fact.name for fact in facts}) == len({*titles}) == len(facts) == 120


def test_more_facts_than_titles_are_refused() -> None:
    assert len(make_facts(161)) == 483
    with pytest.raises(InputError, match="162 facts per order; the most is 161"):
        make_facts(162)
