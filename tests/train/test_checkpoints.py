import contextlib
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError
from ledom.core.files import lock_folder
from ledom.data.prepare import DataConfig
from ledom.model.checkpoint import build_model
from ledom.train.checkpoints import Checkpoints
from ledom.train.distributed import ParallelConfig, ProcessGroup
from ledom.train.objective import ObjectiveConfig
from ledom.train.optim import build_optimizers

pytestmark = pytest.mark.slow

FORWARD = Direction.FORWARD
ALONE = ProcessGroup(torch.device("cpu"))


@pytest.fixture
def make(recipe, tokenizer):
    """Create a model and its optimizers from a seed, after one step."""

    def make(seed, matrix_optimizer="muon", unused=()):
        model = build_model(recipe.model, tokenizer, seed)
        optim = recipe.optim.model_copy(update={"matrix_optimizer": matrix_optimizer})
        optimizers = build_optimizers(model, optim)
        model(
            input_ids=torch.tensor([[1, 2, 3]]), use_cache=False
        ).logits.square().mean().backward()
        for name in unused:
            model.get_parameter(name).grad = None
        for optimizer in optimizers:
            optimizer.step()
        return model, optimizers

    return make


@pytest.fixture
def checkpoints(tmp_path, recipe, make):
    """The checkpoints of a run in `tmp_path`."""
    return Checkpoints(tmp_path, *make(0), recipe, FORWARD, ALONE)


def save(checkpoints, *steps):
    """Write checkpoints, waiting for each to finish."""
    for step in steps:
        checkpoints.save(step)
        checkpoints.wait()


def names(folder):
    return sorted(os.listdir(folder / "checkpoints"))


def test_without_a_checkpoint_a_run_starts_at_zero(tmp_path, recipe, make):
    model, optimizers = make(0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert Checkpoints(tmp_path, model, optimizers, recipe, FORWARD, ALONE).restore() == 0
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("unused", [(), ("model.norm.weight", "lm_head.weight")])
@pytest.mark.parametrize("matrix_optimizer", ["muon", "adamw"])
def test_everything_saved_is_restored(tmp_path, recipe, make, matrix_optimizer, unused):
    """Weights that no text has used yet, such as an image tower's, have no state."""
    model, optimizers = make(0, matrix_optimizer, unused)
    save(Checkpoints(tmp_path, model, optimizers, recipe, FORWARD, ALONE), 7)
    other, other_optimizers = make(1, matrix_optimizer)
    assert Checkpoints(tmp_path, other, other_optimizers, recipe, FORWARD, ALONE).restore() == 7
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])
    for saved, restored in zip(optimizers, other_optimizers, strict=True):
        saved_state, restored_state = saved.state_dict()["state"], restored.state_dict()["state"]
        assert saved_state.keys() == restored_state.keys()
        assert saved_state
        for index, values in saved_state.items():
            for key, value in values.items():
                assert torch.equal(value, restored_state[index][key])


def test_a_checkpoint_has_the_state_at_the_time_of_the_call(tmp_path, recipe, make):
    model, optimizers = make(0)
    before = model.model.norm.weight.clone()
    checkpoints = Checkpoints(tmp_path, model, optimizers, recipe, FORWARD, ALONE)
    checkpoints.save(5)
    with torch.no_grad():
        model.model.norm.weight.zero_()  # during the write
    checkpoints.wait()
    assert checkpoints.restore() == 5
    assert torch.equal(model.model.norm.weight, before)


def test_only_the_newest_checkpoints_are_kept(tmp_path, checkpoints):
    save(checkpoints, 5, 10, 100)
    assert names(tmp_path) == ["00000010", "00000100"]
    assert checkpoints.restore() == 100


