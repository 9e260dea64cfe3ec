"""Middleware in front of every route: it limits who may send requests, how much, and how long.

The guard reads the whole body, within its limits, and passes it to the app. It cancels the work
when the client disconnects or the time is up, and drops a client that does not read its answer. It
knows nothing of the routes.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from ledom.core.errors import InputError
from ledom.core.reading import parse_json
from ledom.serve.batching import apart
from ledom.serve.metrics import Metrics
from ledom.serve.refusals import Refusal, refusal_of
from ledom.serve.settings import Settings, is_loopback

__all__ = ["Guard"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_OPEN = ("/healthz",)
_CLIENT_GONE = 499  # never sent: a label for the metrics
_JSON_TYPE = re.compile(r"application/([\w.-]+\+)?json\s*(;.*)?", re.IGNORECASE)
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
]


class _ClientGone(Exception):  # noqa: N818
    """The client closed the connection, or does not read its answer."""


class Guard:
    """ASGI middleware; see the module's docstring."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            exchange = _Exchange(send, self._settings.limits.write_seconds)
            start = time.perf_counter()
            try:
                await self._answer(scope, receive, exchange)
            except _ClientGone:
                exchange.status = exchange.status or _CLIENT_GONE
                if exchange.status != _CLIENT_GONE:
                    raise  # the answer is incomplete: the server closes the connection
            finally:
                self._metrics.request(scope, exchange.status, time.perf_counter() - start)

    async def _answer(
        self, scope: MutableMapping[str, Any], receive: Receive, exchange: _Exchange
    ) -> None:
        try:
            self._check_access(scope)
            body = await self._read(scope, receive)
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

    def _check_access(self, scope: MutableMapping[str, Any]) -> None:
        headers = {key.lower(): value for key, value in scope["headers"]}
        token = self._settings.token
        if token is None:
            # Without a token the server trusts this machine. A foreign web page in a browser here
            # must not reach it under another host name (DNS rebinding).
            host = headers.get(b"host", b"").decode("latin-1")
            name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
            if not is_loopback(name):
                raise Refusal(403, f"host {name!r:.60} is not this machine; use 127.0.0.1")
            return
        if scope["path"] in _OPEN:
            return
        if not hmac.compare_digest(_credential(headers.get(b"authorization", b"")), token.encode()):
            # With Basic, a browser asks for a name and a password itself, so the page works.
            ways = {"WWW-Authenticate": 'Bearer, Basic realm="ledom: the token is the password"'}
            raise Refusal(401, "send the header Authorization: Bearer TOKEN", ways)

    async def _read(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes:
        """The whole body; raises `Refusal` for one that is too large or too slow, or not JSON."""
        limits = self._settings.limits
        too_large = Refusal(413, f"the body is larger than {limits.max_bytes} bytes; send less")
        headers = {key.lower(): value for key, value in scope["headers"]}
        _check_coding(headers)
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limits.max_bytes:
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
            kind = headers.get(b"content-type", b"").decode("latin-1")
            if not _JSON_TYPE.fullmatch(kind):
                raise Refusal(415, f"Content-Type is {kind!r:.60}; send application/json")
            try:
                await apart(len(body), lambda: parse_json(bytes(body)))
            except InputError as error:
                raise Refusal(400, f"the body: {error}") from None
        return bytes(body)

    async def _run(
        self, scope: MutableMapping[str, Any], receive: Receive, exchange: _Exchange, body: bytes
    ) -> None:
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
                raise Refusal(504, f"the request took more than {seconds:g} s; ask for less")
            if not watcher.done():
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


def _check_coding(headers: Mapping[bytes, bytes]) -> None:
    """Raise `Refusal` for a body that is compressed, or that an upgrade makes the parser drop."""
    coding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if coding.strip().lower() != "identity":
        raise Refusal(415, f"Content-Encoding is {coding!r:.60}; send the body uncompressed")
    has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
    options = headers.get(b"connection", b"").lower()
    if b"upgrade" in headers and b"upgrade" in options and has_body:  # the parser drops the body
        raise Refusal(
            400,
            f"Upgrade is {headers[b'upgrade'].decode('latin-1')!r:.60}; send HTTP/1.1 without "
            "this header (curl --http1.1; in Java, HttpClient.Version.HTTP_1_1)",
        )


def _credential(header: bytes) -> bytes:
    """The token in an Authorization header: a bearer token, or the password of basic auth."""
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"basic":
        with suppress(binascii.Error):
            return base64.b64decode(value, validate=True).partition(b":")[2]
    return value if scheme.lower() == b"bearer" else b""


class _Exchange:
    """The outgoing answer: it limits the time per part, and records the status."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send, self._seconds = send, seconds
        self.status = 0
        self.started = asyncio.Event()

    async def send(self, message: Message) -> None:
        """Send a part; raises `_ClientGone` if the client does not receive it in time."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.started.set()
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except (TimeoutError, OSError):
            raise _ClientGone from None
