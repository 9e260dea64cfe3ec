"""Infills the text between a beginning and an ending: one model proposes, a forward one chooses.

    out/gaps.jsonl         the texts around each gap
    out/proposals.jsonl    the texts that were written
    out/scores.jsonl       how well each middle fits
    out/middles.jsonl      the middles of each gap, best first

A reverse model writes the text before the ending without seeing the beginning. So each proposal is
also cut at every word in its first half, and the forward model chooses the middle with the highest
mean log-probability per token of middle and ending, given the beginning. For comparison, a forward
model can propose too; it does not see the ending, so its proposals are cut in their second half.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.files import fingerprint
from ledom.core.records import Record, write_records
from ledom.core.stage import Track
from ledom.evaluate.proposals import Prompt, Proposal, check_prompts, propose, verify
from ledom.lm.language_model import LanguageModel, Sampling, TokenSpan

__all__ = ["Gap", "Middle", "infill"]

_GAP = re.compile(r"\s+")


@dataclass(kw_only=True)
class Gap(Record):
    """Two texts between which something is missing."""

    id: str
    beginning: str
    ending: str


@dataclass(kw_only=True)
class Middle(Record):
    """A text for a gap, its rank from 1, its score in nats per token, and its model's direction."""

    KEY = ("gap_id", "rank")

    gap_id: str
    rank: int
    text: str
    score: float
    direction: Literal["forward", "reverse"]


def infill(
    gaps: Sequence[Gap],
    proposer: LanguageModel,
    forward: LanguageModel,
    sampling: Sampling,
    num_samples: int,
    out: Path,
    track: Track,
) -> dict[str, list[Middle]]:
    """The middles of each gap, by the gap's id, best first; none that is too long for `forward`.

    Before any work, raises `DirectionError` if `forward` is a reverse model, and `InputError` for a
    gap with an empty text, or whose texts leave no room for a middle.

    >>> import tempfile
    >>> from ledom.core.stage import no_progress
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> reverse, forward = FakeLanguageModel(direction="reverse"), FakeLanguageModel()
    >>> gap = Gap(id="g", beginning="2 + 2", ending="= 4")
    >>> with tempfile.TemporaryDirectory() as out:
    ...     found = infill([gap], reverse, forward, Sampling(), 2, Path(out), no_progress)
    >>> [middle.rank for middle in found["g"]][:2]
    [1, 2]
    """
    Direction.FORWARD.require(forward.direction, forward.name, "to choose middles")
    known = {gap.id: gap for gap in gaps}
    writes_on = proposer.direction is Direction.FORWARD
    prompts = [Prompt(gap.id, gap.beginning if writes_on else gap.ending) for gap in gaps]
    _check_gaps(gaps, forward, sampling)
    check_prompts(prompts, proposer, sampling)
    path = out / "proposals.jsonl"
    drawn = propose(proposer, prompts, sampling, num_samples, path, track, "writing middles")
    distinct = dict.fromkeys(
        (proposal.item_id, text)
        for proposal in drawn
        for text in cuts(proposal.text, known[proposal.item_id], proposer.direction)
    )
    middles = [
        Proposal(item_id=gap_id, index=index, text=text)
        for index, (gap_id, text) in enumerate(distinct)
    ]
    scores = verify(
        forward,
        middles,
        lambda some: middle_spans(forward, [(known[p.item_id], p.text) for p in some]),
        {"gaps": fingerprint((gap.id, gap.beginning, gap.ending) for gap in gaps)},
        out / "scores.jsonl",
        track,
        "choosing",
    )
    texts = {middle.key: middle.text for middle in middles}
    means: dict[str, list[tuple[float, str]]] = {gap.id: [] for gap in gaps}
    for score in scores:
        means[score.item_id].append((score.logprob / max(1, score.num_tokens), texts[score.key]))
    found = {gap_id: _ranked(gap_id, own, proposer.direction) for gap_id, own in means.items()}
    write_records(out / "gaps.jsonl", gaps)
    write_records(out / "middles.jsonl", (middle for own in found.values() for middle in own))
    return found


def _ranked(gap_id: str, means: list[tuple[float, str]], direction: Direction) -> list[Middle]:
    """The middles of a gap, best first; ties stay in the order of drawing."""
    ordered = sorted(means, key=lambda pair: -pair[0])
    return [
        Middle(gap_id=gap_id, rank=rank, text=text, score=round(mean, 5), direction=direction.value)
        for rank, (mean, text) in enumerate(ordered, start=1)
    ]


def _check_gaps(gaps: Sequence[Gap], forward: LanguageModel, sampling: Sampling) -> None:
    """Raise `InputError` for a gap without a text on either side, or without room for a middle."""
    for gap in gaps:
        for name, text in (("beginning", gap.beginning), ("ending", gap.ending)):
            if not text:  # an empty middle would have no token to score
                raise InputError(
                    f"{gap.id!r}: the {name} is empty; give a text, or only the other end"
                )
        ids = forward.add_special_tokens(forward.tokenizer.encode(gap.beginning + gap.ending).ids)
        num_tokens = len(ids) - 1
        if num_tokens + sampling.max_tokens > forward.context:
            remedy, room = "shorten them", forward.context - num_tokens
            if room > 0:
                remedy = f"lower max_tokens to {room}, or {remedy}"
            raise InputError(
                f"{gap.id!r}: beginning and ending have {num_tokens} tokens; with "
                f"max_tokens={sampling.max_tokens} between them they do not fit the context of "
                f"{forward.context} of {forward.name}; {remedy}"
            )


def cuts(text: str, gap: Gap, direction: Direction) -> list[str]:
    """The whole proposal, and the proposal cut at each word of the half far from its prompt.

    White space at the cut is kept, unless the text on the other side of the cut has some.
    """
    half = len(text) / 2
    forward = direction is Direction.FORWARD
    other = gap.ending[:1] if forward else gap.beginning[-1:]
    found = [text]
    for space in _GAP.finditer(text):
        kept = not other.isspace()
        if forward and space.start() >= half:
            found.append(text[: space.end() if kept else space.start()])
        elif not forward and 0 < space.end() <= half:
            found.append(text[space.start() if kept else space.end() :])
    return list(dict.fromkeys(found))


def middle_spans(lm: LanguageModel, middles: Sequence[tuple[Gap, str]]) -> Iterator[TokenSpan]:
    """For each (gap, middle), the tokens of middle and ending in the text of the whole gap.

    A token that straddles the end of the beginning belongs to the middle.
    """
    texts = [f"{gap.beginning}{text}{gap.ending}" for gap, text in middles]
    encodings = lm.tokenizer.encode_batch(texts)
    for (gap, _), encoding in zip(middles, encodings, strict=True):
        ids = lm.add_special_tokens(encoding.ids)
        first = sum(end <= len(gap.beginning) for _, end in encoding.offsets)
        opening = len(lm.bos_ids)
        start = max(1, opening + first)  # the first token that the model reads has no probability
        yield TokenSpan(ids, start, max(start, opening + len(encoding.ids)))
