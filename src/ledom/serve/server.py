"""The server on a port: uvicorn around the app, with limits that uvicorn lacks.

On SIGTERM or Ctrl-C it takes no new requests, finishes those in progress, and exits. A second
signal ends those too.
"""

from __future__ import annotations

import resource
import socket
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from ledom.core.errors import InputError, needs_extra
from ledom.serve.settings import Settings

if TYPE_CHECKING:
    import uvicorn

    from ledom.serve.service import Service

__all__ = ["Server", "require_extra"]

_BACKLOG = 2048
_GRACE_SECONDS = 30
_OTHER_FILES = 256  # files that the process may have open besides its connections


def require_extra() -> None:
    """Raise `MissingExtraError` if a package of the extra `serve` is not installed."""
    for package in ("fastapi", "httptools", "prometheus-client", "uvicorn"):
        with needs_extra(package, "serve"):
            import_module(package.replace("-", "_"))


class Server:
    """A server that holds its port from the start, and answers on it once it runs.

    Raises `InputError` if the port is taken. Clients cannot connect before `listen` or `run`.
    """

    def __init__(self, settings: Settings) -> None:
        settings.check()
        self._settings = settings
        self._socket = _bind(settings.host, settings.port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{_address(settings.host, self.port)}"
        self._server: uvicorn.Server | None = None

    def listen(self) -> None:
        """Let clients connect; raises `InputError` if another program now listens on the port."""
        try:
            self._socket.listen(_BACKLOG)
        except OSError as error:
            raise _cannot_listen(self._settings.host, self.port, error) from None

    def run(self, service: Service) -> None:
        """Serve until a signal arrives or `stop` is called."""
        import uvicorn

        from ledom.serve.app import make_app
        from ledom.serve.protocol import BoundedProtocol, Uvicorn

        limits = self._settings.limits
        connections = limits.max_connections or max(1024, 2 * limits.max_waiting)
        _allow_open_files(connections + _OTHER_FILES)
        config = uvicorn.Config(
            make_app(service),
            http=partial(BoundedProtocol, limits),  # type: ignore[arg-type]
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            limit_concurrency=connections,
            timeout_keep_alive=max(1, round(limits.read_seconds)),
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self._server = Uvicorn(config)
        with self._socket:
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Finish the requests in progress and exit. Any thread may call this."""
        if self._server is not None:
            self._server.should_exit = True

    def close(self) -> None:
        """Release the port of a server that does not run."""
        self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    """A socket that is bound to the port, and does not listen yet."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host.removeprefix("[").removesuffix("]"), port))
    except OSError as error:
        bound.close()
        raise _cannot_listen(host, port, error) from None
    return bound


def _allow_open_files(count: int) -> None:
    """Raise the limit on open files, which is often 1024, to `count`, or as far as is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = count if hard == unlimited else min(count, hard)
    if soft != unlimited and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _cannot_listen(host: str, port: int, error: OSError) -> InputError:
    return InputError(
        f"cannot listen on {_address(host, port)}: {error.strerror or error}; give another --port "
        "or --host"
    )


def _address(host: str, port: int) -> str:
    """Host and port as in a URL.

    >>> _address("127.0.0.1", 80), _address("::1", 80)
    ('127.0.0.1:80', '[::1]:80')
    """
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
