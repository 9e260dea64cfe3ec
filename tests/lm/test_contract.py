"""The contract of every backend, in either direction; see `ledom.lm.language_model`.

Each is opened on the same tiny models (tests/opened.py), so that one reference, plain transformers
fed by hand, applies to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers

import ledom
from ledom.core.errors import InputError
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Generation, LanguageModel, Sampling, TokenSpan
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer, train_tokenizer
from made import whole_text
from opened import BACKENDS, Parts
from stand_ins import PlainModel

TEXTS = [
    "Ava has 12 apples.\n\n12 + 3 = 15\n#### 15",
    "naïve café, 数学は楽しい 🎉🎉",
    "שלום עולם 42",
    "7",
]
EVERY = [(name, way) for name in BACKENDS for way in ledom.Direction]


@pytest.fixture(scope="module", params=EVERY, ids=lambda backend: "-".join(map(str, backend)))
def backend(request: pytest.FixtureRequest) -> tuple[str, ledom.Direction]:
    return request.param


@pytest.fixture(scope="module")
def plain(backend: tuple[str, ledom.Direction], checkpoints: dict[str, Path]) -> PlainModel:
    """The model behind the backend, run by transformers."""
    return PlainModel(checkpoints[str(backend[1])])


@pytest.fixture(scope="module")
def lm(
    backend: tuple[str, ledom.Direction],
    plain: PlainModel,
    checkpoints: dict[str, Path],
    tokenizer: Tokenizer,
) -> Iterator[LanguageModel]:
    """Each backend in each direction, in turn."""
    name, direction = backend
    with BACKENDS[name](Parts(direction, checkpoints[str(direction)], plain, tokenizer)) as opened:
        yield opened


def by_hand(lm: LanguageModel, plain: PlainModel, ids: Sequence[int]) -> list[float]:
    """Per-token log-probabilities in reading order, one text at a time; ids flipped by hand."""
    reverse = lm.direction is ledom.Direction.REVERSE
    fed = [*reversed(ids)] if reverse else [*ids]
    if isinstance(lm, FakeLanguageModel):
        values = [-math.log1p((a + b) % 7) for a, b in pairwise(fed)]
    else:
        values = plain.logprobs(fed)
    return values[::-1] if reverse else values


def made(
    lm: LanguageModel, prompts: Sequence[str], sampling: Sampling, num_samples: int = 1
) -> list[list[Generation]]:
    found = dict(lm.generate(prompts, sampling, num_samples))
    assert sorted(found) == list(range(len(prompts)))
    return [found[place] for place in range(len(prompts))]


def test_logprobs_are_the_models_own_in_reading_order(lm: LanguageModel, plain: PlainModel) -> None:
    targets = [whole_text(lm, text) for text in TEXTS]
    for target, values in zip(targets, lm.logprobs(targets), strict=True):
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, by_hand(lm, plain, target.ids), atol=1e-5)


def test_hits_are_the_models_most_likely_tokens(lm: LanguageModel, plain: PlainModel) -> None:
    """Greedy text hits at every token, and another text does not."""
    if not lm.reports_hits:
        with pytest.raises(InputError, match="does not report which token is the most likely"):
            lm.logprobs_and_hits([whole_text(lm, TEXTS[0])])
        return
    ids = lm.tokenizer.encode(TEXTS[0]).ids
    fed = lm.direction.to_model_order(lm.add_special_tokens(ids))
    written = plain.write(fed, 5, stop=[], temperature=0)
    target = TokenSpan(lm.direction.to_reading_order([*fed, *written]), 0, 0)
    start, end = len(fed), len(fed) + 5
    start, end = lm.direction.span_to_model_order(start, end, end)
    spans = [TokenSpan(target.ids, start, end), whole_text(lm, TEXTS[1])]
    (values, hits), (others, missed) = lm.logprobs_and_hits(spans)
    assert hits.tolist() == [True] * 5
    assert not missed.all()
    assert missed.shape == others.shape
    for found, expected in zip((values, others), lm.logprobs(spans), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_batching_and_order_change_nothing(lm: LanguageModel) -> None:
    targets = [whole_text(lm, text) for text in TEXTS * 2]
    alone = [lm.logprobs([target])[0] for target in targets[: len(TEXTS)]] * 2
    backwards = lm.logprobs(targets[::-1])[::-1]
    for a, b in zip(alone, backwards, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4)


def test_a_span_is_a_part_of_the_whole(lm: LanguageModel) -> None:
    target = whole_text(lm, TEXTS[0])
    every = lm.logprobs([target])[0]
    part, empty, alone = lm.logprobs(
        [
            TokenSpan(target.ids, target.start + 3, target.end - 4),
            TokenSpan(target.ids, 4, 4),
            TokenSpan(target.ids[:1], 0, 0),
        ]
    )
    np.testing.assert_allclose(part, every[3:-4], atol=1e-5)
    assert len(empty) == len(alone) == 0


def test_ids_may_be_an_array_of_any_integers(lm: LanguageModel) -> None:
    """A token store's windows are 16-bit or 32-bit arrays."""
    target = whole_text(lm, TEXTS[0])
    expected = lm.logprobs([target])[0].tolist()
    for dtype in (np.uint16, np.int32, np.uint64):
        ids: Sequence[int] = np.array(target.ids, dtype)  # type: ignore[assignment]
        found = lm.logprobs([TokenSpan(ids, target.start, target.end)])[0]
        assert found.tolist() == expected


