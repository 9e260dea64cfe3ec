"""The text between a beginning and an ending: one model proposes, the forward model chooses.

    out/proposals.jsonl    what was written
    out/scores.jsonl       how well each middle fits

A reverse model writes what stands before the ending; it does not see the beginning. So each
proposal is cut where a word starts, at every word of its first half, and the forward model chooses
the middle with the highest mean log-probability per token of middle and ending, given the
beginning. A forward model can propose as well, for comparison: it does not see the ending, and its
proposals are cut at the words of their second half.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ledom.core.direction import Direction
from ledom.core.errors import DirectionError
from ledom.core.stage import Track
from ledom.evaluate.proposals import Prompt, Proposal, check_prompts, propose, verify
from ledom.lm.language_model import LanguageModel, Sampling, TokenSpan

__all__ = ["Gap", "Middle", "infill", "middle_spans"]

_GAP = re.compile(r"\s+")


@dataclass(frozen=True)
class Gap:
    """Two texts between which something is missing."""

    id: str
    beginning: str
    ending: str


@dataclass(frozen=True)
class Middle:
    """A text for a gap; `score` is in nats per token."""

    gap_id: str
    text: str
    score: float


def infill(
    gaps: Sequence[Gap],
    proposer: LanguageModel,
    forward: LanguageModel,
    sampling: Sampling,
    num_samples: int,
    out: Path,
    track: Track,
) -> dict[str, list[Middle]]:
    """Middles for each gap by its id, best first.

    Raises `DirectionError` where the model that chooses is a reverse one, and `InputError` for a
    text that leaves no room, before any work.
    """
    if forward.direction is not Direction.FORWARD:
        raise DirectionError(f"{forward.name}: a forward model is needed to choose")
    known = {gap.id: gap for gap in gaps}
    prompts = [Prompt(gap.id, _prompt(gap, proposer.direction)) for gap in gaps]
    check_prompts(prompts, proposer, sampling)
    path = out / "proposals.jsonl"
    drawn = propose(proposer, prompts, sampling, num_samples, path, track, "writing middles")
    middles = _numbered(
        (proposal.item_id, text)
        for proposal in drawn
        for text in cuts(proposal.text, known[proposal.item_id], proposer.direction)
    )
    scores = verify(
        forward,
        middles,
        lambda some: middle_spans(forward, [(known[p.item_id], p.text) for p in some]),
        ((gap.id, gap.beginning, gap.ending) for gap in gaps),
        out / "scores.jsonl",
        track,
        "choosing",
    )
    found: dict[str, list[Middle]] = {gap.id: [] for gap in gaps}
    for middle, score in zip(middles, scores, strict=True):
        mean = score.logprob / max(1, score.num_tokens)
        found[middle.item_id].append(Middle(middle.item_id, middle.text, mean))
    return {id_: sorted(own, key=lambda middle: -middle.score) for id_, own in found.items()}


def _prompt(gap: Gap, direction: Direction) -> str:
    return gap.beginning if direction is Direction.FORWARD else gap.ending


def _numbered(texts: Iterator[tuple[str, str]]) -> list[Proposal]:
    """Each text once per gap, numbered anew."""
    return [
        Proposal(item_id=gap_id, index=index, text=text)
        for index, (gap_id, text) in enumerate(dict.fromkeys(texts))
    ]


def cuts(text: str, gap: Gap, direction: Direction) -> list[str]:
    """A proposal whole, and cut at each word of the half that is far from its prompt.

    White space stays at the cut unless the text on its other side has some.

    >>> cuts(" saw the old dog", Gap("a", "We", "."), Direction.REVERSE)
    [' saw the old dog', ' the old dog']
    >>> cuts(" saw the old dog", Gap("a", "We", " run."), Direction.FORWARD)
    [' saw the old dog', ' saw the', ' saw the old']
    """
    half = len(text) / 2
    forward = direction is Direction.FORWARD
    other = gap.ending[:1] if forward else gap.beginning[-1:]
    found = [text]
    for space in _GAP.finditer(text):
        kept = not other.isspace() and other != ""
        if forward and space.start() >= half:
            found.append(text[: space.end() if kept else space.start()])
        elif not forward and 0 < space.end() <= half:
            found.append(text[space.start() if kept else space.end() :])
    return list(dict.fromkeys(found))


def middle_spans(lm: LanguageModel, middles: Sequence[tuple[Gap, str]]) -> Iterator[TokenSpan]:
    """For each middle in its gap the tokens of middle and ending, as a forward model reads them.

    A token that straddles the beginning's end belongs to the middle.
    """
    texts = [f"{gap.beginning}{text}{gap.ending}" for gap, text in middles]
    encodings = lm.tokenizer.encode_batch(texts)
    for (gap, _), encoding in zip(middles, encodings, strict=True):
        ids = lm.add_special_tokens(encoding.ids)
        first = sum(1 for _, end in encoding.offsets if end <= len(gap.beginning))
        opening = len(lm.bos_ids)
        yield TokenSpan(ids, opening + first, opening + len(encoding.ids))
