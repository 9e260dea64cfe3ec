"""Every transformers decoder: scored, sampled and trained with the same results as there.

Each is built tiny with random weights, saved, and used through the same interface as any model.
The right values are those of its own forward pass over ids flipped by hand, one text at a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from architectures import NOT_BUILT, REFUSED, tiny
from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, RecipeError
from ledom.core.reading import read_json_object
from ledom.core.records import Problem, write_records
from ledom.data.prepare import DataConfig, PreparedData, prepare_data
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.engine import decoder
from ledom.lm.engine.own_decoder import Reader
from ledom.lm.engine.trunk import Trunk
from ledom.lm.language_model import Sampling, TokenSpan
from ledom.model import exactness
from ledom.model.checkpoint import save_checkpoint
from ledom.model.exactness import in_float32
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer
from ledom.train.export import export_model, find_run
from ledom.train.loop import train
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe, TrainConfig
from ledom.train.start import check_lengths, training_batches
from made import whole_text

pytestmark = pytest.mark.slow

_READ_OTHERWISE = ("youtu",)
"""transformers reads a zero embedding for the padding token, whatever was saved."""
TEXTS = ["Ava has 12 pens. 12 + 3 = 15\n#### 15", "7 of 5"]
_GREEDY = Sampling(temperature=0, max_tokens=4)


@torch.no_grad()
def by_hand(plain: PreTrainedModel, target: TokenSpan) -> list[float]:
    fed = list(reversed(target.ids))
    logprobs = plain(torch.tensor([fed])).logits[0].float().log_softmax(-1)
    values = [logprobs[i - 1, fed[i]].item() for i in range(1, len(fed))]
    return list(reversed(values))


def load(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> HFLanguageModel:
    save_checkpoint(folder, model, tokenizer, Direction.REVERSE, PairFormat())
    return HFLanguageModel(folder, device="cpu", dtype="float32")


def assert_scored_as_by_hand(
    lm: HFLanguageModel, plain: PreTrainedModel, texts: list[str] = TEXTS
) -> None:
    """Check each text alone, together with others, and in the opposite order."""
    targets = [whole_text(lm, text) for text in texts]
    expected = [by_hand(plain, target) for target in targets]
    orders = [[i] for i in range(len(texts))] + [[*range(len(texts))], [*range(len(texts))][::-1]]
    for order in orders:
        found = lm.logprobs([targets[i] for i in order])
        for i, values in zip(order, found, strict=True):
            np.testing.assert_allclose(values, expected[i], atol=1e-4, rtol=0)


@torch.no_grad()
def assert_written_as_likeliest(lm: HFLanguageModel, plain: PreTrainedModel) -> None:
    """Check that each token, and the EOS of a shorter text, is the most likely next token."""
    eos = lm.tokenizer.eos_id
    for place, made in lm.generate(TEXTS, _GREEDY):
        context = [eos, *reversed(lm.tokenizer.encode(TEXTS[place]).ids)]
        written = [*reversed(made[0].ids)]
        likeliest = plain(torch.tensor([context + written])).logits[0].argmax(-1).tolist()
        expected = likeliest[len(context) - 1 :][: _GREEDY.max_tokens]
        assert [*written, eos][: _GREEDY.max_tokens] == expected


def assert_written_as_generate(lm: HFLanguageModel, plain: PreTrainedModel) -> None:
    eos = lm.tokenizer.eos_id
    made = dict(lm.generate(TEXTS, _GREEDY))
    for place, text in enumerate(TEXTS):
        context = [eos, *reversed(lm.tokenizer.encode(text).ids)]
        out = plain.generate(
            torch.tensor([context]), do_sample=False, max_new_tokens=4, pad_token_id=eos
        )[0, len(context) :].tolist()
        new = out[: out.index(eos)] if eos in out else out
        assert made[place][0].ids == new[::-1]


def assert_trained_as_plain(
    folder: Path, plain: PreTrainedModel, recipe: Recipe, data: PreparedData
) -> Path:
    """Check that a one-step run's loss is the mean over single documents; returns the model."""
    recipe = recipe.model_copy(update={"init_from": str(folder)})
    finished = train(recipe, Direction.REVERSE, data, folder.parent / "run")
    row = json.loads((folder.parent / "run" / "metrics.jsonl").read_text().splitlines()[0])
    losses = []
    with torch.no_grad():
        for window in training_batches(recipe, Direction.REVERSE, data)[0].windows:
            fed = torch.from_numpy(window[::-1].copy())
            logits = plain(fed[None, :-1]).logits[0].float()
            losses.append(cross_entropy(logits, fed[1:], reduction="none"))
    assert len(losses) == 3
    assert row["loss"] == pytest.approx(torch.cat(losses).mean().item(), abs=1e-4)
    return finished