def test_an_empty_text_still_has_its_special_tokens(lm: LanguageModel) -> None:
    target = whole_text(lm, "")
    assert target.ids == [lm.tokenizer.eos_id] * 2
    assert len(lm.logprobs([target])[0]) == 1


def test_no_requests_mean_no_work(lm: LanguageModel) -> None:
    assert lm.logprobs([]) == []
    assert list(lm.generate([], Sampling())) == []


def test_the_longest_text_that_fits_is_scored(lm: LanguageModel) -> None:
    if lm.context > 600:
        pytest.skip("a longer context takes too long here")
    ids = [5, 6, 7] * 200
    longest = TokenSpan(ids[: lm.context + 1], 3, 5)
    assert len(lm.logprobs([longest])[0]) == 2


def test_bad_targets_are_refused(lm: LanguageModel) -> None:
    ids = list(whole_text(lm, TEXTS[0]).ids)
    with pytest.raises(InputError, match="no log-probability; leave it out of the span"):
        lm.logprobs([TokenSpan(ids, 0, len(ids))])
    size = lm.tokenizer.vocab_size
    for wrong in (-100, size, 10**12):  # torch gives the label -100 a probability of 1
        message = f"token id {wrong} is not in the vocabulary: this model's ids are 0 to {size - 1}"
        with pytest.raises(InputError, match=message):
            lm.logprobs([TokenSpan([0, wrong, 0], 1, 2)])
    with pytest.raises(InputError, match="no span"):
        lm.logprobs([TokenSpan(ids, 3, len(ids) + 1)])
    odd: list[Any] = [
        ([0.5, 1, 2], 1, 2),
        (ids, 1.0, 2),
        ([[0, 1], [2, 3]], 1, 2),
        (iter(ids), 1, 2),
    ]
    for arguments in odd:
        with pytest.raises(InputError, match="the ids and bounds of a span must be whole numbers"):
            lm.logprobs([TokenSpan(*arguments)])
    with pytest.raises(InputError, match=f"context of {lm.context}"):
        lm.logprobs([TokenSpan([5] * (lm.context + 2), 4, 6)])
    span = TokenSpan(ids, 1, 2)
    for targets in (span, (one for one in [span]), [(ids, 1, 2)]):
        with pytest.raises(InputError, match="targets is .*; give a list of TokenSpan"):
            lm.logprobs(targets)  # type: ignore[arg-type]


def test_greedy_text_follows_or_precedes_the_prompt(lm: LanguageModel, plain: PlainModel) -> None:
    if isinstance(lm, FakeLanguageModel):
        pytest.skip("its texts are given, not computed")
    reverse, eos = lm.direction is ledom.Direction.REVERSE, lm.tokenizer.eos_id
    for text, (one,) in zip(
        TEXTS, made(lm, TEXTS, Sampling(temperature=0, max_tokens=8)), strict=True
    ):
        ids = lm.tokenizer.encode(text).ids
        fed = [eos, *(reversed(ids) if reverse else ids)]
        written = plain.write(fed, 8, [eos], temperature=0)
        expected = [i for i in written if i != eos]
        assert one.finish_reason == ("stop" if eos in written else "length")
        assert one.text == lm.tokenizer.decode(expected[::-1] if reverse else expected)


def test_texts_end_in_time_and_contain_no_special_tokens(lm: LanguageModel) -> None:
    for (one,) in made(lm, ["1", "12 + 3", ""], Sampling(max_tokens=6, seed=2)):
        assert one.finish_reason in ("stop", "length")
        assert one.text == lm.tokenizer.decode(one.ids)
        assert lm.tokenizer.eos_token not in one.text
        if "\ufffd" not in one.text:  # half a character, which a server re-encodes from text
            assert len(one.ids) <= 6


