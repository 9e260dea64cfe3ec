"""The routes, one file per protocol."""

from ledom.serve.routes import own, reranking

__all__ = ["ROUTERS"]

ROUTERS = (own.router, reranking.router)
