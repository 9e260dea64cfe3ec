"""The server as an ASGI app: its routes behind the guard.

client -> guard (who, how much, how long) -> routes (one file per protocol) -> service -> judge
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from ledom import __version__
from ledom.serve.guard import Guard
from ledom.serve.refusals import ERRORS, Refusal
from ledom.serve.routes import ROUTERS
from ledom.serve.service import Service

__all__ = ["make_app"]


def make_app(service: Service) -> FastAPI:
    """The ASGI app of a service. The app closes the service when it shuts down.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> from ledom.serve.judge import Judge
    >>> from ledom.serve.settings import Settings
    >>> app = make_app(Service(Judge(FakeLanguageModel(), None), Settings()))
    >>> "/rerank" in app.openapi()["paths"]
    True
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="ledom",
        version=__version__,
        description="Rewards, reranking and completions from a pair of language models.",
        lifespan=lifespan,
        responses=ERRORS,
        docs_url=None,  # FastAPI's page loads scripts from other sites
        redoc_url=None,
    )
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(Exception)(_failed)
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    return app


async def _invalid(request: Request, error: Exception) -> Response:
    """The first problem in a body, without its value, which may be large."""
    assert isinstance(error, RequestValidationError)
    # For a union, there are errors for each type: a list that is too long is not a string either.
    # The deepest error belongs to the type that was meant.
    lengths = ("too_long", "too_short")
    first, *others = sorted(
        error.errors(), key=lambda one: (one["type"] not in lengths, -len(one["loc"]))
    )
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    more = f" (and {len(others)} more)" if others else ""
    return Refusal(422, f"{where}: {first['msg']}{more}").response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message, headers = str(error.detail), dict(error.headers or {})
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"no route {request.url.path!r:.60}; GET /openapi.json lists them"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        known = headers.get("Allow", "another method")
        message = f"{request.url.path!r:.60} does not accept {request.method:.20}; send {known}"
        headers["Allow"] = known.replace("GET", "GET, HEAD")  # see `Guard`
    return Refusal(error.status_code, message, headers).response()


async def _failed(request: Request, error: Exception) -> Response:
    """The response to an internal error, without details, which are only in the log."""
    return Refusal(500, "internal error; see the server's log").response()
