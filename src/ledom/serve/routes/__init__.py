"""The routes, one file per protocol."""

from ledom.serve.routes import completions, own, reranking, rewards

__all__ = ["ROUTERS"]

ROUTERS = (own.router, rewards.router, reranking.router, completions.router)
