"""What metrics say about both directions: small handwritten files and a real pair."""

import json
import os

import numpy as np
import pytest

from ledom.core.errors import InputError
from ledom.report.compare import compare_runs as compare
from ledom.report.compare import gap_of, tokens_to_reach
from ledom.report.compare_page import claims
from ledom.report.formatting import to_json
from ledom.report.runs import read_curves


def compare_runs(folders):
    return to_json(compare(folders))


def row_of(step, loss=5.0, valid=None, tokens=100, **more):
    """A metrics row; `valid` gives the losses of windows of 10, 10 and 20 tokens, four of each."""
    row = {"step": step, "loss": loss, "tokens": tokens, "tokens_per_second": 10.0 * step, **more}
    if valid is not None:
        row |= {
            "valid_loss": (valid[0] + valid[1] + 2 * valid[2]) / 4,
            "valid_tokens": 160,
            "valid_data": "aa",
            "valid_loss_by_window": valid * 4,
            "valid_tokens_by_window": [10, 10, 20] * 4,
        } | {key: value for key, value in more.items() if key.startswith("valid")}
    return row


def write_run(folder, **directions):
    """Write a run folder with the rows of each direction."""
    for direction, rows in directions.items():
        (folder / direction).mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / direction / "metrics.jsonl").write_text(lines)
    return folder


def twins(folder, forward, reverse):
    """Write two validations per direction, at steps 2 and 4."""
    return write_run(
        folder,
        **{
            way: [row_of(1), row_of(2, valid=losses[0]), row_of(3), row_of(4, valid=losses[1])]
            for way, losses in (("forward", forward), ("reverse", reverse))
        },
    )


WAYS = ("forward", "reverse")
FORWARD = [[4.0, 4.0, 4.0], [3.0, 3.0, 3.0]]
REVERSE = [[4.0, 4.4, 4.0], [3.1, 3.2, 3.3]]


def test_the_gap_is_the_mean_difference_over_tokens(tmp_path):
    (run,) = compare_runs([twins(tmp_path / "r", FORWARD, REVERSE)])["runs"]
    assert [gap["step"] for gap in run["gap"]] == [2, 4]
    assert [gap["tokens"] for gap in run["gap"]] == [200, 400]
    # (0 * 10 + 0.4 * 10 + 0 * 20) / 40, and (0.1 * 10 + 0.2 * 10 + 0.3 * 20) / 40
    assert [gap["mean"] for gap in run["gap"]] == pytest.approx([0.1, 0.225])
    final = run["final_gap"]
    assert (final["step"], final["num_tokens"], final["num_windows"]) == (4, 160, 12)
    assert final["mean"] == pytest.approx(0.225)
    assert final["relative"] == pytest.approx(0.225 / 3)
    assert 0.05 < final["low"] < 0.225 < final["high"] < 0.4
    assert [final[key] for key in ("mean", "low", "high")] == [
        run["gap"][-1][key] for key in ("mean", "low", "high")
    ]


