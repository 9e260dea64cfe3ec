import random

import numpy as np
import pytest

from ledom.model.prefix_tree import PrefixTree, batches, shared_length


def rebuilt(tree):
    return [[tree.ids[column] for column in places] for places in tree.places]


def test_the_shared_length_of_two_texts():
    assert shared_length([1, 2, 3], [1, 2, 4]) == 2
    assert shared_length([1, 2], [1, 2, 4]) == 2
    assert shared_length([1], [2]) == shared_length([], [2]) == 0
    for length in range(40):
        shared, array = [*range(length)], np.array([*range(length), -1], np.int32)
        assert shared_length(shared, array) == shared_length((*shared, 7, 7), array) == length


def test_a_tree_of_two_levels():
    demonstrations, first, second = [7] * 20, [1] * 16, [2] * 16
    texts = sorted(demonstrations + q + y for q in (first, second) for y in ([3, 4], [5]))
    tree = PrefixTree.build(texts)
    assert tree.sizes == [20, 16, 2, 1, 16, 2, 1]
    assert tree.ancestors == [[], [0], [0, 1], [0, 1], [0], [0, 4], [0, 4]]
    assert tree.positions[36:39] == [36, 37, 36]
    assert rebuilt(tree) == texts


def test_short_common_prefixes_are_not_shared():
    tree = PrefixTree.build([[1] * 15 + [2], [1] * 15 + [3]])
    assert tree.ancestors == [[], []]
    assert len(tree.ids) == 32


def test_equal_texts_are_stored_once():
    tree = PrefixTree.build([[1, 2, 3]] * 4)
    assert tree.ids == [1, 2, 3]
    assert rebuilt(tree) == [[1, 2, 3]] * 4


@pytest.mark.parametrize("seed", range(20))
def test_any_texts_can_be_rebuilt_from_the_tree(seed):
    rng = random.Random(seed)
    stems = [[rng.randrange(3) for _ in range(rng.randrange(60))] for _ in range(4)]
    texts = sorted(
        rng.choice(stems)[: rng.randrange(1, 61)] + [rng.randrange(3) for _ in range(1 + seed % 5)]
        for _ in range(60)
    )
    tree = PrefixTree.build(texts)
    assert rebuilt(tree) == texts
    assert len(tree.ids) == len(tree.positions) == sum(tree.sizes) <= sum(map(len, texts))
    for text, places in zip(texts, tree.places, strict=True):
        assert [tree.positions[column] for column in places] == list(range(len(text)))


def test_batches_contain_every_text_once_within_the_budget():
    rng = random.Random(0)
    question = [9] * 50
    texts = [question + [rng.randrange(8) for _ in range(rng.randrange(1, 30))] for _ in range(200)]
    groups = list(batches(texts, 200))
    assert sorted(place for group in groups for place in group) == list(range(200))
    for group in groups:
        assert [texts[i] for i in group] == sorted(texts[i] for i in group)
        assert len(PrefixTree.build([texts[i] for i in group]).ids) <= 200 + len(group) * 16
    assert len(groups) < sum(map(len, texts)) / 200 / 2  # sharing pays off
    assert list(batches([[1] * 500], 100)) == [[0]]
    # The texts share 16 tokens, so a batch may hold 8 * 16 new ones, but not once [9] is in it.
    texts = [[8] * 16 + [i] * 28 for i in range(8)]
    assert [len(group) for group in batches([*texts, [9] * 99], 100)] == [4, 4, 1]
    assert list(batches([], 100)) == []


def test_workers_get_equal_shares_of_texts_with_one_long_prefix() -> None:
    """Each share computes the prefix of 100 tokens, then half of the 40 tails of 20 tokens."""
    texts = [[*range(100), *([1000 + i] * 20)] for i in range(40)]
    for workers, sizes in ((1, [35, 5]), (2, [20, 20]), (4, [10, 10, 10, 10])):
        assert [len(batch) for batch in batches(texts, 300, workers)] == sizes
    assert len(list(batches(texts, 300, workers=40))) == 4  # not below the budget
    assert len(list(batches(texts[:35], 300, workers=2))) == 1  # computes the prefix once


@pytest.mark.slow
def test_each_of_many_texts_may_continue_the_one_before():
    text = list(range(1500))
    texts = [text[:length] for length in range(1, 1501)]
    tree = PrefixTree.build(texts)
    assert tree.ids == text
    assert rebuilt(tree) == texts
