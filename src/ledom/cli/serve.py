"""The command that serves the reward."""

from __future__ import annotations

import os
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledom.cli import options
from ledom.cli.display import log
from ledom.cli.inputs import models_or_none
from ledom.core.errors import InputError
from ledom.serve.settings import Limits, Settings

if TYPE_CHECKING:
    from ledom.serve.server import Server
    from ledom.serve.service import Service

_gateway_option = partial(typer.Option, rich_help_panel="Gateway")
_DEFAULTS = Settings()
_UPSTREAM = ("upstream_model", "prompt_price", "completion_price")

TOKEN_VARIABLE = "LEDOM_TOKEN"
"""The variable with the token that clients must send; other processes can read a command line."""

Strategy = Annotated[
    str | None,
    typer.Option(
        help="The reward: a strategy that scores each answer alone. Default: reverse_reward; with "
        "one model, its log P(question | answer) or log P(answer | question)."
    ),
]
EmptyReward = Annotated[
    float | None,
    typer.Option(
        min=-1e9,
        max=1e9,
        help="Reward of an empty answer, or of a thought that was cut off. Default: that of an "
        "empty text, which can be the highest of all.",
    ),
]
UpstreamAddress = Annotated[
    str | None,
    _gateway_option(
        "--upstream",
        help="Address of an OpenAI-compatible server to draw answers from, such as "
        "http://127.0.0.1:8001/v1 (key in OPENAI_API_KEY). Default: the forward model.",
    ),
]
UpstreamModel = Annotated[
    str | None, _gateway_option(help="Model name to request from the upstream.")
]
PromptPrice = Annotated[
    float | None, _gateway_option(min=0, max=1e9, help="Price per million prompt tokens.")
]
CompletionPrice = Annotated[
    float | None, _gateway_option(min=0, max=1e9, help="Price per million completion tokens.")
]
Host = Annotated[
    str,
    typer.Option(
        help=f"Address to listen on. Any but loopback requires a token in {TOKEN_VARIABLE}, which "
        "clients send as a bearer token."
    ),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on. 0: any free port.")]
Reports = Annotated[
    Path | None,
    options.path_option(
        help="Folder of reports, such as out/: the page at / lists its HTML files."
    ),
]
MaxWaiting = Annotated[
    int,
    options.count_option(
        help="Maximum number of texts waiting for a model; beyond it, status 429."
    ),
]
MaxCandidates = Annotated[
    int, typer.Option(min=1, max=options.MOST_SAMPLES, help="Maximum number of texts per request.")
]
MaxSeconds = Annotated[float, typer.Option(min=1, max=86400, help="Maximum seconds per request.")]


def serve(
    context: typer.Context,
    forward: options.ModelOrNone = "tiny",
    reverse: options.ModelOrNone = "tiny",
    strategy: Strategy = None,
    weights: options.WeightsFile = None,
    lam: options.Lambda = None,
    mask_copies: options.MaskCopies = 8,
    empty_reward: EmptyReward = None,
    upstream: UpstreamAddress = None,
    upstream_model: UpstreamModel = None,
    prompt_price: PromptPrice = None,
    completion_price: CompletionPrice = None,
    host: Host = _DEFAULTS.host,
    port: Port = _DEFAULTS.port,
    reports: Reports = None,
    max_waiting: MaxWaiting = _DEFAULTS.limits.max_waiting,
    max_candidates: MaxCandidates = _DEFAULTS.limits.max_candidates,
    max_seconds: MaxSeconds = _DEFAULTS.limits.seconds,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Serve the reward to other programs: reinforcement learning, reranking, evaluation.

    Example: ledom serve --port 8000
    """
    fixed = strategy is not None and not _is_interpolated(strategy)
    options.refuse_unused(
        context,
        (fixed, f"the strategy {strategy} does not weigh two models", ["lam"]),
        (upstream is None, "there is no --upstream", _UPSTREAM),
        *options.unused_by_pair(weights, forward, reverse, "mask_copies"),
    )
    if upstream is not None and upstream_model is None:
        raise InputError("--upstream needs --upstream-model, the model name to request from it")
    from ledom.rerank.weights import choose_weights
    from ledom.serve.server import Server, require_extra

    require_extra()
    from ledom.serve.judge import Judge
    from ledom.serve.service import Service
    from ledom.serve.upstream import Upstream

    limits = Limits(max_waiting=max_waiting, max_candidates=max_candidates, seconds=max_seconds)
    token = os.environ.get(TOKEN_VARIABLE)
    settings = Settings(host=host, port=port, token=token, reports=reports, limits=limits)
    source = None
    if upstream is not None:
        key, prices = os.environ.get("OPENAI_API_KEY"), (prompt_price, completion_price)
        source = Upstream(upstream, upstream_model or "", key, 0.9 * max_seconds, *prices)
    with closing(Server(settings)) as server:  # takes the port before models are loaded
        tuned = choose_weights(lam, weights, forward, reverse)
        both = models_or_none(forward, reverse, device, dtype)
        judge = Judge(*both, strategy, tuned, mask_copies, empty_reward)
        _serve(server, Service(judge, settings, source))


def _is_interpolated(strategy: str) -> bool:
    """Whether lambda changes the strategy's reward.

    Raises `InputError` for a name that is no strategy for one answer. `Judge` checks this too, but
    only once the models are loaded, which can take minutes.
    """
    from ledom.rerank.strategies import STRATEGIES, Pick

    picks = {name: how for name, how in STRATEGIES.items() if isinstance(how, Pick)}
    if strategy not in picks:
        raise InputError(
            f"strategy {strategy!r:.60} cannot score one answer; choose among: {', '.join(picks)}"
        )
    return picks[strategy].interpolated


def _serve(server: Server, service: Service) -> None:
    server.listen()
    token = service.settings.token
    access = "clients must send the token" if token else "for this machine only, without a token"
    log(f"serving on {server.url}: {access}. Ctrl-C stops it")
    try:
        server.run(service)
    except KeyboardInterrupt:
        log("stopped")
