"""The command that serves the reward."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ledom.cli.display import say
from ledom.cli.options import (
    Device,
    Dtype,
    Model,
    Threads,
    model_or_none,
    refuse_unused,
    unused_by_models,
    use_threads,
)
from ledom.cli.rerank import Lambda, MaskCopies, WeightsFile
from ledom.core.errors import InputError

__all__ = ["COMMANDS"]

GATEWAY = "Gateway"
_UPSTREAM = ("upstream_model", "prompt_price", "completion_price")

TOKEN_VARIABLE = "LEDOM_TOKEN"
"""An environment variable: what clients must send. Not an option, which every process can read."""


def serve(
    context: typer.Context,
    forward: Model = "tiny",
    reverse: Model = "tiny",
    strategy: Annotated[
        str | None,
        typer.Option(
            help="The reward: a strategy that scores each answer alone. Default: reverse_reward, "
            "with one model log P(question | answer) or log P(answer | question)."
        ),
    ] = None,
    weights: WeightsFile = None,
    lam: Lambda = None,
    mask_copies: MaskCopies = 8,
    upstream: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=GATEWAY,
            help="Address of an OpenAI-compatible server to draw answers from, such as "
            "http://127.0.0.1:8001/v1 (key in OPENAI_API_KEY). Default: the forward model.",
        ),
    ] = None,
    upstream_model: Annotated[
        str | None,
        typer.Option(rich_help_panel=GATEWAY, help="The model to ask the upstream for."),
    ] = None,
    prompt_price: Annotated[
        float | None,
        typer.Option(min=0, rich_help_panel=GATEWAY, help="Price of a million prompt tokens."),
    ] = None,
    completion_price: Annotated[
        float | None,
        typer.Option(min=0, rich_help_panel=GATEWAY, help="Price of a million written tokens."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help=f"Address to listen on. Other than loopback it needs {TOKEN_VARIABLE}, which "
            "clients then send as a bearer token."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    reports: Annotated[
        Path | None,
        typer.Option(help="Folder of reports, such as out/: the page at / lists its HTML files."),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Texts that may wait for a model; then 429.")
    ] = 4096,
    max_candidates: Annotated[int, typer.Option(min=1, help="Texts per request.")] = 1024,
    max_seconds: Annotated[
        float, typer.Option(min=1, max=86400, help="Seconds per request.")
    ] = 120.0,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Serve the reward to other programs: reinforcement learning, reranking, evaluation.

    Example: ledom serve --port 8000
    """
    refuse_unused(
        context,
        (weights, f"the weights are those of {weights}", ["lam"]),
        ("none" in (forward, reverse), "it weighs two models, and one is none", ["lam"]),
        (reverse == "none", "only a reverse model uses it", ["mask_copies"]),
        (upstream is None, "there is no --upstream", list(_UPSTREAM)),
        *unused_by_models(forward, reverse),
    )
    if upstream is not None and upstream_model is None:
        raise InputError("--upstream needs --upstream-model: the model to ask it for")
    from ledom.rerank.pipeline import choose_weights
    from ledom.serve.judge import Judge
    from ledom.serve.server import Server, require_extra
    from ledom.serve.settings import Limits, Settings

    require_extra()
    from ledom.serve.service import Service
    from ledom.serve.upstream import Upstream

    limits = Limits(max_waiting=max_waiting, max_candidates=max_candidates, seconds=max_seconds)
    token = os.environ.get(TOKEN_VARIABLE)
    settings = Settings(host=host, port=port, token=token, reports=reports, limits=limits)
    settings.check()
    use_threads(threads)
    tuned = choose_weights(lam, weights, forward, reverse)
    judge = Judge(
        model_or_none(forward, "forward", device, dtype),
        model_or_none(reverse, "reverse", device, dtype),
        strategy,
        tuned,
        mask_copies,
    )
    source = (
        None
        if upstream is None
        else Upstream(
            upstream,
            upstream_model or "",
            os.environ.get("OPENAI_API_KEY"),
            0.9 * max_seconds,
            prompt_price,
            completion_price,
        )
    )
    server = Server(Service(judge, settings, source), settings)
    access = "clients send the token" if token else "only this machine reaches it; no token is set"
    say(f"serving on {server.url}: {access}. Ctrl-C stops it")
    try:
        server.run()
    except KeyboardInterrupt:
        say("stopped; requests under way were finished")


COMMANDS = (serve,)
