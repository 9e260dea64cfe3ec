"""Formats numbers and intervals the same way everywhere; JSON, Markdown and HTML of all reports.

A rendering is a pure function of its report. Texts in a report are untrusted, so they are clipped
and escaped here, and their control characters are replaced.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ledom.core.files import write_atomically
from ledom.core.reading import JsonObject
from ledom.report.results import Interval

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "MISSING",
    "accuracy",
    "bounds",
    "byte_count",
    "clean",
    "count",
    "difference",
    "interval",
    "number",
    "percent",
    "render_template",
    "to_json",
    "verdict",
    "write_pages",
]

LONGEST_TEXT = 4000  # characters of any text that a rendering shows
MISSING = "\N{EN DASH}"
"""Stands for an unknown number."""

_ROUNDING = 1e-9  # by which a sum of shares may be wrong
_BIDI_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional classes of the characters that reorder the text after them."""
_SURROGATE = re.compile("[\ud800-\udfff]")

T = TypeVar("T")


def number(value: float | None, digits: int = 2, sign: str = "-") -> str:
    """A number with `digits` decimals; a dash if it is unknown or infinite.

    >>> number(1.5), number(0.256, 1, "+"), number(-0.04, 1)
    ('1.50', '+0.3', '0.0')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    value = round(value, digits) or 0.0  # not -0.0
    return f"{value:{sign if value else '-'}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float | None) -> str:
    """A share in percent.

    >>> percent(0.4734)
    '47.3'
    """
    return number(None if share is None else 100 * share, 1)


def accuracy(found: Interval | None) -> str:
    """A share in percent, with the wider side of its interval.

    Both bounds are shown where that side would leave 0 to 100, and for a share that is itself one
    of the bounds, such as 0 of 79.

    >>> accuracy(Interval(0.473, 0.451, 0.49)), accuracy(Interval(0.033, 0.0, 0.1))
    ('47.3 ± 2.2', '3.3 [0.0, 10.0]')
    """
    if found is None:
        return MISSING
    margin = max(found.high - found.mean, found.mean - found.low)
    least, most = found.mean - margin, found.mean + margin
    outside = least < -_ROUNDING or most > 1 + _ROUNDING
    if found.low < found.high and (outside or found.mean in (found.low, found.high)):
        return _in_percent(found)
    return f"{percent(found.mean)} ± {percent(margin)}"


def difference(found: Interval | None) -> str:
    """A difference of two shares in percentage points, with its interval.

    >>> difference(Interval(0.061, 0.011, 0.1))
    '+6.1 [+1.1, +10.0]'
    """
    return MISSING if found is None else _in_percent(found, "+")


def _in_percent(found: Interval, sign: str = "-") -> str:
    return interval(Interval(100 * found.mean, 100 * found.low, 100 * found.high), 1, sign)


def interval(found: Interval, digits: int = 3, sign: str = "-") -> str:
    """A mean with its bounds.

    >>> interval(Interval(0.642, 0.631, 0.653))
    '0.642 [0.631, 0.653]'
    """
    mean, low, high = number(found.mean, digits, sign), *bounds(found, digits, sign)
    return mean if MISSING in (low, high) else f"{mean} [{low}, {high}]"


def bounds(found: Interval, digits: int, sign: str = "-") -> tuple[str, str]:
    """The bounds of an interval; one that is not 0 gets the decimals that show its sign.

    >>> bounds(Interval(3.7, 0.04, 7.3), 1)
    ('0.04', '7.3')
    """
    shown = []
    for value in (found.low, found.high):
        places = digits
        if math.isfinite(value) and abs(value) > _ROUNDING and round(value, digits) == 0:
            places = -math.floor(math.log10(abs(value)))
        shown.append(number(value, places, sign))
    return shown[0], shown[1]


def verdict(found: Interval) -> str:
    """`better` or `worse` if the interval of a difference excludes zero, else `open`.

    Rounding may move a bound that is zero: the sum of 0.1, 0.2 and -0.3 is not exactly 0.

    >>> verdict(Interval(0.1, 0.0, 0.2))
    'open'
    """
    return "better" if found.low > _ROUNDING else "worse" if found.high < -_ROUNDING else "open"


def count(value: float | None) -> str:
    """A count: exact below 10,000, else with three digits and a unit.

    >>> count(2346), count(20_000), count(7.79e9), count(999_600)
    ('2,346', '20k', '7.79B', '1M')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if value < 1e4 else _scaled(value, ("", "k", "M", "B", "T"))