@pytest.mark.slow
def test_a_draw_depends_only_on_seed_prompt_and_number(lm: LanguageModel) -> None:
    prompts = ["Ava has 12", "7", "What is 3 + 4?"]
    sampling = Sampling(temperature=0.9, max_tokens=6, seed=3)
    together = made(lm, prompts, sampling, 4)
    for place, prompt in enumerate(prompts):
        assert made(lm, [prompt], sampling, 4) == [together[place]]
    assert made(lm, prompts[::-1], sampling, 2)[::-1] == [four[:2] for four in together]
    assert len({one.text for one in together[0]}) > 1, "samples of one prompt differ"
    others = made(lm, prompts, Sampling(temperature=0.9, max_tokens=6, seed=4), 4)
    # Not even shifted by one: seeds must not share samples.
    assert not {one.text for one in others[0]} & {one.text for one in together[0]}


def test_samples_can_be_drawn_in_parts(lm: LanguageModel) -> None:
    prompts = ["Ava has 12", "What is 3 + 4?"]
    sampling = Sampling(temperature=0.9, max_tokens=6, seed=3)
    together = made(lm, prompts, sampling, 5)
    rest = dict(lm.generate(prompts, sampling, 3, first_sample=2))
    assert [rest[place] for place in range(2)] == [five[2:] for five in together]


@pytest.mark.slow
def test_generation_in_steps_gives_the_same_texts(lm: LanguageModel) -> None:
    prompts = ["Ava has 12", "What is 3 + 4?"]
    sampling = Sampling(temperature=0.9, max_tokens=6, seed=3)
    steps = [*lm.generate_in_steps(prompts, sampling, 2)]
    texts = dict(one for step in steps for one in step)
    assert [texts[place] for place in range(2)] == made(lm, prompts, sampling, 2)
    assert len(steps) >= len(prompts)


def test_greedy_text_comes_after_the_samples(lm: LanguageModel) -> None:
    prompts = ["Ava has 12", "What is 3 + 4?"]
    sampling = Sampling(temperature=0.9, max_tokens=6, seed=3)
    samples, greedy = made(lm, prompts, sampling, 2), made(lm, prompts, sampling.greedy)
    found = dict(lm.generate_with_greedy(prompts, sampling, 2))
    assert [found[place] for place in range(2)] == [
        [*two, *one] for two, one in zip(samples, greedy, strict=True)
    ]


def test_self_certainty_is_reported_or_omitted(lm: LanguageModel) -> None:
    ((one,),) = made(lm, ["12 + 3"], Sampling(max_tokens=6))
    assert (one.self_certainty is not None) is lm.reports_certainty
    assert one.self_certainty is None or one.self_certainty > 0


def test_top_k_keeps_the_most_likely(lm: LanguageModel) -> None:
    greedy = made(lm, ["Ava has"], Sampling(temperature=0, max_tokens=4))
    if not isinstance(lm, FakeLanguageModel):
        assert made(lm, ["Ava has"], Sampling(top_k=1, max_tokens=4)) == greedy
        assert made(lm, ["Ava has"], Sampling(top_p=1e-6, max_tokens=4)) == greedy


def test_bad_requests_are_refused(lm: LanguageModel) -> None:
    long = "1 " * lm.context
    does_not_fit = f"does not fit the model's context of {lm.context}; "
    with pytest.raises(InputError, match=f"'1 1 .* {does_not_fit}shorten it$"):
        list(lm.generate([long], Sampling(max_tokens=2)))
    room = lm.context - len(lm.prompt_ids("1", 1))
    with pytest.raises(InputError, match=f"{does_not_fit}lower max_tokens to {room}, or shorten"):
        list(lm.generate(["1"], Sampling(max_tokens=lm.context)))
    lm.prompt_ids("1", room)  # this fits
    with pytest.raises(InputError, match="num_samples is 0"):
        list(lm.generate(["1"], Sampling(), num_samples=0))
    with pytest.raises(InputError, match="num_samples is 1.5; it must be a whole number"):
        list(lm.generate(["ab"], Sampling(), num_samples=1.5))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="first_sample is -1; it must be at least 0"):
        list(lm.generate(["ab"], Sampling(), first_sample=-1))
    with pytest.raises(InputError, match="prompts: 5; give a list of texts"):
        list(lm.generate(["ab", 5], Sampling()))  # type: ignore[list-item]
    with pytest.raises(InputError, match="prompts: <generator .*; give a list of texts"):
        list(lm.generate((text for text in ["ab"]), Sampling()))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="alternatives|count is -1; it must be at least 0"):
        lm.alternatives(whole_text(lm, "ab"), -1)
    with pytest.raises(InputError, match="prompts: 'ab'; give a list"):
        list(lm.generate("ab", Sampling()))
    with pytest.raises(InputError, match="sampling is {'seed': 1}; give a ledom.Sampling"):
        list(lm.generate(["ab"], {"seed": 1}))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Fraction, Decimal, np.float16, np.float64])
