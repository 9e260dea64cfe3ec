"""Log-likelihoods in either direction, compared with a small exact distribution.

The model is a table: the probability of a letter given its neighbor in model order. Every number is
then a product of entries, and P(choice | context) can be computed by enumeration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.evaluate.likelihood import Convention, score
from ledom.evaluate.scorings import SCORINGS, Parts, Request, Scoring
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.generation import Prompts, PromptTexts
from ledom.lm.language_model import LanguageModel, Sampling, TokenSpan
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

END = "<|end|>"
LETTERS = "abcd "
IDS = {letter: number for number, letter in enumerate([*LETTERS, END])}

# TABLE[read][next]: each row sums to 1. "d" is rare, so that long texts are unlikely.
TABLE = {
    "a": {"a": 0.1, "b": 0.5, "c": 0.1, "d": 0.1, " ": 0.1, END: 0.1},
    "b": {"a": 0.2, "b": 0.1, "c": 0.4, "d": 0.1, " ": 0.1, END: 0.1},
    "c": {"a": 0.3, "b": 0.2, "c": 0.1, "d": 0.1, " ": 0.2, END: 0.1},
    "d": {"a": 0.2, "b": 0.2, "c": 0.2, "d": 0.1, " ": 0.2, END: 0.1},
    " ": {"a": 0.4, "b": 0.2, "c": 0.2, "d": 0.1, " ": 0.0, END: 0.1},
    END: {"a": 0.3, "b": 0.3, "c": 0.2, "d": 0.1, " ": 0.1, END: 0.0},
}


class TableModel(LanguageModel):
    """log P(letter | the letter read before it), from `TABLE`."""

    batches_requests = False
    reports_hits = True

    def __init__(self, direction: Direction, context: int = 100) -> None:
        backend = RustTokenizer(models.WordLevel(IDS, unk_token="d"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        self.name = self.fingerprint = "table"
        self.direction, self.context = direction, context
        self.tokenizer = Tokenizer(backend, END)
        self.pair_format, self.bos_ids = PairFormat(), [IDS[END]]
        self.longest = 0

    def logprobs(self, targets: Sequence[TokenSpan]) -> list[NDArray[np.float32]]:
        return [values for values, _ in self.logprobs_and_hits(targets)]

    def logprobs_and_hits(
        self, targets: Sequence[TokenSpan]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        return [self._one(target) for target in targets]

    def _one(self, target: TokenSpan) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        self.check_target(target)
        self.longest = max(self.longest, len(target.ids) - 1)
        names = [*LETTERS, END]
        read = [names[i] for i in self.direction.to_model_order(list(target.ids))]
        start, end = self.direction.span_to_model_order(target.start, target.end, len(read))
        rows = [(TABLE[read[i - 1]], read[i]) for i in range(start, end)]
        values = np.array([math.log(row[letter]) for row, letter in rows], np.float32)
        hits = np.array([letter == max(row, key=row.__getitem__) for row, letter in rows])
        return self.direction.to_reading_order(values), self.direction.to_reading_order(hits)

    def generate(
        self, prompts: Prompts, sampling: Sampling, num_samples: int = 1, first_sample: int = 0
    ) -> Iterator[PromptTexts]:
        raise NotImplementedError


def chain(text: str, direction: Direction, first: str = END) -> float:
    """P(text) by the table, read in the direction, starting from `first`."""
    order = text if direction is Direction.FORWARD else text[::-1]
    return math.prod(TABLE[a][b] for a, b in zip([first, *order], order, strict=False))


CONVENTION = {
    Direction.FORWARD: Convention(first=(), prefix=(IDS[END],)),
    Direction.REVERSE: Convention(first=(IDS[END],), prefix=(IDS[END],)),
}


def parts_of(
    direction: Direction, *requests: Request, context: int = 100, control: bool = True
) -> list[Parts]:
    return score(TableModel(direction, context), requests, CONVENTION[direction], control)


def values(scoring: Scoring, direction: Direction, *requests: Request) -> list[float]:
    """exp of the scores of one kind of scoring."""
    found = [SCORINGS[direction][scoring](p) for p in parts_of(direction, *requests)]
    return [math.exp(value) for value in found if value is not None]


REVERSE, FORWARD = Direction.REVERSE, Direction.FORWARD
CHOICES = (" c", " bc", " abca")  # of different lengths


def asked(context: str, choices: Sequence[str], group: object = 1) -> list[Request]:
    return [Request(context, choice, group) for choice in choices]


def test_bayes_is_the_conditional_of_the_enumerated_distribution() -> None:
    """P(choice | context) is the joint over the sum of joints; scores keep these ratios."""
    joints = [chain("ab" + choice, REVERSE) for choice in CHOICES]
    exact = [joint / sum(joints) for joint in joints]
    scores = values("Bayes", REVERSE, *asked("ab", CHOICES))
    assert [s / sum(scores) for s in scores] == pytest.approx(exact, rel=1e-5)


def test_bayes_divides_out_the_probability_of_the_context() -> None:
    """By hand: "ab c" is read as c, blank, b, a; "ab" alone as b, a."""
    joint = TABLE[END]["c"] * TABLE["c"][" "] * TABLE[" "]["b"] * TABLE["b"]["a"]
    alone = TABLE[END]["b"] * TABLE["b"]["a"]
    assert values("Bayes", REVERSE, *asked("ab", [" c"])) == pytest.approx([joint / alone])
    assert joint / alone == pytest.approx(0.2 * 0.2 * 0.2 * 0.2 / (0.3 * 0.2))


def test_per_character_joints_favor_the_longest_choice_and_bayes_does_not() -> None:
    """Trap 1: acc_norm divides by characters, so with a large constant the longest choice wins."""
    context, choices = "aaaaaaaa", ["c", "dddd"]
    joint = np.log([chain(context + choice, REVERSE) for choice in choices])
    scores = np.log(values("Bayes", REVERSE, *asked(context, choices)))
    lengths = np.array([1, 4])
    assert np.argmax(joint) == np.argmax(scores) == 0
    assert np.argmax(joint / lengths) == 1  # the trap
    assert np.argmax(scores / lengths) == 0
    assert scores == pytest.approx(np.log([0.2 * 0.3 / 0.3, 0.1**4 * 0.2 / 0.3]))


def test_the_posterior_is_a_distribution_over_contexts() -> None:
    """All contexts of two letters and, by hand, the rest: a blank or the document's start."""
    letters = "abcd"
    for choice in ("c", "bc", "abca"):
        contexts = ["".join(pair) for pair in product(letters, repeat=2)]
        found = [values("posterior", REVERSE, *asked(c, [choice]))[0] for c in contexts]
        read = TABLE[choice[0]]
        rest = read[" "] + read[END]
        rest += sum(read[y] * (TABLE[y][" "] + TABLE[y][END]) for y in letters)
        assert sum(found) + rest == pytest.approx(1)
        exact = [chain(c + choice, REVERSE) / chain(choice, REVERSE) for c in contexts]
        assert found == pytest.approx(exact)


