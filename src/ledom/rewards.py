"""Reverse Reward inside trainers: TRL's GRPOTrainer and verl's reward loop.

    from ledom.rewards import trl_reward
    GRPOTrainer(model, reward_funcs=[trl_reward(forward="my-forward", reverse="my-reverse")], ...)

    verl: reward.custom_reward_function.path=pkg://ledom.rewards name=compute_score

Models are loaded on first use, once per process, so everything here can be pickled. `ledom serve`
gives the same rewards over HTTP.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self
from weakref import WeakKeyDictionary

from pydantic import Field

from ledom.core.errors import InputError
from ledom.core.reading import Config, JsonObject
from ledom.lm import EMBEDDED, load
from ledom.rerank.weights import choose_weights
from ledom.serve.batching import Batcher
from ledom.serve.chat_text import answer_of, question_of
from ledom.serve.judge import MASK_COPIES, Judge, Judgement, Pair
from ledom.text.copies import copied_passages

__all__ = ["ReverseRewardManager", "compute_score", "copied_share", "trl_reward"]

_BATCH_SECONDS = 0.25  # target time of a batch
_WAITING = 1 << 20  # most calls that may wait
_TOGETHER = 16  # calls that share a batch however long it takes
_NAME = "reverse_reward"  # the reward's name in a trainer's logs


class _Settings(Config):
    """The settings of a reward; see `trl_reward`."""

    forward: str | Path = EMBEDDED
    reverse: str | Path = EMBEDDED
    strategy: str | None = None
    lam: float | None = Field(default=None, ge=0, le=1)
    weights: str | Path | None = None
    mask_copies: int = Field(default=MASK_COPIES, ge=0)
    device: str | None = None
    dtype: Any = "auto"

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """The settings that a user gave; raises `InputError`."""
        return cls.of(given, "settings of the reward")

    def judge(self) -> Judge:
        """The judge of these settings; the first call loads its models, and others wait for it."""
        with _loading:
            return _load_judge(self)


_loading = Lock()


@functools.cache
def _load_judge(settings: _Settings) -> Judge:
    """The judge; equal settings share their models until the process ends."""
    forward, reverse = (
        None if name == "none" else load(name, way, device=settings.device, dtype=settings.dtype)
        for name, way in ((settings.forward, "forward"), (settings.reverse, "reverse"))
    )
    names = str(settings.forward), str(settings.reverse)
    weights = choose_weights(settings.lam, settings.weights, *names)
    return Judge(forward, reverse, settings.strategy, weights, settings.mask_copies)


def trl_reward(
    *, asynchronous: bool = False, question: str | None = None, **settings: Any
) -> Callable[..., Any]:
    """A reward function for TRL's GRPOTrainer; with `asynchronous`, a coroutine function.

    `forward` and `reverse` are model names for `ledom.load` (default: the embedded pair), or
    "none". `strategy`, `lam` (lambda), `weights` (a file of `ledom tune`), `mask_copies`, `device`
    and `dtype` are the options of `ledom serve`. The question is the last user message of the
    prompt, or the dataset's column that `question` names.

    TRL logs the log-probabilities beside the completions (`log_p_xy` ...), and the metric
    `copied_share`: the mean share of an answer that is copied from its question. If a prompt has no
    user message, or its question leaves no room for an answer, the reward is None.

    >>> reward = trl_reward(lam=0.5)  # models are loaded by the first call
    >>> reward.__name__
    'reverse_reward'
    """
    reward = _TRLReward(_Settings.read(settings), question)
    if not asynchronous:
        return reward
    found: Any = functools.partial(reverse_reward, reward)  # a coroutine function to `inspect`
    found.__name__ = _NAME
    return found  # type: ignore[no-any-return]


@dataclass
class _TRLReward:
    settings: _Settings
    question: str | None

    def __post_init__(self) -> None:
        self.__name__ = _NAME

    def __call__(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if self.question is not None and self.question not in columns:
            raise InputError(
                f"the dataset has no column {self.question!r} for the questions; name another, or "
                "leave question out to read the prompt"
            )
        asked = prompts if self.question is None else columns[self.question]
        for what, given in (("question of the dataset", asked), ("completion", completions)):
            if bad := [one for one in given if not _is_text_or_messages(one)]:
                raise InputError(
                    f"a {what} is {bad[0]!r:.40}, expected a text or messages; correct it, or "
                    "leave the row out"
                )
        pairs = [
            _pair(prompt, completion) for prompt, completion in zip(asked, completions, strict=True)
        ]
        judged = _judge(self.settings.judge(), pairs)
        if log_extra is not None:
            for name in next((j.logprobs for j in judged if j is not None), ()):
                log_extra(name, [None if j is None else j.logprobs[name] for j in judged])
        if log_metric is not None and (shares := [copied_share(pair) for pair in pairs if pair]):
            log_metric("copied_share", sum(shares) / len(shares))
        return [None if judgement is None else judgement.reward for judgement in judged]


async def reverse_reward(reward: _TRLReward, **given: Any) -> list[float | None]:
    """Compute the reward in a thread. TRL logs it under this function's name."""
    return await asyncio.to_thread(reward, **given)


