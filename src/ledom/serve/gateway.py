"""The gateway: draws candidates from an upstream or from the forward model, and chooses one.

Options come in the model's name, `ledom/STRATEGY,key=value`, or in the body's key `ledom`.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from ledom.core.errors import InputError
from ledom.core.options import key_values
from ledom.core.reading import Config, JsonObject
from ledom.core.records import Candidate, Problem
from ledom.lm import unfamiliar
from ledom.lm.language_model import LanguageModel
from ledom.rerank.candidate_table import CandidateTable, build_candidate_table
from ledom.rerank.weights import TunedWeights, default_weights, preferred_strategy, select
from ledom.serve import writing
from ledom.serve.batching import apart
from ledom.serve.judge import Judge, Judgement, Pair
from ledom.serve.refusals import Refusal
from ledom.serve.service import REWARD, Service
from ledom.serve.upstream import Drawn
from ledom.text.answers import extract_answer

__all__ = ["Chosen", "Options", "choose", "is_gateway"]

_SAMPLES = 8
_TEMPERATURE = 0.7
_MAX_TOKENS = 256


def is_gateway(model: str) -> bool:
    """Whether a request's `model` names the gateway: `ledom/STRATEGY`, with options after commas.

    >>> is_gateway("ledom/auto,n=4"), is_gateway("reverse")
    (True, False)
    """
    return model.split(",")[0].split("/")[0] == REWARD


class Options(Config):
    """How the gateway draws and chooses."""

    strategy: str | None = None
    """A strategy's id, its words joined by - or _; default: the best one available."""
    n: Annotated[int, Field(ge=1)] = _SAMPLES
    """Candidates to draw."""
    lam: Annotated[float | None, Field(ge=0, le=1, alias="lambda")] = None
    """The weight of log P(x|y), in place of tuned weights."""
    model: str | None = None
    """The upstream's model, in place of the server's choice."""

    @classmethod
    def read(cls, model: str, given: Mapping[str, Any] | None, n: int | None) -> Options:
        """Options from a model's name, the body's `n`, and its key `ledom`, which takes precedence.

        The body's `n` is ignored if it is 1, OpenAI's default, because many clients always send it.

        >>> options = Options.read("ledom/vote-all-terms,lambda=0.3", {"n": 4}, n=16)
        >>> options.strategy, options.lam, options.n
        ('vote-all-terms', 0.3, 4)
        """
        name, *written = model.split(",")
        options: JsonObject = {} if n in (None, 1) else {"n": n}
        slug = name.removeprefix(REWARD).removeprefix("/")
        if slug and slug != "auto":
            options["strategy"] = slug
        options |= key_values(written, "model")
        return cls.of(options | dict(given or {}), "options of the gateway")


@dataclass(frozen=True)
class Chosen:
    """The chosen candidate."""

    choice: JsonObject
    """The choice as the upstream sent it."""
    text: str
    tokens: tuple[int, int] | None
    """Tokens read and written for all candidates; None if the upstream does not report them."""
    details: JsonObject
    """How the choice was made, with all candidates; answers send this as `ledom`."""


