"""Writing and reading rows of metrics, and what trackers get."""

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from ledom.core.errors import InputError, OutputError, TrainingError
from ledom.train.metrics import open_metrics, read_metrics

ROW = {"step": 1, "loss": 2.5, "tokens": 10}


def test_rows_are_read_back_as_written(tmp_path):
    validated = ROW | {"step": 2, "valid_data": "ab", "valid_loss_by_source": {"x": 1.5}}
    with open_metrics(tmp_path, 0) as log:
        log(ROW)
        log(validated)
    assert read_metrics(tmp_path / "metrics.jsonl") == [ROW, validated]
    with open_metrics(tmp_path, 1):  # resumes at step 1
        assert read_metrics(tmp_path / "metrics.jsonl") == [ROW]


def test_a_full_disk_is_an_output_error(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    message = r"metrics\.jsonl: cannot be written: No space left on device$"
    with pytest.raises(OutputError, match=message), open_metrics(tmp_path, 0) as log:
        log(ROW)


def test_a_line_still_being_written_is_skipped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(ROW) + '\n{"step": 2, "lo')
    assert read_metrics(file) == [ROW]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 2, "lo', "not JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        ("7", "expected a JSON object, found int"),
        ('{"step": 2}', "key loss: Field required; remove the line"),
        ('{"step": 2, "loss": "x", "tokens": 1}', "key loss: Input should be a valid number"),
        ("", "not JSON"),
        ("[" * 100_000, "nested more than 64 deep"),
    ],
)
def test_the_error_for_a_damaged_line_names_it(tmp_path, line, message):
    file = tmp_path / "metrics.jsonl"
    file.write_text(f"{json.dumps(ROW)}\n{line}\n{json.dumps(ROW | {'step': 3})}\n")
    with pytest.raises(InputError, match=rf"metrics\.jsonl:2: {message}"):
        read_metrics(file)


VALIDATED = {
    "tokens_per_second": 5.0,
    "valid_loss": 3.0,
    "valid_tokens": 40,
    "valid_data": "ab",
    "valid_loss_by_position": {"0": 3.0, "1": 3.0},
    "valid_tokens_by_position": {"0": 20, "1": 20},
    "valid_loss_by_source": {"news": 3.0},
    "valid_tokens_by_source": {"news": 40},
    "valid_loss_by_window": [3.0, 3.0],
    "valid_tokens_by_window": [20, 20],
}


@pytest.mark.parametrize("key", VALIDATED)
def test_the_error_for_a_damaged_part_of_a_validation_names_it(tmp_path, key):
    file = tmp_path / "metrics.jsonl"
    good = VALIDATED[key]
    damaged = [None, [[]], {"x": {}}]
    if isinstance(good, list):
        damaged += [[*good, "x"], {}]
    elif isinstance(good, dict):
        damaged += [good | {"1": None}, []]
    for value in damaged:
        file.write_text(json.dumps(ROW | VALIDATED | {key: value}) + "\n")
        with pytest.raises(InputError, match=rf"metrics\.jsonl:1: key {key}.*; remove the line"):
            read_metrics(file)


@pytest.mark.parametrize(
    "damage",
    [
        {"valid_loss_by_position": {"first": 3.0}},  # names of bins are numbers
        {"valid_loss_by_position": {"1" * 5000: 3.0}},
        {"valid_tokens_by_window": [0, 0]},  # the mean over tokens is undefined
        {"valid_loss": 1e300},
        {"step": 1.5},
        {"tokens": 10.5},
        {"valid_tokens_by_window": [20.5, 19.5]},
    ],
)
def test_values_that_no_report_could_use_are_refused(tmp_path, damage):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(ROW | VALIDATED | damage) + "\n")
    with pytest.raises(InputError, match=rf"metrics\.jsonl:1: key {next(iter(damage))}"):
        read_metrics(file)


@pytest.mark.parametrize(
    "damage",
    [
        {"valid_loss_by_window": [3.0]},
        {"valid_tokens_by_window": [20, 20, 20]},
        {"valid_loss_by_position": {"0": 3.0}},
        {"valid_tokens_by_source": {"web": 40}},
    ],
)
def test_losses_without_their_tokens_are_refused(tmp_path, damage):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(ROW | VALIDATED | damage) + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl:1: the keys valid_loss_by_\w+ and valid"):
        read_metrics(file)


