"""The server on a port: uvicorn around the app, with limits that uvicorn lacks.

On SIGTERM or Ctrl-C it takes no new requests, finishes those under way, and exits.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from ledom.core.errors import InputError, MissingExtraError
from ledom.serve.settings import Settings

if TYPE_CHECKING:
    from ledom.serve.service import Service

__all__ = ["Server", "require_extra"]

_BACKLOG = 2048
_GRACE_SECONDS = 30


def require_extra() -> None:
    """Raise `MissingExtraError` if a package of the extra `serve` is not installed."""
    try:
        import fastapi  # noqa: F401
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from None


class Server:
    """A service on a port of this machine. Raises `InputError` if the port is taken."""

    def __init__(self, service: Service, settings: Settings) -> None:
        import uvicorn

        from ledom.serve.app import make_app
        from ledom.serve.protocol import bounded

        settings.check()
        self.service = service
        self._socket = _listen(settings.host, settings.port)
        self.port: int = self._socket.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{self.port}"
        limits = settings.limits
        config = uvicorn.Config(
            make_app(service),
            http=bounded(limits),
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
        """Whether the server answers requests."""
        return self._server.started

    def run(self) -> None:
        """Serve until a signal arrives or `stop` is called."""
        with self._socket:
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Finish the requests under way and exit. Any thread may call this."""
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