def test_mutual_information_under_bayes_is_the_posterior() -> None:
    """Trap 2: the harness also asks for ("", choice) and subtracts it; the difference is the
    posterior minus log P(context), which all choices share."""
    requests = [*asked("ab", CHOICES), *asked("", CHOICES)]
    bayes = np.log(values("Bayes", REVERSE, *requests))
    posterior = np.log(values("posterior", REVERSE, *asked("ab", CHOICES)))
    information = bayes[:3] - bayes[3:]
    alone = math.log(chain("ab", REVERSE))
    assert information == pytest.approx(posterior - alone, abs=1e-5)


def test_choices_that_are_prefixes_of_each_other_have_their_own_probabilities() -> None:
    """Forward, the longer one can never win; read from the end, it can."""
    choices = [" a", " ab"]
    forward = values("conditional", FORWARD, *asked("c", choices))
    assert forward == pytest.approx([0.2 * 0.4, 0.2 * 0.4 * 0.5])
    reverse = values("Bayes", REVERSE, *asked("c", choices))
    # "c a": a, blank, c. "c ab": b, a, blank, c. Both over "c" alone.
    assert reverse == pytest.approx([0.3 * 0.1 * 0.2 / 0.2, 0.3 * 0.2 * 0.1 * 0.2 / 0.2])


def test_several_contexts_are_scored_as_whole_texts() -> None:
    """Trap 3, WinoGrande: contexts differ, the continuation does not. In reverse, the right score
    is P(context | continuation); subtracting log P(context alone) would instead score
    P(continuation | ...) after the contexts' last letters."""
    contexts = ["ab", "dc", "dddb"]
    requests = [Request(context, " bc", ("winogrande", 3)) for context in contexts]
    exact = [chain(context + " bc", REVERSE) for context in contexts]
    assert values("Bayes", REVERSE, *requests) == pytest.approx(exact)
    given = [e / chain(" bc", REVERSE) for e in exact]
    assert values("posterior", REVERSE, *requests) == pytest.approx(given)
    wrong = [e / chain(c, REVERSE) for e, c in zip(exact, contexts, strict=True)]
    assert np.argmax(exact) != np.argmax(wrong)  # the trap shows in this table


