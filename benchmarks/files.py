"""How many of the package's files one command uses, from the command line to the model.

    python benchmarks/files.py

A file counts if one of its functions is called (`sys.setprofile`). Code that runs at import and
page templates do not count. The fewer files, the less a reader must open to follow a command. The
rooms cli and model are the two ends; the files in the rooms between them are counted separately.
The script also prints the smallest number of 400-line files that could hold the same lines.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from common import new_parser

import ledom
from ledom.cli.app import app

PACKAGE = Path(ledom.__file__).parent
MOST_LINES = 400  # per file
COMMANDS = {
    "rerank": ["rerank", "--num-problems", "2", "--samples", "2", "--max-tokens", "32"],
    "train": [
        "train",
        "tiny",
        "optim.steps=2",
        "data.num_documents=200",
        "data.num_valid=20",
        "train.batch_size=2",
        "--direction",
        "reverse",
    ],
}


def files_touched(arguments: list[str]) -> list[str]:
    """The package's files whose functions a command calls."""
    seen: set[str] = set()

    def record(frame: FrameType, event: str, _: Any) -> None:
        # Module and class bodies run at import; they have no optimized locals.
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            seen.add(frame.f_code.co_filename)

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            app(arguments, standalone_mode=False)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    files = [Path(file) for file in seen if file.endswith(".py")]
    return sorted(str(f.relative_to(PACKAGE)) for f in files if f.is_relative_to(PACKAGE))


def _counted(files: Sequence[str]) -> str:
    """The number of files and lines, and the smallest number of files for these lines."""
    lines = sum((PACKAGE / file).read_text().count("\n") for file in files)
    return f"{len(files)} files of {lines:,} lines (at least {-(-lines // MOST_LINES)})"


def main() -> None:
    new_parser(__doc__).parse_args()
    for name, arguments in COMMANDS.items():
        with tempfile.TemporaryDirectory() as folder:
            files = files_touched([*arguments, "--out", folder])
        between = [file for file in files if not file.startswith(("cli/", "model/"))]
        print(f"{name}: {_counted(files)}; {_counted(between)} between cli and model:")
        print(f"  {' '.join(files)}")


if __name__ == "__main__":
    main()
