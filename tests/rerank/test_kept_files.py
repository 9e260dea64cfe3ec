"""Files filled by models: byte-identical after any kill, and refused if damaged."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kills import in_a_child
from ledom.core import processes as parallel
from ledom.core import stage
from ledom.core.errors import InputError
from ledom.core.records import Candidate, Problem
from ledom.core.stage import no_progress
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.generation import Prompts, PromptTexts
from ledom.lm.language_model import Sampling, TokenSpan
from ledom.rerank import sample, score
from ledom.rerank import step_search as search_module
from ledom.rerank.contrast import fill_contrast
from ledom.rerank.fit import tune_folder
from ledom.rerank.flip import FlipSettings, fill_flip
from ledom.rerank.pipeline import Job, rerank
from ledom.rerank.score import ScoreFiles, fill_scores, score_groups
from ledom.rerank.score_files import read_scores
from ledom.rerank.search_pipeline import SearchJob, search_job
from ledom.rerank.step_search import SearchConfig
from ledom.rerank.weights import default_weights
from ledom.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures")]

PROBLEMS = [Problem(id=f"p{i}", question=f"What is {i} + 1?", answer="2") for i in range(11)]
ANSWERS = [f"1 + 1 = {n}\nso\n#### {n}" for n in (2, 2, 2, 3, 4, 5, 6)]


class Company(FakeLanguageModel):
    """A model whose results depend on everything in the same call, as on a real device."""

    batches_requests = True

    def logprobs(self, targets: Sequence[TokenSpan]) -> list[NDArray[np.float32]]:
        company = np.float32(1 + sum(len(target.ids) for target in targets) % 97 / 100)
        return [values * company for values in super().logprobs(targets)]

    def generate(
        self, prompts: Prompts, sampling: Sampling, num_samples: int = 1, first_sample: int = 0
    ) -> Iterator[PromptTexts]:
        company = replace(sampling, seed=sampling.seed + 1000 * len(prompts))
        yield from super().generate(prompts, company, num_samples, first_sample)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small groups, so that eleven problems give several."""
    monkeypatch.setattr(sample, "_TOGETHER", 24)
    monkeypatch.setattr(score, "_TOGETHER", 10)
    monkeypatch.setattr(search_module, "_TOGETHER", 3)


def job(tokenizer: Tokenizer, out: Path, **changes: Any) -> Job:
    forward, reverse = (Company(tokenizer, d, ANSWERS) for d in ("forward", "reverse"))
    return Job(PROBLEMS, out, forward, reverse, default_weights(), num_samples=6, **changes)


def reranked(tokenizer: Tokenizer, out: Path, track: Any = no_progress) -> None:
    rerank(job(tokenizer, out), track)


def stopped_early(tokenizer: Tokenizer, out: Path, track: Any = no_progress) -> None:
    rerank(job(tokenizer, out, early_stop=True), track)


def searched(tokenizer: Tokenizer, out: Path, track: Any = no_progress) -> None:
    forward, reverse = (Company(tokenizer, d, ANSWERS) for d in ("forward", "reverse"))
    config = SearchConfig(width=2, expansions=2)
    search_job(SearchJob(PROBLEMS, out, forward, reverse, config), track)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".html"}


