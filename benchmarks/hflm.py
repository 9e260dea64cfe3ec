"""lm-evaluation-harness's HFLM on spans of ledom's: the peer of scoring.py and gpu.py."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from ledom.lm.language_model import LanguageModel, TokenSpan

__all__ = ["HarnessScorer"]


class HarnessScorer:
    """The sum of each span's log-probabilities under a model of transformers."""

    def __init__(
        self, model: PreTrainedModel, lm: LanguageModel, asked: Sequence[TokenSpan]
    ) -> None:
        self.model, self.context = model, lm.context
        self.tokenizer = AutoTokenizer.from_pretrained(lm.name)
        self.requests: list[Any] = []
        """As HFLM takes them: a key, the ids to condition on, the ids to score."""
        for target in asked:
            ids = lm.direction.to_model_order(list(target.ids))
            start, end = lm.direction.span_to_model_order(target.start, target.end, len(ids))
            self.requests.append((("", ""), ids[:start], ids[start:end]))

    def sums(self, batch: int) -> list[float]:
        """In batches of some size."""
        from lm_eval.models.huggingface import HFLM

        # It says each time that it was given a model, between the benchmark's own lines.
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        hflm = HFLM(
            pretrained=self.model,
            tokenizer=self.tokenizer,
            batch_size=batch,
            max_length=self.context,
        )
        return [total for total, _ in hflm._loglikelihood_tokens(self.requests, disable_tqdm=True)]
