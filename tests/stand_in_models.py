"""A mock model that generates what a test specifies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Generation, Sampling
from ledom.text.tokenizer import Tokenizer

__all__ = ["ScriptedLanguageModel"]


class ScriptedLanguageModel(FakeLanguageModel):
    """Generates `script[prompt][sample number]`; an ellipsis at either end means unfinished."""

    def __init__(
        self, tokenizer: Tokenizer, direction: str, script: Mapping[str, Sequence[str]]
    ) -> None:
        super().__init__(tokenizer, direction)
        self.script = script

    def _draw(self, prompt: str | Generation, sampling: Sampling, sample: int) -> Generation:
        text: Any = self.script[str(prompt)][sample]
        ids = self.tokenizer.encode(text).ids
        return Generation(text, ids, "length" if "..." in (text[:3], text[-3:]) else "stop")
