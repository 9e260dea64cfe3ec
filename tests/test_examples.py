"""Each script in examples/ runs on the embedded pair and prints correct results."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ledom
from ledom.core.records import Document, write_records
from ledom.data.problems import generate_problems
from ledom.serve.judge import Judge
from ledom.serve.settings import Limits
from serving import running

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("embedded_once")]

RunExample = Callable[..., str]


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunExample:
    """Run a script in this process as from the command line; returns its output."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def log_p_of_question(question: str, answer: str) -> float:
    """log P(question | answer), from the embedded reverse model's token log-probabilities."""
    lm = ledom.load("tiny", "reverse")
    ids = lm.add_special_tokens(lm.tokenizer.encode(f"{question}\n\n{answer}").ids)
    known = len(lm.tokenizer.encode(question).ids)
    (values,) = lm.logprobs([ledom.TokenSpan(ids, 0, known + 1)])  # the end token before it
    return float(values.sum())


def test_reranked_answers_are_ordered_and_their_numbers_right(run_example: RunExample) -> None:
    printed = run_example("rerank_my_answers.py", "--samples", 3)
    line = r"reward (-[\d.]+)  log P\(y\|x\) -[\d.]+  log P\(x\|y\) (-[\d.]+)\n"
    _, *found = re.split(line, printed)
    rows = list(zip(found[::3], found[1::3], found[2::3], strict=True))
    assert 1 <= len(rows) <= 3
    rewards = [float(reward) for reward, _, _ in rows]
    assert rewards == sorted(rewards, reverse=True)
    question = runpy.run_path(str(EXAMPLES / "rerank_my_answers.py"))["QUESTION"]
    for _, logprob, answer in rows:
        expected = log_p_of_question(question, answer.removesuffix("\n\n"))
        assert float(logprob) == pytest.approx(expected, abs=0.01)


def test_a_forward_model_becomes_its_reverse_twin(run_example: RunExample, tmp_path: Path) -> None:
    documents = [
        Document(id=problem.id, text=f"{problem.question}\n\n{problem.solution}")
        for problem in generate_problems("train", 24, seed=3)
    ]
    write_records(tmp_path / "corpus.jsonl", documents)
    corpus = ["--documents", tmp_path / "corpus.jsonl", "--num-documents", 24]
    printed = run_example("reverse_twin.py", *corpus, "--steps", 2, "--out", tmp_path / "twin")
    match = re.match(r"loss ([\d.]+) at the first step, ([\d.]+) at the last; (.+)\n", printed)
    assert match is not None
    first, last = float(match[1]), float(match[2])
    assert first > 7.6  # worse than guessing among 2048 tokens: the model has never read backwards
    assert last < first
    assert ledom.load(match[3], "reverse").direction is ledom.Direction.REVERSE
    with pytest.raises(ledom.LedomError, match="forward"):
        ledom.load(match[3], "forward")


def log_p_of_both(question: str, answer: str) -> float:
    """log P(question, answer), from the embedded forward model's token log-probabilities."""
    lm = ledom.load("tiny", "forward")
    ids = lm.add_special_tokens(lm.tokenizer.encode(f"{question}\n\n{answer}").ids)
    (values,) = lm.logprobs([ledom.TokenSpan(ids, 1, len(ids))])
    return float(values.sum())


def test_prompts_are_found_for_an_output(run_example: RunExample, tmp_path: Path) -> None:
    """As in its docstring: with the embedded model, then with a trained one in the same folder."""
    out = tmp_path / "out"
    for training in [(), ("--pairs", 6, "--steps", 1)]:
        printed = run_example("invert_prompt.py", "--samples", 4, "--out", out, *training)
        line = r"\d\. log P\(prompt, output\) = (-[\d.]+)\n"
        opening, *found = re.split(line, printed)
        scores = [float(score) for score in found[::2]]
        assert 1 <= len(scores) <= 3
        assert scores == sorted(scores, reverse=True)
        answer = runpy.run_path(str(EXAMPLES / "invert_prompt.py"))["OUTPUT"]
        for score, prompt in zip(scores, found[1::2], strict=True):
            assert score == pytest.approx(log_p_of_both(prompt.strip(), answer), abs=0.06)
        assert out.exists() is bool(training)
    folder = opening.removeprefix("the trained reverse model: ").strip()
    assert ledom.load(folder).direction is ledom.Direction.REVERSE


def test_openais_client_gets_the_chosen_answer(run_example: RunExample) -> None:
    pytest.importorskip("openai")
    judge = Judge(ledom.load("tiny", "forward"), ledom.load("tiny", "reverse"))
    with running(judge, Limits()) as server:
        printed = run_example("gateway_openai.py", "--url", f"{server.url}/v1", "--samples", 3)
    assert re.search(r"\nchosen by '.+' among 3 candidates, \d+ tokens in all\n$", printed)


@pytest.mark.filterwarnings("ignore")
def test_grpo_runs_for_two_steps(run_example: RunExample, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    sizes = ["--steps", 2, "--batch-size", 2, "--samples", 2, "--max-tokens", 16]
    printed = run_example("trl_grpo.py", *sizes, "--out", tmp_path)
    lines = [line for line in printed.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1", "2"]
    for line in lines:
        assert float(re.search(r"reward (\S+)", line)[1]) < 0
        assert 0 <= float(re.search(r"copied (\S+)", line)[1]) <= 1


def test_every_example_is_run_here() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == set(re.findall(r'run_example\("(\w+\.py)"', Path(__file__).read_text()))
