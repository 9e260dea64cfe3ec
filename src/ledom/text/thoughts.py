"""The marks that reasoning models write around a thought, in one form."""

from __future__ import annotations

import re

__all__ = ["FINAL", "with_tags"]

FINAL = re.compile(  # gpt-oss, Gemma 4, Muse and Command think in other channels
    r"<\|channel\|>final\b(?:[^<]|<\|constrain\|>)*<\|message\|>|<channel\|>"
    r"|to=user<\|message\|>|<\|START_RESPONSE\|>"
)
"""The mark after a thought in another channel."""

_TAGS = {  # Muse, Command, Mistral, Seed-OSS, Kimi, gpt-oss and Gemma 4
    "<think>": re.compile(
        r"to=(?!user\b)\w+<\|message\|>|<\|START_THINKING\|>|\[THINK\]|<seed:think>|◁think▷|<thinking>"
        r"|<\|channel\|>analysis<\|message\|>|<\|channel>thought\b"
    ),
    "</think>": re.compile(
        rf"<\|END_THINKING\|>|\[/THINK\]|</seed:think>|◁/think▷|</thinking>|{FINAL.pattern}"
    ),
}


def with_tags(text: str) -> str:
    """A text with `<think>` and `</think>` around its thought, whatever the model's own marks.

    >>> with_tags("[THINK]3 + 4[/THINK]It is 7.")
    '<think>3 + 4</think>It is 7.'
    """
    for tag, mark in _TAGS.items():
        text = mark.sub(tag, text)
    return text
