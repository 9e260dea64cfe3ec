"""The model that a run trains: its precision, how it reads rows, and what is refused early."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from architectures import tiny
from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, InputError, RecipeError
from ledom.core.records import Document, write_records
from ledom.data.prepare import PreparedData, prepare_data
from ledom.model.attention import IMPLEMENTATION
from ledom.model.checkpoint import save_checkpoint
from ledom.text.tokenizer import Tokenizer, train_tokenizer
from ledom.train import model as run_model
from ledom.train.distributed import ProcessGroup
from ledom.train.loop import train
from ledom.train.model import check_models, choose_packing, choose_precision
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe

BOTH = list(Direction)
ALONE = ProcessGroup(torch.device("cpu"))


def started_from(folder: Path, kinds: dict[str, str], tokenizer: Tokenizer, **keys: Any) -> Recipe:
    """A recipe that starts each direction from a tiny model of the given architecture."""
    recipe = Recipe.model_validate(
        {"name": "r", "init_from": f"{folder}/{{direction}}", "data": {"num_documents": 9}}
        | {"optim": {"steps": 1}, "train": {"seq_len": 64}}
        | keys
    )
    for way, kind in kinds.items():
        model, pairs = tiny(kind, tokenizer), recipe.data.pairs
        save_checkpoint(folder / way, model, tokenizer, Direction(way), pairs)
    return recipe


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"lora": {}}, "key lora: MambaForCausalLM does not support adapters"),
        (
            {"data": {"num_documents": 9, "packing": "fixed", "reset_position_ids": False}},
            "key data.mask_across_documents: MambaForCausalLM reads one document at a time",
        ),
        ({"train": {"seq_len": 64, "precision": "bfloat16"}}, None),
    ],
)
@pytest.mark.slow
def test_what_the_second_model_does_not_support_is_refused_before_any_work(
    tmp_path: Path,
    tokenizer: Tokenizer,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    reason: str | None,
) -> None:
    """Otherwise it would be refused when the forward model is trained."""
    kinds = {"forward": "llama", "reverse": "mamba"}
    recipe = started_from(tmp_path, kinds, tokenizer, **settings)
    with caplog.at_level(logging.WARNING, logger="ledom"):
        check_models(recipe, [Direction.FORWARD], ALONE)
        if reason is None:
            check_models(recipe, BOTH, ALONE)
        else:
            with pytest.raises(RecipeError, match=reason):
                check_models(recipe, BOTH, ALONE)
    named = [record for record in caplog.records if record.name == "ledom"]
    assert named == []  # the run itself reports what it chooses


@pytest.mark.slow
def test_activation_checkpointing_that_a_model_lacks_is_refused_before_any_work(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    kinds = {"forward": "llama", "reverse": "ctrl"}
    keys = {"activation_checkpointing": True}
    recipe = started_from(tmp_path, kinds, tokenizer, parallel=keys)
    check_models(recipe, [Direction.FORWARD], ALONE)
    with pytest.raises(RecipeError, match="activation_checkpointing: CTRLLMHeadModel does not"):
        check_models(recipe, BOTH, ALONE)


@pytest.mark.slow
def test_quantized_weights_are_refused_before_any_work(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes' are frozen, and cannot be written after the last step."""
    recipe = started_from(tmp_path, {"forward": "llama", "reverse": "llama"}, tokenizer)
    monkeypatch.setattr(LlamaPreTrainedModel, "is_quantized", True, raising=False)
    with pytest.raises(RecipeError, match="the weights of .*/reverse are quantized; give plain"):
        check_models(recipe, [Direction.REVERSE], ALONE)


