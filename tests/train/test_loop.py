import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from kills import in_a_child
from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, OutputError, RecipeError, TrainingError
from ledom.core.files import lock_folder
from ledom.data.packing import pack
from ledom.model.checkpoint import (
    build_model,
    load_checkpoint,
    read_checkpoint_info,
    save_checkpoint,
)
from ledom.report.compare import compare_runs
from ledom.text.pair_format import PairFormat
from ledom.train import loop
from ledom.train.checkpoints import newest_step
from ledom.train.loop import packed_losses, train, validate
from ledom.train.optim import Muon
from ledom.train.start import training_batches

FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def newest_checkpoint(folder):
    """The contents of the newest checkpoint, read by PyTorch's own converter."""
    finished = [path for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    newest = max(finished)  # one being written when the run was killed has a suffix
    dcp_to_torch_save(newest, folder / "whole.pt")
    contents = torch.load(folder / "whole.pt", weights_only=True)
    return {"step": json.loads((newest / "run.json").read_text())["step"], **contents}


def assert_same_end(folder, other, step=30):
    """Check for bit-identical weights, optimizer state and losses."""
    ours, theirs = newest_checkpoint(folder), newest_checkpoint(other)
    assert ours["step"] == theirs["step"] == step
    assert ours["model"].keys() == theirs["model"].keys()
    for name, weight in ours["model"].items():
        assert torch.equal(weight, theirs["model"][name]), name
    one, two = ours["optimizers"]["state"], theirs["optimizers"]["state"]
    assert one.keys() == two.keys()
    assert one
    for name, values in one.items():
        assert all(torch.equal(value, two[name][key]) for key, value in values.items())
    model = "model/model.safetensors"
    assert (folder / model).read_bytes() == (other / model).read_bytes()
    for row, reference in zip(metrics_of(folder), metrics_of(other), strict=True):
        assert row.keys() == reference.keys()
        for key in row.keys() - {"tokens_per_second"}:
            assert row[key] == reference[key]


def leave_at(step):
    """A progress callback that stops the run after this step."""

    def on_progress(progress):
        if progress.step == step:
            raise KeyboardInterrupt

    return on_progress


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, recipe, data):
    """A finished run in each direction, and its reported progress."""
    runs = {}
    for direction in Direction:
        progress = []
        folder = tmp_path_factory.mktemp(str(direction))
        finished = train(recipe, direction, data, folder, progress.append)
        runs[direction] = (folder, finished, progress)
    return runs


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.slow
def test_a_run_lowers_the_loss(uninterrupted, recipe, data, direction):
    folder, finished, progress = uninterrupted[direction]
    rows = metrics_of(folder)
    assert [row["step"] for row in rows] == list(range(1, 31))
    # Before the first step, all 400 tokens are about equally likely.
    assert rows[0]["loss"] == pytest.approx(math.log(400), abs=0.1)
    losses = [row["loss"] for row in rows]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.5
    assert [row["step"] for row in rows if "valid_loss" in row] == [10, 20, 30]
    assert rows[29]["valid_loss"] < rows[9]["valid_loss"]
    assert [(p.step, p.loss, p.valid_loss) for p in progress] == [
        (row["step"], row["loss"], row.get("valid_loss")) for row in rows
    ]
    checkpoint = load_checkpoint(finished, direction)
    assert checkpoint.tokenizer.fingerprint == data.tokenizer.fingerprint
    assert checkpoint.pair_format.template == recipe.data.pair_format


@pytest.mark.slow
def test_the_finished_model_equals_the_last_checkpoint(uninterrupted):
    folder, finished, _ = uninterrupted[REVERSE]
    trained = newest_checkpoint(folder)["model"]
    for name, weight in load_checkpoint(finished).model.state_dict().items():
        assert torch.equal(weight, trained[name].bfloat16().float())


