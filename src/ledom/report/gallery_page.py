"""The page of `ledom gallery`: texts that models wrote, in reading order and in the model's order.

The page is a pure function of the `Gallery`. Its only script steps through the tokens; the page's
content security policy blocks all others. Without scripts, the page shows everything as text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ledom.core.direction import Direction
from ledom.core.files import write_atomically
from ledom.report.formatting import clean, render_template

__all__ = ["Example", "Gallery", "Missing", "Section", "Table", "write_gallery"]


@dataclass(frozen=True)
class Example:
    """A text that a model wrote, and the prompt around it; tokens are in reading order.

    >>> example = Example("an ending", "reverse", [], ["2", " +", " 2"], [" =", " 4"])
    >>> example.read, example.in_model_order, example.steps
    ([' 4', ' ='], [' 2', ' +', '2'], [3, 2, 1])
    """

    label: str
    direction: str
    before: Sequence[str]
    """Given tokens before the written ones."""
    written: Sequence[str]
    after: Sequence[str]
    """Given tokens after the written ones."""

    @property
    def read(self) -> list[str]:
        """The prompt in model order."""
        direction = Direction(self.direction)
        near = self.before if direction is Direction.FORWARD else self.after
        return direction.to_model_order(list(near))

    @property
    def in_model_order(self) -> list[str]:
        """The written tokens in model order, the order of writing."""
        return Direction(self.direction).to_model_order(list(self.written))

    @property
    def steps(self) -> list[int]:
        """The step at which each token of `written` was written, from 1."""
        return Direction(self.direction).to_model_order([*range(1, len(self.written) + 1)])


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first row is the head."""

    caption: str
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """The part of the page about one run."""

    heading: str
    lead: str
    rule: str
    """How the examples were chosen, with the seeds."""
    examples: Sequence[Example] = ()
    tables: Sequence[Table] = ()
    source: str = ""
    """The run's file."""


@dataclass(frozen=True)
class Missing:
    """A section without a run, and the command that creates one."""

    heading: str
    command: str


@dataclass(frozen=True)
class Gallery:
    """The content of the page."""

    title: str
    ledom_version: str
    command: str
    sections: Sequence[Section]
    missing: Sequence[Missing] = field(default_factory=list)


def write_gallery(path: Path, gallery: Gallery) -> Path:
    """Write the page; returns its path. Raises `OutputError` if it cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_gallery(Path(folder, "gallery.html"), Gallery("Title", "0.1.0", "", []))
    ...     page.read_text().startswith("<!doctype html>")
    True
    """
    from markupsafe import Markup

    script = Path(__file__).with_name("templates").joinpath("gallery.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    view = {"report": clean(gallery), "script": Markup(script), "script_hash": f"sha256-{digest}"}
    with write_atomically(path) as out:
        out.write(render_template("gallery.html", view))
    return path