def test_an_error_names_a_single_remedy(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(ROW | {"valid_data": 7}) + "\n")
    with pytest.raises(
        InputError, match="valid string, found 7; remove the line to read the rest$"
    ):
        read_metrics(file)


def test_missing_metrics_are_reported(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="the first step has not finished"):
        read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_trackers_get_numbers_and_named_numbers(tmp_path, monkeypatch):
    seen, begun = [], []

    def writer(folder, purge_step):
        begun.append((folder, purge_step))
        return nullcontext(SimpleNamespace(add_scalar=lambda *values: seen.append(values)))

    hosted = SimpleNamespace(
        init=lambda **_: None, finish=lambda: None, log=lambda row, step: seen.append((row, step))
    )
    monkeypatch.setitem(sys.modules, "trackio", hosted)
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer)
    )
    with open_metrics(tmp_path, 0, ["trackio", "tensorboard"]) as log:
        log(ROW | {"valid_data": "ab", "by": {"x y": 1.5}, "by_window": [1.0, 2.0]})
    logged, *scalars = seen
    assert logged == (ROW | {"by/x y": 1.5}, 1)
    assert scalars == [("loss", 2.5, 1), ("tokens", 10, 1), ("by/x y", 1.5, 1)]
    assert begun == [(str(tmp_path / "tensorboard"), 1)]


@pytest.fixture
def begun(monkeypatch):
    """The arguments by which runs of wandb and trackio were begun."""
    calls = []
    module = SimpleNamespace(
        init=lambda **arguments: calls.append(arguments), log=None, finish=lambda: None
    )
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_a_tracker_that_cannot_start_gives_one_line(tmp_path, monkeypatch):
    def init(**arguments):
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    message = (
        r"^key train.trackers: wandb cannot start \(api_key not configured \(no-tty\)\); log in"
    )
    with pytest.raises(TrainingError, match=message), open_metrics(tmp_path, 0, ["wandb"]):
        pass


def test_a_resumed_run_continues_its_run_in_wandb_and_a_new_one_does_not(tmp_path, begun):
    """wandb finds a run only by its id, which must be new for a run that starts again."""
    for step in (0, 3, 5, 0, 4):
        with open_metrics(tmp_path, step, ["wandb"]):
            pass
    first, second, third, anew, last = (call["id"] for call in begun)
    assert first == second == third != anew == last
    assert [call["resume"] for call in begun] == ["never", "allow", "allow", "never", "allow"]


def test_a_new_run_does_not_continue_an_earlier_one_in_trackio(tmp_path, begun):
    """trackio finds a run by its name, which several runs may have."""
    (tmp_path / "a" / "reverse").mkdir(parents=True)
    for step in (0, 3):
        with open_metrics(tmp_path / "a" / "reverse", step, ["trackio"]):
            pass
    same = {"project": "ledom", "name": "a-reverse", "config": {}}
    assert begun == [same | {"resume": "never"}, same | {"resume": "allow"}]


def test_a_resumed_run_does_not_mistake_a_damaged_line_for_the_end(tmp_path):
    file = tmp_path / "metrics.jsonl"
    rows = f"{json.dumps(ROW)}\n{{\n{json.dumps(ROW | {'step': 3})}\n"
    file.write_text(rows)
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not JSON"), open_metrics(tmp_path, 3):
        pass
    assert file.read_text() == rows


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"step": 1}, "step 1 comes after step 1"),
        ({"step": 0}, "step 0 comes after step 1"),
        ({"step": -2}, "key step: Input should be greater than or equal to 0, found -2"),
        ({"step": 2, "tokens": 0}, "key tokens: Input should be greater than 0, found 0"),
    ],
)
def test_rows_with_repeated_or_decreasing_steps_are_refused(tmp_path, second, message):
    file = tmp_path / "metrics.jsonl"
    file.write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW | second)}\n")
    with pytest.raises(InputError, match=rf"metrics\.jsonl:2: {message}"):
        read_metrics(file)
