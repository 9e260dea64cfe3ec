"""Several processes on this machine, connected as by torchrun (gloo, no GPU)."""

import json
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from kills import run_through_kills
from ledom.core.direction import Direction
from ledom.core.errors import RecipeError, WorkerError
from ledom.data.packing import Windows
from ledom.data.prepare import DataConfig, PreparedData
from ledom.model.checkpoint import build_model
from ledom.train.distributed import (
    ParallelConfig,
    ProcessGroup,
    connect,
    distribute,
    share_out,
    whole_weights,
)
from ledom.train.loop import train, validate
from ledom.train.objective import ObjectiveConfig
from ledom.train.optim import Muon
from ledom.train.recipe import Recipe
from started import PROCESSES, port_of_a_group
from waiting import SECONDS

pytestmark = pytest.mark.slow

WORKER_LOST = 3  # exit code


def rank_main(function, rank, size, port, arguments):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        with connect() as world:
            function(world, *arguments)
    except WorkerError as error:
        sys.exit(WORKER_LOST if f"process {rank} of {size} lost contact" in str(error) else 1)


def run(size, function, *arguments):
    """Run a function in `size` processes; returns their exit codes."""
    with port_of_a_group() as port:
        processes = [
            PROCESSES.Process(target=rank_main, args=(function, rank, size, port, arguments))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + SECONDS
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()  # a running one would delay the end of the tests
            process.join(SECONDS)
    return [process.exitcode for process in processes]


def train_until(world, recipe, data_folder, folder, stop):
    """Train; only the first process is asked to stop after step `stop`."""

    def on_progress(progress):
        if progress.step == stop and world.is_first:
            os.kill(os.getpid(), signal.SIGTERM)

    recipe = Recipe.model_validate_json(recipe)
    train(
        recipe,
        Direction.REVERSE,
        PreparedData(data_folder, DataConfig()),
        folder,
        on_progress,
        world,
    )


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows], [row["valid_loss"] for row in rows if "valid_loss" in row]


