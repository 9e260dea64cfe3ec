"""Renders results as JSON, Markdown and HTML: the functions that all reports share.

A rendering is a pure function of its report. Texts in a report are untrusted: here they are
clipped and escaped, and their control characters are replaced.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ledom.core.files import write_atomically
from ledom.report import numbers
from ledom.report.results import to_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from jinja2 import Environment

__all__ = [
    "LONGEST_TEXT",
    "clean",
    "escape",
    "markdown_table",
    "render_template",
    "write_pages",
]

LONGEST_TEXT = 4000  # characters of any text that a rendering shows

_BIDI_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional classes of the characters that reorder the text after them."""
_SURROGATE = re.compile("[\ud800-\udfff]")


T = TypeVar("T")


def write_pages(
    folder: Path, name: str, report: DataclassInstance, markdown: str, html: str
) -> Path:
    """Write `name`.json, `name`.md and `name`.html into `folder`; returns the HTML page's path.

    Raises `OutputError` if the folder cannot be written.

    >>> import tempfile
    >>> from ledom.report.results import Interval
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_pages(Path(folder), "report", Interval(0.5, 0.4, 0.6), "# Half", "<p>Half")
    ...     sorted(file.name for file in Path(folder).iterdir()), page.name
    (['report.html', 'report.json', 'report.md'], 'report.html')
    """
    text = json.dumps(to_json(report), ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    # A broken token may leave a lone surrogate: UTF-8 cannot encode it, but JSON can escape it.
    text = _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    for kind, content in {"json": text, "md": markdown, "html": html}.items():
        with write_atomically(folder / f"{name}.{kind}") as out:
            out.write(content)
    return folder / f"{name}.html"


def render_template(name: str, view: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """Fill in a template of `templates/`: one page that needs no network and no script.

    The template reads the variables of `view`. Its filters are the functions of
    `ledom.report.numbers`. `figures` maps names to SVG elements, or to empty strings where there
    is nothing to draw.

    >>> view = {"report": {"title": "A <b> page"}, "sections": []}
    >>> page = render_template("base.html", view, {})
    >>> page.startswith("<!doctype html>")
    True
    """
    from markupsafe import Markup

    drawn = {name: Markup(svg) for name, svg in figures.items()}
    return _templates().get_template(name).render(view, figures=drawn)


@cache
def _templates() -> Environment:
    """The environment that compiles each template once."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(numbers, name) for name in numbers.__all__}
    return environment


def clean(value: T) -> T:
    """A copy of a result that is safe to show: texts clipped, control characters replaced.

    >>> clean({"answer": "4\\x1b[31m"})
    {'answer': '4\ufffd[31m'}
    """
    return cast(T, _cleaned(value))


def _cleaned(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: _cleaned(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, Mapping):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(item) for item in value]
    if not isinstance(value, str):
        return value
    clipped = value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + "…"
    return clipped if clipped.isprintable() else "".join(map(_visible, clipped))


def _visible(character: str) -> str:
    if character in "\n\t\r":
        return " " if character == "\r" else character
    hidden = unicodedata.category(character) in ("Cc", "Cs")
    hidden = hidden or unicodedata.bidirectional(character) in _BIDI_CONTROLS
    return "\ufffd" if hidden else character


def escape(text: object) -> str:
    """One line of Markdown that shows `text` literally, with no more escapes than needed.

    >>> print(escape("a_b *c*"))
    a_b \\*c\\*
    """
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*|~]|(?<!\w)_|_(?!\w)|^#|\](?=[(\[:])", r"\\\g<0>", text)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table; the first row is the head.

    >>> print(markdown_table([["a", "b"], ["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = ["| " + " | ".join(map(escape, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