def test_recent_checkpoints_are_kept_too(tmp_path, recipe, make):
    hours = recipe.train.model_copy(update={"keep_hours": 2.0})
    recipe = recipe.model_copy(update={"train": hours})
    checkpoints = Checkpoints(tmp_path, *make(0), recipe, FORWARD, ALONE)
    save(checkpoints, 5, 10, 15, 20)
    assert names(tmp_path) == ["00000005", "00000010", "00000015", "00000020"]
    long_ago = time.time() - 3 * 3600
    for name in ("00000005", "00000015"):
        os.utime(tmp_path / "checkpoints" / name, (long_ago, long_ago))
    save(checkpoints, 25)
    assert names(tmp_path) == ["00000010", "00000020", "00000025"]


def test_a_killed_write_is_ignored_and_removed(tmp_path, checkpoints):
    save(checkpoints, 5)
    complete = tmp_path / "checkpoints" / "00000005"
    shutil.copytree(complete, tmp_path / "checkpoints" / "00000010.tmp")
    assert checkpoints.restore() == 5
    assert names(tmp_path) == ["00000005"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("full"), "full"),
        # torch's errors on a full disk, observed on one of 2 MB.
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
            "a file was cut short, with",
        ),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, checkpoints, monkeypatch, error, said):
    save(checkpoints, 5)

    def half(self, plan, planner):
        (tmp_path / "checkpoints" / "00000010.tmp" / "__0_0.distcp").write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(dcp.FileSystemWriter, "write_data", half)
        assert checkpoints.save(10) is None
        failure = checkpoints.failure(wait=True)
    assert str(failure).startswith(str(tmp_path / "checkpoints" / "00000010"))
    assert "cannot be written: " in str(failure)
    assert said in str(failure)
    assert "inline_container" not in str(failure)
    assert checkpoints.failure() is None  # reported once
    assert names(tmp_path) == ["00000005"]
    assert checkpoints.restore() == 5
    save(checkpoints, 10)
    assert checkpoints.restore() == 10


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path, checkpoints):
    (tmp_path / "checkpoints").touch()
    checkpoints.save(5)
    assert "00000005: cannot be written" in str(checkpoints.failure(wait=True))


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", "run.json"])
@pytest.mark.parametrize("kept", [0, 20, -1])
def test_the_error_for_a_damaged_checkpoint_names_it(tmp_path, checkpoints, file, kept):
    save(checkpoints, 5, 10)
    damaged = tmp_path / "checkpoints" / "00000010" / file
    damaged.write_bytes(damaged.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"00000010: damaged; remove it to resume from"):
        checkpoints.restore()
    shutil.rmtree(damaged.parent)
    assert checkpoints.restore() == 5


def test_a_checkpoint_with_a_changed_bit_is_refused(tmp_path, checkpoints):
    save(checkpoints, 5)
    shard = tmp_path / "checkpoints" / "00000005" / "__0_0.distcp"
    stored = bytearray(shard.read_bytes())
    stored[len(stored) // 2] ^= 1  # in a weight: torch reads it without an error
    shard.write_bytes(stored)
    with pytest.raises(CheckpointError, match=r"00000005: damaged; .* \(its bytes have changed"):
        checkpoints.restore()


@pytest.mark.parametrize(
    ("cause", "raised", "says"),
    [
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "CUDA"),
        (PermissionError(13, "Permission denied", "x"), CheckpointError, "cannot be read: Perm"),
        (FileNotFoundError(2, "No such file", "x"), CheckpointError, "damaged; remove it"),
    ],
)
def test_interrupted_reading_is_not_called_damage(checkpoints, monkeypatch, cause, raised, says):
    """torch wraps every error, even Ctrl-C; a false report would make users delete good files."""
    save(checkpoints, 5)

    def read_data(*_):
        raise cause

    monkeypatch.setattr(dcp.filesystem.FileSystemReader, "read_data", read_data)
    with pytest.raises(raised, match=says) as found:
        checkpoints.restore()
    assert "remove it" in says or "remove it" not in str(found.value)


def test_a_checkpoint_with_a_file_missing_is_refused(tmp_path, checkpoints):
    save(checkpoints, 5)
    (tmp_path / "checkpoints" / "00000005" / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match="00000005: damaged"):
        checkpoints.restore()


def with_optim(recipe, **changes):
    return recipe.model_copy(update={"optim": recipe.optim.model_copy(update=changes)})


