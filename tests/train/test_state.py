import os

import pytest
import torch

from ledom.direction import Direction
from ledom.errors import CheckpointError, OutputError
from ledom.model.checkpoint import build_model
from ledom.train import state
from ledom.train.optim import build_optimizers

FORWARD = Direction.FORWARD


@pytest.fixture
def make(recipe, tokenizer):
    """Makes a model and its optimisers, one step done, from a seed."""

    def make(seed):
        model = build_model(recipe.model, tokenizer, seed)
        optimizers = build_optimizers(model, recipe.optim)
        model(
            input_ids=torch.tensor([[1, 2, 3]]), use_cache=False
        ).logits.square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        return model, optimizers

    return make


def names(folder):
    return sorted(os.listdir(folder / "checkpoints"))


def test_without_a_checkpoint_a_run_starts_at_zero(tmp_path, recipe, make):
    model, optimizers = make(0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert state.restore(tmp_path, model, optimizers, recipe, FORWARD) == 0
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_all_that_is_saved_is_restored(tmp_path, recipe, make):
    model, optimizers = make(0)
    state.save(tmp_path, model, optimizers, 7, recipe, FORWARD)
    other, other_optimizers = make(1)
    assert state.restore(tmp_path, other, other_optimizers, recipe, FORWARD) == 7
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])
    for saved, restored in zip(optimizers, other_optimizers, strict=True):
        saved_state, restored_state = saved.state_dict()["state"], restored.state_dict()["state"]
        assert saved_state.keys() == restored_state.keys()
        assert saved_state
        for index, values in saved_state.items():
            for key, value in values.items():
                assert torch.equal(value, restored_state[index][key])


def test_only_the_newest_are_kept(tmp_path, recipe, make):
    model, optimizers = make(0)
    for step in (5, 10, 100):
        state.save(tmp_path, model, optimizers, step, recipe, FORWARD)
    assert names(tmp_path) == ["00000010.pt", "00000100.pt"]
    assert state.restore(tmp_path, model, optimizers, recipe, FORWARD) == 100


def test_a_write_that_was_killed_is_ignored(tmp_path, recipe, make):
    model, optimizers = make(0)
    state.save(tmp_path, model, optimizers, 5, recipe, FORWARD)
    (tmp_path / "checkpoints" / "00000010.tmp").write_bytes(b"half")
    assert state.restore(tmp_path, model, optimizers, recipe, FORWARD) == 5


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("full")])
def test_a_full_disk_leaves_the_last_good_one(tmp_path, recipe, make, monkeypatch, error):
    model, optimizers = make(0)
    state.save(tmp_path, model, optimizers, 5, recipe, FORWARD)

    def half(_, file):
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OutputError, match=r"00000010\.pt: cannot be written"):
        state.save(tmp_path, model, optimizers, 10, recipe, FORWARD)
    assert names(tmp_path) == ["00000005.pt"]
    assert state.restore(tmp_path, model, optimizers, recipe, FORWARD) == 5


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path, recipe, make):
    (tmp_path / "checkpoints").touch()
    model, optimizers = make(0)
    with pytest.raises(OutputError, match=r"00000005\.pt: cannot be written"):
        state.save(tmp_path, model, optimizers, 5, recipe, FORWARD)


@pytest.mark.parametrize("kept", [0, 1000, -1])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, recipe, make, kept):
    model, optimizers = make(0)
    for step in (5, 10):
        state.save(tmp_path, model, optimizers, step, recipe, FORWARD)
    newest = tmp_path / "checkpoints" / "00000010.pt"
    newest.write_bytes(newest.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"00000010\.pt: damaged; remove it to go on from"):
        state.restore(tmp_path, model, optimizers, recipe, FORWARD)
    newest.unlink()
    assert state.restore(tmp_path, model, optimizers, recipe, FORWARD) == 5


def test_a_run_with_other_settings_is_refused(tmp_path, recipe, make):
    model, optimizers = make(0)
    state.save(tmp_path, model, optimizers, 5, recipe, FORWARD)
    others = [
        recipe.model_copy(update={"seed": 2}),
        recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"steps": 31})}),
        recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": 5})}),
    ]
    for other in others:
        with pytest.raises(CheckpointError, match=r"00000005\.pt: belongs to a run with other"):
            state.restore(tmp_path, model, optimizers, other, FORWARD)
    with pytest.raises(CheckpointError, match="belongs to a run with other settings"):
        state.restore(tmp_path, model, optimizers, recipe, Direction.REVERSE)


def test_how_often_to_save_may_change(tmp_path, recipe, make):
    model, optimizers = make(0)
    state.save(tmp_path, model, optimizers, 5, recipe, FORWARD)
    changes = {"validate_every": 7, "checkpoint_every": 9, "keep_checkpoints": 1}
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})
    assert state.restore(tmp_path, model, optimizers, other, FORWARD) == 5
