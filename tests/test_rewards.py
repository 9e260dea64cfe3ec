"""Rewards inside trainers, called the way TRL and verl call them."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import pickle
import re
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ledom
from ledom import rewards
from ledom.core.errors import InputError
from ledom.rewards import ReverseRewardManager, compute_score, copied_share, trl_reward
from ledom.serve.judge import Judge, Pair
from started import started
from waiting import until

QUESTION, ANSWERS = "Ava has 3 pens.", ["it is 12", "3 + 4 = 7", ""]


@pytest.fixture
def models(checkpoints: dict[str, Path]) -> dict[str, str]:
    return {name: str(folder) for name, folder in checkpoints.items()}


@pytest.fixture
def expected(models: dict[str, str]) -> list[float]:
    """The judge's rewards."""
    pair = (ledom.load(models["forward"], "forward"), ledom.load(models["reverse"], "reverse"))
    return [j.reward for j in Judge(*pair).judge([Pair(QUESTION, a) for a in ANSWERS])]


class Log:
    """The logging functions that TRL passes to reward functions."""

    def __init__(self) -> None:
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, float] = {}


def call(reward: Any, prompts: list[Any], completions: list[Any], **columns: Any) -> Any:
    """Call a reward as TRL does, with all its arguments; returns rewards and logged values."""
    log = Log()
    found = reward(
        prompts=prompts,
        completions=completions,
        completion_ids=[[1]] * len(prompts),
        trainer_state=None,
        log_extra=log.extra.__setitem__,
        log_metric=log.metrics.__setitem__,
        **columns,
    )
    return (asyncio.run(found) if inspect.isawaitable(found) else found), log


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.slow
def test_trl_gets_rewards(
    models: dict[str, str], expected: list[float], asynchronous: bool
) -> None:
    reward = trl_reward(asynchronous=asynchronous, **models)
    assert inspect.iscoroutinefunction(reward) == asynchronous
    assert reward.__name__ == "reverse_reward"
    found, log = call(reward, [QUESTION] * 3, ANSWERS)
    assert found == pytest.approx(expected)
    assert set(log.extra) == {"log_p_yx", "log_p_xy", "log_p_y"}
    sums = zip(log.extra["log_p_yx"], log.extra["log_p_xy"], strict=True)
    assert found == pytest.approx([(a + b) / 2 for a, b in sums])  # lambda 0.5, untuned
    assert log.metrics == {"copied_share": 0.0, "empty_share": 1 / 3, "truncated_share": 0.0}
    again, _ = call(pickle.loads(pickle.dumps(reward)), [QUESTION] * 3, ANSWERS)
    assert again == found


def fork_from_a_trainer(folders: str) -> None:
    """As AReaL does, after starting torch's threads, which do not survive a fork."""
    torch.set_num_threads(2)
    torch.ones(800, 800) @ torch.ones(800, 800)
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        reward = trl_reward(**json.loads(folders))
        found = pool.submit(reward, prompts=[QUESTION] * 3, completions=ANSWERS).result()
        print(found)  # noqa: T201


@pytest.mark.slow
def test_a_worker_forked_from_a_trainer_gets_rewards(
    models: dict[str, str], expected: list[float], tmp_path: Path
) -> None:
    with started(tmp_path / "said", json.dumps(models), run=fork_from_a_trainer) as process:
        assert process.wait() == 0, process.said()
        assert json.loads(process.said()) == pytest.approx(expected)


@pytest.mark.slow
def test_trl_may_send_messages(models: dict[str, str], expected: list[float]) -> None:
    prompts = [[{"role": "user", "content": QUESTION}]] * 3
    completions = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
    reward = trl_reward(empty_reward=-1e6, **models)
    assert call(reward, prompts, completions)[0] == pytest.approx([*expected[:2], -1e6])
    reward = trl_reward(question="asked", **models)
    found, _ = call(reward, ["other"] * 3, ANSWERS, asked=[QUESTION] * 3)
    assert found == pytest.approx(expected)