def test_the_interval_is_that_of_resampling_windows():
    """The means over tokens of resampled windows, computed without linearization."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 200, 400)
    forward = rng.normal(4.0, 1.0, 400)
    reverse = forward + rng.normal(0.02, 0.1, 400)
    rows = [
        {"step": 1, "valid_loss_by_window": losses, "valid_tokens_by_window": tokens}
        for losses in (forward, reverse)
    ]
    gap = gap_of(*rows)
    drawn = rng.integers(400, size=(4000, 400))
    sums = ((reverse - forward) * tokens)[drawn].sum(axis=1)
    low, high = np.quantile(sums / tokens[drawn].sum(axis=1), [0.025, 0.975])
    assert gap.mean == pytest.approx(np.average(reverse - forward, weights=tokens))
    assert (gap.low, gap.high) == pytest.approx((low, high), abs=0.0008)  # the width is 0.02


@pytest.mark.parametrize("num", [1, 2, 9])
def test_a_few_windows_have_no_interval(num):
    """All windows of two agree on a sign by chance half of the time."""
    forward, reverse = ({"step": 1, "valid_loss_by_window": [x] * num} for x in (3.0, 3.5))
    tokens = {"valid_tokens_by_window": [10] * num}
    assert gap_of(forward | tokens, reverse | tokens) is None


def test_equal_twins_show_no_difference(tmp_path):
    (run,) = compare_runs([twins(tmp_path / "r", FORWARD, FORWARD)])["runs"]
    assert [run["final_gap"][key] for key in ("mean", "low", "high")] == [0, 0, 0]


def test_curves_and_settings_are_collected(tmp_path):
    folder = twins(tmp_path / "r", FORWARD, REVERSE)
    (folder / "recipe.yaml").write_text("name: r\noptim: {steps: 8}\ndata: {sources: []}\n")
    (run,) = compare_runs([folder])["runs"]
    reverse = run["directions"]["reverse"]
    assert reverse["steps"] == 4
    assert reverse["tokens"] == 400
    assert reverse["tokens_per_second"] == 25.0  # of 10, 20, 30 and 40
    assert reverse["training"] == {"tokens": [100, 200, 300, 400], "loss": [5.0] * 4}
    assert reverse["validation"]["loss"] == pytest.approx([4.1, 3.225])
    assert run["settings"] == {"name": "r", "optim.steps": 8, "data.sources": []}


def test_pairs_that_differ_only_in_their_seed_form_one_group(tmp_path):
    folders = []
    for seed, width, shift in ((1, 8, 0.0), (2, 8, 0.1), (3, 16, 0.3)):
        reverse = [[loss + shift for loss in losses] for losses in REVERSE]
        folders.append(twins(tmp_path / f"s{seed}", FORWARD, reverse))
        recipe = f"name: s{seed}\nseed: {seed}\nmodel: {{hidden_size: {width}}}\n"
        (folders[-1] / "recipe.yaml").write_text(recipe)
    (group,) = compare_runs(folders)["seeds"]
    assert group["runs"] == ["s1", "s2"]
    assert group["mean"] == pytest.approx(0.275)
    assert (group["lowest"], group["highest"]) == pytest.approx((0.225, 0.325))
    assert group["deviation"] == pytest.approx(0.1 / 2**0.5)
    copy = write_run(tmp_path / "copy", **{way: [row_of(4, valid=[3] * 3)] for way in WAYS})
    (copy / "recipe.yaml").write_text("name: copy\nseed: 1\nmodel: {hidden_size: 8}\n")
    (same,) = compare_runs([*folders, copy])["seeds"]
    assert same == group  # the same seed again is no other pair
    (folders[0] / "recipe.yaml").unlink()  # still running: not known to be equal
    assert compare_runs(folders)["seeds"] == []


def test_many_steps_are_averaged_by_tokens(tmp_path):
    rows = [row_of(i + 1, float(i % 2), tokens=10 + 20 * (i % 2)) for i in range(400)]
    (run,) = compare_runs([write_run(tmp_path / "r", forward=rows)])["runs"]
    training = run["directions"]["forward"]["training"]
    assert training["loss"] == [0.75] * 200  # (0 * 10 + 1 * 30) / 40
    assert training["tokens"] == [40 * (i + 1) for i in range(200)]


def test_parts_of_the_loss_at_the_end_and_over_training(tmp_path):
    def parts(a, b):
        return {
            "valid_loss_by_source": {"a": a, "b": b},
            "valid_tokens_by_source": {"a": 9, "b": 1},
        }

    rows = [
        [row_of(1, valid=[1, 1, 1], **parts(5.0, 6.0)), row_of(2, valid=[1, 1, 1], **parts(*last))]
        for last in ((3.0, 4.0), (3.5, 3.75))
    ]
    (run,) = compare_runs([write_run(tmp_path / "r", forward=rows[0], reverse=rows[1])])["runs"]
    assert run["gap_by_source"] == [
        {"name": "a", "num_tokens": 9, "forward": 3.0, "reverse": 3.5, "gap": 0.5},
        {"name": "b", "num_tokens": 1, "forward": 4.0, "reverse": 3.75, "gap": -0.25},
    ]
    assert run["gap_by_position"] == []
    by_source = run["directions"]["reverse"]["validation"]["by_source"]
    assert by_source == {"a": [5.0, 3.5], "b": [6.0, 3.75]}


def test_tokens_to_reach_a_loss(tmp_path):
    losses = {2: 5.0, 4: 4.0, 6: 4.5, 8: 3.0}
    rows = [row_of(i, valid=[losses[i]] * 3 if i in losses else None) for i in range(1, 9)]
    course = read_curves(write_run(tmp_path / "r", reverse=rows))["reverse"]
    assert tokens_to_reach(course, 4.5) == (300, True)  # halfway between 200 and 400 tokens
    assert tokens_to_reach(course, 4.0) == (400, True)
    assert tokens_to_reach(course, 3.5) == (pytest.approx(600 + 200 * 2 / 3), True)
    assert tokens_to_reach(course, 5.5) == (200, False)
    assert tokens_to_reach(course, 2.9) == (None, True)


def test_crossings_are_between_twins_and_between_runs_of_one_direction(tmp_path):
    scratch = twins(tmp_path / "scratch", FORWARD, REVERSE)
    faster = [row_of(1, valid=[3.4] * 3), row_of(2, valid=[3.05] * 3)]
    adapted = write_run(tmp_path / "adapted", reverse=faster)
    found = {
        (row["run"], row["direction"], row["other_run"], row["other_direction"]): row
        for row in compare_runs([scratch, adapted])["crossings"]
    }
    assert set(found) == {
        ("scratch", "forward", "scratch", "reverse"),
        ("scratch", "reverse", "scratch", "forward"),
        ("scratch", "reverse", "adapted", "reverse"),
        ("adapted", "reverse", "scratch", "reverse"),
    }
    adaptation = found["adapted", "reverse", "scratch", "reverse"]
    assert adaptation["loss"] == pytest.approx(3.225)
    assert adaptation["tokens"] == pytest.approx(150)  # 3.4 after 100, 3.05 after 200
    assert adaptation["share"] == pytest.approx(150 / 400)
    never = found["scratch", "reverse", "adapted", "reverse"]
    assert never["tokens"] is None
    assert never["lowest"] == pytest.approx(3.225)


def write_checkpoints(folder, **recipes):
    """Write the settings of one checkpoint per step."""
    for step, recipe in recipes.items():
        file = folder / "checkpoints" / step.removeprefix("at_") / "run.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"step": int(file.parent.name), "recipe": recipe}))


def test_directions_with_different_training_are_not_twins(tmp_path):
    """recipe.yaml has only the last run's settings; the newest checkpoints have both."""
    folder = twins(tmp_path / "r", FORWARD, REVERSE)
    plan = {"name": "r", "seed": 1, "optim": {"steps": 4}, "train": {"trackers": []}}
    other = {"name": "r", "seed": 1, "optim": {"steps": 8}, "train": {"trackers": ["wandb"]}}
    write_checkpoints(folder / "forward", at_00000002=other, at_00000004=plan)
    write_checkpoints(folder / "reverse", at_00000004=plan)
    (run,) = compare([folder]).runs
    assert run.differing == []
    write_checkpoints(folder / "reverse", at_00000008=other)
    report = compare([folder])
    assert report.runs[0].differing == ["optim.steps: 4, 8"]
    (line,) = claims(report)
    assert line.endswith("not twins, as they differ in more than direction: optim.steps: 4, 8")


