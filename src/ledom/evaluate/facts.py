"""Fictional facts in one or both orders, and the texts that the reversal suite trains on.

A fact states what an invented person is: "We know that Belu Toskan is the composer of Silent
Harbor." The other order is: "We know that the composer of Silent Harbor is Belu Toskan." Such facts
come from Berglund et al., The Reversal Curse (2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from ledom.core.errors import InputError

__all__ = [
    "ORDERS",
    "PAIR_FORMAT",
    "Fact",
    "Order",
    "identities",
    "make_facts",
    "reversed_texts",
    "texts",
]

Order = Literal["name first", "description first", "both orders"]
ORDERS: tuple[Order, ...] = ("name first", "description first", "both orders")
"""The orders in which a fact can be read in training; facts take them in turn."""

_JOINS = ("is", "has long been", "can only be")

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_ENDINGS = ("n", "r", "s", "l", "th", "sk")
_ROLES = ("composer", "architect", "founder", "painter", "translator", "keeper")
_ADJECTIVES = """
Silent Hollow Golden Bitter Northern Broken Crimson Distant Frozen Gentle Hidden Ivory Lonely Mellow
Patient Quiet Restless Scarlet Sunken Velvet Wandering Winter
"""
_NOUNS = """
Harbor Orchard Lantern Bridge Canyon Garden Mirror Meadow Tower Voyage Compass Market Anthem Beacon
Castle Desert Engine Forest Island Letter Museum Valley
"""


@dataclass(frozen=True)
class Fact:
    """A fact, and the order in which models read it in training."""

    id: str
    name: str
    description: str
    seen: Order

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(first part, second part) of each sentence that states the fact in training.

        >>> Fact("f", "Tuver Ziror", "the keeper", "name first").pairs
        [('Tuver Ziror', 'the keeper')]
        """
        pairs = [(self.name, self.description), (self.description, self.name)]
        return {"name first": pairs[:1], "description first": pairs[1:]}.get(self.seen, pairs)


def make_facts(per_order: int, seed: int = 0) -> list[Fact]:
    """Create `per_order` facts of each order; raises `InputError` if there are too few titles.

    >>> [fact.seen for fact in make_facts(1)]
    ['name first', 'description first', 'both orders']
    """
    rng = Random(f"facts-{seed}")
    titles = [f"{first} {second}" for first in _ADJECTIVES.split() for second in _NOUNS.split()]
    count, most = per_order * len(ORDERS), len(titles) // len(ORDERS)
    if per_order > most:
        raise InputError(f"{per_order} facts per order; the most is {most}")
    titles = rng.sample(titles, count)
    names: dict[str, None] = {}
    while len(names) < count:
        names[f"{_invented(rng)} {_invented(rng)}"] = None
    return [
        Fact(f"fact-{i}", name, f"the {rng.choice(_ROLES)} of {title}", ORDERS[i % len(ORDERS)])
        for i, (name, title) in enumerate(zip(names, titles, strict=True))
    ]


def _invented(rng: Random) -> str:
    syllables = (rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(2))
    return ("".join(syllables) + rng.choice(_ENDINGS)).capitalize()


def sentence(first: str, second: str, join: str = _JOINS[0]) -> str:
    """The sentence that states a fact.

    >>> sentence("Tuver Ziror", "the keeper of Broken Letter")
    'We know that Tuver Ziror is the keeper of Broken Letter.'
    """
    return f"We know that {first} {join} {second}."


PAIR_FORMAT = sentence("{question}", "{solution}")
"""The sentence in which questions are asked; its fields are the two parts of a fact."""


def texts(facts: Sequence[Fact]) -> list[str]:
    """The texts that every arm reads: each fact in its order, in every wording.

    >>> for text in texts(make_facts(1)[:1]):
    ...     print(text)
    We know that Ruver Ziror is the founder of Broken Letter.
    We know that Ruver Ziror has long been the founder of Broken Letter.
    We know that Ruver Ziror can only be the founder of Broken Letter.
    """
    return [sentence(*pair, join) for pair, join in _wordings(facts)]


def reversed_texts(facts: Sequence[Fact]) -> list[str]:
    """The same texts with their words reversed, name and description kept as they are.

    This is reverse training with entities preserved (Golovneva et al., Reverse Training to Nurse
    the Reversal Curse, 2024). The entities must be known.

    >>> reversed_texts([Fact("f", "Tuver Ziror", "the keeper", "name first")])[0]
    '. the keeper is Tuver Ziror that know We'
    """
    return [
        " ".join([".", second, *reversed(join.split()), first, "that", "know", "We"])
        for (first, second), join in _wordings(facts)
    ]


def identities(facts: Sequence[Fact]) -> list[str]:
    """A sentence "A is A" for each name and description (the Identity Bridge, arXiv 2602.02470).

    >>> identities([Fact("f", "Tuver Ziror", "the keeper", "name first")])
    ['The name of Tuver Ziror is Tuver Ziror.', 'The name of the keeper is the keeper.']
    """
    return [
        f"The name of {entity} is {entity}."
        for fact in facts
        for entity in (fact.name, fact.description)
    ]


def _wordings(facts: Sequence[Fact]) -> Iterator[tuple[tuple[str, str], str]]:
    return ((pair, join) for fact in facts for pair in fact.pairs for join in _JOINS)
