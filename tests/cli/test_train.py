"""The commands train, plan, export and compare."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch

from command_line import Run, check_refused
from ledom.core.records import Candidate, Document, Problem, write_records
from ledom.data.store import write_store
from ledom.text.tokenizer import Tokenizer
from made import SMALL_MODEL


def test_train_refuses_bad_recipes(run: Run, tmp_path: Path) -> None:
    check_refused(run("train", tmp_path / "none.yaml"), "none.yaml", "no such file")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: x\nmodell: {}\n")
    check_refused(
        run("train", recipe), "unknown key modell", "valid here: name, seed, init_from, data"
    )
    check_refused(run("train", recipe, "--direction", "up"), "r.yaml")


@pytest.mark.parametrize("command", [("export", "MODEL"), ("train", "RECIPE")])
def test_an_unknown_direction_is_refused(
    run: Run, checkpoints: dict[str, Path], command: tuple[str, str]
) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
    named = {"MODEL": checkpoints["forward"], "RECIPE": recipe}
    check_refused(
        run(command[0], named.get(command[1], command[1]), "--direction", "up"),
        "direction is 'up'; give forward",
    )


@pytest.mark.parametrize(
    ("package", "setting"), [("peft", "lora={}"), ("wandb", "train.trackers=[wandb]")]
)
def test_a_missing_package_is_reported_before_any_work(
    run: Run,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    setting: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: r\ninit_from: {checkpoints['forward']}\ndata: {{num_documents: 60, num_valid: 1}}\n"
        "optim: {steps: 2, warmup_steps: 0}\ntrain: {batch_size: 2, seq_len: 64}\n"
    )
    check_refused(run("train", recipe, setting, "--out", tmp_path), package, "run: pip install")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["model={preset: tiny, num_hidden_layers: 9}"], ("key model.", "has another shape")),
        (["objective.target=1", "data.train={documents}"], ("which holds documents",)),
        (
            ["objective={contrastive: 1, negatives: {right}}", "data.train={problems}"],
            ("right.jsonl: none of the problems has a wrong solution",),
        ),
        (["data.train={cut}"], ("key data.train is ", "cut': a folder, expected one JSONL file")),
        (["init_from={cut}"], ("cut/model.safetensors: damaged",)),
        (["parallel.compile=true"], ("key parallel.compile: torch.compile does not", "no gcc")),
        ([], ("r/reverse/checkpoints: not a folder",)),
    ],
)
def test_what_would_fail_late_is_refused_before_any_work(
    run: Run,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: list[str],
    parts: tuple[str, ...],
) -> None:
    """The last one would fail only when the forward model is trained."""
    failing = Mock(side_effect=RuntimeError("no gcc Set TORCHDYNAMO_VERBOSE=1 for more"))
    monkeypatch.setattr(torch, "compile", failing)
    shutil.copytree(checkpoints["forward"], tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    files = {name: tmp_path / f"{name}.jsonl" for name in ("documents", "problems", "right")}
    write_records(files["documents"], [Document(id=i, text="so") for i in "ab"])
    solved = [Problem(id=i, question="3?", answer="3", solution="#### 3") for i in "ab"]
    write_records(files["problems"], solved)
    write_records(files["right"], [Candidate(problem_id="b", index=0, text="#### 3")])
    for name, file in {**files, "cut": tmp_path / "cut"}.items():
        settings = [setting.replace(f"{{{name}}}", str(file)) for setting in settings]
    if not settings:
        (tmp_path / "r" / "reverse").mkdir(parents=True)
        (tmp_path / "r" / "reverse" / "checkpoints").touch()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: r\ninit_from: {checkpoints['forward']}\n"
        "optim: {steps: 2, warmup_steps: 0}\ntrain: {batch_size: 2, seq_len: 64}\n"
        "data: {num_documents: 60, num_valid: 1}\n"
    )
    check_refused(run("train", recipe, *settings, "--out", tmp_path), *parts)
    assert not (tmp_path / "r" / "data").exists()


def test_a_folder_that_is_not_utf8_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "od\udcffd"
    out.mkdir()
    check_refused(run("train", "tiny", "--out", out), "file name is not UTF-8", "convert it first")
    assert not [*out.iterdir()]
    (out / "tokenizer.json").write_text("{}")
    with pytest.raises(UnicodeEncodeError):
        Tokenizer.load(out)


def test_too_little_disk_space_is_noted_before_any_work(
    run: Run, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Mock(free=1000))
    (tmp_path / "r.yaml").write_text(
        "name: r\ndata: {num_documents: 9}\noptim: {steps: 1, warmup_steps: 0}\n"
    )
    settings = (f"init_from={checkpoints['forward']}", "train.seq_len=64")
    code, text = run("train", tmp_path / "r.yaml", *settings, "--out", tmp_path, "--device", "no")
    assert code == 2
    assert "/r: this run's checkpoints and models need at least" in text
    assert "the disk has only 1 kB for them; free some, lower train.keep_checkpoints" in text
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_refused_run_keeps_its_recipe(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        SMALL_MODEL + "name: r\ndata: {num_documents: 60, num_valid: 1, vocab_size: 300}\n"
        "optim: {steps: 2, warmup_steps: 0}\ntrain: {batch_size: 2, seq_len: 64}\n"
    )
    arguments = ("train", recipe, "--direction", "forward", "--threads", 1, "--out", tmp_path)
    saved = tmp_path / "r" / "recipe.yaml"
    check_refused(run(*arguments, "optim.clip=3", "optim.adamw_lr=1e30"), "start under another")
    assert "clip: 3.0" in saved.read_text()
    assert run(*arguments)[0] == 0  # nothing had been saved, so this run starts from the beginning
    assert "clip: 1.0" in saved.read_text()
    before = saved.read_text()
    check_refused(run(*arguments, "optim.clip=2"), "optim.clip: 1.0 there, 2.0 now")
    assert saved.read_text() == before
    assert run(*arguments, "train.validate_every=7")[0] == 0  # this setting may change
    assert "validate_every: 7" in saved.read_text()


def test_plan_prints_a_table_or_json(run: Run) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "7b.yaml"
    code, text = run("plan", recipe, "parallel.tokens_per_microbatch=null", "--gpus", 64)
    assert code == 0
    assert "7.79B: layers 7.4B" in text
    assert "give parallel.tokens_per_microbatch=" in text
    code, text = run("plan", recipe, "train.seq_len=2048", "--gpus", 64, "--json")
    assert code == 0
    needs = json.loads(text)
    assert needs["parameters"]["embedding"] == 64_000 * 3072
    assert needs["tokens"] == 103_750 * 512 * 2048
    check_refused(run("plan", recipe, "--gpu", "abacus"), "gpu is 'abacus'", "h100")


def test_export_writes_a_model_and_a_data_card(
    run: Run, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "released"
    code, text = run("export", checkpoints["reverse"], "--out", out)
    assert code == 0, text
    assert f"released: {out}; its card: {out / 'README.md'}" in text
    check_refused(run("export", checkpoints["reverse"], "--out", out), "exists already")
    check_refused(run("export", tmp_path), "no finished model here", "runs/NAME/reverse")
    early = tmp_path / "refused before any work"
    refused = run("export", checkpoints["reverse"], "--out", early, "--push", "mine")
    check_refused(refused, "'mine' is not of the form USER/NAME")
    assert not early.exists()
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", Mock(side_effect=OSError("no token")))
    refused = run("export", checkpoints["reverse"], "--out", early, "--push", "me/mine")
    check_refused(refused, "me/mine: cannot be uploaded: no token; to log in: hf auth login")
    assert not early.exists()
    tokenizer = Tokenizer.load(checkpoints["reverse"])
    write_store(tmp_path / "data" / "train", ["one text"], tokenizer, source="texts")
    code, text = run("export", tmp_path / "data")
    assert code == 0, text
    assert "| train | texts | 1 |" in (tmp_path / "data" / "README.md").read_text()


@pytest.mark.usefixtures("no_pictures")
def test_compare_reports_a_run(run: Run, tmp_path: Path) -> None:
    for way, loss in (("forward", 3.0), ("reverse", 3.25)):
        row = {"step": 1, "loss": 4.0, "tokens": 100, "valid_loss": loss, "valid_data": "ab"}
        row |= {"valid_loss_by_window": [loss] * 10, "valid_tokens_by_window": [5] * 10}
        (tmp_path / "r" / way).mkdir(parents=True)
        (tmp_path / "r" / way / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    code, text = run("compare", tmp_path / "r", "--out", out)
    assert code == 0, text
    assert "+0.2500 [+0.2500, +0.2500], +8.33%; shown for this pair: the reverse" in text
    report = json.loads((out / "compare.json").read_text())
    assert report["command"].startswith("ledom compare ")
    check_refused(run("compare", tmp_path, "--out", out), "no metrics of a run", "runs/NAME")
    (tmp_path / "r" / "reverse" / "metrics.jsonl").write_text("{}\n")
    refused = run("compare", tmp_path / "r", "--out", out)
    check_refused(refused, "reverse/metrics.jsonl:1: key step: Field required")