@pytest.mark.slow
def test_a_thought_is_seen_by_the_special_tokens_that_trl_removes(
    models: dict[str, str], expected: list[float]
) -> None:
    tokenizer = SimpleNamespace(decode=lambda texts, skip_special_tokens: "".join(texts))
    ids = [["<|channel|>final<|message|>", "3 + 4 = 7"], ["it is 12"]]
    given = {"prompts": [QUESTION] * 2, "completions": ["final3 + 4 = 7", ANSWERS[0]]}
    reward = trl_reward(tokenizer=tokenizer, empty_reward=-9.0, **models)
    assert reward(completion_ids=ids, **given) == pytest.approx([expected[1], expected[0]])
    cut_off = reward(completion_ids=[["<|channel|>analysis<|message|>", "3 + 4"], ["7"]], **given)
    assert cut_off == pytest.approx([-9.0, expected[0]])
    with pytest.raises(InputError, match="gives no completion_ids to decode; leave tokenizer out"):
        reward(**given)


@pytest.mark.slow
def test_a_prompt_that_opens_a_thought_is_read_beside_a_column(
    models: dict[str, str], expected: list[float]
) -> None:
    reward = trl_reward(question="asked", empty_reward=-9.0, **models)
    prompts, answers = ["Solve it.\n<think>\n"] * 2, ["Hm, 3 + 4", f"Hm.</think>{ANSWERS[1]}"]
    found = reward(prompts=prompts, completions=answers, asked=[QUESTION] * 2)
    assert found == pytest.approx([-9.0, expected[1]])


@pytest.mark.slow
def test_a_question_without_room_has_no_reward(
    models: dict[str, str], expected: list[float]
) -> None:
    found, log = call(trl_reward(**models), [QUESTION, "pens " * 5000], ANSWERS[:2])
    assert found == [pytest.approx(expected[0]), None]
    assert log.extra["log_p_xy"][1] is None


@pytest.mark.slow
def test_answers_that_are_not_read_completely_are_counted(models: dict[str, str]) -> None:
    _, log = call(trl_reward(**models), [QUESTION] * 4, [*ANSWERS, "3 + 4 = 7 " * 400])
    assert log.metrics["truncated_share"] == 0.25


@pytest.mark.slow
def test_a_prompt_without_a_question_has_no_reward(
    models: dict[str, str], expected: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """One such row in a dataset must not end a run that takes days."""
    system, prefill = (
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "It"},
    )
    asked = [system, {"role": "user", "content": QUESTION}, prefill]
    answers = [[{"role": "assistant", "content": answer}] for answer in (ANSWERS[0], "4", "4")]
    found, log = call(trl_reward(**models), [asked, [system], [prefill]], answers)
    assert found == [pytest.approx(expected[0]), None, None]
    assert log.extra["log_p_xy"][1:] == [None, None]
    assert log.metrics["copied_share"] == 0.0
    assert "the prompt has no user message; send one, or give the question in a" in caplog.text
    found, log = call(trl_reward(**models), [[system]], ["4"])
    assert (found, log.metrics) == ([None], {})
    assert log.extra == {"log_p_yx": [None], "log_p_xy": [None], "log_p_y": [None]}
    column = trl_reward(question="asked", **models)
    assert call(column, [[system]], ANSWERS[:1], asked=[QUESTION])[0] == pytest.approx(expected[:1])


@pytest.mark.slow
def test_messages_may_come_as_tuples_and_arrays(
    models: dict[str, str], expected: list[float]
) -> None:
    """Datasets from pyarrow or pandas give these, also for parts of a message."""
    part = {"type": "text", "text": QUESTION}
    asked: list[Any] = [
        ({"role": "user", "content": QUESTION},),
        np.array([{"role": "user", "content": np.array([part])}]),
    ]
    answers = ({"role": "assistant", "content": ANSWERS[0]},), np.array([{"content": ANSWERS[1]}])
    assert call(trl_reward(**models), asked, list(answers))[0] == pytest.approx(expected[:2])


