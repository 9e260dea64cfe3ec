r"""The boxes in which a solution puts its answer: \boxed{5}, \fbox{5}."""

from __future__ import annotations

import re

from ledom.text.math.equality import same_meaning

__all__ = ["boxed"]

_MOST_BOXES = 20  # that are joined
_NOT_SPACE = re.compile(r"\S")
_BOXED_OR_BRACE = re.compile(r"\\(?:boxed|fbox|framebox)\s{0,4}\{|\\[\\{}]|[{}]")
_BETWEEN = re.compile(  # $\boxed{3}$ and $x = \boxed{4}$
    r"[\s$\\().,\]\[]{0,9}(?:\\text\{\s?)?(and|or|,)\s?\}?[\s$\\()\[]{0,9}(?:[A-Za-z]\s?=\s?)?"
)


def boxed(text: str) -> str | None:
    r"""The content of the last box that has any, braces nested; None without one.

    >>> boxed(r"$x = \boxed{3}$ and $x = \boxed{\frac{1}{2}}$"), boxed("3")
    ('3, \\frac{1}{2}', None)
    """
    starts: list[int | None] = []  # where each open box begins; None for a plain open brace
    boxes: list[tuple[int, int]] = []
    for match in _BOXED_OR_BRACE.finditer(text):
        if match[0] == "}" and starts:
            start = starts.pop()
            if start is not None and _NOT_SPACE.search(text, start, match.start()):
                boxes.append((start, match.start()))
        elif match[0] == "{":
            starts.append(None)
        elif len(match[0]) > 2:  # a box
            starts.append(match.end())
    return _joined(text, boxes) if boxes else None


def _joined(text: str, boxes: list[tuple[int, int]]) -> str:
    r"""The content of the last box, and of boxes joined to it: \boxed{3} and \boxed{4}."""
    (start, end), link = boxes.pop(), ""
    parts = [text[start:end].strip()]
    while boxes and len(parts) < _MOST_BOXES:
        first, last = boxes.pop()
        opening = text.rfind("\\", last, start)
        between = _BETWEEN.fullmatch(text, last + 1, opening) if opening > last else None
        if between is None:
            break
        link, start = "or" if "or" in (link, between[1]) else "and", first
        parts.insert(0, text[first:last].strip())
    if link == "or" and all(same_meaning(part, parts[-1]) for part in parts):
        return parts[-1]
    return (", " if link == "and" else " or ").join(parts)
