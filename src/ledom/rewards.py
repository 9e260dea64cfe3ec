"""Reverse Reward inside trainers: TRL's GRPOTrainer and verl's reward loop.

    from ledom.rewards import trl_reward
    GRPOTrainer(model, reward_funcs=[trl_reward(forward="my-forward", reverse="my-reverse")], ...)

    verl: reward.custom_reward_function.path=pkg://ledom.rewards
          reward.custom_reward_function.name=compute_score

Models are loaded on first use, once per process, so everything here can be pickled, and processes
forked after the import of this module can compute rewards. `ledom serve` serves the same rewards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import Field

from ledom.core.errors import InputError
from ledom.core.processes import survive_forks
from ledom.core.reading import Config, JsonObject
from ledom.lm import EMBEDDED, load
from ledom.rerank.candidates import is_blank
from ledom.rerank.strategies import STRATEGIES
from ledom.rerank.weights import choose_weights
from ledom.serve.batching import Batcher
from ledom.serve.chat_text import has_thought_marks
from ledom.serve.judge import MASK_COPIES, Judge, Judgement, Pair
from ledom.text.copies import copied_passages

__all__ = ["ReverseRewardManager", "compute_score", "copied_share", "trl_reward"]

survive_forks()  # now, as some trainers use torch, then fork workers that load the models
_BATCH_SECONDS = 0.25  # target time of a batch
_WAITING = 1 << 20  # most calls that may wait
_SETTINGS = "settings of the reward"
_REMEDY = ", or give the question in a column of the dataset (trl_reward's question, compute_score)"


class _Settings(Config):
    """The settings of a reward; see `trl_reward`."""

    forward: str | Path = EMBEDDED
    reverse: str | Path = EMBEDDED
    strategy: str | None = None
    lam: float | None = Field(default=None, ge=0, le=1)
    weights: str | Path | None = None
    mask_copies: int = Field(default=MASK_COPIES, ge=0)
    empty_reward: float | None = None
    device: str | None = None
    dtype: Any = "auto"

    def judge(self) -> Judge:
        """The judge for these settings; the first call loads its models, and others wait for it."""
        with _loading:
            return _load_judge(self)


_loading = Lock()


@cache
def _load_judge(settings: _Settings) -> Judge:
    """The judge; equal settings share their models until the process ends."""
    forward, reverse = (
        None if name == "none" else load(name, way, device=settings.device, dtype=settings.dtype)
        for name, way in ((settings.forward, "forward"), (settings.reverse, "reverse"))
    )
    names = str(settings.forward), str(settings.reverse)
    weights = choose_weights(settings.lam, settings.weights, *names)
    judge = Judge(
        forward, reverse, settings.strategy, weights, settings.mask_copies, settings.empty_reward
    )
    if settings.lam is not None and not STRATEGIES[judge.strategy].interpolated:
        raise InputError(
            f"lam is {settings.lam:g}, but the strategy {judge.strategy} does not weigh two "
            "models; leave it out"
        )
    return judge


def trl_reward(
    *,
    asynchronous: bool = False,
    question: str | None = None,
    tokenizer: Any = None,
    **settings: Any,
) -> Callable[..., Any]:
    """A reward function for TRL's GRPOTrainer; with `asynchronous`, a coroutine function.

    `forward` and `reverse` are model names for `ledom.load` (default: the embedded pair), or
    "none". `strategy`, `lam` (lambda), `weights` (a file of `ledom tune`), `mask_copies`,
    `empty_reward`, `device` and `dtype` are the options of `ledom serve`. The question is the last
    user message of the prompt, or the dataset's column that `question` names.

    TRL decodes completions without special tokens. For a policy that thinks between such tokens
    (gpt-oss, Gemma 4, Command, Mistral, Seed-OSS), give its `tokenizer`, so that its thoughts can
    be left out.

    TRL logs the log-probabilities next to the completions (`log_p_xy` ...), and three metrics:
    `copied_share`, the mean share of an answer that is copied from its question, `empty_share`, the
    share of answers that are empty or a thought that was cut off, and `truncated_share`, that of
    answers judged without their end, to fit a model's context. If a prompt has no question, or its
    question leaves no room for an answer, the reward is None. Give a trainer one reward of this
    kind: TRL logs two under one name, and their values get mixed.

    >>> reward = trl_reward(lam=0.5)  # models are loaded by the first call
    >>> reward.__name__
    'reverse_reward'
    """
    reward = _TRLReward(_Settings.of(settings, _SETTINGS), question, tokenizer)
    if not asynchronous:
        return reward
    found: Any = partial(reverse_reward, reward)  # a coroutine function to `inspect`
    found.__name__ = reverse_reward.__name__
    return found  # type: ignore[no-any-return]


@dataclass
class _TRLReward:
    settings: _Settings
    question: str | None
    tokenizer: Any

    def __post_init__(self) -> None:
        self.__name__ = reverse_reward.__name__

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
        for given in (prompts, asked):
            if len(given) != len(completions):
                raise InputError(
                    f"{len(given)} prompts or questions for {len(completions)} completions; give "
                    "each completion its own"
                )
        if self.tokenizer is not None:
            if "completion_ids" not in columns:
                raise InputError(
                    "the trainer gives no completion_ids to decode; leave tokenizer out"
                )
            ids = columns["completion_ids"]
            marked = map(partial(_with_thought_marks, self.tokenizer), ids)
            completions = [m or text for m, text in zip(marked, completions, strict=True)]
        judge = self.settings.judge()
        pairs = list(map(partial(_pair, judge), asked, completions, prompts))
        fit = [pair for pair in pairs if pair is not None]
        found = iter(judge.judge(fit))
        judged = [None if pair is None else next(found) for pair in pairs]
        if log_extra is not None:  # always: TRL's table would keep the values of an earlier step
            for name in judge.log_names:
                log_extra(name, [None if j is None else j.logprobs[name] for j in judged])
        if log_metric is not None and fit:
            log_metric("copied_share", sum(map(copied_share, fit)) / len(fit))
            log_metric("empty_share", sum(is_blank(pair.answer) for pair in fit) / len(fit))
            truncated = [judgement.is_truncated for judgement in judged if judgement is not None]
            log_metric("truncated_share", sum(truncated) / len(fit))
        return [None if judgement is None else judgement.reward for judgement in judged]


async def reverse_reward(reward: _TRLReward, **given: Any) -> list[float | None]:
    """Compute the reward in a thread. TRL logs it under this function's name."""
    return await asyncio.to_thread(reward, **given)