def test_directions_with_different_token_counts_are_not_twins(tmp_path):
    rows = [[row_of(1, valid=[loss] * 3, tokens=tokens)] for loss, tokens in ((3, 100), (4, 200))]
    (run,) = compare([write_run(tmp_path / "r", forward=rows[0], reverse=rows[1])]).runs
    assert run.differing == ["tokens seen by step 1: 100, 200"]


def test_twins_never_validated_at_the_same_step_have_no_gap(tmp_path):
    forward = [row_of(1), row_of(2, valid=[3] * 3)]
    reverse = [row_of(1, valid=[3] * 3), row_of(2)]
    report = compare([write_run(tmp_path / "r", forward=forward, reverse=reverse)])
    assert report.runs[0].final_gap is None
    assert report.notes == ["r: there is no gap, as no step has a validation of both directions"]


def test_a_forward_loss_of_zero_gives_no_relative_gap(tmp_path):
    """The text is memorized, so the gap cannot be given as a share of the loss."""
    report = compare([twins(tmp_path / "r", [[0] * 3] * 2, REVERSE)])
    assert report.runs[0].final_gap.relative is None
    assert "%" not in claims(report)[0]


def test_unfinished_runs_and_missing_validations_are_handled(tmp_path):
    alone = write_run(tmp_path / "alone", reverse=[row_of(1), row_of(2)])
    report = compare_runs([alone])
    (run,) = report["runs"]
    assert "final_gap" not in run
    assert report["crossings"] == []
    assert report["notes"] == ["alone, reverse: no validation yet"]
    going = twins(tmp_path / "going", FORWARD, REVERSE)
    file = going / "reverse" / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]) + '{"step": 4, "l')
    (run,) = compare_runs([going])["runs"]
    assert run["final_gap"]["step"] == 2
    assert run["directions"]["reverse"]["steps"] == 3