def _is_text_or_messages(given: Any) -> bool:
    if isinstance(given, list):
        return all(isinstance(message, dict) for message in given)
    return isinstance(given, str)


def _pair(prompt: Any, completion: Any) -> Pair | None:
    """The question and the answer; None if the prompt has no question: the run continues."""
    try:
        return Pair(question_of(prompt), answer_of(completion))
    except InputError as error:
        _warn(f"{error}, or name the dataset's column of questions: trl_reward(question=...)")
        return None


def _judge(judge: Judge, pairs: Sequence[Pair | None]) -> list[Judgement | None]:
    """The judgements; None without a pair, or if a question leaves no room for an answer."""
    fit: list[Pair] = []
    for pair in filter(None, pairs):
        try:
            judge.check([pair])
            fit.append(pair)
        except InputError as error:
            _warn(str(error))
    judged = dict(zip(fit, judge.judge(fit), strict=True))
    return [judged.get(pair) if pair else None for pair in pairs]


def _warn(reason: str) -> None:
    logging.getLogger("ledom").warning("no reward for a completion: %s", reason)


def copied_share(pair: Pair) -> float:
    """The share of an answer's characters that lie in passages copied from its question.

    A passage has at least `MASK_COPIES` words.

    >>> copied_share(Pair("One two three four five six seven eight?", "It is 8."))
    0.0
    """
    passages = copied_passages(pair.answer, pair.question, MASK_COPIES)
    return sum(end - start for start, end in passages) / max(1, len(pair.answer))


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: JsonObject | None = None,
    **settings: Any,
) -> dict[str, float]:
    """The reward of an answer, for verl's `reward.custom_reward_function`; batched across calls.

    verl passes no prompt, so the dataset must have the question as `extra_info["question"]`.
    `ReverseRewardManager` does without. `settings` are those of `trl_reward` and come from verl's
    `reward_kwargs`. Raises `InputError` without a question.

    >>> asyncio.run(compute_score("math", "#### 4"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: extra_info has no question; add the column to the dataset, ...
    """
    asked = (extra_info or {}).get("question")
    if not isinstance(asked, str):
        raise InputError(
            "extra_info has no question; add the column to the dataset, or use "
            "ledom.rewards.ReverseRewardManager, which reads the prompt"
        )
    for key in ("reward_router_address", "reward_model_tokenizer"):  # verl adds these
        settings.pop(key, None)
    judgement = await _submit(_Settings.read(settings), Pair(asked, answer_of(solution_str)))
    return {"score": judgement.reward, **judgement.logprobs}


class ReverseRewardManager:
    """A reward manager for verl (`reward.reward_manager.module`). It reads the prompt itself.

    It takes verl's arguments, and the settings of `trl_reward`.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
        **settings: Any,
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = _Settings.read(settings)

    async def run_single(self, data: Any) -> JsonObject:
        """The reward of a sample's last sequence, given the last user message of the prompt."""
        item = data[-1:][0]
        responses = item.batch["responses"]
        length = int(item.batch["attention_mask"][-responses.shape[-1] :].sum())
        response = self.tokenizer.decode(responses[:length], skip_special_tokens=True)
        question = question_of(list(item.non_tensor_batch["raw_prompt"]))
        judgement = await _submit(self.settings, Pair(question, answer_of(response)))
        info = {"acc": judgement.reward, **judgement.logprobs}
        return {"reward_score": judgement.reward, "reward_extra_info": info}


_batchers: WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[_Settings, Batcher[Pair, Judgement]]
] = WeakKeyDictionary()


def _submit(settings: _Settings, pair: Pair) -> Awaitable[Judgement]:
    """Judge a pair, batched with other calls that wait in this event loop."""
    known = _batchers.setdefault(asyncio.get_running_loop(), {})
    if settings not in known:
        known[settings] = Batcher(
            lambda pairs: settings.judge().judge_in_steps(pairs),
            lambda pair: 1.0 + len(pair.question) + len(pair.answer),
            _BATCH_SECONDS,
            _WAITING,
            least=_TOGETHER,
        )

    async def one() -> Judgement:
        judge = await asyncio.to_thread(settings.judge)
        judge.check([pair])
        (judgement,) = await known[settings].submit([pair])
        return judgement

    return one()
