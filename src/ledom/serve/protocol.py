"""uvicorn with time and size limits, without which it waits for a header forever.

Its own errors have the form of all others, and a second signal ends the requests under way.
"""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ledom.serve.refusals import Refusal
from ledom.serve.settings import Limits

__all__ = ["BoundedProtocol", "Uvicorn", "bounded"]

_HEADER_BYTES = 64 * 2**10  # most bytes of a request's header


class BoundedProtocol(HttpToolsProtocol):
    """Aborts a connection whose header is too slow or too long, or whose client stops reading.

    `limits.read_seconds` is the time for a header; `limits.write_seconds` is how long the client
    may leave the buffered answer unread.
    """

    limits: ClassVar[Limits]

    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._start_header_timer()

    def on_headers_complete(self) -> None:
        self._stop_header_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, in JSON."""
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
        """Close the connection after the answer: its parser reads nothing more."""
        self.cycle.keep_alive = False

    def data_received(self, data: bytes) -> None:
        self._header_bytes += len(data) if self._header_timer else 0
        super().data_received(data)
        if self._header_timer and self._header_bytes > _HEADER_BYTES:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def _start_write_timer(self, unread: int) -> None:
        self._stop_write_timer()
        seconds = self.limits.write_seconds
        self._write_timer = self.loop.call_later(seconds, self._abort_if_stuck, unread)

    def _abort_if_stuck(self, unread_before: int) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread < unread_before:
            self._start_write_timer(unread)
        else:
            self.transport.abort()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_bytes = 0
            seconds = self.limits.read_seconds
            self._header_timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def bounded(limits: Limits) -> type[BoundedProtocol]:
    """The protocol with these limits, as a class, because uvicorn expects one.

    >>> bounded(Limits(read_seconds=3)).limits.read_seconds
    3.0
    """

    class Limited(BoundedProtocol):
        pass

    Limited.limits = limits
    return Limited


class Uvicorn(uvicorn.Server):
    """uvicorn's server, whose requests under way get a 503 at a second signal."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            super().handle_exit(sig, frame)
            return
        for task in list(self.server_state.tasks):
            task.get_loop().call_soon_threadsafe(task.cancel)
