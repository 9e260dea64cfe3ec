"""Commands that are killed and run again give the same bytes as an uninterrupted run."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

import kills
import ledom.lm
from kills import contents, in_a_child, run_through_kills
from ledom.cli import app
from ledom.core import stage
from ledom.core.direction import Direction
from ledom.core.records import Problem, write_records
from ledom.data import tokenize
from ledom.lm import EMBEDDED
from ledom.rerank import sample, score
from ledom.text.tokenizer import Tokenizer
from made import SMALL_MODEL

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures")]

COMMANDS = {
    "train-tokenizer": "train-tokenizer docs.jsonl --vocab-size 300",
    "tokenize": "tokenize docs.jsonl --tokenizer tokenizer --tasks 3 --workers 1",
    "augment": "augment problems.jsonl --variants 2",
    "train": "train recipe.yaml --direction reverse",
    "rerank": "rerank --num-problems 4 --samples 2 --max-tokens 64 --flip 1 --seed 4",
}
"""The last command uses the embedded pair: real weights, real log-probabilities."""
RECIPE = (
    SMALL_MODEL
    + """name: test
data: {train: problems.jsonl, vocab_size: 300}
optim: {steps: 7, warmup_steps: 0, decay_steps: 3}
train: {batch_size: 2, seq_len: 64, precision: float32, checkpoint_every: 2, validate_every: 3}
"""
)
_OF_ONE_RUN = ("checkpoints", "completions", "logs", "stats", "stats.json", "executor.json")
"""Files and folders that contain times or only the progress of a run."""


@pytest.fixture
def folder(
    tmp_path: Path,
    problems: list[Problem],
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The files that the commands read; each command runs there in one process."""
    write_records(tmp_path / "problems.jsonl", problems[:40])
    lines = (json.dumps({"text": problem.question}) + "\n" for problem in problems)
    (tmp_path / "docs.jsonl").write_text("".join(lines))
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def run(self: tokenize.LocalExecutor) -> None:
        for rank in self.get_incomplete_ranks():
            self._run_for_rank(rank)

    monkeypatch.setattr(tokenize.LocalExecutor, "run", run)
    monkeypatch.setattr(stage, "monotonic", lambda: 0.0)  # seconds are not part of the result
    monkeypatch.setattr(sample, "_TOGETHER", 4)  # two groups of candidates
    monkeypatch.setattr(score, "_TOGETHER", 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: data
        for name, data in contents(out).items()
        if not {*Path(name).parts} & {*_OF_ONE_RUN}
    }
    for name in found:
        if name.endswith("metrics.jsonl"):
            rows = [json.loads(line) for line in found[name].splitlines()]
            found[name] = [{**row, "tokens_per_second": None} for row in rows]
        elif Path(name).stem == "report":
            folder = str(out).encode()
            found[name] = found[name].replace(folder, b"OUT")  # in the command
    return found


@pytest.mark.usefixtures("embedded_once")
@pytest.mark.parametrize("command", COMMANDS)
def test_kills_at_any_time_leave_the_same_bytes(folder: Path, command: str) -> None:
    if command == "rerank":  # loaded before the forks, which should only write files
        for direction in Direction:
            ledom.lm.load(EMBEDDED, direction, dtype="auto")

    def work(out: Path) -> None:
        app.app([*COMMANDS[command].split(), "--out", str(out)], standalone_mode=False)

    deaths = run_through_kills(work, folder / "whole", folder / "killed", seed=7)
    assert deaths > 0
    expected = results(folder / "whole")
    assert expected
    assert results(folder / "killed") == expected


def test_a_child_encodes_without_the_threads_of_its_parent(
    tokenizer: Tokenizer, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make test` asks for threads; the child lacks them and once waited for them forever."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    texts = [problem.question for problem in problems]
    tokenizer.encode_batch(texts)
    assert in_a_child(lambda: tokenizer.encode_batch(texts)) == 0


def test_a_child_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "SECONDS", 1)
    assert in_a_child(signal.pause) == signal.SIGALRM
