"""Take a picture of a report, or of the page of `ledom serve`, with a browser without a window.

    python docs/picture.py out/demo/report.html docs/report.png
    python docs/picture.py serve docs/page.png

Needs Chromium or Chrome. `make pictures` runs the demo first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
COLORS = 128  # of a picture: smooth text, in a third of the bytes
WIDTH, REPORT_HEIGHT, PAGE_HEIGHT = 1080, 1000, 940
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--virtual-time-budget=10000",  # milliseconds for scripts to end
)


def find_browser() -> str:
    """The first that is installed."""
    for name in BROWSERS:
        if (found := shutil.which(name)) is not None:
            return found
    sys.exit("error: no Chromium or Chrome found; install one (apt-get install chromium)")


@contextmanager
def served_page() -> Iterator[str]:
    """The address of the page, served by the embedded pair."""
    import ledom
    from ledom.serve.judge import Judge
    from ledom.serve.server import Server
    from ledom.serve.service import Service
    from ledom.serve.settings import Settings

    judge = Judge(ledom.load("tiny", "forward"), ledom.load("tiny", "reverse"))
    settings = Settings(port=0)
    server = Server(settings)
    server.listen()  # requests wait until it runs
    thread = threading.Thread(target=server.run, args=[Service(judge, settings)], daemon=True)
    thread.start()
    yield server.url
    server.stop()
    thread.join(30)


def take_picture(address: str, picture: Path, height: int) -> None:
    """Show what is at an address and write what the window shows to `picture`, a PNG."""
    # A browser's sandbox does not start for root, as in a container.
    as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as profile:
        command = [find_browser(), *FLAGS, *as_root, f"--user-data-dir={profile}"]
        command += [f"--window-size={WIDTH},{height}"]
        command += [f"--screenshot={picture.resolve()}", address]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not picture.is_file():
        sys.exit(f"error: the browser took no picture: {done.stderr.strip()[-300:]}")
    with Image.open(picture) as image:
        small = image.convert("RGB").quantize(COLORS)
    small.save(picture, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", help="a report, or serve")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    if options.page == "serve":
        with served_page() as url:
            take_picture(url, options.picture, PAGE_HEIGHT)
    elif Path(options.page).is_file():
        address = Path(options.page).resolve().as_uri()
        take_picture(address, options.picture, REPORT_HEIGHT)
    else:
        sys.exit(f"error: {options.page} is not there; make it with: make demo")