@pytest.mark.slow
def test_both_directions_see_the_same_documents(tmp_path, recipe, data, monkeypatch):
    seen = {}
    original = loop.pack

    def spy(windows, direction, *rest):
        seen.setdefault(direction, []).append([window.tolist() for window in windows])
        return original(windows, direction, *rest)

    monkeypatch.setattr(loop, "pack", spy)
    short = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"steps": 3})})
    for direction in Direction:
        train(short, direction, data, tmp_path / str(direction))
    assert seen[FORWARD] == seen[REVERSE]
    batches = training_batches(recipe, FORWARD, data)
    assert seen[FORWARD][:3] == [[w.tolist() for w in batches[step].windows] for step in range(3)]
    rows = metrics_of(tmp_path / "forward")
    assert [row["tokens"] for row in rows] == [
        sum(len(w) - 1 for w in batch) for batch in seen[FORWARD][:3]
    ]


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(tmp_path, uninterrupted, recipe, data):
    done, original = 0, Muon.step

    def step(self):
        nonlocal done
        original(self)
        done += 1
        if done == 18:  # step 18 is half done: Muon has updated its weights, AdamW has not
            os.kill(os.getpid(), signal.SIGKILL)

    def run():
        Muon.step = step
        train(recipe, REVERSE, data, tmp_path)

    assert in_a_child(run) == signal.SIGKILL
    assert [row["step"] for row in metrics_of(tmp_path)] == list(range(1, 18))
    # A background write may not have finished.
    assert newest_checkpoint(tmp_path)["step"] in (10, 15)
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 18, "lo')  # nor the write of a row
    train(recipe, REVERSE, data, tmp_path)
    assert [row["step"] for row in metrics_of(tmp_path)] == list(range(1, 31))
    assert_same_end(tmp_path, uninterrupted[REVERSE][0])


def press_after(original, number):
    """Wrap a function so that it sends this process a signal after it returns."""

    def wrapped(*args, **kwargs):
        result = original(*args, **kwargs)
        os.kill(os.getpid(), number)
        return result

    return wrapped


