"""Take a picture of a report with a browser without a window.

    python docs/picture.py out/demo/report.html docs/report.png

Needs Chromium or Chrome. `make picture` runs the demo first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH, HEIGHT = 1080, 1000
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    f"--window-size={WIDTH},{HEIGHT}",
)


def find_browser() -> str:
    """The first that is installed."""
    for name in BROWSERS:
        if (found := shutil.which(name)) is not None:
            return found
    sys.exit("error: no Chromium or Chrome found; install one (apt-get install chromium)")


def take_picture(page: Path, picture: Path) -> None:
    """Show `page` and write what the window shows to `picture`, a PNG."""
    if not page.is_file():
        sys.exit(f"error: {page} is not there; make it with: make demo")
    # A browser's sandbox does not start for root, as in a container.
    as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as profile:
        command = [find_browser(), *FLAGS, *as_root, f"--user-data-dir={profile}"]
        command += [f"--screenshot={picture.resolve()}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not picture.is_file():
        sys.exit(f"error: the browser took no picture: {done.stderr.strip()[-300:]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    take_picture(options.page, options.picture)