def validations(folder):
    """The values that validations add to their rows."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if "valid" in k} for r in rows if "valid_loss" in r]


def validate_on(world, recipe, data_folder, folder):
    recipe = Recipe.model_validate_json(recipe)
    data = PreparedData(data_folder, DataConfig())
    model = build_model(recipe.model, data.tokenizer, 5)
    distribute(model, world, recipe.parallel, torch.float32)
    row = validate(model, data, Direction.REVERSE, recipe, world)
    if world.is_first:
        (folder / "row.json").write_text(json.dumps(row))


def test_fewer_windows_than_processes_count_once(tmp_path, recipe, data, data_folder):
    """The last validation batch has one or two windows for three processes."""
    number = len(Windows(data.valid, recipe.train.seq_len))
    size = next(size for size in range(3, 9) if number % size in (1, 2) and number > size)
    train = recipe.train.model_copy(update={"batch_size": size})
    recipe = recipe.model_copy(update={"train": train})
    assert run(3, validate_on, recipe.model_dump_json(), data_folder, tmp_path) == [0, 0, 0]
    model = build_model(recipe.model, data.tokenizer, 5)
    found = json.loads((tmp_path / "row.json").read_text())
    for key, value in validate(model, data, Direction.REVERSE, recipe).items():
        assert found[key] == (pytest.approx(value, abs=1e-5) if "_loss" in key else value)


def gather_on(world, recipe, data_folder, folder):
    recipe = Recipe.model_validate_json(recipe)
    model = build_model(recipe.model, PreparedData(data_folder, DataConfig()).tokenizer, 5)
    distribute(model, world, recipe.parallel, torch.float32)
    weights = whole_weights(model, world)
    if world.is_first:
        assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]


def test_tied_weights_are_gathered_as_one_tensor(tmp_path, recipe, data_folder):
    """As two tensors, they would be written twice and counted twice in the model card."""
    assert recipe.model.tie_word_embeddings
    assert run(2, gather_on, recipe.model_dump_json(), data_folder, tmp_path) == [0, 0]


@pytest.fixture(scope="module")
def short(recipe):
    """Twelve steps of eight windows."""
    return recipe.model_copy(
        update={
            "optim": recipe.optim.model_copy(update={"steps": 12, "decay_steps": 4}),
            "train": recipe.train.model_copy(update={"batch_size": 8, "validate_every": 5}),
        }
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory, short, data_folder):
    """The folder of that run, done in one process."""
    folder = tmp_path_factory.mktemp("alone")
    train(short, Direction.REVERSE, PreparedData(data_folder, DataConfig()), folder)
    return folder


def test_four_processes_then_two_then_one_equal_one(tmp_path, short, alone, data_folder):
    """This holds for any sharding, with replicas, micro-batches or recomputation."""
    folder = tmp_path / "elastic"
    legs = [
        (4, 4, ParallelConfig(shard_size=2, tokens_per_microbatch=60)),
        (2, 8, ParallelConfig(activation_checkpointing=True)),
        (1, 99, ParallelConfig(tokens_per_microbatch=100)),
    ]
    for size, stop, parallel in legs:
        recipe = short.model_copy(update={"parallel": parallel}).model_dump_json()
        assert run(size, train_until, recipe, data_folder, folder, stop) == [0] * size
    (expected, expected_valid), (found, found_valid) = losses(alone), losses(folder)
    assert len(found) == 12
    assert found == pytest.approx(expected, abs=1e-5)
    assert found_valid == pytest.approx(expected_valid, abs=1e-5)
    assert expected[0] - expected[-1] > 0.5
    parts, found_parts = validations(alone), validations(folder)
    assert len(parts) == 3
    for row, reference in zip(found_parts, parts, strict=True):
        assert row.keys() == reference.keys()
        for key, value in reference.items():
            assert row[key] == (pytest.approx(value, abs=1e-5) if "_loss" in key else value)


def train_and_lose_one(world, recipe, data_folder, folder):
    """Train; the last process is killed in its eighth step, the others write their errors."""
    steps, original = 0, Muon.step

    def step(self):
        nonlocal steps
        steps += 1
        if steps == 8 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self)

    Muon.step = step
    train_until(world, recipe, data_folder, folder, 99)


def test_when_a_process_is_killed_the_others_end_and_the_run_resumes(
    tmp_path, short, alone, data_folder
):
    recipe, folder = short.model_dump_json(), tmp_path / "run"
    codes = run(2, train_and_lose_one, recipe, data_folder, folder)
    assert codes == [WORKER_LOST, -signal.SIGKILL]
    assert len(losses(folder)[0]) == 7
    train(short, Direction.REVERSE, PreparedData(data_folder, DataConfig()), folder)
    assert losses(folder)[0] == pytest.approx(losses(alone)[0], abs=1e-5)


def test_kills_at_any_time_do_not_change_the_result_of_a_run(tmp_path, recipe, data_folder):
    often = recipe.train.model_copy(update={"checkpoint_every": 2, "validate_every": 7})
    few = recipe.optim.model_copy(update={"steps": 12, "decay_steps": 4})
    recipe = recipe.model_copy(update={"train": often, "optim": few})
    alone, folder = tmp_path / "alone", tmp_path / "killed"

    def work(out):
        train(recipe, Direction.REVERSE, PreparedData(data_folder, DataConfig()), out)

    assert run_through_kills(work, alone, folder, seed=3, kills=5) > 1
    assert losses(folder) == losses(alone)
    model = "model/model.safetensors"
    assert (folder / model).read_bytes() == (alone / model).read_bytes()


def muon_steps(world, folder):
    """Two Muon steps on sharded matrices: uneven rows, fewer rows than processes, odd count."""
    mesh = init_device_mesh("cpu", (world.size,), mesh_dim_names=("shard",))
    for place, weights in enumerate(muon_weights(lambda t: distribute_tensor(t, mesh, [Shard(0)]))):
        whole = weights.full_tensor()
        if world.is_first:
            torch.save(whole, folder / f"{place}.pt")


def muon_weights(place):
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (7, 5), (2, 6), (7, 5), (7, 5), (9, 3)]
    weights = [torch.nn.Parameter(place(torch.randn(s, generator=generator))) for s in shapes]
    optimizer = Muon(weights, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        for weight in weights:
            weight.grad = place(torch.randn(weight.shape, generator=generator))
        optimizer.step()
    return [weight.detach() for weight in weights]


def test_muon_on_sharded_matrices_equals_muon_on_whole_ones(tmp_path):
    assert run(3, muon_steps, tmp_path) == [0, 0, 0]
    for place, expected in enumerate(muon_weights(lambda tensor: tensor)):
        found = torch.load(tmp_path / f"{place}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_one_process_uses_a_batch_unchanged():
    assert share_out([3, 9, 1, 4], ProcessGroup(torch.device("cpu"))) == [[0, 1, 2, 3]]


def test_windows_are_distributed_evenly():
    worlds = [ProcessGroup(torch.device("cpu"), rank, 2) for rank in range(2)]
    # 9 | 5, then 4 to the second (9 = 9), then 3 to the first, 1 to the second.
    assert [share_out([3, 9, 1, 4, 5], world) for world in worlds] == [[[0, 1]], [[2, 3, 4]]]


def test_micro_batches_are_equal_in_number_and_contain_every_window_once():
    rng = np.random.default_rng(0)
    for _ in range(30):
        sizes = rng.integers(1, 40, size=rng.integers(3, 30)).tolist()
        size, limit = int(rng.integers(1, 4)), int(rng.integers(5, 200))
        worlds = [ProcessGroup(torch.device("cpu"), rank, size) for rank in range(size)]
        shares = [share_out(sizes, world, limit) for world in worlds]
        assert len({len(share) for share in shares}) == 1
        assert all(part for share in shares for part in share)
        found = sorted(place for share in shares for part in share for place in part)
        assert found == list(range(len(sizes)))
        largest = max(sum(sizes[i] for i in part) for share in shares for part in share)
        assert largest <= limit + max(sizes) + 1 or len(shares[0]) * size > len(sizes) - size


def test_a_single_process_does_not_communicate():
    with connect() as world:
        assert (world.rank, world.size, world.is_first) == (0, 1, True)
        assert world.total(torch.tensor(2.5), 1) == [2.5, 1]
        assert world.agreed("x") == "x"
        assert not dist.is_initialized()


def test_contrasts_are_not_divided_into_micro_batches(tmp_path, recipe, data):
    asked = {
        "objective": ObjectiveConfig(target=1.0),
        "parallel": ParallelConfig(tokens_per_microbatch=9),
    }
    with pytest.raises(RecipeError, match="objective.contrastive run in one process, without"):
        train(recipe.model_copy(update=asked), Direction.REVERSE, data, tmp_path)
