"""What reports share on their way to a page: cleaning, Markdown, the template, the files.

A report is a JSON object, and its renderings are pure functions of it. The texts in it were written
by models and strangers: they are cleaned of control characters, clipped and escaped here. Nothing
here knows what a report says.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ledom.core.files import write_atomically

__all__ = [
    "LONGEST_TEXT",
    "clean",
    "escape",
    "markdown_table",
    "plain",
    "render_template",
    "write_pages",
]

LONGEST_TEXT = 4000  # characters of any text that a rendering shows

_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # reorder what follows
_SURROGATE = re.compile("[\ud800-\udfff]")


def write_pages(
    folder: Path,
    name: str,
    report: dict[str, Any],
    markdown: Callable[[dict[str, Any]], str],
    html: Callable[[dict[str, Any]], str],
) -> Path:
    """Write NAME.json, NAME.md and NAME.html into `folder`; returns the page's path.

    Numbers that are not finite become null. Raises `OutputError` where the folder cannot be
    written.
    """
    report = plain(report)
    text = json.dumps(report, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    # UTF-8 has no lone surrogates, which a broken token may leave; JSON can spell them out.
    text = _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    contents = {"json": text, "md": markdown(report), "html": html(report)}
    for kind, content in contents.items():
        with write_atomically(folder / f"{name}.{kind}") as out:
            out.write(content)
    return folder / f"{name}.html"


def render_template(
    name: str,
    filters: Mapping[str, Callable[..., str]],
    view: Mapping[str, Any],
    figures: Mapping[str, str],
) -> str:
    """A template of this folder as one page that needs no network and no script.

    `figures` are SVG elements by name, of which empty ones are left out.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,  # optional keys are shown as nothing
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    drawn = {name: Markup(svg) for name, svg in figures.items() if svg}
    return environment.get_template(name).render(view, figures=drawn)


def plain(value: Any) -> Any:
    """A copy of JSON's own types alone; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, which need not be imported to ask
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def clean(value: Any) -> Any:
    """A copy whose texts can be shown: clipped, control characters replaced one for one."""
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    if not isinstance(value, str):
        return value
    clipped = value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + "…"
    return clipped if clipped.isprintable() else "".join(map(_visible, clipped))


def _visible(character: str) -> str:
    if character in "\n\t\r":
        return " " if character == "\r" else character
    hidden = unicodedata.category(character) in ("Cc", "Cs")
    return "\ufffd" if hidden or unicodedata.bidirectional(character) in _TURNS else character


def escape(text: Any) -> str:
    """One line of Markdown that shows `text` as it is, escaping no more than it must."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*|~]|(?<!\w)_|_(?!\w)|^#|\](?=[(\[:])", r"\\\g<0>", text)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(map(escape, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
