"""The self-check after an import: which direction fits a model, and which token is its EOS.

The model reads a few short texts in both directions, in one pass over the weights, one layer at a
time. So even a model larger than the memory can be checked. A few architectures must be in memory
as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer as RustTokenizer
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError
from ledom.model.architectures import longest_text
from ledom.model.foreign.skeleton import read_whole, streamed

__all__ = ["SelfCheck", "check_model"]

TEXTS = (
    "The lighthouse stood at the end of the pier, and every evening the old keeper climbed "
    "its narrow stairs to light the lamp. He had done so for thirty years, and he knew each step.",
    "Water boils at a lower temperature on a mountain than at the sea. The air is thinner there, "
    "so it presses less on the surface, and bubbles of steam can form earlier.",
    "Anna bought three bags of apples with eight apples in each bag. She gave five apples to "
    "her brother. How many apples does she have left? She had 3 * 8 = 24 apples, so 24 - 5 = 19 "
    "are left.",
    "To make bread, mix flour, water, salt and yeast, and knead the dough for ten minutes. Let it "
    "rest for an hour in a warm place. Then bake it until the crust is brown.",
    "The town council met on Monday to talk about the new bridge. Most of the members were in "
    "favor of the plan, but some asked who would pay for it.",
    "Bees visit flowers to collect nectar and pollen. As they fly from one flower to the next, "
    "they carry pollen with them, and so the plants can make seeds.",
)
"""Whole documents of a few sentences each."""


@dataclass(frozen=True)
class SelfCheck:
    """The result of the self-check."""

    forward_loss: float
    """Nats per token, over all tokens except the first one read in each text."""
    reverse_loss: float
    eos_token: str
    """The most likely special token at the end of a text in model order: after its last word for a
    forward model, before its first word for a reverse model."""
    eos_probability: float
    """The geometric mean of its probability there."""

    def require(self, direction: Direction) -> None:
        """Raise `CheckpointError` if the model reads better in the other direction."""
        losses = {Direction.FORWARD: self.forward_loss, Direction.REVERSE: self.reverse_loss}
        claimed = losses.pop(direction)
        ((other, loss),) = losses.items()
        if not math.isfinite(claimed + loss):
            raise CheckpointError(
                "the model's logits are not finite; its weights are damaged, so fetch them again"
            )
        if not claimed < loss:
            raise CheckpointError(
                f"this does not look like a {direction} model: its loss is {claimed:.2f} nats per "
                f"token {direction} and {loss:.2f} {other}; give --direction {other}, or "
                "--no-check to import it as it is"
            )


@torch.no_grad()
def check_model(
    folder: Path, skeleton: PreTrainedModel, tokenizer: RustTokenizer, direction: Direction
) -> SelfCheck:
    """Read `TEXTS` with the model in a folder, given its skeleton; see `SelfCheck`."""
    context = longest_text(skeleton.config)
    ids = [tokenizer.encode(text, add_special_tokens=False).ids[:context] for text in TEXTS]
    rows = [d.to_model_order(row) for d in Direction for row in ids]
    batch = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for place, row in enumerate(rows):
        batch[place, : len(row)] = torch.tensor(row)  # no text sees the padding after it
    try:
        with streamed(skeleton, folder):
            logits = skeleton(input_ids=batch, use_cache=False).logits.float()
    except Exception:  # an architecture may need weights that are not in memory at that point
        logits = read_whole(skeleton.config, folder)(input_ids=batch, use_cache=False).logits
    losses, ends = [], []
    for row, values in zip(rows, logits, strict=True):
        targets = torch.tensor(row[1:])
        losses.append(cross_entropy(values[: len(row) - 1], targets, reduction="sum").item())
        ends.append(values[len(row) - 1].log_softmax(-1))
    count, half = sum(len(row) - 1 for row in ids), len(ids)
    claimed = ends[:half] if direction is Direction.FORWARD else ends[half:]
    eos, logprob = _likeliest(tokenizer, torch.stack(claimed).mean(0))
    forward, reverse = sum(losses[:half]) / count, sum(losses[half:]) / count
    return SelfCheck(forward, reverse, eos, float(logprob.exp()))


def _likeliest(tokenizer: RustTokenizer, logprobs: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The special token with the largest log-probability, given those of all tokens [V]."""
    tokens = {
        number: token.content
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and number < len(logprobs)
    }
    if not tokens:
        raise CheckpointError(
            "the tokenizer has no special token, so none can end a document; give a tokenizer.json "
            "that has one with --tokenizer"
        )
    best = max(tokens, key=lambda number: float(logprobs[number]))
    return tokens[best], logprobs[best]