def test_numbers_may_be_of_any_type(lm: LanguageModel, kind: Any) -> None:
    plain = Sampling(temperature=0.5, top_p=0.25, top_k=3, max_tokens=4, seed=2)
    counts: Any = {"top_k": np.uint8(3), "max_tokens": np.uint8(4), "seed": np.int32(2)}
    other = Sampling(temperature=kind("0.5"), top_p=kind("0.25"), **counts)
    assert repr(other) == repr(plain)
    drawn = list(lm.generate(["1"], other, np.uint8(2), np.uint8(254)))  # type: ignore[arg-type]
    assert drawn == list(lm.generate(["1"], plain, 2, 254))


def test_stop_patterns_work_or_are_refused(lm: LanguageModel) -> None:
    pieces = Sampling(temperature=0, max_tokens=12, stop_pattern="[^ ]")
    if not lm.stops_at_patterns:
        with pytest.raises(InputError, match="cannot stop at a pattern"):
            list(lm.generate(["1"], pieces))
        return
    ((_, (part,)),) = lm.generate(["1"], pieces)
    assert part.finish_reason == "pattern"
    ((_, (more,)),) = lm.generate([part], pieces)
    assert more.ids


def test_a_backend_reports_its_identity(
    lm: LanguageModel, backend: tuple[str, ledom.Direction], tokenizer: Tokenizer
) -> None:
    assert lm.direction is backend[1]
    assert lm.tokenizer.fingerprint == tokenizer.fingerprint
    assert lm.bos_ids == [tokenizer.eos_id]
    assert lm.name
    assert lm.fingerprint
    assert lm.context > 256
    assert lm.pair_format.before_solution("Q?").startswith("Q?")


def test_another_use_of_the_model_has_another_identity(lm: LanguageModel) -> None:
    """A file made in one way is thus never resumed in another."""
    loaded, other = lm.identity, train_tokenizer([], 257)
    seen = []
    for name, value in (
        ("pair_format", PairFormat("{question}\nso {solution}")),
        ("pair_format", PairFormat(style="plain")),
        ("bos_ids", []),
        ("stop_ids", frozenset([0, 1])),
        ("context", 7),
        ("tokenizer", other),
    ):
        before = getattr(lm, name)
        setattr(lm, name, value)
        seen.append(lm.identity["hash"])
        assert lm.identity == lm.identity
        setattr(lm, name, before)
    assert lm.identity == loaded
    assert len({loaded["hash"], *seen}) == 7


def test_the_number_of_parameters_is_right_or_unknown(
    lm: LanguageModel, backend: tuple[str, ledom.Direction], plain: PlainModel
) -> None:
    count = sum(weight.numel() for weight in plain.model.parameters())  # tied weights once
    expected = {"openai": None, "fake": 0}
    assert lm.num_parameters == expected.get(backend[0], count)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_shortened_prompt_fits_however_it_is_encoded(
    tokenizer: Tokenizer, direction: str
) -> None:
    """A four-token character at the cut is kept or dropped whole; the far end is lost."""
    lm = FakeLanguageModel(tokenizer, direction)
    text = "Ava has 12 \U0001f600 pens\n\nand é 345 more \U0001f680"
    encode = lm.tokenizer.encode
    for room in range(-1, len(encode(text).ids) + 2):
        kept, lost = lm.shortened_prompt(text, room)
        assert text.endswith(kept) if direction == "forward" else text.startswith(kept)
        assert len(encode(kept).ids) == len(encode(text).ids) - lost <= max(0, room)
    assert (kept, lost) == (text, 0)


def test_a_prompt_with_more_tokens_than_alone_is_shortened() -> None:
    """A reverse model reads a prompt without the dummy prefix, which may be part of words."""
    names = ["</s>", "a", "b", "c", "▁", "▁a", "▁ab", "▁abc"]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = RustTokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "a"), ("▁a", "b"), ("▁ab", "c")])
    )
    prefix, blank = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([prefix, blank])
    backend.add_special_tokens(["</s>"])
    lm = FakeLanguageModel(Tokenizer(backend, "</s>"), "reverse")
    cut = [lm.shortened_prompt("abc abc", room) for room in range(2, 5)]
    assert cut == [("", 4), ("abc", 1), ("abc abc", 0)]  # a b c ▁abc
