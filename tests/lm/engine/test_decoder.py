"""Draws by inverting the cumulative probability, and what is kept in memory."""

import math
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import ledom
from ledom.core.errors import InputError
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.engine import decoder
from ledom.lm.engine.block import Block, Job
from ledom.lm.engine.decoder import Decoder, Writer, _at_level, _truncate
from ledom.lm.language_model import Sampling


@pytest.mark.parametrize("size", [1, 3, 16, 40, 2048])
def test_a_level_is_found_as_with_a_plain_cumulative_sum(size):
    rng = np.random.default_rng(size)
    weights = rng.random((50, size)).astype(np.float32) ** 8
    weights[rng.random(weights.shape) < 0.5] = 0  # as after truncation
    weights[:, rng.integers(size)] += 0.01
    levels = rng.random(50)
    found = _at_level(torch.from_numpy(weights), torch.from_numpy(levels)).tolist()
    cumulative = weights.astype(np.float64).cumsum(-1)
    for row, token in enumerate(found):
        wanted = levels[row] * cumulative[row, -1]
        assert weights[row, token] > 0
        # Sums in fp32 shift a border by up to 1e-6.
        assert cumulative[row, token] > wanted - 1e-6 * cumulative[row, -1]
        assert cumulative[row, token] - weights[row, token] <= wanted + 1e-6 * cumulative[row, -1]


def test_levels_select_the_right_token():
    weights = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]]).expand(5, 5)
    levels = torch.tensor([0.0, 0.2, 0.25, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert _at_level(weights, levels).tolist() == [1, 1, 3, 3, 3]


def test_a_top_p_that_rounds_to_zero_keeps_the_most_likely_token() -> None:
    kept = _truncate(torch.tensor([[0.2, 0.5, 0.3]]), 0, 1e-320)
    assert kept.tolist() == [[0.0, 0.5, 0.0]]


@pytest.mark.parametrize(
    ("row", "temperature"),
    [
        ([0.0, math.nan, 1.0], 0.0),
        ([0.0, math.nan, 1.0], 0.7),
        ([0.0, math.inf, 1.0], 1.0),
        ([-math.inf] * 3, 0.7),
        ([0.0, -math.inf, 1.0], 0.0),  # self-certainty is undefined if a token has probability 0
        ([0.0, 1e36, 1.0], 0.001),  # 1e39 is too large for fp32
    ],
)
def test_logits_without_a_distribution_are_refused(row: list[float], temperature: float) -> None:
    job = Job([1], 0, 0, (0,))
    job.uniforms = np.array([0.5])
    writer = Writer([2], Sampling(temperature, max_tokens=1))
    with pytest.raises(InputError, match="logits are not finite"):
        writer._take(torch.tensor([row]), [job])


def test_huge_logits_can_be_sampled() -> None:
    job = Job([1], 0, 0, (0,))
    job.uniforms = np.array([0.5])
    Writer([2], Sampling(0.001, max_tokens=1))._take(torch.tensor([[0.0, 1e35, -3e38]]), [job])
    assert job.ids == [1]


@pytest.fixture
def made_decoder(checkpoints: dict[str, Path]) -> Decoder:
    """A decoder with four rows that generates up to six tokens."""
    lm = ledom.load(checkpoints["forward"], device="cpu")
    assert isinstance(lm, HFLanguageModel)
    return Decoder(lm._trunk, lm.stop_ids, Sampling(max_tokens=6), rows=4)


def test_a_finished_block_is_freed_before_the_next_one(
    made_decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its keys and values would stay in memory while the next prompts are read."""
    made: list[weakref.ref[Block]] = []
    at_admission: list[list[int]] = []

    class Watched(Block):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(weakref.ref(self))

    admit = Decoder._admit

    def watched(self: Decoder, jobs: list[Job], blocks: list[Block]) -> Iterator[Job]:
        alive = (block for ref in made if (block := ref()) is not None)
        at_admission.append([len(block.jobs) for block in alive])
        return admit(self, jobs, blocks)

    monkeypatch.setattr(decoder, "Block", Watched)
    monkeypatch.setattr(Decoder, "_admit", watched)
    jobs = [Job([7, 8, 9 + place], place, 0, (place,)) for place in range(12)]
    assert sum(map(len, made_decoder.steps(jobs))) == 12
    assert len(at_admission) >= 3
    assert 0 not in [size for sizes in at_admission for size in sizes]


def test_a_prefilled_prompt_keeps_only_its_keys_and_values(made_decoder: Decoder) -> None:
    """The trunk's keys are views of tensors that also contain queries and other prompts."""
    with torch.inference_mode():
        found = made_decoder._prefill([[7, 8, 9], [7, 8, 10]])
    layers = made_decoder.model.config.get_text_config().num_hidden_layers
    for _, *kept in found:
        for x in kept:
            assert (x.shape[0], x.shape[2]) == (layers, 3)
            assert x.untyped_storage().nbytes() == x.nbytes


def test_many_prompts_are_read_in_parts(
    made_decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is the same as in one pass, in any order; the first two share tokens."""
    jobs = [Job(prompt, place, 0, ()) for place, prompt in enumerate([[9] * 5, [7, 8], [7, 8, 9]])]
    with torch.inference_mode():
        at_once, places = made_decoder._read_prompts(jobs)
        made_decoder._prefilled.clear()
        monkeypatch.setattr(decoder, "_READ_TOGETHER", 3)
        in_parts, same_places = made_decoder._read_prompts(jobs)
    assert places == same_places == [0, 1, 2]
    for job, one, other in zip(jobs, at_once, in_parts, strict=True):
        assert one[1].shape[2] == len(job.prompt)
        for x, y in zip(one, other, strict=True):
            torch.testing.assert_close(x, y)
