"""A run does not resume with different data than it started with, whatever has changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import tiny
from command_line import Run, check_refused
from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, RecipeError
from ledom.core.files import lock_folder
from ledom.core.records import Document, write_records
from ledom.data.prepare import DataConfig, PreparedData, prepare_data
from ledom.data.store import write_store
from ledom.lm import embedded_folder
from ledom.model.checkpoint import save_checkpoint
from ledom.model.presets import ModelConfig
from ledom.text.tokenizer import Tokenizer
from ledom.train.distributed import ParallelConfig, ProcessGroup
from ledom.train.loop import Progress, TrainingRun, train
from ledom.train.lora import LoraConfig
from ledom.train.metrics import read_metrics
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe, TrainConfig
from ledom.train.start import check_inputs, check_shareable, content_hash
from made import SMALL_MODEL

BOTH = list(Direction)
ALONE = ProcessGroup(torch.device("cpu"))


@pytest.fixture
def inputs(tmp_path: Path, tokenizer: Tokenizer) -> dict[str, Path]:
    """One input for everything that a recipe can name, by key."""
    root = tmp_path / "inputs"
    write_store(root / "train", ["one", "two"], tokenizer)
    write_store(root / "valid", ["six", "ten"], tokenizer)
    for folder in ("tokenizer", "forward", "reverse"):
        (root / folder).mkdir()
        tokenizer.save(root / folder)
        (root / folder / "model.safetensors").write_text(folder)
    (root / "wrong.jsonl").write_text("one")
    return {
        "data.sources.0.path": root / "train",
        "data.valid": root / "valid",
        "data.tokenizer": root / "tokenizer/tokenizer.json",
        "objective.negatives": root / "wrong.jsonl",
        "init_from.reverse": root / "reverse",
    }


@pytest.fixture
def full(inputs: dict[str, Path], recipe: Recipe) -> Recipe:
    data = {
        "sources": [{"path": str(inputs["data.sources.0.path"])}],
        "valid": str(inputs["data.valid"]),
        "tokenizer": str(inputs["data.tokenizer"]),
    }
    wrong = {"negatives": str(inputs["objective.negatives"])}
    init = str(inputs["init_from.reverse"].with_name("{direction}"))
    tree = recipe.model_dump() | {"data": data, "objective": wrong, "init_from": init}
    return Recipe.model_validate(tree)


def change(path: Path, tokenizer: Tokenizer) -> None:
    if (path / "manifest.json").is_file():
        write_store(path, ["one", "too"], tokenizer)
    elif path.is_dir():
        (path / "model.safetensors").write_text("esrever")
    else:
        path.write_bytes(path.read_bytes()[::-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    [
        "data.sources.0.path",
        "data.valid",
        "data.tokenizer",
        "objective.negatives",
        "init_from.reverse",
    ],
)
def test_the_error_for_a_changed_input_names_its_key(
    tmp_path: Path, full: Recipe, inputs: dict[str, Path], tokenizer: Tokenizer, key: str
) -> None:
    folder = tmp_path / "run"
    check_inputs(full, BOTH, folder)
    (folder / "forward/checkpoints/00000005").mkdir(parents=True)
    check_inputs(full, BOTH, folder)  # nothing has changed
    moved = inputs[key].with_name("moved")
    inputs[key].rename(moved)
    (shutil.copytree if moved.is_dir() else shutil.copy)(moved, inputs[key])
    check_inputs(full, BOTH, folder)  # nor in a copy
    change(inputs[key], tokenizer)
    with pytest.raises(CheckpointError, match=rf"run: {key} \(.*\) has changed since this run beg"):
        check_inputs(full, [Direction.REVERSE], folder)  # the twin of the run that has started
    shutil.rmtree(folder / "forward")
    check_inputs(full, BOTH, folder)  # no saved step has used them
    assert json.loads((folder / "inputs.json").read_text())[key] == content_hash(inputs[key])


def test_an_input_changed_while_the_twin_trains_is_refused(
    tmp_path: Path, full: Recipe, inputs: dict[str, Path], tokenizer: Tokenizer
) -> None:
    """This holds even before its first checkpoint, as the two would have read different data."""
    folder = tmp_path / "run"
    check_inputs(full, BOTH, folder)
    before = (folder / "inputs.json").read_bytes()
    change(inputs["data.valid"], tokenizer)
    with lock_folder(folder / "forward", "trains"):
        with pytest.raises(CheckpointError, match=r"run: data.valid \(.*\) has changed since this"):
            check_inputs(full, [Direction.REVERSE], folder)
        assert (folder / "inputs.json").read_bytes() == before
    (folder / "forward/.ledom.lock").touch()  # as left by a killed process
    check_inputs(full, [Direction.REVERSE], folder)
    assert (folder / "inputs.json").read_bytes() != before


@pytest.mark.parametrize("begun", [True, False])
def test_another_direction_adds_its_model(tmp_path: Path, full: Recipe, begun: bool) -> None:
    check_inputs(full, [Direction.FORWARD], tmp_path)
    if begun:  # otherwise both have just started in two processes
        (tmp_path / "forward/checkpoints/00000005").mkdir(parents=True)
    check_inputs(full, [Direction.REVERSE], tmp_path)
    known = json.loads((tmp_path / "inputs.json").read_text())
    assert {"init_from.forward", "init_from.reverse"} <= {*known}
    assert known["init_from.forward"] != known["init_from.reverse"]


def test_only_the_content_counts(tmp_path: Path) -> None:
    for name, text in (("a", "text"), ("b", "text"), ("c", "next")):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, ns=(1, 1))
    a, b, c = (content_hash(tmp_path / name) for name in "abc")
    (tmp_path / "empty").mkdir()
    assert content_hash(tmp_path / "empty") not in (a, b, c)
    assert a == b != c
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="this is a pipe or a device"):
        content_hash(tmp_path / "pipe")


def test_files_that_are_not_loaded_do_not_change_a_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(embedded_folder("reverse"), model)
    before = content_hash(model)
    (model / "README.md").write_text("A model.")
    (model / ".DS_Store").touch()
    assert content_hash(model) == before
    (model / "generation_config.json").write_text("{}")  # which tokens end a text
    assert content_hash(model) != before


@pytest.mark.slow
def test_a_replaced_store_is_refused_before_a_step(
    tmp_path: Path, run: Run, full: Recipe, inputs: dict[str, Path], tokenizer: Tokenizer
) -> None:
    """From the command line: forward, then reverse with another store at the same path."""
    recipe = tmp_path / "recipe.yaml"
    store, valid = inputs["data.sources.0.path"], inputs["data.valid"]
    recipe.write_text(
        f"name: r\ndata:\n  sources: [{{path: {store}}}]\n  valid: {valid}\n"
        f"  tokenizer: {inputs['data.tokenizer']}\n"
        f"{SMALL_MODEL}optim: {{steps: 1, warmup_steps: 0}}\n"
    )
    arguments = ("train", recipe, "--out", tmp_path / "runs", "--direction")
    assert run(*arguments, "forward")[0] == 0
    change(store, tokenizer)
    for direction in ("forward", "reverse"):
        check_refused(run(*arguments, direction), "data.sources.0.path", "has changed since")
    assert not (tmp_path / "runs/r/reverse").exists()


def started_from(
    folder: Path, kind: str, recipe: Recipe, data: PreparedData, **changes: Any
) -> Recipe:
    """A six-step run from a tiny model of an architecture, saved in `folder`."""
    model = tiny(kind, data.tokenizer, **changes)
    save_checkpoint(folder, model, data.tokenizer, Direction.REVERSE, recipe.data.pairs)
    optim = OptimConfig(steps=6, warmup_steps=0, decay_steps=0, matrix_optimizer="adamw")
    return recipe.model_copy(update={"init_from": str(folder), "model": None, "optim": optim})


def losses_in(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_dropout_depends_only_on_seed_and_step(
    tmp_path: Path, recipe: Recipe, data: PreparedData
) -> None:
    """A stopped run ends like an uninterrupted one; another seed gives another mask."""
    given = started_from(tmp_path / "given", "gpt2", recipe, data, resid_pdrop=0.3)

    def interrupt(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    whole = train(given, Direction.REVERSE, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(given, Direction.REVERSE, data, tmp_path / "stopped", interrupt)
    stopped = train(given, Direction.REVERSE, data, tmp_path / "stopped")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, stopped)]
    assert weights[0] == weights[1]
    runs = [losses_in(tmp_path / name) for name in ("whole", "stopped")]
    assert runs[0] == runs[1]
    config = json.loads((whole / "config.json").read_text())
    assert config["resid_pdrop"] == 0.3
    # The windows and weights are the same; only the dropout mask differs.
    run = TrainingRun(given, Direction.REVERSE, data, tmp_path / "run", ALONE)
    drawn = []
    for step, seed in ((0, 1), (0, 1), (0, 2), (1, 1)):
        run.step, run.recipe = step, run.recipe.model_copy(update={"seed": seed})
        run._seed_dropout()
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("kind", ["gemma", "mistral", "llama"])
@pytest.mark.slow
def test_the_initial_model_is_trained_whatever_shape_is_also_given(
    kind: str, tmp_path: Path, recipe: Recipe, data: PreparedData
) -> None:
    """Gemma's weights have Llama's names, but a Llama with these weights is another model."""
    changes: dict[str, Any] = {"tie_word_embeddings": True}
    if kind == "llama":
        changes["rope_parameters"] = {"rope_type": "default", "rope_theta": 50.0}
    given = started_from(tmp_path / "given", kind, recipe, data, **changes)
    config = json.loads((tmp_path / "given/config.json").read_text())
    shape = ModelConfig.model_validate(
        {key: config[key] for key in ModelConfig.model_fields if key in config}
    )
    losses = []
    for name, model in (("without", None), ("with", shape)):
        alike = given.model_copy(update={"model": model})
        finished = train(alike, Direction.REVERSE, data, tmp_path / name)
        losses.append(losses_in(tmp_path / name))
        assert json.loads((finished / "config.json").read_text())["model_type"] == kind
    assert losses[0] == losses[1]
    other = shape.model_copy(update={"rms_norm_eps": 1e-3})
    message = r"^key model.rms_norm_eps is 0.001: .* has another shape, 1e-0[56] there; leave model"
    with pytest.raises(RecipeError, match=message):
        train(given.model_copy(update={"model": other}), Direction.REVERSE, data, tmp_path / "no")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("train", {"batch_size": 2}, "train.batch_size is 2: too few windows for 3 processes"),
        ("parallel", {"shard_size": 2}, "parallel.shard_size is 2, which does not divide the 3"),
        ("objective", {"target": 1.0}, "objective.target and objective.contrastive run in one"),
    ],
)
def test_settings_that_processes_cannot_share_are_refused_early(
    recipe: Recipe, part: str, changes: dict[str, Any], message: str
) -> None:
    changed = getattr(recipe, part).model_copy(update=changes)
    asked = recipe.model_copy(update={part: changed})
    check_shareable(asked, 1)
    with pytest.raises(RecipeError, match=message):
        check_shareable(asked, 3)


def test_adapters_are_divided_into_micro_batches_only(recipe: Recipe) -> None:
    parallel = ParallelConfig(tokens_per_microbatch=9)
    asked = recipe.model_copy(update={"lora": LoraConfig(), "parallel": parallel})
    check_shareable(asked, 1)
    with pytest.raises(RecipeError, match="^lora runs in one process; start it without torchrun$"):
        check_shareable(asked, 2)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.slow
def test_the_first_token_of_a_document_can_be_learned(
    tmp_path: Path, tokenizer: Tokenizer, direction: Direction, tied: bool
) -> None:
    """It follows only EOS, whose embedding transformers would leave at 0 as that of padding."""
    recipe = Recipe(
        name="first",
        data=DataConfig(train=str(tmp_path / "texts.jsonl")),
        model=ModelConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        ),
        optim=OptimConfig(steps=20, warmup_steps=2, adamw_lr=0.02),
        train=TrainConfig(batch_size=4, seq_len=8, precision="float32"),
    )
    write_records(recipe.data.train, [Document(id=str(i), text="aba") for i in range(12)])
    data = prepare_data(recipe.data, tmp_path / "data")
    train(recipe, direction, data, tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["valid_loss_by_position"]["0"] < 2.5  # a uniform choice gives 5.6
