"""Middleware in front of every route: it limits who may send requests, how much, and how long.

It cancels the work when the client disconnects or the time is up. It does not know the routes.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import re
import time
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledom.core.errors import InputError
from ledom.core.reading import parse_json
from ledom.serve.batching import apart
from ledom.serve.metrics import Metrics
from ledom.serve.refusals import Refusal, refusal_of
from ledom.serve.settings import Settings, is_loopback

__all__ = ["Guard"]

_OPEN = ("/healthz",)
_CLIENT_GONE = 499  # never sent: a label for the metrics
_JSON_TYPE = re.compile(r"application/([\w.-]+\+)?json\s*(;.*)?", re.IGNORECASE)
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
]


class _ClientGone(Exception):  # noqa: N818
    """The client closed the connection."""


class Guard:
    """ASGI middleware; see the module's docstring."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            if scope["method"] == "POST":  # which many clients do not send again after a redirect
                scope = {**scope, "path": scope["path"].rstrip("/")}
            if scope["method"] == "HEAD":  # uvicorn sends no body, by its own scope
                scope = {**scope, "method": "GET"}
            exchange = _Exchange(send)
            start = time.perf_counter()
            try:
                await self._answer(scope, receive, exchange)
            except _ClientGone:
                exchange.status = exchange.status or _CLIENT_GONE
            finally:
                self._metrics.request(scope, exchange.status, time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_access(scope["path"], headers)
            body = await self._read(headers, receive)
            await self._run(scope, receive, exchange, body)
        except _ClientGone:
            raise
        except asyncio.CancelledError:  # the server ends before the answer
            if exchange.status:
                raise
            ending = Refusal(503, "the server is shutting down", {"Retry-After": "5"})
            await ending.response()(scope, receive, exchange.send)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal is None or exchange.status:
                raise
            await refusal.response()(scope, receive, exchange.send)

    def _check_access(self, path: str, headers: Headers) -> None:
        token = self._settings.token
        if token is None:
            # Without a token the server trusts this machine. A foreign web page in a browser here
            # must not reach it under another host name (DNS rebinding). Browsers always send the
            # name; HAProxy's health checks send none.
            host = headers.get("host", "localhost")
            name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
            if not is_loopback(name):
                raise Refusal(
                    403,
                    f"host {name!r:.60} is not this machine; use 127.0.0.1, or start the server "
                    "with a token in LEDOM_TOKEN, which allows any host",
                )
            return
        if path in _OPEN:
            return
        if not hmac.compare_digest(_credential(headers.get("authorization", "")), token.encode()):
            # With Basic, a browser asks for a name and a password itself, so the page works. Chrome
            # ignores a header that names Bearer too.
            ways = {"WWW-Authenticate": 'Basic realm="ledom: the token is the password"'}
            raise Refusal(401, "send the header Authorization: Bearer TOKEN", ways)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body; raises `Refusal` for one that is too large or too slow, or not JSON."""
        limits = self._settings.limits
        too_large = Refusal(413, f"the body is larger than {limits.max_bytes} bytes; send less")
        _check_coding(headers)
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limits.max_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(limits.read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGone
                    body += message.get("body", b"")
                    if len(body) > limits.max_bytes:
                        raise too_large
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Refusal(408, f"the body took more than {limits.read_seconds:g} s") from None
        if body:
            kind = headers.get("content-type", "")
            if not _JSON_TYPE.fullmatch(kind):
                raise Refusal(415, f"Content-Type is {kind!r:.60}; send application/json")
            try:
                await apart(len(body), lambda: parse_json(bytes(body)))
            except InputError as error:
                raise Refusal(400, f"the body: {error}") from None
        return bytes(body)

    async def _run(self, scope: Scope, receive: Receive, exchange: _Exchange, body: bytes) -> None:
        """Run the app; cancel it when the client disconnects or the time is up."""
        gone = asyncio.Event()
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if parts:
                return parts.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        app = asyncio.ensure_future(self._app(scope, replay, exchange.send))
        watcher = asyncio.ensure_future(watch())
        started = asyncio.ensure_future(exchange.started.wait())
        try:
            seconds = self._settings.limits.seconds
            waits = {app, watcher, started}
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not (app.done() or watcher.done() or exchange.status):
                raise Refusal(
                    504,
                    f"the request took more than {seconds:g} s; ask for less, or raise the "
                    "server's --max-seconds",
                )
            await asyncio.wait({app, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not app.done():
                raise _ClientGone
            await app
        finally:
            gone.set()
            for task in (app, watcher, started):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task


def _check_coding(headers: Headers) -> None:
    """Raise `Refusal` for a body that is compressed, or that an upgrade makes the parser drop."""
    coding = headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise Refusal(415, f"Content-Encoding is {coding!r:.60}; send the body uncompressed")
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    options = headers.get("connection", "").lower()
    if "upgrade" in headers and "upgrade" in options and has_body:  # the parser drops the body
        raise Refusal(
            400,
            f"Upgrade is {headers['upgrade']!r:.60}; send HTTP/1.1 without "
            "this header (curl --http1.1; in Java, HttpClient.Version.HTTP_1_1)",
        )


def _credential(header: str) -> bytes:
    """The token in an Authorization header: a bearer token, or the password of basic auth."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "basic":
        with suppress(ValueError):
            return base64.b64decode(value, validate=True).partition(b":")[2]
    return value.encode() if scheme.lower() == "bearer" else b""


class _Exchange:
    """The outgoing answer and its status, 0 before it starts."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.started = asyncio.Event()

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.started.set()
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        await self._send(message)