def _with_thought_marks(tokenizer: Any, ids: Any) -> str | None:
    """A response with its special tokens, if they tell a thought from the answer."""
    response: str = tokenizer.decode(ids, skip_special_tokens=False)
    return response if has_thought_marks(response) else None


def _pair(judge: Judge, question: Any, response: Any, prompt: Any = None) -> Pair | None:
    """See `Judge.read_sample`; raises `InputError` for a sample that is not made of texts."""
    question = "" if question is None else question  # a missing value of a column
    for what, given in (("question of the dataset", question), ("completion", response)):
        is_messages = isinstance(given, Collection) and all(isinstance(m, Mapping) for m in given)
        if not (isinstance(given, str) or is_messages):
            raise InputError(
                f"a {what} is {given!r:.40}, expected a text or messages; correct it, or leave the "
                "row out"
            )
    return judge.read_sample(question if prompt is None else prompt, response, _REMEDY, question)


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

    verl passes no prompt, so the dataset must have the question as `extra_info["question"]`; else
    this raises `InputError`. `settings` are those of `trl_reward` and come from verl's
    `reward_kwargs`. For a question without a reward, see `ReverseRewardManager`.

    >>> asyncio.run(compute_score("math", "#### 4"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: extra_info has no question; add the column to the dataset, ...
    """
    known = extra_info or {}
    if "question" not in known:
        raise InputError(
            "extra_info has no question; add the column to the dataset, or use "
            "ledom.rewards.ReverseRewardManager, which reads the prompt"
        )
    for key in ("reward_router_address", "reward_model_tokenizer"):  # verl adds these
        settings.pop(key, None)
    return await _submit(_Settings.of(settings, _SETTINGS), known["question"], solution_str)


class ReverseRewardManager:
    """A reward manager for verl (`reward.reward_manager`). It reads the prompt itself.

    The settings are those of `trl_reward`. verl passes none, so they are read from
    `reward.reward_kwargs` of its config. If a prompt has no question, or its question leaves no
    room for an answer, the reward and the log-probabilities are 0: one NaN would make the
    advantages of a whole batch NaN (GDPO). Advantages relative to the prompt's group (GRPO) are
    then 0. For other advantages, filter the dataset.
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
        configured = getattr(config, "reward", {}).get("reward_kwargs") or {}
        self.settings = _Settings.of({**configured, **settings}, _SETTINGS)

    async def run_single(self, data: Any) -> JsonObject:
        """The reward of a sample's last sequence, given the last user message of the prompt."""
        item = data[-1:][0]
        responses = item.batch["responses"]
        # If a sample has several sequences, verl pads the mask and the responses differently.
        length = item.non_tensor_batch.get("response_len")
        if length is None:
            length = item.batch["attention_mask"][-responses.shape[-1] :].sum()
        written = responses[: int(length)]
        response = _with_thought_marks(self.tokenizer, written)
        if response is None:
            response = self.tokenizer.decode(written, skip_special_tokens=True)
        if "raw_prompt" not in item.non_tensor_batch:
            raise InputError("verl's batch has no raw_prompt; set data.return_raw_chat=True")
        found = await _submit(self.settings, item.non_tensor_batch["raw_prompt"], response)
        # The key is not "acc": verl counts a failed sample's acc as 0, better than most rewards.
        return {"reward_score": found["score"], "reward_extra_info": found}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: Sequence[float]) -> Any:
        """A tensor [B, R] of the B samples' rewards, each at its response's last token, else 0."""
        import torch

        responses = data.batch["responses"]
        lengths = data.batch["attention_mask"][:, -responses.shape[1] :].sum(1)
        rewards = torch.zeros(responses.shape, device=responses.device)
        rewards[torch.arange(len(responses)), lengths - 1] = rewards.new_tensor(scores)
        return rewards


_batchers: dict[tuple[asyncio.AbstractEventLoop, _Settings], Batcher[Pair, Judgement]] = {}


async def _submit(settings: _Settings, prompt: Any, response: str) -> dict[str, float]:
    """A sample's reward (`score`) and log-probabilities, batched with others in this event loop.

    See `ReverseRewardManager` for a prompt that has no reward.
    """
    judge = await asyncio.to_thread(settings.judge)
    if (pair := _pair(judge, prompt, response)) is None:
        return dict.fromkeys(["score", *judge.log_names], 0.0)
    for loop, of in list(_batchers):
        if loop.is_closed():  # each `asyncio.run` has its own loop
            _batchers.pop((loop, of), None)
    key = asyncio.get_running_loop(), settings
    if key not in _batchers:
        _batchers[key] = judge.queue(_BATCH_SECONDS, _WAITING)
    (judgement,) = await _batchers[key].submit([pair])
    return {"score": judgement.reward, **judgement.logprobs}