@pytest.fixture(autouse=True)
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeze the clock, since only seconds may differ between equal runs."""
    monkeypatch.setattr(stage, "monotonic", lambda: 0.0)


def killed_after(count: int) -> Any:
    """A progress callback that kills the process (uncatchably) after `count` items."""
    seen = iter(range(10**9))

    def track(chunks: Iterable[Any], *_: Any) -> Iterator[Any]:
        for chunk in chunks:
            if next(seen) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            yield chunk

    return track


@pytest.fixture(scope="module")
def _wholes() -> dict[Callable[..., None], dict[str, bytes]]:
    """The files of uninterrupted work."""
    return {}


@pytest.fixture
def whole(
    tokenizer: Tokenizer,
    tmp_path: Path,
    work: Callable[..., None],
    _wholes: dict[Callable[..., None], dict[str, bytes]],
) -> dict[str, bytes]:
    """The files that the work leaves without a stop; they do not depend on their folder."""
    if work not in _wholes:
        work(tokenizer, tmp_path / "whole")
        _wholes[work] = contents(tmp_path / "whole")
    return _wholes[work]


@pytest.mark.parametrize("work", [reranked, stopped_early, searched])
@pytest.mark.parametrize("seed", range(3))
def test_any_kills_leave_the_same_bytes(
    tokenizer: Tokenizer,
    tmp_path: Path,
    work: Callable[..., None],
    whole: dict[str, bytes],
    seed: int,
) -> None:
    moments = random.Random(seed)
    killed = 0
    for _ in range(4):
        track = killed_after(moments.randrange(1, 25))
        killed += in_a_child(lambda t=track: work(tokenizer, tmp_path / "out", t)) == signal.SIGKILL  # type: ignore[misc]
    work(tokenizer, tmp_path / "out")
    assert killed > 0
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("work", [reranked, stopped_early])
def test_any_number_of_processes_leaves_the_same_bytes(
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[..., None],
    whole: dict[str, bytes],
) -> None:
    """Two shares computed in turn stand for two processes; a single one then joins them."""
    monkeypatch.setattr(parallel, "size", lambda: 2)
    monkeypatch.setattr(parallel, "wait", lambda: None)
    monkeypatch.setattr(parallel, "from_first", lambda text: text)
    for rank in (1, 0):
        monkeypatch.setattr(parallel, "rank", lambda own=rank: own)

        def one_stage(chunks: Iterable[Any], *_: Any) -> Iterator[Any]:
            yield from chunks
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            work(tokenizer, tmp_path / "out", one_stage)
    monkeypatch.undo()
    monkeypatch.setattr(stage, "monotonic", lambda: 0.0)
    monkeypatch.setattr(sample, "_TOGETHER", 24)
    monkeypatch.setattr(score, "_TOGETHER", 10)
    names = [part.name for part in (tmp_path / "out").glob("*.part*")]
    assert sorted(names) == ["candidates.jsonl.part", "candidates.jsonl.part.1"]
    work(tokenizer, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_groups_are_whole_problems_if_they_fit() -> None:
    sizes = {"a": 4, "b": 5, "c": 3, "d": 21, "e": 2}
    candidates = [
        Candidate(problem_id=name, index=i, text=str(i))
        for i in range(21)
        for name, size in sizes.items()
        if i < size
    ]
    groups = score_groups(candidates)
    names = [[c.problem_id for c in group] for group in groups]
    assert names == [["a"] * 4 + ["b"] * 5, ["c"] * 3 + ["d"] * 7, ["d"] * 7, ["d"] * 7 + ["e"] * 2]
    assert all(score_groups(group) == [group] for group in groups)


def test_an_early_stop_keeps_its_questions(tokenizer: Tokenizer, tmp_path: Path) -> None:
    stopped_early(tokenizer, tmp_path)
    assert len((tmp_path / "problems.jsonl").read_text().splitlines()) == len(PROBLEMS)
    other = job(tokenizer, tmp_path, early_stop=True)
    other.problems = [replace(p, question=p.question + " Say it.") for p in PROBLEMS]
    with pytest.raises(InputError, match=r"candidates.jsonl: .*questions: "):
        rerank(other, no_progress)


def changed(file: Path, line: int, **values: Any) -> None:
    rows = file.read_text().splitlines()
    row = json.loads(rows[line - 1]) | values
    rows[line - 1] = json.dumps(row)
    file.write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"logprob": 5.0}, "logprob is 5.0, expected a number up to 0"),
        ({"logprob": -5000.5}, r"logprob is -5000.5, but its tokens sum to -\d"),
        ({"num_tokens": 2}, r"num_tokens is 2, but it has \d+ tokens"),
        ({"num_tokens": -2}, "num_tokens is -2"),
        ({"token_logprobs": [0.5]}, "the logprob of a token is 0.5"),
        ({"token_logprobs": ["a"]}, "key token_logprobs.0: .*found 'a'"),
        ({"token_logprobs": [None]}, "key token_logprobs.0: .*found None"),
        ({"token_spans": []}, "but it has 0 spans"),
        ({"problem_id": "p99"}, "candidate .* of problem 'p99' belongs to no known candidate"),
        ({"index": 77}, "candidate 77 of problem 'p1' belongs to no known candidate"),
        ({"target": "y|x"}, r"is of log P\(y\|x\), reverse, in a file of a reverse model"),
        ({"target": "y"}, "for y occurs twice"),
        ({"text": 3}, "key text: .*found 3"),
        ({"extra": 1}, None),
    ],
)
def test_the_error_for_a_damaged_score_names_the_line(
    tokenizer: Tokenizer, tmp_path: Path, values: dict[str, Any], message: str | None
) -> None:
    reranked(tokenizer, tmp_path)
    file = tmp_path / "scores.reverse.jsonl"
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    line = 1 + next(
        i for i, row in enumerate(rows) if (row["problem_id"], row["target"]) == ("p1", "x|y")
    )
    changed(file, line, **values)
    where = rf"scores.reverse.jsonl:\d+: .*{message}"
    if message is None:
        where = "scores.reverse.jsonl: was changed after it was finished"
    elif values.get("target") != "y":  # otherwise it is noticed in the other one
        where = where.replace(r"\d+", str(line), 1)
    for again in (lambda: reranked(tokenizer, tmp_path), lambda: tune_folder(tmp_path)):
        with pytest.raises(InputError, match=where):
            again()


def test_a_span_beyond_its_text_is_refused_by_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    reranked(tokenizer, tmp_path)
    file = tmp_path / "scores.forward.jsonl"
    row = json.loads(file.read_text().splitlines()[0])
    for span in ([0, 10**6], [-1, 0], [3, 2], [0], "ab", [0, True]):
        changed(file, 1, token_spans=[span, *row["token_spans"][1:]])
        reason = "(the span .* does not lie|key token_spans.0.*: Input should be a valid)"
        with pytest.raises(InputError, match=f"scores.forward.jsonl:1: .*{reason}"):
            tune_folder(tmp_path)


def test_scores_that_lost_a_problem_are_named_as_changed(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    reranked(tokenizer, tmp_path)
    file = tmp_path / "scores.forward.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    first = json.loads(rows[0])["problem_id"]
    file.write_text("".join(row for row in rows if json.loads(row)["problem_id"] != first))
    with pytest.raises(InputError, match=r"scores\.forward\.jsonl: was changed after"):
        tune_folder(tmp_path)


def test_tune_refuses_other_problems_and_candidates(tokenizer: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reranked(tokenizer, out)
    expected = tune_folder(out)
    problems, candidates = out / "problems.jsonl", out / "candidates.jsonl"
    lines = problems.read_text().splitlines(keepends=True)
    more = tmp_path / "more.jsonl"
    more.write_text("".join([*reversed(lines), '{"id": "new", "question": "And 7?"}\n']))
    assert tune_folder(out, more).problem_hashes == expected.problem_hashes
    more.write_text("".join(lines).replace("What is 3", "What is 4"))
    with pytest.raises(InputError, match=r"scores.forward.jsonl: .*questions: "):
        tune_folder(out, more)
    more.write_text("".join(lines[1:]))
    with pytest.raises(InputError, match=r"scores.forward.jsonl: .*other settings"):
        tune_folder(out, more)
    more.write_text(candidates.read_text().replace("so", "thus", 1))
    remedy = "give the problems and candidates that were scored"
    with pytest.raises(InputError, match=rf"scores.forward.jsonl: .*texts: .*; {remedy}"):
        tune_folder(out, None, more)
    (out / "scores.reverse.jsonl.settings.json").write_text('{"model": ')
    with pytest.raises(InputError, match=r"scores.reverse.jsonl.settings.json: damaged"):
        tune_folder(out)


def test_tune_refuses_scores_that_an_earlier_reverse_model_left(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A contrast is log P(x|y) minus that of other questions, by one model reading in one way.

    Its folder was made with model A; then only the reverse scores were recomputed, with model B.
    """
    lm = FakeLanguageModel(tokenizer, "reverse")
    problems = [Problem(id=str(i), question=f"What is {i} + 1?", answer="2") for i in range(1, 9)]
    drawn = [
        Candidate(problem_id=p.id, index=i, text=text)
        for p in problems
        for i, text in enumerate(["#### 2", "so #### 3"])
    ]

    def again(mask_copies: int = 0) -> ScoreFiles:
        for file in tmp_path.glob("scores.reverse.jsonl*"):
            file.unlink()
        files = ScoreFiles(tmp_path, problems, drawn, lm, no_progress, mask_copies=mask_copies)
        fill_scores(files)
        return files

    forward = FakeLanguageModel(tokenizer)
    fill_scores(ScoreFiles(tmp_path, problems, drawn, forward, no_progress))
    files = again()
    fill_contrast(files, 2)
    fill_flip(files, FlipSettings(1))
    scores = read_scores(tmp_path, problems, drawn)
    assert {score.target for score in scores} == {"y|x", "x|y", "y", "x'|y", "x~|y"}
    (tmp_path / "scores.reverse.jsonl").unlink()
    with pytest.raises(InputError, match=r"no reverse scores next to it; remove scores.contrast"):
        read_scores(tmp_path, problems, drawn)
    again(mask_copies=3)
    with pytest.raises(InputError, match=r"scores.contrast.jsonl: .*mask_copies.*; remove"):
        read_scores(tmp_path, problems, drawn)
    lm.fingerprint = "B"
    again()
    for name in ("contrast", "flip"):
        with pytest.raises(InputError, match=rf"scores.{name}.jsonl: .*model: .*; remove"):
            read_scores(tmp_path, problems, drawn)
        (tmp_path / f"scores.{name}.jsonl").unlink()
    assert {score.target for score in read_scores(tmp_path, problems, drawn)} == {"y|x", "x|y", "y"}


