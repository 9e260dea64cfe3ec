"""What the backends of models on servers share."""

from __future__ import annotations

import time

import pytest

from ledom.core.errors import InputError
from ledom.lm.backends.remote import RateLimit


def test_requests_start_at_the_allowed_rate() -> None:
    limit = RateLimit(50.0)
    started = time.monotonic()
    for _ in range(6):
        limit.wait()
    assert time.monotonic() - started >= 5 / 50
    with pytest.raises(InputError, match="requests_per_second is 0"):
        RateLimit(0)
