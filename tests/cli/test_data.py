"""The commands that create training data; each kind of bad input gives one clear line."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import sys
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from command_line import Run, check_refused
from held_up import ledom_held_up
from ledom.core.records import Candidate, Problem, read_records
from ledom.data.problems import generate_problems, is_true
from ledom.data.store import TokenStore, write_store
from ledom.text.tokenizer import Tokenizer
from ledom.train import loop
from made import SMALL_MODEL
from number_documents import ids_of
from started import started
from waiting import until

pytestmark = pytest.mark.slow

TEXTS = [f"{p.question}\n\n{p.solution}" for p in generate_problems("train", 60, seed=3)]


def write(file: Path, texts: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write(folder / "a.jsonl", TEXTS[:20])
    (folder / "b.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in TEXTS[20:]).encode())
    )
    return folder


@pytest.fixture(scope="module")
def tokenizer_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


def test_a_store_in_the_folder_of_its_documents_keeps_them(
    run: Run, tokenizer_folder: Path, tmp_path: Path
) -> None:
    write(tmp_path / "a.part1.jsonl", TEXTS[:2])
    options = ("--tokenizer", tokenizer_folder, "--workers", 1)
    code, text = run("tokenize", tmp_path, *options, "--out", tmp_path)
    assert code == 0, text
    assert TokenStore(tmp_path).manifest.num_documents == 2
    assert (tmp_path / "a.part1.jsonl").is_file()


def test_from_documents_to_a_trained_model(
    run: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tokens, valid = tmp_path / "tok", tmp_path / "tokens", tmp_path / "valid"
    code, text = run("train-tokenizer", corpus, "--vocab-size", 400, "--out", made)
    assert code == 0, text
    assert "a tokenizer of 400 tokens" in text
    tokenizer = Tokenizer.load(made)
    assert tokenizer.vocab_size == 400
    options = ("--tokenizer", made, "--workers", 1)
    code, text = run("tokenize", corpus, *options, "--tasks", 2, "--out", tokens)
    assert code == 0, text
    store = TokenStore(tokens)
    assert ids_of(store) == [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_ids(TEXTS)]
    assert f"documents: 60, tokens: {store.manifest.num_tokens:,}, shards: 2; store: " in text
    assert run("tokenize", corpus / "a.jsonl", *options, "--out", valid)[0] == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: r\ndata:\n  sources: [{{path: {tokens}}}]\n  valid: {valid}\n"
        f"{SMALL_MODEL}optim: {{steps: 2, warmup_steps: 1}}\n"
        "train: {batch_size: 4, seq_len: 128}\n"
    )
    arguments = ("train", recipe, "--direction", "reverse", "--out", tmp_path / "runs")
    run_whole = loop.train

    def stopped(*given: Any) -> Path:
        """Stop the first run after its first step, as a job scheduler does."""
        *others, on_progress, world = given
        monkeypatch.setattr(loop, "train", run_whole)

        def stop(progress: Any) -> None:
            on_progress(progress)
            os.kill(os.getpid(), signal.SIGTERM)

        return run_whole(*others, stop, world)

    monkeypatch.setattr(loop, "train", stopped)
    code, text = run(*arguments)
    assert code == 0, text
    assert text.startswith("opening the token stores\n")  # nothing is prepared
    assert "stopped; every step is saved: run the same command again to resume" in text
    assert not (tmp_path / "runs/r/reverse/model").exists()
    code, text = run(*arguments)
    assert code == 0, text
    assert "stopped" not in text
    assert Tokenizer.load(tmp_path / "runs/r/reverse/model").fingerprint == tokenizer.fingerprint


def test_options_for_digits_and_number_of_documents(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", ["2024 and 2024 " * 20, "never never never " * 20])
    arguments = (
        "train-tokenizer",
        tmp_path / "d.jsonl",
        "--vocab-size",
        290,
        "--out",
        tmp_path / "t",
    )
    assert run(*arguments, "--no-split-digits", "--num-documents", 1)[0] == 0
    tokenizer = Tokenizer.load(tmp_path / "t")
    assert len(tokenizer.encode("2024").ids) == 1
    assert len(tokenizer.encode("never").ids) > 1
    assert run(*arguments)[0] == 0
    tokenizer = Tokenizer.load(tmp_path / "t")
    assert len(tokenizer.encode("2024").ids) == 4
    assert len(tokenizer.encode("never").ids) == 1


def test_bad_input_is_one_clear_line(
    run: Run, corpus: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = count()

    def refused(*arguments: object, says: str) -> None:
        check_refused(run(*arguments, "--out", tmp_path / f"out{next(numbers)}"), says)

    good = ("--tokenizer", tokenizer_folder)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"txt": 3}\n')
    for command in (("train-tokenizer",), ("tokenize", *good)):
        refused(*command, tmp_path / "none.jsonl", says="none.jsonl: no such file")
        refused(*command, bad, says="bad.jsonl:2: no key 'text', only txt")
        refused(*command, corpus, "--format", "csv", says="unknown format 'csv'; known: jsonl")
        refused(*command, tmp_path / "x", corpus, says="x: no such file")
        refused(*command, says="Missing argument 'documents'")
    (tmp_path / "empty").mkdir()
    refused("tokenize", tmp_path / "empty", *good, says="no files in this folder end in .jsonl")
    refused("tokenize", corpus, "--tokenizer", tmp_path / "no", says="no: no such file")
    refused("tokenize", corpus, *good, "--eos-token", "<s>", says="has no token '<s>'")
    refused("tokenize", corpus, *good, "--workers", 0, says="greater than or equal to 1")
    refused("tokenize", corpus, *good, "--tasks", "-1", says="greater than or equal to 1")
    refused("tokenize", corpus, *good, "--executor", "dask", says="known: local, slurm, ray")
    cluster = ("--executor", "slurm")
    refused("tokenize", corpus, *good, *cluster, "--slurm", "cpu", says="'cpu' is not an option")
    refused("tokenize", corpus, *good, "--slurm", "a=b", says="--slurm would have no effect")
    refused("train-tokenizer", corpus, "--vocab-size", 256, says="give 257")
    refused("train-tokenizer", corpus, "--num-documents", 0, says="greater than or equal to 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    refused("tokenize", corpus, *good, "--executor", "slurm", says="sbatch was not found")


def test_unwritable_places_are_refused(run: Run, corpus: Path, tokenizer_folder: Path) -> None:
    out = corpus / "a.jsonl" / "out"
    check_refused(run("train-tokenizer", corpus, "--out", out), "not a folder")
    check_refused(
        run("tokenize", corpus, "--tokenizer", tokenizer_folder, "--out", out), "not a folder"
    )


def test_an_empty_corpus_makes_no_tokenizer(run: Run, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("\n")
    result = run("train-tokenizer", tmp_path / "d.jsonl", "--out", tmp_path / "t")
    check_refused(result, "d.jsonl", "there are no documents")
    assert not (tmp_path / "t").exists()


def test_without_datatrove_the_command_says_what_to_install(
    run: Run, corpus: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "ledom.data.tokenize", raising=False)
    for name in [n for n in sys.modules if n.startswith("datatrove")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datatrove", None)
    check_refused(
        run("tokenize", corpus, "--tokenizer", tokenizer_folder),
        "datatrove is not installed; run: pip install 'ledom[data]'",
    )


@pytest.mark.slow
def test_ctrl_c_keeps_finished_shards(run: Run, tokenizer_folder: Path, tmp_path: Path) -> None:
    documents, out = tmp_path / "d.jsonl", tmp_path / "out"
    write(documents, TEXTS)
    command = ["tokenize", str(documents), "--out", str(out)]
    command += ["--tokenizer", str(tokenizer_folder), "--workers", "2", "--tasks", "4"]
    with started(tmp_path / "said", *command, run=ledom_held_up) as process:
        # One shard is finished, and both processes are in the middle of another.
        until(lambda: [*out.glob("tasks/completions/*")] and len([*tmp_path.glob("held.*")]) == 2)
        os.killpg(process.pid, signal.SIGINT)  # like a terminal: every process gets the signal
        assert process.wait() == 130
    said = process.said()
    assert "interrupted; work saved in --out is kept" in said
    assert "Traceback" not in said
    finished = {
        shard: shard.stat().st_mtime_ns
        for task in out.glob("tasks/completions/*")
        for shard in out.glob(f"{task.name}_*.ds")
    }
    assert len(finished) == 1
    assert not (out / "manifest.json").exists()
    code, said = run(*command)
    assert code == 0, said
    store = TokenStore(out)
    store.verify()
    assert store.manifest.num_documents == 60
    assert all(file.stat().st_mtime_ns == when for file, when in finished.items())


@pytest.mark.slow
def test_a_killed_command_takes_its_processes_with_it(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    """They would otherwise write into a store that a later command makes in the same folder."""
    write(tmp_path / "d.jsonl", TEXTS)
    command = ["tokenize", tmp_path / "d.jsonl", "--out", tmp_path / "out"]
    command += ["--tokenizer", tokenizer_folder, "--workers", "2", "--tasks", "4"]

    def held() -> list[str]:
        return [process for file in tmp_path.glob("held.*") if (process := file.read_text())]

    def has_ended(process: str) -> bool:
        try:
            return ") Z " in Path(f"/proc/{process}/stat").read_text()  # but no one waited for it
        except (FileNotFoundError, ProcessLookupError):
            return True

    with started(tmp_path / "said", *command, run=ledom_held_up) as process:
        until(lambda: len(held()) == 2)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        until(lambda: all(map(has_ended, held())))


def test_a_command_does_not_overwrite_its_input(run: Run, tmp_path: Path) -> None:
    problems = tmp_path / "train.jsonl"
    row = '{"id": "%s", "question": "1 + 1?", "solution": "1 + 1 = 2"}\n'
    problems.write_text(row % "a" + row % "b")
    before = problems.read_bytes()
    check_refused(run("augment", problems, "--out", tmp_path), "would replace", "train.jsonl")
    assert problems.read_bytes() == before
    problems.write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n')
    check_refused(
        run("augment", problems, "--out", tmp_path / "v"), "these are documents; give problems"
    )


def test_a_link_to_itself_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    check_refused(
        run("augment", tmp_path / "loop.jsonl", "--out", tmp_path / "out"),
        "loop.jsonl: cannot be read: Too many levels of symbolic links",
    )


def test_the_tokenizer_of_a_model_or_store_is_not_overwritten(
    run: Run, corpus: Path, tokenizer_folder: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model, store = tmp_path / "model", tmp_path / "store"
    shutil.copytree(checkpoints["forward"], model)
    write_store(store, ["5"], Tokenizer.load(model))
    (store / "tokenizer.json").write_text("{}")
    for folder, owner in ((model, "holds a model"), (store, "holds a token store")):
        before = (folder / "tokenizer.json").read_bytes()
        check_refused(run("train-tokenizer", corpus, "--out", folder), str(folder), owner)
        options = ("--tokenizer", tokenizer_folder, "--workers", 1)
        refused = "holds a model" if folder == model else "holds a store that was not made by"
        check_refused(run("tokenize", corpus, *options, "--out", folder), str(folder), refused)
        assert (folder / "tokenizer.json").read_bytes() == before


def test_fewer_documents_than_requested_are_reported(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", ["one two", "two three"])
    given = ("train-tokenizer", tmp_path / "d.jsonl", "--out", tmp_path / "t")
    code, text = run(*given, "--num-documents", 3)
    assert code == 0
    assert "note: --num-documents is 3, but there are only 2" in text
    assert "note: --vocab-size is 2048; these documents have no more pairs to merge" in text
    assert "note" not in run(*given, "--num-documents", 2, "--vocab-size", 257)[1]


def test_export_refuses_options_without_effect(
    run: Run, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    write_store(tmp_path / "store", TEXTS[:2], tokenizer)
    given = ("export", tmp_path / "store")
    check_refused(run(*given, "--private"), "--private would have no effect: nothing is uploaded")
    check_refused(run(*given, "--out", tmp_path / "x"), "--out would have no effect", "token store")
    assert not (tmp_path / "store/README.md").exists()
    assert run(*given)[0] == 0


@pytest.mark.parametrize("option", ["--variants", "--wrong", "--false-results"])
def test_augment_refuses_absurd_numbers(run: Run, tmp_path: Path, option: str) -> None:
    result = run("augment", tmp_path / "none.jsonl", option, 10**30)
    check_refused(result, option, "1000")


def test_augment_writes_the_requested_number_of_false_results(run: Run, tmp_path: Path) -> None:
    problems, out = tmp_path / "solved.jsonl", tmp_path / "out"
    row = '{"id": "%s", "question": "Ava has 3 pens and buys %d. How many has she?", "answer": "%d"'
    row += ', "solution": "3 + %d = %d"}\n'
    problems.write_text("".join(row % (n, n, 3 + n, n, 3 + n) for n in (4, 5)))
    code, text = run("augment", problems, "--wrong", 0, "--false-results", 3, "--out", out)
    assert code == 0, text
    wrong = read_records(out / "wrong.jsonl", Candidate)
    per_problem = Counter(one.problem_id for one in wrong)
    assert {*per_problem} == {one.id for one in read_records(out / "train.jsonl", Problem)}
    assert max(per_problem.values()) <= 3
    assert not any(is_true(one.text.splitlines()[0]) for one in wrong)


def test_augment_says_which_records_it_leaves_out(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    problems, out = tmp_path / "solved.jsonl", tmp_path / "out"
    row = '{"id": "%s", "question": "%s?", "solution": "#### 7"}\n'
    problems.write_text("".join(row % pair for pair in (("a", "x"), ("b", "y"), ("a", "z"))))
    code, text = run("augment", problems, "--out", out)
    assert code == 0, text
    assert [one.id for one in read_records(out / "train.jsonl", Problem)] == ["b"]
    assert "1 records have the id of a record held out" in text + caplog.text


@pytest.mark.parametrize("device", ["inf", "0", "meta", "cuda:99"])
def test_train_refuses_a_device_before_it_prepares_data(
    run: Run, tmp_path: Path, device: str
) -> None:
    result = run("train", "tiny", "--device", device, "--out", tmp_path / "runs")
    check_refused(result, f"device '{device}' cannot be used", "give cpu, cuda")
    assert not (tmp_path / "runs").exists()