def test_the_mock_model_depends_on_its_batch(tokenizer: Tokenizer) -> None:
    """Otherwise the kill tests could not fail."""
    lm = Company(tokenizer)
    targets = [
        TokenSpan(lm.add_special_tokens(lm.tokenizer.encode(text).ids), 1, 3) for text in ANSWERS
    ]
    alone = [lm.logprobs([target])[0] for target in targets]
    assert any((a != b).any() for a, b in zip(alone, lm.logprobs(targets), strict=True))
    lengths = [len(str(list(lm.generate(["a"] * n, Sampling(), 20)))) for n in (1, 2)]
    assert all(a != b for a, b in pairwise(lengths))


def test_scores_of_other_parts_of_a_text_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version of ledom that knows more marks of thoughts reads less of a text."""
    drawn = [
        Candidate(problem_id="p", index=i, text=text)
        for i, text in enumerate(["<think>2?</think>2", "[THINK]3?[/THINK]3"])
    ]
    lm, problem = FakeLanguageModel(direction="reverse"), Problem(id="p", question="1 + 1?")
    files = ScoreFiles(tmp_path, [problem], drawn, lm, no_progress)
    with monkeypatch.context() as patch:
        patch.setattr("ledom.text.answers.with_tags", lambda text: text)
        fill_scores(files)
    with pytest.raises(InputError, match="made with other settings .without_thoughts: "):
        fill_scores(files)
