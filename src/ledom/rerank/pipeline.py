"""The main job: problems -> candidates -> scores -> selection -> report. Each arrow is a file:

    out/problems.jsonl  candidates.jsonl (or candidates.given.jsonl)
        scores.forward.jsonl  scores.reverse.jsonl
        selected.jsonl  report.html  report.json  report.md

A stopped stage resumes. Finished stages are reused if the settings are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np

from ledom import __version__
from ledom.core import processes as parallel
from ledom.core.errors import InputError
from ledom.core.files import check_processes, lock_for_group
from ledom.core.reading import check_counts
from ledom.core.records import (
    CONFIDENCE,
    SELF_CERTAINTY,
    Candidate,
    Key,
    Problem,
    Score,
    write_records,
)
from ledom.core.stage import Track, Work, read_timings
from ledom.lm import unfamiliar
from ledom.lm.language_model import LanguageModel, Sampling
from ledom.report.results import Case, ChosenAnswer, ModelInfo, SelectionReport
from ledom.report.selection_page import write_report
from ledom.rerank.candidate_table import CandidateTable, build_candidate_table
from ledom.rerank.candidates import (
    GIVEN,
    check_problems,
    choose_external_scores,
    labeled_problems,
    match_candidates,
    pools,
    question_hash,
    scores_by_target,
    written_tokens,
)
from ledom.rerank.contrast import changed_problems, fill_contrast
from ledom.rerank.cost import Costs
from ledom.rerank.explain import case_of
from ledom.rerank.fit import check_folds, cross_fit
from ledom.rerank.flip import FlipSettings, fill_flip, longest_question
from ledom.rerank.measure import changes, measure
from ledom.rerank.sample import (
    check_prompts,
    fill_candidates,
    is_finished,
    sample_candidates,
    sample_until_decided,
    sampling_groups,
)
from ledom.rerank.score import ScoreFiles, check_room, check_scoring, fill_scores
from ledom.rerank.strategies import check_score_names
from ledom.rerank.weights import Selection, TunedWeights, preferred_strategy, select

__all__ = ["Job", "rerank"]

_SHOWN_ANSWERS = 20  # in a report without labels; selected.jsonl has all of them


@dataclass
class Job:
    """The inputs, models and settings of a reranking, and its output folder."""

    problems: Sequence[Problem]
    out: Path
    forward: LanguageModel | None
    reverse: LanguageModel | None
    weights: TunedWeights
    candidates: Sequence[Candidate] | None = None
    """The candidates; None to sample them from the forward model."""
    sampling: Sampling = field(default_factory=Sampling)
    num_samples: int = 32
    early_stop: bool = False
    """Stop drawing candidates of a problem once its majority vote is decided."""
    stop_unsure: float = 0.0
    """Break off samples whose confidence falls below a threshold that this share of the problem's
    first quarter of samples never falls below. 0: never. Needs `sampling.confidence`."""
    external_scores: Sequence[str] | None = None
    """Extra score fields of the candidates; see `choose_external_scores`."""
    demonstrations: Sequence[Problem] = ()
    """Solved problems that the models read first."""
    mask_copies: int = 0
    """See `ScoreFiles.mask_copies`."""
    contrast: int = 0
    """Number of copies of each question with one number changed; see `ledom.rerank.contrast`."""
    flip: FlipSettings | None = None
    """Questions to write backwards from each solution; see `ledom.rerank.flip`."""
    folds: int = 0
    """If above 0, `weights` are replaced by weights fitted on these problems in this many folds.
    The choice for a problem uses weights fitted on the other folds. Needs labels."""
    command: str = "ledom rerank"
    notes: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[LanguageModel]:
        """The models that score."""
        return [lm for lm in (self.forward, self.reverse) if lm is not None]


def rerank(job: Job, track: Track) -> tuple[SelectionReport, Path] | None:
    """Run the job; returns the report and the path of its page.

    If several processes share the job (`ledom.core.processes`), all but the first return None.
    Raises `InputError` for problems and candidates that do not match, for weights tuned on one of
    the problems, and for a job that lacks a model or labels that it needs.

    >>> import tempfile
    >>> from ledom.core.stage import no_progress
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> from ledom.rerank.weights import default_weights
    >>> problem, lm = Problem(id="p", question="2 + 2?"), FakeLanguageModel(direction="reverse")
    >>> drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate("445")]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     job = Job([problem], Path(folder), None, lm, default_weights(), drawn)
    ...     report, page = rerank(job, track=no_progress)
    >>> report.num_candidates, page.name
    (3, 'report.html')
    """
    needed = () if job.folds else job.weights.external_scores
    _check(job, [*(job.external_scores or ()), *needed])
    identities = {str(lm.direction): lm.identity for lm in job.models}
    check_processes(identities, job.out)
    job.notes += [] if job.folds else job.weights.other_models(identities)
    with lock_for_group(job.out, "reranks", ".rerank.lock") as check_folder:
        candidates = _candidates(job, track)
        external_scores = choose_external_scores(candidates, job.external_scores, needed)
        scores = _scores(job, candidates, track, check_folder)
        if not parallel.is_first():
            return None
        check_folder()
        _keep_inputs(job)
        table = build_candidate_table(job.problems, candidates, scores, external_scores)
        return _report(job, table, candidates, scores)


def _report(
    job: Job, table: CandidateTable, candidates: Sequence[Candidate], scores: Sequence[Score]
) -> tuple[SelectionReport, Path]:
    if job.folds:
        job.weights = cross_fit(table, job.folds)
    sizes = {str(lm.direction): lm.num_parameters for lm in job.models}
    sizes["writer"] = 0 if job.candidates is not None else sizes["forward"]
    costs = Costs.count(table, candidates, scores, sizes, read_timings(job.out))
    chosen = preferred_strategy(table, job.weights)
    selections = select(table, candidates, chosen, job.weights)
    write_records(job.out / "selected.jsonl", selections)
    counts = table.mask.sum(axis=1)
    report = SelectionReport(
        **vars(measure(table, job.weights, costs)),
        title="Reverse Reward",
        command=job.command,
        ledom_version=__version__,
        num_problems=len(job.problems),
        num_candidates=int(counts.max()),
        fewest_candidates=int(counts.min()),
        chosen=chosen,
        warning=unfamiliar(job.reverse, scores),
        notes=_notes(job, table, candidates, scores),
        models={
            str(lm.direction): ModelInfo(name=lm.name, parameters=lm.num_parameters)
            for lm in job.models
        },
        cases=_cases(job, table, candidates, scores),
        answers=[] if table.labeled.any() else _shown_answers(job.problems, selections),
    )
    return report, write_report(job.out, report)


def _check(job: Job, external_scores: Sequence[str]) -> None:
    """Raise `InputError`, before any work, for a job that is bound to fail."""
    check_counts(1, num_samples=job.num_samples)
    if job.candidates is None and job.forward is None:
        raise InputError("no candidates, and no forward model to sample them from; give one")
    if job.forward is None and job.reverse is None:
        raise InputError("no model to score with; give a forward or a reverse one")
    check_problems(job.problems)
    if job.candidates is not None:
        match_candidates(job.problems, job.candidates)
    if job.folds:
        questions = [question_hash(problem.question) for problem in job.problems]
        check_folds(job.folds, len({*questions}))
        is_labeled = labeled_problems(job.problems, job.candidates or ())
        labeled = len({*compress(questions, is_labeled)})
        if labeled < 2:  # the weights for one are fitted on the others
            raise InputError(
                f"{labeled} of {len({*questions})} different questions have right answers, too few "
                "to fit weights in folds; add answers to the problems, or leave the folds out"
            )
    else:  # with folds, the job's own weights are not used
        job.weights.refuse_overlap(job.problems)
    _check_demonstrations(job)
    _check_sampling(job, external_scores)
    for lm in job.models:
        check_room(job.problems, lm, job.demonstrations)
    if job.reverse is not None and job.contrast:
        copies = changed_problems(job.problems, job.contrast)
        check_room(copies, job.reverse, job.demonstrations)
    if job.reverse is not None and job.flip is not None:
        longest_question(job.problems, job.reverse)


def _check_demonstrations(job: Job) -> None:
    """Raise `InputError` for a demonstration that gives away the answer to one of the problems."""
    asked = {question_hash(problem.question): problem.id for problem in job.problems}
    for shown in job.demonstrations:
        if problem_id := asked.get(question_hash(shown.question)):
            raise InputError(
                f"the demonstration {shown.id!r} solves problem {problem_id!r}, so the models "
                "would read its answer; remove it from the demonstrations"
            )


def _check_sampling(job: Job, external_scores: Sequence[str]) -> None:
    """Raise `InputError` for prompts, settings or score fields that sampling does not support, and
    `ServerError` for a server that cannot score what it samples."""
    check_score_names(external_scores)
    if job.candidates is not None:
        if job.early_stop:
            raise InputError("the candidates are given, so there is no sampling to stop early")
        return
    if job.early_stop and job.stop_unsure:
        raise InputError("early_stop already stops sampling; set stop_unsure to 0")
    assert job.forward is not None  # as `_check` has seen
    known = {SELF_CERTAINTY} if job.forward.reports_certainty else set()
    if job.sampling.confidence is not None:
        known |= {*CONFIDENCE}
    lacking = set(external_scores) - known
    begun = (job.out / "candidates.jsonl").is_file()
    has_confidence = lacking <= {*CONFIDENCE}
    remedy = "give --confidence" if has_confidence else "give a file of candidates that have it"
    if lacking and not begun:
        raise InputError(
            f"candidates sampled here will have no score field {min(lacking)!r}; {remedy}, or "
            "leave out the field or the weights that need it"
        )
    check_prompts(job.problems, job.forward, job.sampling)
    if not begun:
        check_scoring(job.forward)


def _candidates(job: Job, track: Track) -> list[Candidate]:
    if job.candidates is not None:
        return list(job.candidates)
    assert job.forward is not None
    lm = job.forward
    stops = {"early_stop": job.early_stop, "stop_unsure": job.stop_unsure}
    settings = {
        "model": lm.identity,
        "num_samples": job.num_samples,
        **asdict(job.sampling),
        **{key: value for key, value in stops.items() if value},
    }

    def make(
        waiting: Sequence[Problem], have: Mapping[Key, Sequence[Candidate]]
    ) -> Iterable[tuple[Sequence[Candidate], bool]]:
        if job.early_stop:
            return sample_until_decided(waiting, lm, job.sampling, job.num_samples, have)
        drawn = sample_candidates(waiting, lm, job.sampling, job.num_samples, job.stop_unsure)
        return ((candidates, True) for candidates in drawn)

    work = Work(
        job.problems,
        make,
        groups=partial(sampling_groups, num_samples=job.num_samples),
        together=lm.batches_requests,
        is_done=partial(is_finished, num_samples=job.num_samples) if job.early_stop else bool,
    )
    return fill_candidates(job.out / "candidates.jsonl", work, settings, track, "sampling")


def _scores(
    job: Job, candidates: Sequence[Candidate], track: Track, check_folder: Callable[[], None]
) -> list[Score]:
    scores: list[Score] = []
    for lm in job.models:
        check_folder()  # another run's may hold other candidates
        read = job.demonstrations, job.mask_copies
        files = ScoreFiles(job.out, job.problems, candidates, lm, track, *read)
        scores += fill_scores(files)
        if lm is job.reverse and job.contrast:
            scores += fill_contrast(files, job.contrast)
        if lm is job.reverse and job.flip is not None:
            scores += fill_flip(files, job.flip)
    return scores


def _keep_inputs(job: Job) -> None:
    """Save the problems and candidates for `ledom tune`; an earlier run's labels may differ."""
    write_records(job.out / "problems.jsonl", job.problems)
    if job.candidates is None:
        (job.out / GIVEN).unlink(missing_ok=True)
    else:
        write_records(job.out / GIVEN, job.candidates)