async def choose(
    service: Service, question: str, options: Options, path: str, body: Mapping[str, Any]
) -> Chosen:
    """Draw candidates for `question` and choose one; `body` is sent to the upstream. Raises
    `Refusal` or `InputError` if a limit is exceeded, the upstream fails, or nothing can choose."""
    start = time.perf_counter()
    if not service.can_draw:
        raise Refusal(
            404,
            f"no model {REWARD}/{options.strategy or 'auto'!s:.60}: the gateway draws answers from "
            "an upstream or a forward model, and this server has neither",
        )
    # The upstream itself limits the length of its texts.
    asked = 1 if service.upstream else body.get("max_tokens") or _MAX_TOKENS
    service.check_writing(options.n, asked)
    # Before anything is drawn, which may cost money.
    if options.n > 1 and body.get("temperature") == 0:
        raise InputError(
            f"the temperature is 0, so all {options.n} candidates would have the same text; send "
            f"one above 0, or draw one: {REWARD}/auto,n=1"
        )
    strategy, weights = _strategy(service.judge, options)
    if options.n > 1 or service.upstream is None:
        await service.check_pairs([Pair(question, "")])
        service.check_room(options.n)
    drawn = await _draw(service, question, options, path, body)
    drawn_seconds = time.perf_counter() - start
    calls = {i: call for i, choice in enumerate(drawn.choices) if (call := _call(choice))}
    candidates = [
        Candidate(problem_id="question", index=place, text=text)
        for place, text in enumerate(drawn.texts)
        if text.strip() and place not in calls
    ]
    if options.n == 1:
        details = _unjudged(0, None)
    elif len(calls) > len(candidates):
        details = _most_frequent(calls, len(drawn.choices))
    elif candidates:
        judged = await service.judge_pairs([Pair(question, c.text) for c in candidates], drawn=True)
        details = await asyncio.to_thread(
            _select, service.judge.reverse, question, candidates, judged, strategy, weights
        )
    elif all(choice.get("finish_reason") == "length" for choice in drawn.choices):
        raise Refusal(400, "no candidate has text within its token limit; send a larger max_tokens")
    else:
        source = "upstream" if service.upstream else "forward model"
        raise Refusal(502, f"the {source} sent no text to choose from")
    details["seconds"] = {
        "drawing": drawn_seconds,
        "choosing": time.perf_counter() - start - drawn_seconds,
    }
    details["cost"] = service.upstream.cost(drawn) if service.upstream else None
    if drawn.tokens is not None:
        what = "drawn_upstream" if service.upstream else "generated"
        service.metrics.tokens(what, drawn.tokens[1])
    place = details["chosen"]
    return Chosen(drawn.choices[place], drawn.texts[place], drawn.tokens, details)


async def _draw(
    service: Service, question: str, options: Options, path: str, body: Mapping[str, Any]
) -> Drawn:
    if service.upstream is not None:
        model = options.model or service.upstream.model
        return await service.upstream.draw(path, {**body, "model": model}, options.n)
    if options.model is not None:
        raise Refusal(
            400,
            "the option model names a model of the upstream, and this server has none; leave it "
            "out",
        )
    lm = service.model("forward")
    prompt = lm.pair_format.before_solution(question)
    read = await apart(len(prompt), lambda: len(lm.prompt_ids(prompt, 1)))
    sampling = writing.sampling_of(body, _TEMPERATURE, min(_MAX_TOKENS, lm.context - read))
    (made,) = await service.compute(lambda: writing.write(lm, [prompt], sampling, options.n))
    kept = [writing.cut_at_stops(g, body.get("stop"), lm.direction) for g in made]
    chat = path.startswith("chat")
    choices: list[JsonObject] = [
        {"finish_reason": g.finish_reason}
        | ({"message": {"role": "assistant", "content": text}} if chat else {"text": text})
        for g in kept
        for text in [lm.pair_format.written_solution(g.text)]
    ]
    return Drawn(choices, (read, writing.num_written(made)))


def _strategy(judge: Judge, options: Options) -> tuple[str | None, TunedWeights]:
    """The id of the strategy that was asked for, if any, and the weights; raises `InputError` if it
    cannot choose, or if a given lambda does not change it."""
    weights = judge.weights if options.lam is None else default_weights(options.lam)
    usable = judge.usable(weights)
    if options.lam is not None:
        usable = {name: strategy for name, strategy in usable.items() if strategy.interpolated}
        if not usable:
            raise InputError(
                "lambda weighs a forward against a reverse model, and this server has only one of "
                "them; leave it out"
            )
    if options.strategy is None:
        return None, weights
    slugs = {_slug(name): name for name in usable}
    if _slug(options.strategy) not in slugs:
        given = "" if options.lam is None else " with a lambda"
        raise InputError(
            f"strategy {options.strategy!r:.60} cannot choose here{given}; choose among: "
            f"{', '.join(slugs)}"
        )
    return slugs[_slug(options.strategy)], weights


