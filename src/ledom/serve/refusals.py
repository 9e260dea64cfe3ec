"""Error responses: a status and one line, in the JSON form that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from ledom.core.errors import InputError, LedomError, ServerError
from ledom.serve.batching import Closing, Overloaded

__all__ = ["ERRORS", "ErrorBody", "ErrorDetail", "Refusal", "refusal_of"]

_RFC_9110 = {413: "content_too_large", 422: "unprocessable_content"}
"""Names that Python's `HTTPStatus` has only since 3.13."""


class Refusal(Exception):  # noqa: N818 (an answer)
    """An error response; `message` says what is wrong and how to fix it."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})

    def response(self) -> JSONResponse:
        """The HTTP response. `error.type` is the status in words.

        >>> Refusal(413, "send less").response().body
        b'{"error":{"message":"send less","type":"content_too_large","code":413}}'
        """
        kind = _RFC_9110.get(self.status) or HTTPStatus(self.status).name.lower()
        error = {"message": self.message, "type": kind, "code": self.status}
        return JSONResponse({"error": error}, self.status, self.headers)


def refusal_of(error: Exception) -> Refusal | None:
    """The error response for an exception; None if the exception is a bug.

    >>> refusal_of(InputError("the question is empty")).status, refusal_of(ZeroDivisionError())
    (400, None)
    """
    match error:
        case Refusal():
            return error
        case Overloaded():
            wait = {"Retry-After": str(error.seconds)}
            return Refusal(429, f"{error}; try again in {error.seconds} s", wait)
        case Closing():
            return Refusal(503, str(error), {"Retry-After": "5"})
        case ServerError():
            return Refusal(502, f"the upstream failed: {error}")
        case InputError():
            return Refusal(400, str(error))
        case LedomError():
            return Refusal(500, str(error))
    return None


class ErrorDetail(BaseModel):
    """What is wrong, the status in words, and the status."""

    message: str
    type: str
    code: int


class ErrorBody(BaseModel):
    """The body of an error response."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {of: {"model": ErrorBody} for of in ("4XX", "5XX")}
"""The error responses of all routes, for OpenAPI."""