def _cases(
    job: Job, table: CandidateTable, candidates: Sequence[Candidate], scores: Sequence[Score]
) -> list[Case]:
    pool_of = pools(table.problem_ids, candidates)
    scores_of = scores_by_target(candidates, scores)
    return [
        case_of(problem, pool_of[problem.id], scores_of, judged, rejected)
        for row, judged, rejected in changes(table, job.weights)
        for problem in [job.problems[row]]
    ]


def _shown_answers(
    problems: Sequence[Problem], selections: Sequence[Selection]
) -> list[ChosenAnswer]:
    return [
        ChosenAnswer(
            problem_id=s.problem_id, question=p.question, answer=s.answer, share=s.confidence
        )
        for p, s in zip(problems[:_SHOWN_ANSWERS], selections, strict=False)
    ]


def _notes(
    job: Job, table: CandidateTable, candidates: Sequence[Candidate], scores: Sequence[Score]
) -> list[str]:
    labeled, counts = table.labeled, table.mask.sum(axis=1)
    drawn, planned = int(counts.sum()), int(np.maximum(counts, table.num_planned).sum())
    unreadable = int(((table.answers < 0) & table.mask).sum())
    empty = sum(not candidate.text.strip() for candidate in candidates)
    broken_off = [c for c in candidates if c.finish_reason == "unsure"]
    truncated = sum(bool(score.extra.get("truncated")) for score in scores)
    cut = sum(candidate.finish_reason == "length" for candidate in candidates)
    measured = [question_hash(problem.question) for problem in compress(job.problems, labeled)]
    relative = "taken relative to" if table.by_model else "not relative (one wrote too few) to"
    notes = {
        f"{labeled.sum()} of {len(labeled)} problems are labeled; only these are measured": (
            labeled.any() and not labeled.all()
        ),
        f"some problems have the same question: intervals are over {len({*measured}):,} questions, "
        f"not {len(measured):,} problems": len({*measured}) < len(measured),
        **dict.fromkeys(job.notes, True),
        f"answers are chosen by cross-fitting: the weights for each of {job.folds} folds of the "
        "problems were fitted on the others": job.folds,
        f"candidates without a readable answer: {unreadable} ({unreadable / drawn:.1%})": (
            unreadable
        ),
        f"empty candidates: {empty}": empty,
        f"the candidates come from several models; scores are {relative} the mean of the model "
        "that wrote them": len({c.model for c in candidates if not c.greedy}) > 1,
        f"sampling stopped once the majority was decided: {drawn:,} of {planned:,} candidates were "
        f"drawn ({1 - drawn / planned:.1%} saved); this does not change the majority's "
        "answers, but the other strategies had fewer candidates": table.num_planned,
        f"candidates broken off when the model became unsure: {len(broken_off)}, after "
        f"{sum(written_tokens(c) or 0 for c in broken_off):,} tokens in all; no strategy "
        "chooses them": broken_off,
        f"scores of solutions that were cut to the model's context: {truncated}": truncated,
        f"candidates that ran out of tokens before they ended: {cut}": cut,
    }
    return [note for note, holds in notes.items() if holds]
