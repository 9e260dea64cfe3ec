"""Runs step-level search as a job that can resume, and compares it with best of N at equal cost.

    out/problems.jsonl  searched.jsonl  candidates.jsonl  search.json

Best of N gets as many generated tokens as the search. For each problem, candidates are drawn until
they have cost as much as its search; then the best one by the same score is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from ledom import __version__
from ledom.core import processes as parallel
from ledom.core.files import fingerprint, write_json
from ledom.core.records import NUM_TOKENS, Candidate, Problem
from ledom.core.stage import Track, Work, at_once
from ledom.lm import unfamiliar_texts
from ledom.lm.language_model import LanguageModel
from ledom.report.formatting import to_json
from ledom.report.intervals import FloatArray, paired_share_interval, share_interval
from ledom.report.results import Interval
from ledom.rerank.candidate_table import build_candidate_table
from ledom.rerank.candidates import check_problems, question_hash
from ledom.rerank.sample import (
    check_prompts,
    fill_candidates,
    prompts_of,
    sample_candidates,
    sampling_groups,
)
from ledom.rerank.score import check_room, score_candidates
from ledom.rerank.step_search import SearchConfig, check_models, search, search_groups
from ledom.rerank.strategies import STRATEGIES
from ledom.text.answers import extract_answer, is_right

__all__ = ["SearchJob", "SearchReport", "search_job"]

_GENERATED = "generated"  # key of a candidate: the tokens that its search generated
_JUDGED = 64  # problems checked for whether they resemble the training texts


@dataclass
class SearchJob:
    """The inputs, models and settings of a search, and its output folder."""

    problems: Sequence[Problem]
    out: Path
    forward: LanguageModel
    reverse: LanguageModel | None
    config: SearchConfig
    command: str = "ledom search"

    @property
    def models(self) -> list[LanguageModel]:
        """The models that score."""
        return [lm for lm in (self.forward, self.reverse) if lm is not None]


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """The accuracy of a search on the labeled problems, and of best of N at equal cost."""

    command: str
    ledom_version: str
    num_problems: int
    num_labeled: int
    tokens_per_problem: float
    unfinished: int
    """Searches that ended without a finished solution."""
    note: str = ""
    warning: str | None = None
    """A warning if the embedded pair was not trained on such problems; see `unfamiliar_texts`."""
    candidates_at_equal_cost: float | None = None
    """N: candidates per problem."""
    accuracy: Mapping[str, Interval] = field(default_factory=dict)
    search_against: Mapping[str, Interval] = field(default_factory=dict)
    """Paired differences between the search and each rival."""


def search_job(job: SearchJob, track: Track) -> SearchReport | None:
    """Run the job; returns the report, which is written to search.json.

    `searched.jsonl` has a candidate for each problem: the best beam, with its `finish_reason`,
    `score` (nats per token) and `generated` (tokens that its search generated). If several
    processes share the job (`ledom.core.processes`), all but the first return None.

    >>> import tempfile
    >>> from ledom.core.stage import no_progress
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm, config = FakeLanguageModel(answers=["1 + 1 = 2"]), SearchConfig(width=1, lam=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     job = SearchJob([Problem(id="p", question="1 + 1?")], Path(folder), lm, None, config)
    ...     report = search_job(job, track=no_progress)
    >>> report.num_problems, report.unfinished
    (1, 0)
    """
    check_problems(job.problems)
    check_models(job.forward, job.reverse, job.config)
    check_prompts(job.problems, job.forward, job.config.sampling)
    for lm in job.models:
        check_room(job.problems, lm)
    settings = {
        "forward": job.forward.identity,
        "reverse": job.reverse.identity if job.reverse else "none",
        **asdict(job.config),
    }
    work = Work(
        job.problems,
        at_once(partial(_searched, job)),
        groups=search_groups,
        together=any(lm.batches_requests for lm in job.models),
    )
    searched = fill_candidates(job.out / "searched.jsonl", work, settings, track, "searching")
    is_labeled = any(problem.is_labeled for problem in job.problems)
    rivals = _equal_cost(job, searched, track) if is_labeled else []
    if not parallel.is_first():
        return None
    report = _report(job, searched, rivals)
    write_json(job.out / "search.json", to_json(report))
    return report


def _searched(job: SearchJob, problems: Sequence[Problem]) -> Iterator[list[Candidate]]:
    for problem_id, beams, generated in search(problems, job.forward, job.reverse, job.config):
        best = beams[0]
        record = Candidate(
            problem_id=problem_id,
            index=0,
            text=best.text,
            model=job.forward.name,
            finish_reason="stop" if best.finish_reason == "stop" else "length",
            extra={"score": round(best.score, 5), _GENERATED: generated},
        )
        yield [record]


def _report(
    job: SearchJob, searched: Sequence[Candidate], drawn: Sequence[Candidate]
) -> SearchReport:
    labeled = [problem for problem in job.problems if problem.is_labeled]
    note = "the problems have no answers, so nothing could be measured"
    count, accuracies, differences = None, {}, {}
    if drawn:
        some = f"{len(labeled)} of {len(job.problems)} problems are labeled"
        note = "" if len(labeled) == len(job.problems) else f"{some}; only these are measured"
        found = {candidate.problem_id: candidate for candidate in searched}
        verdicts = [is_right(c := found[p.id], extract_answer(c.text), p) for p in labeled]
        right = np.array(verdicts, dtype=float)
        count, rivals = _rivals(job, labeled, drawn)
        groups = [question_hash(problem.question) for problem in labeled]
        both = {"step-level search": right, **rivals}
        accuracies = {name: share_interval(own, groups=groups) for name, own in both.items()}
        differences = {n: paired_share_interval(right, v, groups) for n, v in rivals.items()}
    return SearchReport(
        command=job.command,
        ledom_version=__version__,
        num_problems=len(job.problems),
        num_labeled=len(labeled),
        tokens_per_problem=round(sum(c.extra[_GENERATED] for c in searched) / len(searched), 1),
        unfinished=sum(c.finish_reason != "stop" for c in searched),
        note=note,
        warning=unfamiliar_texts(job.forward, [p.question for p in job.problems[:_JUDGED]]),
        candidates_at_equal_cost=count,
        accuracy=accuracies,
        search_against=differences,
    )


def _equal_cost(job: SearchJob, searched: Sequence[Candidate], track: Track) -> list[Candidate]:
    """Candidates for each problem that together cost no more than its search; at least one."""
    lm, sampling = job.forward, job.config.sampling
    longest = max(map(len, lm.tokenizer.encode_ids(prompts_of(job.problems, lm))))
    room = lm.context - len(lm.bos_ids) - longest
    sampling = replace(sampling, stop_pattern=None, max_tokens=min(4 * sampling.max_tokens, room))
    budget = {found.problem_id: int(found.extra[_GENERATED]) for found in searched}
    count = job.config.width * job.config.expansions * 2

    def affordable(waiting: Sequence[Problem], drawn: int = count) -> Iterator[list[Candidate]]:
        cheap = set()
        for chunk in sample_candidates(waiting, lm, sampling, drawn):
            pool = [candidate for candidate in chunk if not candidate.greedy]
            costs = np.cumsum([int(c.extra[NUM_TOKENS]) for c in pool])
            limit = budget[pool[0].problem_id]
            if costs[-1] <= limit:
                cheap.add(pool[0].problem_id)
            else:
                yield pool[: max(1, int((costs <= limit).sum()))]
        if cheap:  # too few to use up the budget: draw twice as many
            yield from affordable([p for p in waiting if p.id in cheap], 2 * drawn)

    settings = {
        "model": lm.identity,
        "num_samples": count,
        "budgets": fingerprint((id_, str(tokens)) for id_, tokens in sorted(budget.items())),
        **asdict(sampling),
    }
    work = Work(
        job.problems,
        at_once(affordable),
        groups=partial(sampling_groups, num_samples=count),
        together=lm.batches_requests,
    )
    return fill_candidates(job.out / "candidates.jsonl", work, settings, track, "best of N")


def _rivals(
    job: SearchJob, problems: Sequence[Problem], drawn: Sequence[Candidate]
) -> tuple[float, dict[str, FloatArray]]:
    """Candidates per problem at equal cost, and the accuracies [P] of ways to choose among them."""
    known = {problem.id for problem in problems}
    candidates = [candidate for candidate in drawn if candidate.problem_id in known]
    scored = (score_candidates(problems, candidates, lm) for lm in job.models)
    scores = [score for chunks in scored for chunk in chunks for score in chunk]
    table = build_candidate_table(problems, candidates, scores)
    if job.reverse is None:
        best = STRATEGIES["forward_mean"].accuracy(table, None)
    else:
        strategy = STRATEGIES["reverse_reward"]
        best = strategy.accuracy(table, strategy.interpolation(job.config.lam, mean=True))
    return round(float(table.mask.sum(axis=1).mean()), 2), {
        "best of N, same score": best,
        "majority of N": STRATEGIES["majority"].accuracy(table, None),
        "random": STRATEGIES["random"].accuracy(table, None),
    }