def test_lists_of_different_lengths_are_refused(models: dict[str, str]) -> None:
    reward = trl_reward(**models)
    for prompts, completions in ([QUESTION], ["4", "5"]), ([QUESTION] * 3, ["4", "5"]):
        message = f"{len(prompts)} prompts or questions for 2 completions"
        with pytest.raises(InputError, match=message):
            call(reward, prompts, completions)
    with pytest.raises(InputError, match="1 prompts or questions for 2 completions"):
        call(trl_reward(question="asked", **models), [""], ["4", "5"], asked=[QUESTION] * 2)


@pytest.mark.slow
def test_restating_the_question_is_not_rewarded(models: dict[str, str]) -> None:
    question = "Ava has three red pens and buys four blue pens from Bo. How many?"
    restated = [question, f"{question} 7"]
    reward = trl_reward(forward="none", reverse=models["reverse"])
    guarded, log = call(reward, [question] * 2, restated)
    # Without the copied passage, which ends before the question mark.
    nothing, _ = call(reward, [question] * 2, ["?", "? 7"])
    assert guarded == pytest.approx(nothing)  # the copied text does not count
    assert log.metrics["copied_share"] > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"question": "asked"}, "no column 'asked' for the questions; name another"),
        ({"lam": 0.5, "weights": "w.json"}, "lambda is 0.5 and the weights are those of w.json"),
        ({"lam": 0.3, "strategy": "reverse_only"}, "lam is 0.3, but the strategy reverse_only"),
        ({"lam": 0.3, "reverse": "none"}, "lam is 0.3, but the strategy forward does not weigh"),
    ],
)
@pytest.mark.slow
def test_settings_that_cannot_be_followed_are_refused(
    settings: dict[str, Any], message: str, models: dict[str, str]
) -> None:
    reward = trl_reward(**models | settings)
    with pytest.raises(InputError, match=message):
        reward(prompts=["2 + 2?"], completions=["4"], answer=["4"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lamda": 0.5}, "unknown key lamda; the keys are forward, reverse, strategy"),
        ({"mask_copies": "many"}, "key mask_copies: Input should be a valid integer"),
        ({"lam": 1.5}, "key lam: Input should be less than or equal to 1, found 1.5"),
        ({"mask_copies": True}, "key mask_copies: expected a number or text, got true or false"),
    ],
)
def test_senseless_settings_are_refused_before_any_work(
    given: dict[str, Any], message: str
) -> None:
    calls = [
        lambda: trl_reward(**given),
        lambda: trl_reward(asynchronous=True, **given),
        lambda: ReverseRewardManager(config=None, tokenizer=None, **given),
        lambda: asyncio.run(compute_score("any", "7", "7", {"question": QUESTION}, **given)),
    ]
    for call_it in calls:
        with pytest.raises(InputError, match=f"settings of the reward: {message}"):
            call_it()


@pytest.mark.slow
def test_models_can_be_paths(models: dict[str, str], expected: list[float]) -> None:
    reward = trl_reward(**{name: Path(folder) for name, folder in models.items()})
    assert call(reward, [QUESTION] * 3, ANSWERS)[0] == pytest.approx(expected)


def test_the_copied_share_counts_characters_of_long_passages() -> None:
    question = "one two three four five six seven eight nine"
    assert copied_share(Pair(question, question)) == 1.0
    assert copied_share(Pair(question, "one two three four five six seven")) == 0.0
    assert copied_share(Pair(question, "")) == 0.0
    answer = "one two three four five six seven eight ... and so on and on and on"
    assert copied_share(Pair(question, answer)) == pytest.approx(39 / len(answer))