@pytest.mark.slow
def test_a_stopped_run_finishes_its_step_and_resumes_exactly(
    tmp_path, uninterrupted, recipe, data, monkeypatch, request
):
    """It could not resume from the middle of a step. Callers or signals may stop it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))

    def check_stop(step, error, on_progress=lambda progress: None):
        with pytest.raises(error) as stopped:
            train(recipe, REVERSE, data, tmp_path, on_progress)
        assert error is not SystemExit or stopped.value.code == 0
        assert newest_checkpoint(tmp_path)["step"] == newest_step(tmp_path) == step
        assert [row["step"] for row in metrics_of(tmp_path)] == list(range(1, step + 1))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL

    with monkeypatch.context() as patch:
        patch.setattr(Muon, "step", press_after(Muon.step, signal.SIGINT))
        check_stop(1, KeyboardInterrupt)  # between the optimizers
    check_stop(3, KeyboardInterrupt, leave_at(3))
    check_stop(4, SystemExit, press_after(lambda progress: None, signal.SIGTERM))
    check_stop(5, SystemExit, press_after(lambda progress: None, signal.SIGHUP))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", press_after(validate, signal.SIGINT))
        check_stop(10, KeyboardInterrupt)
    train(recipe, REVERSE, data, tmp_path)
    assert_same_end(tmp_path, uninterrupted[REVERSE][0])


@pytest.mark.slow
def test_a_finished_run_is_not_changed(tmp_path, uninterrupted, recipe, data):
    folder, finished, _ = uninterrupted[FORWARD]
    weights = (finished / "model.safetensors").read_bytes()
    rows = metrics_of(folder)
    progress = []
    assert train(recipe, FORWARD, data, folder, progress.append) == finished
    assert progress == []
    assert metrics_of(folder) == rows
    assert (finished / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_run_whose_length_changes_equals_one_of_that_length(tmp_path, recipe, data):
    shorter = recipe.model_copy(
        update={"optim": recipe.optim.model_copy(update={"steps": 14, "decay_steps": 6})}
    )

    with pytest.raises(KeyboardInterrupt):  # as a run of 30 steps
        train(recipe, REVERSE, data, tmp_path / "resumed", leave_at(7))
    train(shorter, REVERSE, data, tmp_path / "resumed")
    train(shorter, REVERSE, data, tmp_path / "whole")
    assert_same_end(tmp_path / "resumed", tmp_path / "whole", step=14)


@pytest.mark.slow
def test_a_run_with_other_settings_or_direction_is_refused(uninterrupted, recipe, data):
    folder = uninterrupted[FORWARD][0]
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(
        CheckpointError, match=r"00000030: .* other settings \(seed: 1 there, 2 now\)"
    ):
        train(recipe.model_copy(update={"seed": 2}), FORWARD, data, folder)
    with pytest.raises(CheckpointError, match="direction: 'forward' there, 'reverse' now"):
        train(recipe, REVERSE, data, folder)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_two_processes_in_one_folder_are_refused(tmp_path, recipe, data):
    """Each would delete the other's metrics and overwrite its checkpoints."""
    in_use = pytest.raises(OutputError, match=r"in use by process \d+ on .*, which trains there")
    with lock_folder(tmp_path, "trains"), in_use:
        train(recipe, REVERSE, data, tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_a_run_does_not_write_into_the_folder_of_a_later_one(tmp_path, recipe, data):
    folder = tmp_path / "forward"
    with pytest.raises(OutputError, match="forward: was removed or replaced while this run"):
        train(
            recipe, FORWARD, data, folder, lambda progress: (shutil.rmtree(folder), folder.mkdir())
        )
    assert not [*folder.iterdir()]


@pytest.mark.slow
def test_a_run_shorter_than_its_checkpoint_interval_is_recognized(tmp_path, recipe, data):
    rare = recipe.train.model_copy(update={"checkpoint_every": 1000})
    optim = recipe.optim.model_copy(update={"steps": 3})
    short = recipe.model_copy(update={"train": rare, "optim": optim})
    finished = train(short, FORWARD, data, tmp_path)
    weights = (finished / "model.safetensors").read_bytes()
    progress = []
    train(short, FORWARD, data, tmp_path, progress.append)
    assert progress == []
    with pytest.raises(CheckpointError, match="other settings .seed: 1 there, 2 now"):
        train(short.model_copy(update={"seed": 2}), FORWARD, data, tmp_path)
    assert (finished / "model.safetensors").read_bytes() == weights
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="has a finished model but no checkpoint, so this"):
        train(short, FORWARD, data, tmp_path)
    assert len(metrics_of(tmp_path)) == short.optim.steps


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_and_the_previous_one_works(
    tmp_path, uninterrupted, recipe, data
):
    whole, folder = uninterrupted[REVERSE][0], tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "model")
    newest = folder / "checkpoints" / "00000030"
    file = newest / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"00000030: damaged"):
        train(recipe, REVERSE, data, folder)
    shutil.rmtree(newest)
    progress = []
    train(recipe, REVERSE, data, folder, progress.append)
    assert [p.step for p in progress] == [26, 27, 28, 29, 30]
    assert_same_end(folder, whole)


def test_a_loss_that_is_nan_stops_the_run(tmp_path, recipe, data):
    optim = recipe.optim.model_copy(update={"muon_lr": 1e30, "adamw_lr": 1e30, "warmup_steps": 0})
    message = (
        r"the (loss|gradient.s norm) is (nan|inf) at step \d+, which is not saved; lower optim"
    )
    with pytest.raises(TrainingError, match=message):
        train(recipe.model_copy(update={"optim": optim}), FORWARD, data, tmp_path)
    rows = metrics_of(tmp_path)
    assert all(math.isfinite(row["loss"] + row["gradient_norm"]) for row in rows)


