"""A server on a real port, for tests of clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ledom.serve.judge import Judge
from ledom.serve.server import Server
from ledom.serve.service import Service
from ledom.serve.settings import Limits, Settings


@contextmanager
def running(judge: Judge, limits: Limits, reports: Path | None = None) -> Iterator[Server]:
    """A server on a free port, in a thread; it must end when it is told to."""
    settings = Settings(port=0, limits=limits, reports=reports)
    server = Server(Service(judge, settings), settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
