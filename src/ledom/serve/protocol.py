"""uvicorn with time and size limits, without which it waits for a header forever.

Its own errors have the same form as all others. A second signal ends the requests in progress.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ledom.serve.refusals import Refusal
from ledom.serve.settings import Limits

__all__ = ["BoundedProtocol", "Uvicorn"]

_HEADER_BYTES = 64 * 2**10  # most bytes of a request's header


class BoundedProtocol(HttpToolsProtocol):
    """Aborts a connection whose header is too slow or too long, or whose client stops reading.

    `limits.read_seconds` is the time for a header; `limits.write_seconds` is how long the client
    may leave the buffered answer unread.
    """

    _header_bytes: int | None = None  # of a header, read so far; None between headers

    def __init__(self, limits: Limits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._header_timer, self._write_timer = _Timer(), _Timer()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._header_timer.stop()
        self._write_timer.stop()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_header()

    def _expect_header(self) -> None:
        if self._header_bytes is None:
            self._header_bytes = 0
            self._header_timer.start(self._limits.read_seconds, self.transport.abort)

    def on_headers_complete(self) -> None:
        self._header_timer.stop()
        self._header_bytes = None
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Like uvicorn's, but in JSON."""
        body = bytes(Refusal(400, "this is not a request in HTTP/1.1").response().body)
        head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Start `app`: the server's, or uvicorn's refusal of one connection too many."""
        if app is not self.app:
            headers = {"Retry-After": "1", "Connection": "close"}
            app = Refusal(503, "too many connections; try again in 1 s", headers).response()
        super()._start_asgi_task(cycle, app)

    def _unsupported_upgrade_warning(self) -> None:
        """Close the connection after the answer, because its parser reads nothing more."""
        self.cycle.keep_alive = False

    def data_received(self, data: bytes) -> None:
        if self._header_bytes is not None:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._header_bytes is not None and self._header_bytes > _HEADER_BYTES:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        self._write_timer.stop()
        super().resume_writing()

    def _expect_reading(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._write_timer.start(self._limits.write_seconds, self._check_reading, unread)

    def _check_reading(self, unread_before: int) -> None:
        if self.transport.get_write_buffer_size() < unread_before:
            self._expect_reading()
        else:
            self.transport.abort()


class _Timer:
    """Calls a function some seconds after its last start, unless it is stopped."""

    _handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(seconds, call, *arguments)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


class Uvicorn(uvicorn.Server):
    """A uvicorn server that answers requests in progress with a 503 on a second signal."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            super().handle_exit(sig, frame)
            return
        for task in list(self.server_state.tasks):
            task.get_loop().call_soon_threadsafe(task.cancel)
