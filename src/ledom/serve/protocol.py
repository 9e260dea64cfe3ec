"""uvicorn's protocol with limits: on its own it waits forever for a request's head."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ledom.serve.settings import Limits

__all__ = ["BoundedHead", "bounded"]

_HEAD_BYTES = 64 * 2**10  # most bytes of a request's head


class BoundedHead(HttpToolsProtocol):
    """Ends a connection whose request head is too slow or too long, or that is not read from."""

    limits: ClassVar[Limits]

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._stop_watching()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._start()

    def on_headers_complete(self) -> None:
        self._stop()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data) if self._timer else 0
        super().data_received(data)
        if self._timer and self._head_bytes > _HEAD_BYTES:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def _watch(self, size: int) -> None:
        self._stop_watching()
        self._unread = self.loop.call_later(self.limits.write_seconds, self._end_unread, size)

    def _end_unread(self, before: int) -> None:
        size = self.transport.get_write_buffer_size()
        if size < before:
            self._watch(size)
        else:
            self.transport.abort()

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _start(self) -> None:
        if self._timer is None:
            self._head_bytes = 0
            self._timer = self.loop.call_later(self.limits.read_seconds, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bounded(limits: Limits) -> type[BoundedHead]:
    """The protocol with these limits, as a class, which uvicorn expects.

    >>> bounded(Limits(read_seconds=3)).limits.read_seconds
    3.0
    """

    class Limited(BoundedHead):
        pass

    Limited.limits = limits
    return Limited
