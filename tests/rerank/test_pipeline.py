"""`ledom rerank` never mixes two models' work and never sees the answers it is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import OPTConfig, OPTForCausalLM

from command_line import Run
from ledom.core.direction import Direction
from ledom.core.errors import InputError, ServerError
from ledom.core.records import Candidate, Problem, Score, read_records
from ledom.core.stage import no_progress
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import TokenSpan
from ledom.model.checkpoint import save_checkpoint
from ledom.rerank.candidates import question_hash
from ledom.rerank.pipeline import Job, rerank
from ledom.rerank.weights import default_weights
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer


@pytest.fixture
def fine_tuned(tmp_path: Path, tokenizer: Tokenizer) -> tuple[Path, Path]:
    """Two merged low-rank updates of one 17 MB model, whose files differ only in the last part.

    Most of the size is positions that no text reaches, which cost nothing in scoring.
    """
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=2**16,
    )
    model = OPTForCausalLM(config)
    for name in ("lora1", "lora2"):
        save_checkpoint(tmp_path / name, model, tokenizer, Direction.REVERSE, PairFormat())
        file = tmp_path / name / "model.safetensors"
        weights = load_file(file)
        changed = next(key for key in weights if key.endswith("v_proj.weight"))
        weights[changed] += torch.randn(64, 4) @ torch.randn(4, 64)
        save_file(weights, file, metadata={"format": "pt"})
    return tmp_path / "lora1", tmp_path / "lora2"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_two_fine_tunes_of_a_model_are_two_models(
    run: Run,
    fine_tuned: tuple[Path, Path],
    problem_file: Path,
    candidate_file: Path,
    tmp_path: Path,
) -> None:
    first, second = fine_tuned
    head = (first / "model.safetensors").read_bytes()[: 2**24]
    assert head == (second / "model.safetensors").read_bytes()[: 2**24]

    def rerank(model: Path, out: str) -> tuple[int, str]:
        files = ("--problems", problem_file, "--candidates", candidate_file)
        models = ("--forward", "none", "--reverse", model)
        return run("rerank", *files, *models, "--out", tmp_path / out)

    def logprobs(out: str) -> list[float]:
        return [s.logprob for s in read_records(tmp_path / out / "scores.reverse.jsonl", Score)]

    assert rerank(first, "a")[0] == 0
    scores = logprobs("a")
    code, text = rerank(second, "a")
    assert code == 2
    assert "was made with other settings (model: " in " ".join(text.split())
    assert logprobs("a") == scores
    assert rerank(second, "b")[0] == 0
    assert logprobs("b") != scores


@pytest.fixture
def job(tokenizer: Tokenizer, tmp_path: Path) -> Job:
    """Two problems with a right and a wrong candidate each; the second has one more."""
    problems = [Problem(id=i, question=f"What is {i} + 0?", answer=i) for i in "12"]
    drawn = [
        Candidate(problem_id=problem.id, index=i, text=f"#### {answer}")
        for problem, answers in zip(problems, ("12", "123"), strict=True)
        for i, answer in enumerate(answers)
    ]
    forward = FakeLanguageModel(tokenizer)
    return Job(problems, tmp_path, forward, None, default_weights(), drawn)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_folds_take_problems_that_unused_weights_were_fitted_on(job: Job) -> None:
    known = frozenset([question_hash(job.problems[0].question)])
    job.weights = replace(job.weights, problem_hashes=known)
    with pytest.raises(InputError, match="one of those that the weights were tuned on"):
        rerank(job, no_progress)
    job.folds = 2
    made = rerank(job, no_progress)
    assert made is not None
    assert (made[0].fewest_candidates, made[0].num_candidates) == (2, 3)
    assert "2 to 3 candidate answers each" in made[1].read_text()


def test_a_demonstration_must_not_solve_a_problem(job: Job) -> None:
    solved = Problem(id="shown", question="What is 2  + 0?\n", solution="#### 2")
    job.demonstrations = [replace(solved, question="What is 3 + 0?"), solved]
    with pytest.raises(InputError, match="the demonstration 'shown' solves problem '2'"):
        rerank(job, no_progress)


def test_a_job_stops_sampling_in_one_way(job: Job) -> None:
    stopped = replace(job, candidates=None, early_stop=True, stop_unsure=0.9)
    with pytest.raises(InputError, match="early_stop already stops sampling; set stop_unsure to 0"):
        rerank(stopped, no_progress)


@pytest.mark.usefixtures("no_pictures")
class OnlySampling(FakeLanguageModel):
    """A server such as llama.cpp's, which gives no log-probabilities of a prompt."""

    def logprobs(self, targets: Sequence[TokenSpan]) -> list[NDArray[np.float32]]:
        raise ServerError("it can generate, but not score")


def test_a_server_that_cannot_score_is_refused_before_it_samples(job: Job) -> None:
    with pytest.raises(ServerError, match="it can generate, but not score"):
        rerank(replace(job, forward=OnlySampling(), candidates=None), no_progress)
    assert not (job.out / "candidates.jsonl").exists()


def test_notes_count_what_there_is(job: Job) -> None:
    """The candidates of two early-stopped runs in one file are more than either had planned."""
    assert job.candidates is not None
    job.problems = [replace(problem, answer=None) for problem in job.problems]
    job.candidates = [replace(c, sampling={"early_stop_of": 2}) for c in job.candidates]
    made = rerank(job, no_progress)
    assert made is not None
    notes = " ".join(made[0].notes)
    assert "5 of 5 candidates were drawn (0.0% saved)" in notes
    assert "labeled" not in notes  # the first sentence says that no problem is
