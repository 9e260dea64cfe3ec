"""The settings of samples are checked before any work."""

from __future__ import annotations

import pytest

from ledom.core.errors import InputError
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Sampling


def test_sampling_settings_are_checked() -> None:
    for bad in ({"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"max_tokens": 0}, {"seed": -1}):
        with pytest.raises(InputError, match=next(iter(bad))):
            Sampling(**bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="temperature"):
        Sampling(temperature=float("nan"))
    for name in ("temperature", "top_p", "top_k", "max_tokens", "seed"):
        for value in (True, "1", None, [1]):
            with pytest.raises(InputError, match=rf"{name} is .*; it must be a (whole )?number"):
                Sampling(**{name: value})
    for name in ("top_k", "max_tokens", "seed"):
        with pytest.raises(InputError, match=f"{name} is 1.0; it must be a whole number"):
            Sampling(**{name: 1.0})  # type: ignore[arg-type]
    for bad_pattern in ("(", b"x"):
        with pytest.raises(InputError, match="stop_pattern .* is not a regular expression"):
            Sampling(stop_pattern=bad_pattern)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="confidence is 5; give ConfidenceSettings, or None"):
        Sampling(confidence=5)  # type: ignore[arg-type]


def test_a_long_prompt_without_spaces_is_quoted_by_its_start() -> None:
    with pytest.raises(InputError, match="the prompt '數{60}' has 301 tokens; .* shorten it"):
        FakeLanguageModel(context=8).prompt_ids("數" * 100, max_tokens=1)