@pytest.mark.slow
def test_verl_calls_are_batched(
    models: dict[str, str], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    judge = Judge.judge_in_steps

    def watch(self: Judge, pairs: Any) -> Any:
        sizes.append(len(pairs))
        return judge(self, pairs)

    monkeypatch.setattr(Judge, "judge_in_steps", watch)

    async def all_calls() -> list[dict[str, float]]:
        return await asyncio.gather(
            *(
                compute_score("gsm8k", answer, "7", {"question": QUESTION, "index": 1}, **models)
                for answer in ANSWERS
            )
        )

    found = asyncio.run(all_calls())
    assert [row["score"] for row in found] == pytest.approx(expected)
    assert set(found[0]) == {"score", "log_p_yx", "log_p_xy", "log_p_y"}
    assert inspect.iscoroutinefunction(compute_score)
    assert sum(sizes) == 3
    assert len(sizes) < 3


@pytest.mark.slow
def test_a_closed_event_loop_leaves_no_thread_behind(models: dict[str, str]) -> None:
    """A script may call `asyncio.run` for each of thousands of samples."""
    for answer in ("1", "2", "3", "4"):
        asyncio.run(compute_score("any", answer, "7", {"question": QUESTION}, **models))

    def left() -> int:
        gc.collect()
        return sum(t.name.startswith("ledom-batch") for t in threading.enumerate())

    until(lambda: left() <= 1)
    assert left() <= 1


@pytest.mark.slow
def test_calls_during_loading_wait_for_the_models(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def slow(name: str, direction: str, **options: Any) -> Any:
        loaded.append(direction)
        time.sleep(0.1)
        return ledom.load(name, direction, **options)

    monkeypatch.setattr(rewards, "load", slow)

    async def all_calls() -> None:
        about = {"question": QUESTION}
        calls = [compute_score("any", a, "7", about, lam=0.25, **models) for a in ANSWERS]
        await asyncio.gather(*calls)

    asyncio.run(all_calls())
    assert loaded == ["forward", "reverse"]


@pytest.mark.parametrize("question", [5, ["2 + 2?"]])
def test_a_question_that_is_not_text_is_reported(models: dict[str, str], question: object) -> None:
    reward = trl_reward(question="asked", **models)
    shown = re.escape(repr(question))
    with pytest.raises(InputError, match=f"a question of the dataset is {shown}, expected a"):
        reward(prompts=["2 + 2?"], completions=["4"], asked=[question])
    with pytest.raises(InputError, match=f"a completion is {shown}, expected a text or mess"):
        reward(prompts=["2 + 2?"], completions=[question], asked=["2 + 2?"])
    with pytest.raises(InputError, match=f"a question of the dataset is {shown}, expected a"):
        asyncio.run(compute_score("any", "4", "4", {"question": question}, **models))


@pytest.mark.slow
@pytest.mark.parametrize("question", [None, " ", "<|im_start|>tool", "pens " * 5000])
def test_a_verl_row_without_a_question_gets_a_neutral_reward(
    models: dict[str, str], question: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """verl builds an array from the scores, and one from each key of the first sample."""
    found = asyncio.run(compute_score("any", "4", "4", {"question": question}, **models))
    good = asyncio.run(compute_score("any", "4", "4", {"question": QUESTION}, **models))
    assert found == dict.fromkeys(good, 0.0)  # a NaN would spoil all advantages of a batch in GDPO
    assert caplog.text.count("no reward for a completion: ") == 1


def test_verl_without_a_question_says_what_to_do() -> None:
    with pytest.raises(InputError, match="ReverseRewardManager"):
        asyncio.run(compute_score("gsm8k", "7", "7", {}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_grpo_trains_on_rewards(models: dict[str, str], tmp_path: Path, asynchronous: bool) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"prompt": [f"{QUESTION} {i}\n\n" for i in range(8)]})
    settings = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=6,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
    )
    trainer = trl.GRPOTrainer(
        model=models["forward"],
        reward_funcs=[trl_reward(asynchronous=asynchronous, **models)],
        args=settings,
        train_dataset=rows,
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/reverse_reward/mean" in row]
    assert len(logged) == 2
    assert all(row["rewards/reverse_reward/mean"] < 0 for row in logged)
    assert any("copied_share" in key for row in logged for key in row)


def test_equal_settings_share_the_models(models: dict[str, str]) -> None:
    first, second = rewards._Settings(**models), rewards._Settings(**models)
    assert first.judge() is second.judge()