def test_a_last_step_that_breaks_the_weights_is_not_saved(tmp_path, recipe, data):
    rates = {"muon_lr": 1e12, "adamw_lr": 1e12, "warmup_steps": 0, "steps": 1, "decay_steps": 0}
    broken = recipe.model_copy(update={"optim": recipe.optim.model_copy(update=rates)})
    with pytest.raises(TrainingError, match="the validation loss is nan at step 1, which is not"):
        train(broken, FORWARD, data, tmp_path)
    assert metrics_of(tmp_path) == []
    assert newest_step(tmp_path) == 0


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_run_continues(
    tmp_path, uninterrupted, recipe, data, monkeypatch
):
    """The second and last checkpoints cannot be written; the finished model can."""
    original, started, progress = dcp.FileSystemWriter.write_data, [], []

    def full(self, plan, planner):
        started.append(Path(self.path).name)
        if started[-1] in ("00000010.tmp", "00000030.tmp"):
            (Path(self.path) / "__0_0.distcp").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return original(self, plan, planner)

    with monkeypatch.context() as patch:
        patch.setattr(dcp.FileSystemWriter, "write_data", full)
        message = r"00000030: cannot be written.*No space left.*; the finished model is in .*/model"
        with pytest.raises(OutputError, match=message):
            train(recipe, REVERSE, data, tmp_path, progress.append)
    weights = "model/model.safetensors"
    whole = uninterrupted[REVERSE][0]
    assert (tmp_path / weights).read_bytes() == (whole / weights).read_bytes()
    assert len(started) == 6
    notices = [p.notice for p in progress if p.notice]
    assert len(notices) == 1
    assert re.search(
        r"00000010: cannot be written: .*No space left.*; training continues", notices[0]
    )
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["00000020", "00000025"]
    train(recipe, REVERSE, data, tmp_path)
    assert_same_end(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("given_direction", [REVERSE, FORWARD])
def test_init_from_starts_from_a_checkpoint(recipe, data, tmp_path, given_direction):
    """The first loss is that of the given model, not a random one; it may be converted."""
    given = build_model(recipe.model, data.tokenizer, seed=99)
    pair_format = PairFormat(recipe.data.pair_format)
    folder = tmp_path / "reverse"
    save_checkpoint(folder, given, data.tokenizer, given_direction, pair_format)
    short = recipe.optim.model_copy(update={"steps": 1, "decay_steps": 0})
    started = recipe.model_copy(update={"init_from": str(tmp_path / "{direction}"), "optim": short})
    losses = []
    train(started, REVERSE, data, tmp_path / "run", lambda progress: losses.append(progress.loss))
    first = pack(training_batches(recipe, REVERSE, data)[0].windows, REVERSE, data.tokenizer.eos_id)
    with torch.no_grad():
        expected = packed_losses(given, first).mean().item()
    assert losses == [pytest.approx(expected, abs=1e-5)]
    assert read_checkpoint_info(tmp_path / "run" / "model").direction is REVERSE


@pytest.mark.slow
def test_init_from_must_match(recipe, data, checkpoints, tmp_path):
    folder = checkpoints["reverse"]
    with pytest.raises(RecipeError, match="the tokenizer of .* is not the data's"):
        train(recipe.model_copy(update={"init_from": str(folder)}), REVERSE, data, tmp_path)
    wide = recipe.model.model_copy(update={"intermediate_size": 128})
    other = build_model(wide, data.tokenizer, seed=0)
    save_checkpoint(tmp_path / "wide", other, data.tokenizer, REVERSE, PairFormat())
    with pytest.raises(RecipeError, match="another shape"):
        train(
            recipe.model_copy(update={"init_from": str(tmp_path / "wide")}), REVERSE, data, tmp_path
        )


@pytest.mark.slow
def test_a_trained_pair_has_a_loss_gap(uninterrupted, tmp_path):
    """The gap is between the two means over all tokens, whatever the windows' lengths."""
    for direction, (folder, _, _) in uninterrupted.items():
        shutil.copytree(folder, tmp_path / str(direction), ignore=lambda *_: ["checkpoints"])
    (run,) = compare_runs([tmp_path]).runs
    assert run.final_gap is not None
    last = [metrics_of(uninterrupted[direction][0])[-1]["valid_loss"] for direction in Direction]
    assert run.final_gap.mean == pytest.approx(last[1] - last[0], abs=1e-5)
    assert run.final_gap.low < run.final_gap.mean < run.final_gap.high
    assert [gap.step for gap in run.gap] == [10, 20, 30]