def test_a_run_may_be_extended_until_its_rate_decays(tmp_path, recipe, make):
    """The last ten of 30 steps decay to 0: the 22nd is the first below the peak."""
    short, long = (with_optim(recipe, steps=steps, decay_steps=10) for steps in (30, 60))
    save(Checkpoints(tmp_path, *make(0), short, FORWARD, ALONE), 21)
    assert Checkpoints(tmp_path, *make(0), long, FORWARD, ALONE).restore() == 21
    save(Checkpoints(tmp_path, *make(0), short, FORWARD, ALONE), 22)
    with pytest.raises(CheckpointError, match="optim.steps: 30 there, 60 now"):
        Checkpoints(tmp_path, *make(0), long, FORWARD, ALONE).restore()


def test_the_error_for_other_settings_says_what_differs(tmp_path, recipe, make, checkpoints):
    save(checkpoints, 5)
    run = json.loads((tmp_path / "checkpoints" / "00000005" / "run.json").read_text())
    assert (run["step"], run["direction"], run["recipe"]["seed"]) == (5, "forward", 1)
    others = {
        "seed: 1 there, 2 now": recipe.model_copy(update={"seed": 2}),
        "optim.steps: 30 there, 5 now": with_optim(recipe, steps=5),
        "optim.warmup_steps: 0 there, 4 now": with_optim(recipe, warmup_steps=4),
        "train.batch_size: 4 there, 5 now": recipe.model_copy(
            update={"train": recipe.train.model_copy(update={"batch_size": 5})}
        ),
    }
    for message, other in others.items():
        with pytest.raises(
            CheckpointError, match=f"00000005: belongs .* other settings .{message}"
        ):
            Checkpoints(tmp_path, *make(0), other, FORWARD, ALONE).restore()
    with pytest.raises(CheckpointError, match="direction: 'forward' there, 'reverse' now"):
        Checkpoints(tmp_path, *make(0), recipe, Direction.REVERSE, ALONE).restore()


def test_a_twin_with_other_settings_is_refused_before_the_first_checkpoint(tmp_path, recipe, make):
    forward, reverse = tmp_path / "forward", tmp_path / "reverse"
    other = recipe.model_copy(update={"seed": 2})
    with lock_folder(forward, "trains"):
        assert Checkpoints(forward, *make(0), recipe, FORWARD, ALONE).restore() == 0
        twin = Checkpoints(reverse, *make(0), other, Direction.REVERSE, ALONE)
        with pytest.raises(CheckpointError, match=rf"twin {forward} .*\(seed: 1 there, 2 now\)"):
            twin.restore()
        assert Checkpoints(reverse, *make(0), recipe, Direction.REVERSE, ALONE).restore() == 0
    assert twin.restore() == 0  # the other twin has stopped and left nothing


def test_one_of_two_concurrent_twins_with_other_settings_is_refused(
    tmp_path, recipe, make, monkeypatch
):
    found, ended, find = threading.Barrier(2), threading.Barrier(2), Checkpoints._find

    def find_with_the_twin(checkpoints):
        newest = find(checkpoints)
        with contextlib.suppress(threading.BrokenBarrierError):
            found.wait(timeout=1)
        return newest

    def start(direction, seed):
        folder, other = tmp_path / str(direction), recipe.model_copy(update={"seed": seed})
        with lock_folder(folder, "trains"):
            try:
                Checkpoints(folder, *make(0), other, direction, ALONE).restore()
            finally:
                ended.wait()

    monkeypatch.setattr(Checkpoints, "_find", find_with_the_twin)
    with ThreadPoolExecutor() as threads, pytest.raises(CheckpointError, match="seed: "):
        list(threads.map(start, Direction, (1, 2)))


