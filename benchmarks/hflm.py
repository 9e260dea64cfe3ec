"""lm-evaluation-harness's HFLM on ledom's spans, for comparison in scoring.py and gpu.py."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from ledom.lm.language_model import LanguageModel, TokenSpan

__all__ = ["HarnessScorer"]


class HarnessScorer:
    """Sum the log-probabilities of each span under a transformers model."""

    def __init__(
        self, model: PreTrainedModel, lm: LanguageModel, asked: Sequence[TokenSpan]
    ) -> None:
        self.model, self.context = model, lm.context
        self.tokenizer = AutoTokenizer.from_pretrained(lm.name)
        self.requests: list[Any] = []
        """In HFLM's form and in model order: a key, the ids to condition on, the ids to score."""
        for target in asked:
            ids = lm.direction.to_model_order(list(target.ids))
            start, end = lm.direction.span_to_model_order(target.start, target.end, len(ids))
            self.requests.append((("", ""), ids[:start], ids[start:end]))

    def sums(self, batch: int) -> list[float]:
        """The sum of each span in nats, computed in batches of this many texts."""
        from lm_eval.models.huggingface import HFLM

        # HFLM warns every time it is given a model, which would break up the tables.
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        hflm = HFLM(
            pretrained=self.model,
            tokenizer=self.tokenizer,
            batch_size=batch,
            max_length=self.context,
        )
        return [total for total, _ in hflm._loglikelihood_tokens(self.requests, disable_tqdm=True)]
