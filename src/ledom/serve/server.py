"""The server on a port: uvicorn around the app, with limits on what it leaves open.

On SIGTERM or Ctrl-C it takes no new requests, finishes those that it has, and ends.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from ledom.core.errors import InputError, MissingExtraError
from ledom.serve.settings import Limits, Settings

if TYPE_CHECKING:
    from ledom.serve.service import Service

__all__ = ["Server", "require_extra"]

_HEAD_BYTES = 64 * 2**10  # most bytes of a request's head
_BACKLOG = 2048
_GRACE_SECONDS = 30


def require_extra() -> None:
    """Raise `MissingExtraError` where what a server needs is not installed."""
    try:
        import fastapi  # noqa: F401
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from None


class Server:
    """A service on a port of this machine. Raises `InputError` for one that is taken."""

    def __init__(self, service: Service, settings: Settings) -> None:
        import uvicorn

        from ledom.serve.app import make_app

        settings.check()
        self.service = service
        self._socket = _listen(settings.host, settings.port)
        self.port: int = self._socket.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{self.port}"
        limits = settings.limits
        config = uvicorn.Config(
            make_app(service),
            http=_protocol(limits),
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=limits.max_connections,
            timeout_keep_alive=max(1, round(limits.read_seconds)),
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self._server = uvicorn.Server(config)

    @property
    def started(self) -> bool:
        """Whether it answers."""
        return self._server.started

    def run(self) -> None:
        """Serve until a signal comes, or `stop` is called."""
        with self._socket:
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Finish what is under way and end; from any thread."""
        self._server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port or "
            "--host"
        ) from None


def _protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which by itself waits forever for a request's head."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class BoundedHead(HttpToolsProtocol):
        """Ends a connection whose next request's head is too slow or too long, and one whose
        client does not read.
        """

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
            self._unread = self.loop.call_later(limits.write_seconds, self._end_unread, size)

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
                self._timer = self.loop.call_later(limits.read_seconds, self.transport.abort)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return BoundedHead
