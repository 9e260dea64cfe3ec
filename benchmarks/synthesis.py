"""Are synthesized problems any good? Round trips, and a training with and without them.

    python benchmarks/synthesis.py agreement --num-seeds 100 --out out/agreement
    python benchmarks/synthesis.py training --out out/training

agreement: the share of the forward model's answers that agree, for questions that the reverse model
writes for solutions and for bare answers of generated problems, and for solutions of a JSONL file
of problems (--problems); as the control, for the true questions of the same solutions.

training: ten kinds of problem that the embedded pair never saw. Both of its models are trained on
--num-real problems of these kinds; this is the base. New problems are then made in two ways: the
base reverse model writes question and steps for the bare answers of other problems of these kinds,
or the base forward model writes whole problems from nothing. Both are sifted alike: the base
forward model's answers must agree, near duplicates go. Then the embedded forward model is trained
on the real problems alone, on real ones and the first kind of new ones, and on real ones and as
many of the other kind, for equally many steps. Printed is the accuracy of greedy answers to unseen
problems of these kinds, with paired differences and 95% intervals over problems.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ledom
from ledom.core.direction import Direction
from ledom.core.processes import set_threads
from ledom.core.records import Problem, read_records, write_records
from ledom.data.prepare import DataConfig, prepare_data
from ledom.data.problems import generate_problems
from ledom.evaluate.proposals import Prompt, propose
from ledom.evaluate.synthesis import REASON, Seed, SynthesisSettings, Synthesized, sift, synthesize
from ledom.lm import embedded_folder
from ledom.lm.language_model import LanguageModel, Sampling
from ledom.report.intervals import paired_share_interval, share_interval
from ledom.report.numbers import accuracy, difference
from ledom.text.answers import extract_answer, is_correct
from ledom.text.solution_style import normalize_solution, restyle
from ledom.train.loop import train
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe, TrainConfig

HOW = SynthesisSettings(Sampling(temperature=0.7), num_samples=2, num_answers=2)


def quiet(chunks: Iterable[Any], name: str, done: int, total: int) -> Iterator[Any]:
    """No progress."""
    yield from chunks


def as_generated(problem: Problem) -> Problem:
    """The problem, its solution written as the embedded pair reads solutions."""
    plain = restyle(problem.require_solution(), "plain", problem.answer)
    return replace(problem, solution=normalize_solution(plain))


def measure_agreement(options: argparse.Namespace) -> None:
    """The table of round trips."""
    forward, reverse = ledom.load("tiny", "forward"), ledom.load("tiny", "reverse")
    drawn = list(generate_problems("tune", options.num_seeds, seed=9))
    sources = {"generated": drawn}
    if options.problems is not None:
        given = read_records(options.problems, Problem)[: options.num_seeds]
        sources["given"] = [as_generated(problem) for problem in given]
    print("| questions for | written | seeds | forward answer agrees, % | stay |")
    print("|---|---|---|---|---|")
    for name, own in sources.items():
        solutions = [Seed(id=p.id, solution=p.solution, answer=p.answer) for p in own]
        bare = distinct_answers(Seed(id=p.id, answer=p.answer) for p in own)
        shares = {}
        for kind, some in (("solutions", solutions), ("bare answers", bare)):
            out = options.out / f"{name}-{kind.replace(' ', '-')}"
            found = synthesize(some, reverse, forward, HOW, (), out, quiet)
            shares[kind] = found.by_seed
            show_agreement(f"{kind}, {name}", found)
            print(found.reasons)
        true = [replace(problem, extra={"seed": problem.id}) for problem in own]
        found = sift(true, forward, HOW, (), options.out / f"{name}-true", quiet)
        show_agreement(f"(their true questions, {name})", found)
        both = [seed for seed in shares["solutions"] if seed in found.by_seed]
        ours, theirs = (
            np.array([some[seed] for seed in both]) for some in (shares["solutions"], found.by_seed)
        )
        print("solutions less true questions:", difference(paired_share_interval(ours, theirs)))


def show_agreement(name: str, found: Synthesized) -> None:
    """A row of the table; seeds whose questions were all removed unanswered have no share."""
    total, shares = len(found.problems) + len(found.removed), found.agreements
    share = accuracy(share_interval(shares)) if len(shares) else "–"
    print(f"| {name} | {total} | {len(shares)} | {share} | {len(found.problems)} |", flush=True)


def distinct_answers(seeds: Iterable[Seed]) -> list[Seed]:
    """The first seed of each answer: equal prompts would draw equal texts."""
    return list({seed.final_answer: seed for seed in reversed(list(seeds))}.values())[::-1]


def trained(
    name: str, direction: Direction, problems: Sequence[Problem], steps: int, seed: int, out: Path
) -> LanguageModel:
    """The embedded model of a direction, trained further on problems."""
    folder = out / name
    write_records(folder / "train.jsonl", problems)
    recipe = Recipe(
        name=name,
        seed=seed,
        init_from=str(embedded_folder(direction)),
        data=DataConfig(train=str(folder / "train.jsonl")),
        optim=OptimConfig(
            steps=steps, warmup_steps=5, decay_steps=steps // 2, muon_lr=0.005, adamw_lr=1e-3
        ),
        train=TrainConfig(batch_size=16),
    )
    data = prepare_data(recipe.data_of(direction), folder / "data")
    finished = train(recipe, direction, data, folder, lambda _: None)
    lm: LanguageModel = ledom.load(str(finished), str(direction))
    return lm


def from_answers(
    reverse: LanguageModel, forward: LanguageModel, count: int, known: list[str], out: Path
) -> list[Problem]:
    """Question and steps for the answers of other problems of the same kinds."""
    others = generate_problems("train", count, seed=22, held_out=True)
    answers = distinct_answers(Seed(id=p.id, answer=p.answer) for p in others)
    samples = -(-2 * count // len(answers))
    how = replace(HOW, num_samples=samples)
    found = synthesize(answers, reverse, forward, how, known, out, quiet)
    print("from bare answers:", len(found.problems), "stay; removed:", found.reasons, flush=True)
    return found.problems


def from_nothing(forward: LanguageModel, count: int, known: list[str], out: Path) -> list[Problem]:
    """Whole problems that the forward model writes; each has to answer itself alike."""
    prompts, path = [Prompt("nothing", "")], out / "proposals.jsonl"
    written = propose(forward, prompts, HOW.sampling, 2 * count, path, quiet, "")
    problems = []
    for one in written:
        question, mark, solution = one.text.partition(forward.pair_format.literals[1])
        answer = extract_answer(solution)
        problem = Problem(
            id=f"nothing/{one.index}",
            question=question.strip(),
            answer=answer,
            solution=solution,
            extra={"seed": f"nothing/{one.index}"},
        )
        if one.finish_reason != "stop" or not mark or not problem.question or not answer:
            problem.extra[REASON] = "not one question"
        problems.append(problem)
    found = sift(problems, forward, HOW, known, out, quiet)
    print("from nothing:", len(found.problems), "stay; removed:", found.reasons, flush=True)
    return found.problems


def answers_right(lm: LanguageModel, problems: Sequence[Problem]) -> NDArray[np.float64]:
    """Whether the greedy answer to each problem is right."""
    prompts = [lm.pair_format.before_solution(problem.question) for problem in problems]
    right = np.zeros(len(problems))
    for place, (made,) in lm.generate(prompts, Sampling(temperature=0)):
        right[place] = is_correct(made.text, problems[place].answer or "")
    return right


def measure_training(options: argparse.Namespace) -> None:
    """The table of trainings."""
    real = list(generate_problems("train", options.num_real, seed=21, held_out=True))
    test = list(generate_problems("test", options.num_test, seed=23, held_out=True))
    out, steps = options.out, options.steps
    base = {
        way: trained(f"base-{way}", way, real, steps, 1, out)
        for way in (Direction.FORWARD, Direction.REVERSE)
    }
    forward = base[Direction.FORWARD]
    known = [problem.question for problem in real]
    new = {
        "answers": from_answers(
            base[Direction.REVERSE], forward, options.num_new, known, out / "answers"
        ),
        "nothing": from_nothing(forward, options.num_new, known, out / "nothing"),
    }
    size = min(map(len, new.values()))
    arms = {"real": real, **{name: [*real, *made[:size]] for name, made in new.items()}}
    print(f"{len(real)} real problems, {size} new ones per arm, {steps} steps", flush=True)
    right: dict[str, list[NDArray[np.float64]]] = {name: [] for name in arms}
    for seed in range(1, options.seeds + 1):
        for name, problems in arms.items():
            lm = trained(f"{name}-{seed}", Direction.FORWARD, problems, steps, seed, out)
            right[name].append(answers_right(lm, test))
            print(name, seed, right[name][-1].mean(), flush=True)
    means = {name: np.mean(values, axis=0) for name, values in right.items()}
    print("| trained on | right, % | less real alone | less from nothing |")
    print("|---|---|---|---|")
    for name, values in means.items():
        cells = [accuracy(share_interval(values))]
        for other in ("real", "nothing"):
            versus = difference(paired_share_interval(values, means[other]))
            cells.append("–" if name == other else versus)
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["agreement", "training"])
    parser.add_argument("--num-seeds", type=int, default=100)
    parser.add_argument("--problems", type=Path, help="a JSONL file of problems with solutions")
    parser.add_argument("--num-real", type=int, default=150)
    parser.add_argument("--num-new", type=int, default=300)
    parser.add_argument("--num-test", type=int, default=250)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/synthesis"))
    options = parser.parse_args()
    set_threads(options.threads)
    {"agreement": measure_agreement, "training": measure_training}[options.what](options)


if __name__ == "__main__":
    main()
