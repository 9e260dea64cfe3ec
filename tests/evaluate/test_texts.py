"""Texts that the harness requests: repeated requests and settings that ledom lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

import ledom
from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.stage import no_progress
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Sampling
from ledom.text.tokenizer import Tokenizer

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from ledom.evaluate.harness import LedomLM
from ledom.evaluate.kept import KeptLM
from ledom.evaluate.texts import numbered, read_settings

SAMPLED = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}


def ask(context: str, settings: object) -> Instance:
    return Instance("generate_until", {}, (context, settings), 0, metadata=("t", 0, 1))  # type: ignore[arg-type]


@pytest.mark.usefixtures("embedded_once")
@pytest.mark.slow
def test_a_task_with_repeats_gets_several_samples() -> None:
    """`repeats: 3` sends the same request three times; it once got the same text three times."""
    lm = ledom.load("tiny", "reverse", device="cpu")
    prompts = ["\n\n3 + 4 = 7\n#### 7", "\n\n24 / 12 = 2\n#### 2"]
    expected = dict(lm.generate(prompts, Sampling(max_tokens=12), 3))
    assert len({one.text for one in expected[0]}) == 3
    asked = [ask(prompt, SAMPLED) for prompt in prompts for _ in range(3)]
    found = LedomLM(lm).generate_until(asked)
    assert found == [one.text for place in range(2) for one in expected[place]]
    greedy = [ask(prompts[0], SAMPLED | {"do_sample": False})] * 2
    assert len({*LedomLM(lm).generate_until(greedy)}) == 1


def test_samples_of_a_prompt_differ_also_across_saved_groups(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """40 samples of one prompt are saved in two groups."""
    model = FakeLanguageModel(tokenizer, Direction.FORWARD, [f"text {i}" for i in range(40)])
    expected = [one.text for one in dict(model.generate(["2 + 2?"], Sampling(), 40))[0]]
    lm = KeptLM(model, "t", tmp_path, no_progress)
    assert lm.generate_until([ask("2 + 2?", SAMPLED)] * 40) == expected


def test_a_process_may_own_every_other_sample(tokenizer: Tokenizer) -> None:
    model = FakeLanguageModel(tokenizer, Direction.FORWARD, [f"text {i}" for i in range(40)])
    draws = [*numbered([ask("2 + 2?", SAMPLED)] * 4)]
    lm = LedomLM(model)
    whole = lm.write(draws)
    assert len({text for text, _ in whole}) > 1
    assert [lm.write(draws[0::2]), lm.write(draws[1::2])] == [whole[0::2], whole[1::2]]


def test_settings_that_ledom_lacks_are_refused() -> None:
    neutral = SAMPLED | {"num_beams": 1, "repetition_penalty": 1.0, "use_cache": True}
    assert read_settings(neutral, at_patterns=True)[0] == Sampling(max_tokens=12)
    with pytest.raises(InputError, match="generation_kwargs have num_beams: 4"):
        read_settings(SAMPLED | {"num_beams": 4}, at_patterns=True)
