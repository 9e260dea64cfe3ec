"""A server's metrics for Prometheus; each server has its own registry."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts of requests, batches and tokens; `waiting` returns the texts waiting for a model."""

    def __init__(self, waiting: Callable[[], int] = lambda: 0) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self._requests = counter("ledom_requests", "Requests answered.", ("route", "status"))
        self._seconds = histogram(
            "ledom_request_seconds",
            "Time from a request's header to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
        )
        self._batch_items = histogram("ledom_batch_items", "Texts per batch.", buckets=_ITEMS)
        self._batch_seconds = histogram("ledom_batch_seconds", "Time per batch.", buckets=_SECONDS)
        self._tokens = counter("ledom_tokens", "Tokens scored, generated, drawn.", ("what",))
        gauge = Gauge("ledom_waiting_items", "Texts waiting for a model.", registry=self.registry)
        gauge.set_function(waiting)

    def request(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        """Count a request. Unknown paths share the label `other`, so clients cannot add labels."""
        route = getattr(scope.get("route"), "path", "other")
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, items: int, seconds: float) -> None:
        """Count a batch."""
        self._batch_items.observe(items)
        self._batch_seconds.observe(seconds)

    def tokens(self, what: str, count: int) -> None:
        """Count tokens that were `scored`, `generated` or `drawn_upstream`.

        >>> metrics = Metrics()
        >>> metrics.tokens("scored", 7)
        >>> b'ledom_tokens_total{what="scored"} 7.0' in metrics.text()
        True
        """
        self._tokens.labels(what).inc(count)

    def text(self) -> bytes:
        """All metrics, in Prometheus' format."""
        return generate_latest(self.registry)
