"""The settings of a server: its address, its token, and its limits."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from pydantic import Field

from ledom.core.errors import InputError
from ledom.core.options import check_secret
from ledom.core.reading import Config

__all__ = ["Limits", "Settings", "is_loopback"]


class Limits(Config):
    """Limits per request, and on all requests together."""

    max_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Bytes of a request's body; 4 MiB."""
    max_candidates: int = Field(default=1024, ge=1)
    """Texts to score, or to draw, per request."""
    max_tokens: int = Field(default=2**18, ge=1)
    """Tokens to score per request, over all its texts."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Tokens to generate per text."""
    seconds: float = Field(default=120.0, gt=0)
    """Time for a request, from its first byte to the start of the answer."""
    read_seconds: float = Field(default=20.0, gt=0)
    """Time to send a request's header, and again its body."""
    write_seconds: float = Field(default=20.0, gt=0)
    """Time that a client may leave an answer unread."""
    max_waiting: int = Field(default=4096, ge=1)
    """Texts that may wait for a model; requests beyond that are refused with 429."""
    max_connections: int | None = Field(default=None, ge=1)
    """Concurrent connections; further ones get a 503. Default: twice `max_waiting`, at least 1024,
    as trainers send each text over its own connection."""
    batch_seconds: float = Field(default=0.05, gt=0)
    """Target time of a batch; about how long a small request waits behind a large one."""


class Settings(Config):
    """Where a server listens, and what it requires and allows."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes any free port."""
    token: str | None = None
    """What a client must send as `Authorization: Bearer TOKEN`, or a browser as the password."""
    reports: Path | None = None
    """A folder whose HTML files the page lists and shows."""
    limits: Limits = Limits()

    def check(self) -> None:
        """Raise `InputError` if other machines could use the server without a token.

        >>> Settings(host="0.0.0.0").check()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ledom.core.errors.InputError: host is '0.0.0.0', and without a token anyone who reaches ...
        """
        if self.token is not None:
            check_secret("the token in LEDOM_TOKEN", self.token)
        if self.reports is not None and not self.reports.is_dir():
            raise InputError("is not a folder; give one with reports", path=self.reports)
        if self.token is None and not is_loopback(self.host):
            raise InputError(
                f"host is {self.host!r}, and without a token anyone who reaches it could use the "
                "server; set LEDOM_TOKEN, or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host of that name, in any case, also with a final dot.

    >>> is_loopback("127.0.0.1"), is_loopback("LocalHost."), is_loopback("[::1]")
    (True, True, True)
    >>> is_loopback("0.0.0.0")
    False
    """
    host = host.lower().removesuffix(".")
    if host == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
