"""Whether questions are like those that the embedded pair was trained on, by their loss under it.

The pair knows 75 templates of school problems and nothing else: on another text it still prefers
one answer, confidently, and that means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ledom.core.records import Score
from ledom.lm import embedded_folder
from ledom.lm.language_model import LanguageModel

__all__ = ["FAMILIAR_LOSS", "unfamiliar"]

FAMILIAR_LOSS = 1.0
"""Nats per token of a question, given the best of its answers. Of 480 unseen problems of the
templates none is above 0.49; of 60 of other templates none is below 7.8, of 60 of GSM8K none below
1.5."""


def unfamiliar(lm: LanguageModel | None, scores: Sequence[Score]) -> str | None:
    """A warning where at least half of the questions are unlike the embedded model's training.

    None for other models, and without scores log P(x|y).
    """
    if lm is None or lm.name != str(embedded_folder(lm.direction)):
        return None
    losses: dict[str, float] = {}
    for score in scores:
        if score.target == "x|y":
            loss = -score.logprob / max(1, score.num_tokens)
            losses[score.problem_id] = min(loss, losses.get(score.problem_id, loss))
    if not losses or (loss := median(losses.values())) <= FAMILIAR_LOSS:
        return None
    return (
        f"unlike anything that the embedded model was trained on (loss {loss:.1f} nats per token "
        f"of the question; at most {FAMILIAR_LOSS:.1f} on its kind of problem): its preference "
        "means nothing here; use a model of your own"
    )