def test_a_twin_with_other_settings_is_refused(tmp_path, recipe, make):
    """`ledom compare` attributes the difference between their losses to the direction."""
    forward, reverse = tmp_path / "forward", tmp_path / "reverse"
    given = recipe.model_copy(update={"init_from": "a"})
    save(Checkpoints(forward, *make(0), given, FORWARD, ALONE), 5)

    def begin(other, folder=reverse):
        return Checkpoints(folder, *make(0), other, Direction.REVERSE, ALONE).restore()

    other = recipe.model_copy(update={"seed": 2, "init_from": "b"})  # a model of its direction
    message = rf"^{reverse}: its twin {forward}/.*00005 was trained with other settings \(seed: 1 "
    with pytest.raises(CheckpointError, match=message + r"there, 2 now\); train both with"):
        begin(other)
    with pytest.raises(CheckpointError, match=r"settings \(optim.adamw_lr: .* there, 0.5 now\)"):
        begin(with_optim(recipe, adamw_lr=0.5))
    assert begin(other, tmp_path / "elsewhere") == 0  # not a twin
    same = other.model_copy(update={"seed": 1})
    assert begin(with_optim(same, steps=60)) == 0  # the rates of the twin's 5 steps are equal
    more = {"parallel": ParallelConfig(tokens_per_microbatch=100)}
    assert begin(same.model_copy(update=more)) == 0
    save(Checkpoints(reverse, *make(0), same, Direction.REVERSE, ALONE), 5)
    assert begin(same) == 5
    shutil.rmtree(reverse)
    shutil.copy(forward / "checkpoints/00000005/run.json", forward)
    (forward / "checkpoints/00000005/run.json").write_text("{")
    assert begin(other) == 0
    shutil.rmtree(forward / "checkpoints")  # those of a finished twin, to save space
    (forward / "model").mkdir()
    with pytest.raises(CheckpointError, match=rf"its twin {forward} was trained with other"):
        begin(other)


def test_files_may_be_moved(tmp_path, recipe, make, checkpoints):
    """Their contents are compared during data preparation and by `check_inputs`."""
    save(checkpoints, 5)
    moved = {"train": "elsewhere.jsonl", "valid": "there.jsonl", "tokenizer": "t.json"}
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update=moved)})
    assert Checkpoints(tmp_path, *make(0), other, FORWARD, ALONE).restore() == 5
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"seed": 7})})
    with pytest.raises(CheckpointError, match="data.seed: 0 there, 7 now"):
        Checkpoints(tmp_path, *make(0), other, FORWARD, ALONE).restore()


def test_stores_models_and_wrong_solutions_may_be_moved(tmp_path, recipe, make):
    def given(place, weight=1.0, **data):
        mixed = [{"path": f"{place}/a"}, {"path": f"{place}/b", "weight": weight}]
        changed = {"data": DataConfig(sources=mixed, valid=f"{place}/v", **data)}
        wrong = ObjectiveConfig(contrastive=1.0, negatives=f"{place}/wrong.jsonl")
        return recipe.model_copy(update=changed | {"objective": wrong, "init_from": place})

    def restore(other):
        return Checkpoints(tmp_path, *make(0), other, FORWARD, ALONE).restore()

    save(Checkpoints(tmp_path, *make(0), given("here"), FORWARD, ALONE), 5)
    assert restore(given("there", verify=False)) == 5  # checksums may be skipped
    with pytest.raises(CheckpointError, match="data.sources: .*'weight': 1.0.*'weight': 2.0"):
        restore(given("here", weight=2.0))
    with pytest.raises(CheckpointError, match="init_from: 'a model' there, None now"):
        restore(given("here").model_copy(update={"init_from": None}))


def test_save_intervals_and_devices_may_change(tmp_path, recipe, make, checkpoints):
    save(checkpoints, 5)
    file = tmp_path / "checkpoints/00000005/run.json"
    run = json.loads(file.read_text())
    run["recipe"]["train"]["trackers"] = []  # as in older versions
    file.write_text(json.dumps(run))
    changes = {"validate_every": 7, "checkpoint_every": 9, "keep_checkpoints": 1, "keep_hours": 1}
    changes["trackers"] = ("tensorboard",)
    other = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update=changes),
            "parallel": ParallelConfig(tokens_per_microbatch=100),
        }
    )
    assert Checkpoints(tmp_path, *make(0), other, FORWARD, ALONE).restore() == 5