@pytest.mark.slow
def test_a_tokenizer_for_only_one_direction_is_refused_before_any_work(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    recipe = started_from(tmp_path, {"forward": "llama", "reverse": "llama"}, tokenizer)
    data = recipe.data.model_copy(update={"tokenizer": f"{tmp_path}/forward/tokenizer.json"})
    named = recipe.model_copy(update={"data": data})
    check_models(named, BOTH, ALONE)
    train_tokenizer(["another"], 260).save(tmp_path / "reverse")
    for started in (recipe, named):
        check_models(started, [Direction.FORWARD], ALONE)
        with pytest.raises(RecipeError, match="tokenizer of .*/reverse is not the data's; set"):
            check_models(started, BOTH, ALONE)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.slow
def test_auto_means_one_precision_for_the_whole_run(
    fast: bool, tmp_path: Path, recipe: Recipe, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor that would choose another one, the run does not silently continue."""
    precisions = ["bfloat16", "float32"] if fast else ["float32", "bfloat16"]
    monkeypatch.setattr(run_model, "fast_bfloat16", lambda device: fast)
    recipe = with_precision("auto", recipe)
    recipe = recipe.model_copy(update={"optim": OptimConfig(steps=1, warmup_steps=0)})
    train(recipe, Direction.FORWARD, data, tmp_path / "auto")
    named = with_precision(precisions[0], recipe)
    train(named, Direction.FORWARD, data, tmp_path / "named")
    first = [
        json.loads((tmp_path / run / "metrics.jsonl").read_text()) for run in ("auto", "named")
    ]
    assert first[0]["loss"] == first[1]["loss"]
    monkeypatch.setattr(run_model, "fast_bfloat16", lambda device: not fast)
    there, now = precisions
    change = rf"\(train.precision: '{there}' there, '{now}' now\); put them back"
    with pytest.raises(CheckpointError, match=change):
        train(recipe, Direction.FORWARD, data, tmp_path / "auto")
    train(named, Direction.FORWARD, data, tmp_path / "auto")


def with_precision(precision: Any, recipe: Recipe) -> Recipe:
    settings = recipe.train.model_copy(update={"precision": precision})
    return recipe.model_copy(update={"train": settings})


def test_a_model_that_fails_in_bf16_trains_in_float32(
    tokenizer: Tokenizer, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DBRX sums its experts' outputs in a different precision than they produce."""
    monkeypatch.setattr(run_model, "fast_bfloat16", lambda device: True)
    model = tiny("dbrx", tokenizer)
    chosen = choose_precision(model, with_precision("auto", recipe), ALONE)
    assert chosen.train.precision == "float32"
    with pytest.raises(
        RecipeError,
        match=r"key train.precision: DbrxForCausalLM does not run in bfloat16 \(.*\); set",
    ):
        choose_precision(model, with_precision("bfloat16", recipe), ALONE)


@pytest.mark.slow
def test_windows_beyond_the_attention_span_need_a_single_process(
    recipe: Recipe, tokenizer: Tokenizer
) -> None:
    """Up to the sliding window (here 64 tokens), rows are packed, on any number of processes."""
    for window, processes, refusal in (
        (64, 2, None),
        (16, 1, None),
        (16, 2, "of more than 16 tokens one at a time.* lower train.seq_len to 16"),
    ):
        model = tiny("mistral", tokenizer, sliding_window=window)
        world = ProcessGroup(torch.device("cpu"), 0, processes)
        if refusal is None:
            choose_packing(model, recipe, tokenizer.eos_id, world)
            packed = model.config._attn_implementation == IMPLEMENTATION
            assert packed is (window == 64)
        else:
            with pytest.raises(RecipeError, match=refusal):
                choose_packing(model, recipe, tokenizer.eos_id, world)


def test_windows_shorter_than_the_texts_of_the_test_are_packed_too(
    recipe: Recipe, tokenizer: Tokenizer
) -> None:
    model = tiny("llama", tokenizer)
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seq_len": 4})})
    choose_packing(model, short, tokenizer.eos_id, ProcessGroup(torch.device("cpu"), 0, 2))
    assert model.config._attn_implementation == IMPLEMENTATION


@pytest.mark.slow
def test_a_document_with_a_special_token_that_the_model_lacks_is_refused(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    recipe = started_from(tmp_path, {"reverse": "llama"}, tokenizer)
    tokenizer = Tokenizer.load(tmp_path / "reverse")
    tokenizer.backend.add_special_tokens(["<image>"])
    tokenizer.save(tmp_path / "reverse")
    for name in ("plain", "<image>"):
        file = tmp_path / f"{name}.jsonl"
        write_records(file, [Document(id=str(i), text=f"{i} {name}") for i in range(3)])
        given = recipe.data.model_copy(update={"train": str(file), "num_documents": None})
        config = recipe.model_copy(update={"data": given}).data_of(Direction.REVERSE)
        data = prepare_data(config, tmp_path / name)
        missing = f"token id {tokenizer.vocab_size - 1}, the vocabulary .* remove this special"
        refusal = pytest.raises(InputError, match=missing)
        with nullcontext() if name == "plain" else refusal:
            train(recipe, Direction.REVERSE, data, tmp_path / name)


@pytest.mark.parametrize("kind", ["llama", "gemma4_text"])  # one and two tables
def test_eos_is_trained_though_the_model_started_from_calls_it_padding(
    kind: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    recipe = started_from(tmp_path, {"reverse": kind}, tokenizer)
    plain = tiny(kind, tokenizer)
    model = run_model._initial_model(recipe, Direction.REVERSE, tokenizer)
    for each, trained in ((plain, False), (model, True)):
        each(input_ids=torch.tensor([[tokenizer.eos_id, 40, 41]])).logits[0, 1].sum().backward()
        table = [m for m in each.modules() if isinstance(m, torch.nn.Embedding)][-1]
        assert bool(table.weight.grad[tokenizer.eos_id].any()) is trained