def _select(
    reverse: LanguageModel | None,
    question: str,
    candidates: Sequence[Candidate],
    judged: Sequence[Judgement],
    strategy: str | None,
    weights: TunedWeights,
) -> JsonObject:
    """Choose as `ledom rerank` does; returns `Chosen.details`."""
    scores = [
        replace(score, problem_id=candidate.problem_id, index=candidate.index)
        for candidate, judgement in zip(candidates, judged, strict=True)
        for score in judgement.scores.values()
    ]
    table = build_candidate_table([Problem(id="question", question=question)], candidates, scores)
    name = strategy or preferred_strategy(table, weights)
    (selection,) = select(table, candidates, name, weights)
    return {
        "strategy": name,
        "weights": weights.weights.get(name),
        "chosen": selection.index,
        "answer": selection.answer,
        "confidence": selection.confidence,
        "answers": _answers(table, candidates),
        "candidates": [
            {
                "index": candidate.index,
                "text": candidate.text,
                "answer": extract_answer(candidate.text),
                "reward": judgement.reward,
                "logprobs": judgement.logprobs,
                "features": judgement.features,
            }
            for candidate, judgement in zip(candidates, judged, strict=True)
        ],
        "scored_tokens": sum(judgement.num_tokens for judgement in judged),
        "warning": unfamiliar(reverse, scores),
    }


def _call(choice: JsonObject) -> str | None:
    """The tool calls of a choice, as JSON that is the same for equal calls, or its refusal, as with
    OpenAI's structured outputs; None if it has neither.

    >>> _call({"message": {"tool_calls": [{"id": "7", "function": {"arguments": '{"a":1}'}}]}})
    '[{"function": {"arguments": {"a": 1}}}]'
    """
    message = choice.get("message")
    if not isinstance(message, dict):
        return None
    if message.get("refusal"):
        return json.dumps(message["refusal"])
    calls = message.get("tool_calls") or []
    if not calls and message.get("function_call"):  # OpenAI's older form
        calls = [{"function": message["function_call"]}]
    if not isinstance(calls, list) or not calls:
        return None
    return json.dumps([_normalized(call) for call in calls], sort_keys=True)


def _normalized(call: Any) -> Any:
    """A tool call without its id and index, with parsed arguments: the same for equal calls."""
    if not isinstance(call, dict):
        return call
    call = {key: value for key, value in call.items() if key not in ("id", "index")}
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(function["arguments"])  # no file
            call["function"] = {**function, "arguments": arguments}
    return call


def _most_frequent(calls: Mapping[int, str], drawn: int) -> JsonObject:
    """Choose the most frequent call or refusal of `drawn` candidates; returns `Chosen.details`."""
    call, count = Counter(calls.values()).most_common(1)[0]
    return _unjudged(next(place for place, other in calls.items() if other == call), count / drawn)


def _unjudged(chosen: int, confidence: float | None) -> JsonObject:
    """`Chosen.details` of a choice that needs no scores."""
    return {
        "strategy": None,
        "weights": None,
        "chosen": chosen,
        "answer": None,
        "confidence": confidence,
        "answers": [],
        "candidates": [],
        "scored_tokens": 0,
        "warning": None,
    }


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _answers(table: CandidateTable, candidates: Sequence[Candidate]) -> list[JsonObject]:
    """Distinct answers and their numbers of candidates, the most frequent first."""
    numbers = table.answers[0].tolist()
    counts = Counter(number for number in numbers if number >= 0)
    return [
        {"answer": extract_answer(candidates[numbers.index(number)].text), "count": count}
        for number, count in counts.most_common()
    ]
