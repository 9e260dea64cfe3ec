"""What keyboards and screen readers need from a page."""

from __future__ import annotations

import re


def check_reachable(page: str) -> None:
    """Check that everything that scrolls is focusable and named, and every figure is named once."""
    scrolling = re.findall(r'<(?:div class="scroll"|figure|pre|p class="solution")[^>]*>', page)
    assert len(scrolling) > 4
    assert [tag for tag in scrolling if 'tabindex="0"' not in tag and "picture" not in tag] == []
    assert all(re.search('aria-label="[^"]+"', tag) for tag in scrolling if "scroll" in tag)
    names = re.findall(r'aria-labelledby="([^"]*)"', page)
    assert len(names) >= page.count("<svg ") > 0
    assert [name for name in names if page.count(f'id="{name}"') != 1] == []
