"""The reward manager, called the way verl calls it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from ledom.core.errors import InputError
from ledom.rewards import ReverseRewardManager, trl_reward
from ledom.text.tokenizer import Tokenizer

QUESTION, ANSWERS = "Ava has 3 pens.", ["it is 12", "3 + 4 = 7"]


class _Data:
    """verl's DataProto: the sequences of one sample, or several samples."""

    def __init__(self, batch: dict[str, torch.Tensor], others: dict[str, list[Any]]) -> None:
        self.batch, self.non_tensor_batch = batch, others

    def __getitem__(self, key: int | slice) -> _Data:
        batch, others = self.batch, self.non_tensor_batch
        return _Data(
            {name: value[key] for name, value in batch.items()},
            {name: value[key] for name, value in others.items()},
        )


def padded(tokenizer: Tokenizer, answers: list[str]) -> _Data:
    """One sequence per sample, with padding right of the responses."""
    responses = [torch.tensor(ids) for ids in tokenizer.encode_ids(answers)]
    masks = [torch.ones(2 + len(response), dtype=torch.int64) for response in responses]
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": QUESTION}]
    return _Data(
        {
            "responses": pad_sequence(responses, batch_first=True),
            "attention_mask": pad_sequence(masks, batch_first=True),
        },
        {"raw_prompt": [messages] * len(answers), "data_source": ["any"] * len(answers)},
    )


class _Tokenizer:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        text = self.tokenizer.decode(ids.tolist())
        return re.sub(r"<\|\w+\|>", "", text) if skip_special_tokens else text


@pytest.fixture
def models(checkpoints: dict[str, Path]) -> dict[str, str]:
    return {name: str(folder) for name, folder in checkpoints.items()}


@pytest.fixture
def manager(models: dict[str, str], tokenizer: Tokenizer) -> ReverseRewardManager:
    return ReverseRewardManager(  # as in verl, the settings are only in its config
        config=SimpleNamespace(reward={"reward_kwargs": models}),
        tokenizer=_Tokenizer(tokenizer),
        compute_score=None,
        reward_router_address=None,
        reward_model_tokenizer=None,
    )


@pytest.fixture
def expected(models: dict[str, str]) -> list[Any]:
    prompts = [QUESTION] * len(ANSWERS)
    return list(trl_reward(**models)(prompts=prompts, completions=ANSWERS))


def test_the_manager_reads_the_prompt(
    manager: ReverseRewardManager, expected: list[Any], tokenizer: Tokenizer
) -> None:
    data = padded(tokenizer, [*ANSWERS, "7"])
    data.non_tensor_batch["raw_prompt"][2] = [{"role": "system", "content": "x"}]

    async def all_samples() -> list[dict[str, Any]]:
        return await asyncio.gather(*(manager.run_single(data[i : i + 1]) for i in range(3)))

    found = asyncio.run(all_samples())
    assert [row["reward_score"] for row in found] == pytest.approx([*expected, 0.0])
    logs = [row["reward_extra_info"] for row in found]
    assert logs[0]["score"] == pytest.approx(expected[0])
    assert "acc" not in logs[0]  # verl counts a failed sample's acc as 0: better than these rewards
    assert logs[2] == dict.fromkeys(logs[0], 0.0)


def test_a_thought_in_another_channel_is_no_part_of_the_answer(
    manager: ReverseRewardManager, models: dict[str, str], expected: list[Any], tokenizer: Tokenizer
) -> None:
    """Without its special tokens, gpt-oss's response is `analysis...assistantfinal...`."""
    thought = "<|channel|>analysis<|message|>3 + 4"
    final = f"{thought}<|end|><|start|>assistant<|channel|>final<|message|>"
    data = padded(tokenizer, [f"{final}{ANSWERS[1]}<|return|>", thought])
    (empty,) = trl_reward(**models)(prompts=[QUESTION], completions=[""])
    for place, reward in enumerate((expected[1], empty)):
        found = asyncio.run(manager.run_single(data[place : place + 1]))
        assert found["reward_score"] == pytest.approx(reward)


def test_padding_is_no_part_of_the_last_of_several_sequences(
    manager: ReverseRewardManager, expected: list[Any], tokenizer: Tokenizer
) -> None:
    """verl pads prompts, responses and masks of a sample's sequences apart, all on the right.

    It pads responses with id 0, which is text for some tokenizers.
    """
    text = tokenizer.encode("9").ids[0]
    responses = [torch.tensor(ids) for ids in tokenizer.encode_ids(["7 " * 20, ANSWERS[0]])]
    masks = [
        torch.ones(n + len(r), dtype=torch.int64) for n, r in zip((2, 9), responses, strict=True)
    ]
    data = padded(tokenizer, ["", ""])
    data.batch = {
        "responses": pad_sequence(responses, batch_first=True, padding_value=text),
        "attention_mask": pad_sequence(masks, batch_first=True),
    }
    data.non_tensor_batch["response_len"] = [len(response) for response in responses]
    found = asyncio.run(manager.run_single(data))
    assert found["reward_score"] == pytest.approx(expected[0])


def test_rewards_of_a_batch_stand_at_the_last_tokens(tokenizer: Tokenizer) -> None:
    """verl calls this if it does not compute rewards during generation."""
    data = padded(tokenizer, ANSWERS)
    found = ReverseRewardManager.assemble_rm_scores(data, [-2.0, -3.0])
    lengths = [len(ids) for ids in tokenizer.encode_ids(ANSWERS)]
    assert (lengths[0] < lengths[1], found.shape) == (True, (2, lengths[1]))
    assert found.dtype == torch.float32
    assert found.nonzero().tolist() == [[0, lengths[0] - 1], [1, lengths[1] - 1]]
    assert found.sum(1).tolist() == [-2.0, -3.0]


def test_a_batch_without_the_prompt_says_what_to_set(
    manager: ReverseRewardManager, tokenizer: Tokenizer
) -> None:
    data = padded(tokenizer, ["7"])
    del data.non_tensor_batch["raw_prompt"]
    with pytest.raises(InputError, match="no raw_prompt; set data.return_raw_chat=True"):
        asyncio.run(manager.run_single(data))