def byte_count(value: float) -> str:
    """A number of bytes, in units of 1000.

    >>> byte_count(15.6e9)
    '15.6 GB'
    """
    return _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def _scaled(value: float, units: Sequence[str]) -> str:
    place = min(int(math.log10(max(value, 1))) // 3, len(units) - 1)
    if place + 1 < len(units) and value >= 999.5 * 1000**place:
        place += 1  # three digits round up to the next unit
    return f"{value / 1000**place:.3g}{units[place]}"


def to_json(value: Any) -> Any:
    """A result as plain JSON values; numbers that are not finite become None.

    A field that has its default (None, False, 0 or an empty text) is left out.

    >>> to_json({"difference": Interval(0.1, float("-inf"), 0.2)})
    {'difference': {'mean': 0.1, 'low': None, 'high': 0.2}}
    """
    if is_dataclass(value):
        found = {f: getattr(value, f.name) for f in fields(value)}
        return {
            f.name.rstrip("_"): to_json(item)  # lambda_, because lambda is a keyword of Python
            for f, item in found.items()
            if f.default is NO_DEFAULT or item != f.default
        }
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):  # a numpy value, recognized without importing numpy
        return to_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_pages(
    folder: Path, name: str, contents: JsonObject, render: Callable[[str], str]
) -> Path:
    """Write `name`.json, `name`.md and `name`.html into `folder`; returns the HTML page's path.

    `render` makes the last two. Raises `OutputError` if the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_pages(Path(folder), "report", {"share": 0.5}, lambda kind: "Half")
    ...     sorted(file.name for file in Path(folder).iterdir()), page.name
    (['report.html', 'report.json', 'report.md'], 'report.html')
    """
    text = json.dumps(contents, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    # A broken token may leave a lone surrogate: UTF-8 cannot encode it, but JSON can escape it.
    text = _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    for kind, content in {"json": text, "md": render("md"), "html": render("html")}.items():
        with write_atomically(folder / f"{name}.{kind}") as out:
            out.write(content)
    return folder / f"{name}.html"


def render_template(
    name: str, view: Mapping[str, Any], figures: Mapping[str, str] | None = None
) -> str:
    """Fill in a template of `templates/` with the variables of `view`; HTML escapes every text.

    `figures` has SVG elements by name, or empty texts. In Markdown, blank lines that follow each
    other become one.

    >>> view = {"report": {"title": "A <b> page"}, "sections": []}
    >>> page = render_template("base.html", view, {})
    >>> page.startswith("<!doctype html>")
    True
    """
    from markupsafe import Markup

    drawn = {name: Markup(svg) for name, svg in (figures or {}).items()}
    text = _templates().get_template(name).render(view, figures=drawn)
    return re.sub("\n{3,}", "\n\n", text).strip() + "\n" if name.endswith(".md") else text


@cache
def _templates() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = (accuracy, byte_count, count, difference, interval, number, percent, verdict)
    environment.filters |= {function.__name__: function for function in (*numbers, markdown_table)}
    environment.filters["markdown"] = escape
    return environment


def clean(value: T) -> T:
    """A copy of a result that is safe to show: texts clipped, control characters replaced.

    >>> clean({"answer": "4\\x1b[31m"})
    {'answer': '4\ufffd[31m'}
    """
    cleaned: Any = value
    if is_dataclass(value) and not isinstance(value, type):
        cleaned = type(value)(**{f.name: clean(getattr(value, f.name)) for f in fields(value)})
    elif isinstance(value, Mapping):
        cleaned = {clean(key): clean(item) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        cleaned = [clean(item) for item in value]
    elif isinstance(value, str):
        clipped = value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + "…"
        cleaned = clipped if clipped.isprintable() else "".join(map(_visible, clipped))
    return cast(T, cleaned)


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
