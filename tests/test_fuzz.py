"""Three hundred damaged inputs over every command: exit code 0 or 2, and one clear line."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz import ARGUMENTS, COMMANDS, OPTIONS, Worker, cases
from ledom.cli.app import app
from ledom.core.records import Candidate, Document, Problem, write_records
from ledom.data.store import write_store
from ledom.evaluate.inversion import Output
from ledom.evaluate.retrieval import Query
from ledom.evaluate.synthesis import Seed
from ledom.text.tokenizer import Tokenizer
from made import SMALL_MODEL

pytestmark = pytest.mark.slow

COUNT = 300
PARTS = 6
RECIPE = (
    SMALL_MODEL
    + """name: r
data: {DATA}
optim: {steps: 1, warmup_steps: 1}
train: {batch_size: 2, seq_len: 64}
"""
)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def good(
    worker: Worker,
    checkpoints: dict[str, Path],
    problems: list[Problem],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with everything that commands read, still undamaged."""
    root = tmp_path_factory.mktemp("good")
    few = [
        Problem(id=f"p{i}", question=p.question, answer=p.answer, solution=p.solution)
        for i, p in enumerate(problems[:4])
    ]
    write_records(root / "problems.jsonl", few)
    texts = ["3 + 4 = 7\n#### 7", "#### 2", "no idea"]
    rows = [Candidate(problem_id=p.id, index=i, text=t) for p in few for i, t in enumerate(texts)]
    write_records(root / "candidates.jsonl", rows)
    choices = [
        {"id": p.id, "question": p.question, "choices": ["1", "2"], "answer_index": 0} for p in few
    ]
    lines = "".join(json.dumps(row) + "\n" for row in choices)
    (root / "choices.jsonl").write_text(lines)
    passages = [Document(id=p.id, text=p.require_solution()) for p in few]
    write_records(root / "passages.jsonl", passages)
    write_records(
        root / "queries.jsonl", [Query(id=p.id, text=p.question, relevant=[p.id]) for p in few]
    )
    outputs = [Output(id=p.id, text=p.require_solution(), prompt=p.question) for p in few]
    write_records(root / "outputs.jsonl", outputs)
    write_records(root / "seeds.jsonl", [Seed(id=p.id, solution=p.solution) for p in few])
    for name, way in (("model", "reverse"), ("forward", "forward")):
        shutil.copytree(checkpoints[way], root / name)
    data = "train: problems.jsonl, num_valid: 1, vocab_size: 300"
    (root / "recipe.yaml").write_text(RECIPE.replace("DATA", data))
    start = RECIPE.replace("DATA", data).split("model:")[0]
    start += "init_from: model\noptim: {steps: 1, warmup_steps: 1}\n"
    (root / "init.yaml").write_text(start)
    stored = RECIPE.replace("DATA", "sources: [{path: store}], valid: store")
    (root / "stored.yaml").write_text(stored)
    documents = [p.question for p in problems[:20]]
    write_store(root / "store", documents, Tokenizer.load(root / "model"), source="texts")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (root / "docs.jsonl").write_text(lines)
    (root / "docs.txt").write_text("\n".join(documents))
    (root / "docs.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    for way in ("forward", "reverse"):
        shutil.copytree(root / "model", root / "run" / way / "model")
        row = {"step": 1, "loss": 4.0, "tokens": 100, "valid_loss": 3.0}
        (root / "run" / way / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    shutil.copyfile(root / "recipe.yaml", root / "run" / "recipe.yaml")
    rerank = COMMANDS["done/candidates.jsonl"][1].split()
    assert worker.run(root, rerank, seconds=300)[0] == 0  # this includes imports
    filling = COMMANDS["gaps/proposals.jsonl"][0].split()
    assert worker.run(root, filling)[0] == 0
    tuned = worker.run(root, ["tune", "done", "--out", "weights.json"])
    if tuned[0] != 0:  # the random models were never correct
        (root / "weights.json").write_text(
            '{"format": 3, "num_problems": 1, "num_candidates": 2, "problem_hashes": [],'
            ' "weights": {"forward": {"forward": 1.0}}}'
        )
    return root


def fault_of(code: int | None, said: str) -> str:
    """What is wrong with how a command ended, or "" if nothing is."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if code not in (0, 2):
        return f"exit code {code}: {said}"
    if "Traceback" in said or "internal error" in said:
        return said
    if code == 2 and (len(errors) != 1 or not said.rstrip().endswith(errors[0])):
        return f"not one line: {said}"
    return ""


def test_every_command_is_tried() -> None:
    tried = {line.split()[0] for lines in COMMANDS.values() for line in lines} | {*OPTIONS}
    named = {
        command.name or command.callback.__name__.replace("_", "-")
        for command in app.registered_commands
    }
    assert named == tried
    assert {*ARGUMENTS} <= named


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_input_ends_in_one_clear_line(
    worker: Worker, good: Path, tmp_path: Path, part: int
) -> None:
    faults = []
    for case in cases(seed=1, count=COUNT)[part::PARTS]:
        folder = tmp_path / "case"
        shutil.copytree(good, folder)
        case.damage(folder)
        fault = fault_of(*worker.run(folder, case.arguments))
        if fault:
            faults.append(f"{case.name}\n    {fault[-600:]}")
        shutil.rmtree(folder)
    assert not faults, f"{len(faults)} of {COUNT // PARTS}:\n" + "\n".join(faults)
