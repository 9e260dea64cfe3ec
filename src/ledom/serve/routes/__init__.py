"""The routes, one file per protocol."""

from ledom.serve.routes import completions, gateway, own, page, reranking, rewards

__all__ = ["ROUTERS"]

_MODULES = (page, own, rewards, reranking, completions, gateway)
ROUTERS = tuple(module.router for module in _MODULES)