def assert_loads_as(folder: Path, other: Path) -> None:
    """Check that config, tensor names and shapes are equal, so that transformers loads the same."""
    config, expected = (read_json_object(place / "config.json") for place in (folder, other))
    assert (config.pop("dtype"), expected.pop("dtype")) == ("bfloat16", "float32")
    assert config == expected
    assert shapes(folder) == shapes(other)


def shapes(folder: Path) -> dict[str, list[int]]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    return found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Recipe:
    """One step of three documents, and one more for validation."""
    folder = tmp_path_factory.mktemp("recipe")
    few = [
        Problem(id=str(i), question=f"Ava has {i} pens.", solution=f"{i} + {i} = {2 * i}")
        for i in (5, 34, 678, 1000)
    ]
    write_records(folder / "problems.jsonl", few)
    tokenizer.save(folder)
    return Recipe(
        name="one-step",
        init_from="",
        data=DataConfig(
            train=str(folder / "problems.jsonl"), tokenizer=str(folder / "tokenizer.json")
        ),
        optim=OptimConfig(steps=1, warmup_steps=0),
        train=TrainConfig(batch_size=3, seq_len=36, precision="float32"),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> PreparedData:
    return prepare_data(recipe.data, tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("kind", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_every_architecture_works_or_is_refused(
    kind: str, tmp_path: Path, tokenizer: Tokenizer, recipe: Recipe, data: PreparedData
) -> None:
    """Each one in transformers is scored, sampled, trained and exported, or refused."""
    if kind in NOT_BUILT:
        pytest.skip(NOT_BUILT[kind])
    model = tiny(kind, tokenizer)
    folder = tmp_path / "model"
    if kind in REFUSED:
        with pytest.raises(CheckpointError, match=REFUSED[kind]):
            load(model, tokenizer, folder)
        return
    lm = load(model, tokenizer, folder)
    if kind in _READ_OTHERWISE:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert_scored_as_by_hand(lm, model)
    assert_written_as_likeliest(lm, model)
    if kind == "reformer":  # cannot train on texts of every length, see below
        return
    finished = assert_trained_as_plain(folder, model, recipe, data)
    exported = export_model(find_run(finished), tmp_path / "exported", Direction.REVERSE)
    for file in finished.glob("*.safetensors"):
        assert (exported / file.name).read_bytes() == file.read_bytes()
    assert_loads_as(exported, folder)


def test_the_lists_match_transformers() -> None:
    assert {*REFUSED, *NOT_BUILT, *_READ_OTHERWISE} <= {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}


def test_models_that_can_pack_rows_are_recognized(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Qwen2-MoE also builds a mask that no layer uses; Nemotron's layers pass no arguments on."""
    for kind in ("qwen2_moe", "nemotron"):
        assert load(tiny(kind, tokenizer), tokenizer, tmp_path / kind)._reach == 128


def test_large_logits_round_more_but_still_pack(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A trained model gives random tokens log-probabilities of -30, where fp32 errs by 2e-4."""
    model = tiny("llama", tokenizer)
    with torch.no_grad():
        model.lm_head.weight.mul_(20_000)
    lm = load(model, tokenizer, tmp_path / "model")
    assert min(lm.logprobs([whole_text(lm, "7 of 5")])[0]) < -500
    assert lm._reach == 128


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packing_does_not_depend_on_precision(
    dtype: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """In the trial, Falcon-H1's state leaks by 0.01, less than a layer's rounding to bf16."""
    for kind, reach in (("llama", 128), ("mixtral", 128), ("falcon_h1", 0), ("zamba", 0)):
        save_checkpoint(
            tmp_path / kind, tiny(kind, tokenizer), tokenizer, Direction.REVERSE, PairFormat()
        )
        lm = HFLanguageModel(tmp_path / kind, device="cpu", dtype=dtype)
        assert (kind, lm._reach) == (kind, reach)
        texts = [whole_text(lm, text) for text in TEXTS]
        for text, found in zip(texts, lm.logprobs(texts), strict=True):
            atol = 1e-4 if reach else 0
            np.testing.assert_allclose(found, lm.logprobs([text])[0], atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_exactness_check_does_not_depend_on_precision(
    dtype: str, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each planted fault is smaller than bf16 rounding."""
    model = tiny("llama", tokenizer)
    save_checkpoint(tmp_path, model, tokenizer, Direction.REVERSE, PairFormat())

    def ways() -> tuple[int, bool, bool]:
        lm = HFLanguageModel(tmp_path, device="cpu", dtype=dtype)
        return lm._reach, lm._decodes, lm._keeps

    assert ways() == (128, True, True)
    attend, logits, read = decoder.attend_to, Trunk.logits, Reader.__call__
    wrong = lambda blocks: lambda *given: 1.02 * attend(blocks)(*given)  # noqa: E731
    monkeypatch.setattr(decoder, "attend_to", wrong)
    assert ways() == (128, False, True)
    monkeypatch.setattr(Trunk, "logits", lambda *given: 1.002 * logits(*given))
    monkeypatch.setattr(Reader, "__call__", lambda *given: 1.002 * read(*given))
    assert ways() == (0, False, False)


@pytest.mark.parametrize(
    ("kind", "dtype", "reason"),
    [
        ("xlstm", "bfloat16", "same dtype"),  # with more than one chunk of 64 tokens
        ("deepseek_v4", "float16", "same dtype"),
        ("xlnet", "bfloat16", "scalar type"),
    ],
)
def test_models_that_fail_in_half_precision_get_a_clear_error(
    kind: str, dtype: str, reason: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = tiny(kind, tokenizer)
    save_checkpoint(tmp_path, model, tokenizer, Direction.REVERSE, PairFormat())
    message = (
        rf"{type(model).__name__} does not run correctly in {dtype} \(.*{reason}.*; try float32"
    )
    with pytest.raises(CheckpointError, match=message):
        HFLanguageModel(tmp_path, device="cpu", dtype=dtype)


def test_a_large_model_is_tested_on_a_copy_of_its_first_layers(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", tokenizer, num_hidden_layers=4).bfloat16()
    assert in_float32(model.float()) is None
    model.bfloat16()
    size, layer = model.num_parameters(), sum(p.numel() for p in model.model.layers[0].parameters())
    for room, layers in ((size, 4), (size - 1, 3), (size - 3 * layer, 1), (size - 4 * layer, 0)):
        monkeypatch.setattr("ledom.model.exactness._MOST_COPIED", room)
        copy = in_float32(model)
        assert (copy and copy.dtype) == (torch.float32 if layers else None)
        assert (len(copy.model.layers) if copy else 0) == layers
    assert (model.dtype, len(model.model.layers)) == (torch.bfloat16, 4)


def test_a_row_may_differ_as_much_as_another_length(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16, SmolLM2-135M differs by 0.35 nats at another length and by 0.8 in a row."""
    checked, move = exactness._checked, 0.0

    def moved(model: Any, run: Any, *others: Any) -> int:
        *given, noise, context = others
        assert noise < 0.05  # for these small weights
        return checked(model, lambda *row: run(*row) + move, *given, 0.35, context)

    monkeypatch.setattr(exactness, "_checked", moved)
    model = tiny("llama", tokenizer)
    save_checkpoint(tmp_path, model, tokenizer, Direction.REVERSE, PairFormat())
    for move, reach in ((0.8, 128), (1.2, 0)):  # noqa: B007 - read above
        assert HFLanguageModel(tmp_path, device="cpu", dtype="bfloat16")._reach == reach


def test_a_row_may_differ_by_rounding(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2-135M, trained further, gives a first token without BOS a log P that differs by 5e-4
    nats in a row, and by as much with differently rounded embeddings."""
    checked, move = exactness._checked, 0.0

    def moved(model: Any, run: Any, *others: Any) -> int:
        return checked(model, lambda *row: run(*row) + move, *others)

    monkeypatch.setattr(exactness, "_checked", moved)
    exact, rounding = tiny("llama", tokenizer), tiny("llama", tokenizer)
    with torch.no_grad():  # differences between tokens vanish in the last digits of the sums
        rounding.model.embed_tokens.weight.add_(300)
        rounding.lm_head.weight.sub_(rounding.lm_head.weight.mean(-1, keepdim=True)).mul_(2000)
    for move, reaches in ((1e-3, (0, 128)), (0.1, (0, 0))):
        for name, model, reach in zip("ab", (exact, rounding), reaches, strict=True):
            assert load(model, tokenizer, tmp_path / f"{name}{move}")._reach == reach


LONG = "Ava has 12 pens. 12 + 3 = 15\n#### 15 so it is 4 of 5 " * 2
COMPANY = ["7 of 5", LONG, "Ava has 12"]
_LONGROPE = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
        "original_max_position_embeddings": 32,
        "partial_rotary_factor": 1.0,
    },
}
_DYNAMIC = {
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}


@pytest.mark.parametrize(
    ("kind", "changes", "reach"),
    [
        ("mistral", {"sliding_window": 20}, 20),
        ("gemma3_text", {"sliding_window": 24, "layer_types": ["sliding_attention"] * 2}, 24),
        ("llama4_text", {"attention_chunk_size": 16}, 0),
        ("phi3", _LONGROPE, 32),
        ("llama", _DYNAMIC, 256),
        ("lfm2", {}, 0),
        ("stablelm", {}, 128),  # its layers pass no arguments to attention
        ("minimax_m3_vl_text", {}, 0),  # two blocks of keys are all keys of the trial
    ],
)
def test_a_short_text_next_to_a_long_one(
    kind: str, changes: dict[str, Any], reach: int, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    plain = tiny(kind, tokenizer, **changes)
    lm = load(plain, tokenizer, tmp_path / "model")
    assert lm._reach == reach
    assert_scored_as_by_hand(lm, plain, COMPANY)
    assert_scored_as_by_hand(lm, plain, COMPANY[::-1])
    if kind != "llama4_text":
        assert_written_as_generate(lm, plain)


def test_a_model_that_refuses_some_lengths_is_not_trained(
    tmp_path: Path, tokenizer: Tokenizer, recipe: Recipe, data: PreparedData
) -> None:
    model = tiny("reformer", tokenizer)
    load(model, tokenizer, tmp_path / "model")
    with pytest.raises(CheckpointError, match="cannot be trained on texts of 36 tokens"):
        assert_trained_as_plain(tmp_path / "model", model, recipe, data)


def test_an_encoder_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = tiny("bert", tokenizer, is_decoder=False)
    with pytest.raises(CheckpointError, match="BertLMHeadModel sees later tokens"):
        load(model, tokenizer, tmp_path / "model")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_weights_that_give_nan_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, value: float
) -> None:
    model = tiny("llama", tokenizer)
    model.model.norm.weight.data[0] = value
    with pytest.raises(CheckpointError, match="its logits are not finite; the weights are damaged"):
        load(model, tokenizer, tmp_path / "model")


def test_windows_longer_than_the_context_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, recipe: Recipe
) -> None:
    save_checkpoint(
        tmp_path / "m", tiny("gpt2", tokenizer), tokenizer, Direction.REVERSE, PairFormat()
    )
    settings = recipe.train.model_copy(update={"seq_len": 129})
    long = recipe.model_copy(update={"init_from": str(tmp_path / "m"), "train": settings})
    with pytest.raises(RecipeError, match=r"train.seq_len is 129: the model's context is 128"):
        check_lengths(long, Direction.REVERSE)