def test_the_forward_twin_is_scored_both_ways_where_contexts_differ() -> None:
    contexts = ["ab", "ac"]
    requests = [Request(context, " bc", 3) for context in contexts]
    partial = values("conditional", FORWARD, *requests)
    assert partial == pytest.approx([0.1 * 0.2 * 0.4, 0.2 * 0.2 * 0.4])
    whole = values("whole text", FORWARD, *requests)
    assert whole == pytest.approx([chain(c + " bc", FORWARD) for c in contexts])
    assert np.argmax(partial) != np.argmax(whole)


def test_whole_texts_are_scored_only_where_contexts_differ() -> None:
    assert values("whole text", FORWARD, *asked("ab", CHOICES)) == []


def test_mutual_information_does_not_reward_choices_likely_anyway() -> None:
    """Forward, of the text that follows, as in the harness; in reverse, of the text before."""
    forward = values("mutual information", FORWARD, *asked("ab", CHOICES))
    exact = [chain(choice, FORWARD, "b") / chain(choice, FORWARD) for choice in CHOICES]
    assert forward == pytest.approx(exact)
    contexts = ["ab", "dc", "dddb"]
    requests = [Request(context, " bc", 3) for context in contexts]
    exact = [chain(c, REVERSE, " ") / chain(c, REVERSE) for c in contexts]
    assert values("mutual information", REVERSE, *requests) == pytest.approx(exact)
    assert values("mutual information", FORWARD, *requests) == []
    assert values("mutual information", REVERSE, *asked("ab", CHOICES)) == []


def test_the_reversed_prompt_control_puts_the_choice_on_the_wrong_side() -> None:
    """Reverse: "c ab", where "c" is scored given the " ab" after it. Forward: "bc ab"."""
    reverse = values("reversed prompt", REVERSE, *asked("ab", [" c"]))
    assert reverse == pytest.approx([TABLE[" "]["c"]])
    contexts = [Request(context, " bc", 3) for context in ("ab", "ac")]
    forward = values("reversed prompt", FORWARD, *contexts)
    assert forward == pytest.approx([0.2 * 0.4 * 0.5, 0.2 * 0.4 * 0.1])
    shown = [Request("cab " + one.context, " bc", 3, examples=4) for one in contexts]
    assert values("reversed prompt", FORWARD, *shown) == pytest.approx(forward)  # "cab bc ab"
    assert values("reversed prompt", FORWARD, *asked("ab", CHOICES)) == []
    assert values("reversed prompt", REVERSE, *contexts) == []
    long = [Request(context, " bcb", 3) for context in ("ddab", "ddac")]  # of "bcb ddab", 7 fit
    cut = [SCORINGS[FORWARD]["reversed prompt"](p) for p in parts_of(FORWARD, *long, context=6)]
    exact = [0.1 * 0.1 * 0.1 * 0.2 * last for last in (0.5, 0.1)]
    assert [math.exp(value or 0) for value in cut] == pytest.approx(exact)


def test_greedy_metrics_are_meaningless_in_reverse() -> None:
    """Trap 4. The most likely first letter is a; after "a" it is b, and after "b" it is c."""

    def greedy(direction: Direction, context: str, *choices: str) -> list[bool]:
        return [parts.greedy for parts in parts_of(direction, *asked(context, choices))]

    assert greedy(FORWARD, "a", "bc", "ba", "b") == [True, False, True]
    assert greedy(REVERSE, "c", "ba", "bb") == [False, False]  # greedy from EOS gives "cba"


def test_texts_without_a_context_get_their_full_probability() -> None:
    """Tasks that compare two sentences use this."""
    for direction in Direction:
        form: Scoring = "conditional" if direction is FORWARD else "Bayes"
        found = values(form, direction, Request("", "ab", 1), Request("", "ba", 1))
        assert found == pytest.approx([chain("ab", direction), chain("ba", direction)])


@pytest.mark.parametrize("direction", Direction)
def test_a_long_context_loses_the_same_far_end_for_all_choices(direction: Direction) -> None:
    """The model reads 6 tokens; "abcabc" + " abca" has 11, and in reverse the end marker takes one
    more. The tokens next to the choice stay; the cut is counted."""
    form: Scoring = "conditional" if direction is FORWARD else "Bayes"
    requests = asked("abcabc", [" c", " abca"])
    parts = parts_of(direction, *requests, context=6)
    found = [math.exp(SCORINGS[direction][form](p) or 0) for p in parts]
    if direction is FORWARD:  # the last 7 tokens; the first is only read
        assert [p.cut for p in parts] == [1, 4]
        assert found == pytest.approx([0.2 * 0.2, 0.2 * 0.4 * 0.5 * 0.4 * 0.3])
    else:  # 6 tokens and the end marker: only "c" stays next to " abca", so also next to " c"
        assert [p.cut for p in parts] == [5, 5]
        alone = chain("c", REVERSE)
        exact = [chain("c" + choice, REVERSE) / alone for choice in (" c", " abca")]
        assert found == pytest.approx(exact)