def test_steps_without_a_row_are_noted(tmp_path):
    """A removed metrics.jsonl, or a line removed from it, makes the token count too low."""
    run = twins(tmp_path / "r", FORWARD, REVERSE)
    file = run / "reverse" / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    report = compare([run])
    assert report.notes == [
        "r, reverse: 1 of 4 steps have no row in its metrics; their tokens are not counted"
    ]
    assert report.runs[0].differing == ["tokens seen by step 4: 400, 300"]


def test_a_date_in_a_recipe_is_read_as_text(tmp_path):
    run = twins(tmp_path / "r", FORWARD, REVERSE)
    (run / "recipe.yaml").write_text("seed: 2020-01-01\ndata: {sources: [{path: 2020-01-02}]}\n")
    (found,) = compare_runs([run])["runs"]
    assert found["settings"] == {"seed": "2020-01-01", "data.sources": [{"path": "2020-01-02"}]}


def test_metrics_of_older_versions_make_a_report_without_interval(tmp_path):
    def old(loss):
        return [row_of(1), row_of(2) | {"valid_loss": loss}]

    report = compare_runs([write_run(tmp_path / "r", forward=old(3.0), reverse=old(3.3))])
    (run,) = report["runs"]
    assert run["final_gap"]["mean"] == pytest.approx(0.3)
    assert run["final_gap"]["low"] is None
    assert len(report["notes"]) == 2
    assert "do not say on which tokens" in report["notes"][0]


def test_runs_with_different_tokens_are_refused(tmp_path):
    ours = twins(tmp_path / "ours", FORWARD, REVERSE)
    rows = [row_of(1, valid=[3.0] * 3, valid_data="bb", valid_tokens=41)]
    theirs = write_run(tmp_path / "theirs", reverse=rows)
    message = r"ours, forward and theirs, reverse were validated on different tokens \(160 and 41"
    with pytest.raises(InputError, match=message):
        compare_runs([ours, theirs])


def test_unsuitable_folders_are_refused(tmp_path):
    run = twins(tmp_path / "r", FORWARD, REVERSE)
    for folder in (tmp_path, run / "reverse", tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no metrics of a run: neither forward/metrics.jsonl"):
            compare_runs([folder])
    with pytest.raises(InputError, match="a run is named twice"):
        compare_runs([run, run / ".." / "r"])
    (run / "recipe.yaml").write_text("{name: ")
    with pytest.raises(InputError, match=r"recipe\.yaml:1: not YAML"):
        compare_runs([run])
    for name in ("recipe.yaml", "reverse/metrics.jsonl"):  # exists but cannot be read
        (run / name).unlink()
        (run / name).symlink_to("nowhere")
        with pytest.raises(InputError, match=f"{name}: no such file"):
            compare_runs([run])
        (run / name).unlink()
        os.mkfifo(run / name)
        with pytest.raises(InputError, match=f"{name}: this is a pipe"):
            compare_runs([run])


def test_runs_with_the_same_name_are_distinguished(tmp_path):
    folders = [twins(tmp_path / place / "r", FORWARD, REVERSE) for place in ("a", "b")]
    assert [run["name"] for run in compare_runs(folders)["runs"]] == ["a/r", "b/r"]
