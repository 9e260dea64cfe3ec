"""The routes, one file per protocol."""

from ledom.serve.routes import completions, gateway, own, reranking, rewards

__all__ = ["ROUTERS"]

ROUTERS = (own.router, rewards.router, reranking.router, completions.router, gateway.router)