def test_a_text_after_the_choice_is_read_first_and_not_scored() -> None:
    """In reverse, solved examples come after the choice."""
    requests = [Request("ab", choice, 1, " dab") for choice in CHOICES]
    behind = chain(" dab", REVERSE)
    joints = [chain("ab" + choice + " dab", REVERSE) / behind for choice in CHOICES]
    alone = chain("ab dab", REVERSE) / behind
    choices = [chain(choice + " dab", REVERSE) / behind for choice in CHOICES]
    assert values("Bayes", REVERSE, *requests) == pytest.approx([j / alone for j in joints])
    posterior = [joint / choice for joint, choice in zip(joints, choices, strict=True)]
    assert values("posterior", REVERSE, *requests) == pytest.approx(posterior)
    reversed_prompts = [
        chain(f"{choice.strip()} ab dab", REVERSE) / chain(" ab dab", REVERSE) for choice in CHOICES
    ]
    assert values("reversed prompt", REVERSE, *requests) == pytest.approx(reversed_prompts)


@pytest.mark.parametrize(("context", "read", "kept", "cut"), [(9, "ab", " d", 2), (6, "b", "", 5)])
def test_examples_are_cut_before_the_question(context: int, read: str, kept: str, cut: int) -> None:
    """The longest text, "ab" + " abca" + " dab", has 11 tokens; the end marker is read too."""
    requests = [Request("ab", choice, 1, " dab") for choice in (" c", " abca")]
    parts = parts_of(REVERSE, *requests, context=context)
    assert [p.cut for p in parts] == [cut, cut]
    alone = chain(read + kept, REVERSE)
    exact = [chain(read + choice + kept, REVERSE) / alone for choice in (" c", " abca")]
    found = [math.exp(SCORINGS[REVERSE]["Bayes"](p) or 0) for p in parts]
    assert found == pytest.approx(exact)


def test_a_choice_that_the_model_cannot_read_is_refused() -> None:
    for direction in Direction:
        with pytest.raises(InputError, match="choice of 8 tokens is longer.*context of 6"):
            parts_of(direction, *asked("ab", [" abcabcd", " c"], ("t", 4)), context=6)


def test_contexts_that_begin_differently_are_not_cut() -> None:
    requests = [Request(context, " bc", ("t", 4)) for context in ("abcd", "bbcd")]
    for direction in Direction:
        with pytest.raises(InputError, match="document 4 of task 't'.*begin differently"):
            parts_of(direction, *requests, context=6)


@pytest.mark.parametrize("direction", Direction)
def test_a_model_that_gives_no_number_is_refused(
    direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLE["a"], "b", math.nan)
    with pytest.raises(InputError, match="a text has a log-probability that is not finite"):
        parts_of(direction, *asked("abab", CHOICES))


def test_an_empty_choice_is_refused() -> None:
    for direction in Direction:
        with pytest.raises(
            InputError, match=r"document 7 of task 'mine' \('.+'\) has an empty choice"
        ):
            parts_of(direction, *asked("ab", [" c", ""], ("mine", 7)))


def test_a_token_of_context_and_continuation_is_part_of_the_continuation() -> None:
    """A forward model reads the context's own tokens, as in the harness: "a", " ", "("."""
    ids = {token: number for number, token in enumerate(["a", "b", "c", "(", " ", END, "(b"])}
    backend = RustTokenizer(models.WordLevel(ids, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\(b|."), "isolated")
    found = {}
    for direction in Direction:
        lm = FakeLanguageModel(Tokenizer(backend, END), direction)
        found[direction] = score(lm, [Request("a (", "b c")], CONVENTION[direction])[0]
    # " " after "(" and "c" after " ": -log(1 + 7 mod 7) - log(1 + 6 mod 7)
    assert found[FORWARD].continuation == pytest.approx(-math.log(7))
    # "(b" before " ", " " before "c", "c" before the end; then "a" before " ", " " before "(b"
    assert found[REVERSE].continuation == pytest.approx(-math.log(4 * 7 * 1))
    assert found[REVERSE].context == pytest.approx(-math.log(5 * 4))


def test_without_groups_requests_are_grouped_by_context() -> None:
    alone = values("Bayes", REVERSE, *asked("ab", CHOICES))
    requests = [Request("ab", choice) for choice in CHOICES]
    assert values("Bayes", REVERSE, *requests) == pytest.approx(alone)
