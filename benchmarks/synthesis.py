"""Are synthesized problems any good? Round trips, and training with and without them.

    python benchmarks/synthesis.py agreement --num-seeds 100 --out out/agreement
    python benchmarks/synthesis.py training --seeds 2 --out out/training

agreement: how often the forward model's answers agree, for questions that the reverse model writes
for solutions and bare answers of generated problems, and for solutions from a JSONL file of
problems (--problems). The control is the true questions of the same solutions.

training: three kinds of problem that the embedded pair never saw. Both of its models are first
trained further on --num-real problems of these kinds; these are the base models. The reverse model
then writes questions for the solutions of other problems of these kinds, and the forward model's
answers filter them, as in `ledom synthesize`. The forward base model is then trained further, for
the same number of steps in each arm:

    real        on the real problems alone
    reverse     on these, and the new problems
    forward     on these, and as many whole problems by the forward base model, filtered likewise
    true        on these, and the solutions of `reverse` with their true questions
    solutions   on these, and the solutions of `reverse` without a question

The table gives the accuracy of greedy answers to unseen problems of these kinds, averaged over
--seeds, with paired differences and 95% intervals over problems. A stopped run resumes.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from common import new_parser, parse, print_head, print_row
from numpy.typing import NDArray

import ledom
from ledom.core.direction import Direction
from ledom.core.records import Problem, read_records, write_records
from ledom.core.stage import no_progress
from ledom.data.prepare import DataConfig, prepare_data
from ledom.data.problems import generate_problems, normalize_solution
from ledom.evaluate.proposals import Prompt, propose
from ledom.evaluate.synthesis import REASON, Seed, SynthesisSettings, Synthesized, sift, synthesize
from ledom.lm import embedded_folder
from ledom.lm.language_model import LanguageModel, Sampling
from ledom.model.checkpoint import read_checkpoint_info
from ledom.report.formatting import accuracy, difference
from ledom.report.intervals import paired_share_interval, share_interval
from ledom.text.answers import equal_answers, extract_answer
from ledom.text.pair_format import STYLES
from ledom.train.loop import train
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe, TrainConfig

SETTINGS = SynthesisSettings(Sampling(temperature=0.7), num_samples=2, num_answers=2)
GREEDY = Sampling(temperature=0, max_tokens=160)
KINDS = (14, 72, 95)
"""The three shortest templates of `gsm_symbolic` that were held out from the pair's training."""


def as_generated(problem: Problem) -> Problem:
    """The problem with its solution in the style of the embedded pair."""
    plain = STYLES["plain"](problem.require_solution(), problem.answer)
    return replace(problem, solution=normalize_solution(plain))


def without_question(problem: Problem) -> Seed:
    """Return a problem's solution as a seed."""
    return Seed(id=problem.id, solution=problem.solution, answer=problem.answer)


def measure_agreement(options: Namespace) -> None:
    """Print the table of round trips."""
    forward, reverse = ledom.load("tiny", "forward"), ledom.load("tiny", "reverse")
    drawn = list(generate_problems("tune", options.num_seeds, seed=9))
    sources = {"generated": drawn}
    if options.problems is not None:
        given = read_records(options.problems, Problem)[: options.num_seeds]
        sources["given"] = [as_generated(problem) for problem in given]
    print_head("questions for", "written", "seeds", "forward answer agrees, %", "stay")
    for name, own in sources.items():
        solutions = [without_question(problem) for problem in own]
        bare = distinct_answers(Seed(id=p.id, answer=p.answer) for p in own)
        shares = {}
        for kind, some in (("solutions", solutions), ("bare answers", bare)):
            out = options.out / f"{name}-{kind.replace(' ', '-')}"
            found = synthesize(some, reverse, forward, SETTINGS, (), out, no_progress)
            shares[kind] = found.by_seed
            show_agreement(f"{kind}, {name}", found)
            print(found.reasons)
        true = [replace(problem, extra={"seed": problem.id}) for problem in own]
        found = sift(true, forward, SETTINGS, (), options.out / f"{name}-true", no_progress)
        show_agreement(f"(their true questions, {name})", found)
        both = [seed for seed in shares["solutions"] if seed in found.by_seed]
        ours, theirs = (
            np.array([some[seed] for seed in both]) for some in (shares["solutions"], found.by_seed)
        )
        print("solutions minus true questions:", difference(paired_share_interval(ours, theirs)))


def show_agreement(name: str, found: Synthesized) -> None:
    """Print a row; seeds whose questions were all removed before being answered have no share."""
    total, shares = len(found.problems) + len(found.removed), found.agreements
    share = accuracy(share_interval(shares)) if len(shares) else "–"
    print_row(name, total, len(shares), share, len(found.problems))


def distinct_answers(seeds: Iterable[Seed]) -> list[Seed]:
    """The first seed with each answer, since equal prompts would get equal texts."""
    return list({seed.final_answer: seed for seed in reversed(list(seeds))}.values())[::-1]


def some_kinds(split: str, count: int, seed: int) -> list[Problem]:
    """Generated problems of `KINDS`."""
    drawn = generate_problems(split, 20 * count, seed, held_out=True)
    return list(islice((p for p in drawn if p.extra["template"] in KINDS), count))


def trained(
    name: str, start: Path, problems: Sequence[Problem], steps: int, seed: int, options: Namespace
) -> Path:
    """Train a model further on problems, unless the result exists; returns its folder."""
    folder: Path = options.out / name
    if (folder / "model").is_dir():
        return folder / "model"
    direction = read_checkpoint_info(start).direction
    write_records(folder / "train.jsonl", problems)
    write_records(folder / "valid.jsonl", some_kinds("valid", 8, seed=24))
    recipe = Recipe(
        name=name,
        seed=seed,
        init_from=str(start),
        data=DataConfig(train=str(folder / "train.jsonl"), valid=str(folder / "valid.jsonl")),
        optim=OptimConfig(
            steps=steps,
            warmup_steps=5,
            decay_steps=steps // 2,
            matrix_optimizer="adamw",
            adamw_lr=options.rate,
        ),
        train=TrainConfig(batch_size=8, validate_every=steps, checkpoint_every=25),
    )
    data = prepare_data(recipe.data_of(direction), folder / "data")
    return train(recipe, direction, data, folder)


def base_model(direction: Direction, real: Sequence[Problem], options: Namespace) -> Path:
    """The embedded model trained on the real problems, in two runs with their own schedules."""
    folder = embedded_folder(direction)
    for part, steps in enumerate((60, 30), start=1):
        folder = trained(f"base-{direction}-{part}", folder, real, steps, 1, options)
    return folder


def written_forward(forward: LanguageModel, count: int, known: list[str], out: Path) -> Synthesized:
    """Whole problems written by the forward model, with their answers."""
    prompts, path = [Prompt("forward", "")], out / "proposals.jsonl"
    written = propose(forward, prompts, SETTINGS.sampling, count, path, no_progress, "")
    problems = []
    for one in written:
        question, mark, solution = one.text.partition(forward.pair_format.literals[1])
        answer = extract_answer(solution)
        problem = Problem(
            id=f"forward/{one.index}",
            question=question.strip(),
            answer=answer,
            solution=solution,
            extra={"seed": f"forward/{one.index}"},
        )
        if one.finish_reason != "stop" or not mark or not problem.question or not answer:
            problem.extra[REASON] = "not one question"
        problems.append(problem)
    return sift(problems, forward, SETTINGS, known, out, no_progress)


def arms_of_training(options: Namespace) -> dict[str, list[Problem]]:
    """The training problems of each arm."""
    real = some_kinds("train", options.num_real, seed=21)
    known = [problem.question for problem in real]
    forward, reverse = (
        ledom.load(str(base_model(direction, real, options)))
        for direction in (Direction.FORWARD, Direction.REVERSE)
    )
    true = {p.id: p for p in some_kinds("train", options.num_new, seed=22)}
    seeds = [without_question(problem) for problem in true.values()]
    one_each = replace(SETTINGS, num_samples=1)
    found = {
        "reverse": synthesize(
            seeds, reverse, forward, one_each, known, options.out / "new-reverse", no_progress
        ),
        "forward": written_forward(forward, options.num_new, known, options.out / "new-forward"),
    }
    for name, made in found.items():
        print(f"{name}: {len(made.problems)} stay; removed: {made.reasons}", flush=True)
    size = min(len(made.problems) for made in found.values())
    print(f"{len(real)} real problems, {size} new ones per arm, {options.steps} steps", flush=True)
    new = found["reverse"].problems[:size]
    kept = [true[str(problem.extra["seed"])] for problem in new]
    return {
        "real": real,
        "reverse": [*real, *new],
        "forward": [*real, *found["forward"].problems[:size]],
        "true": [*real, *kept],
        "solutions": [*real, *(replace(problem, question="") for problem in kept)],
    }


def answers_right(
    lm: LanguageModel, problems: Sequence[Problem], path: Path
) -> NDArray[np.float64]:
    """1 where the greedy answer is right, else 0, [problems]; `path` stores the answers."""
    prompts = [Prompt(p.id, lm.pair_format.before_solution(p.question)) for p in problems]
    written = propose(lm, prompts, GREEDY, 1, path, no_progress, "")
    pairs = zip(problems, written, strict=True)
    rights = [equal_answers(extract_answer(one.text), problem.answer) for problem, one in pairs]
    return np.array(rights, float)


def measure_training(options: Namespace) -> None:
    """Print the training table after each seed."""
    test = some_kinds("test", options.num_test, seed=23)
    arms = arms_of_training(options)
    base = base_model(Direction.FORWARD, arms["real"], options)
    right: dict[str, list[NDArray[np.float64]]] = {name: [] for name in arms}
    for seed in range(1, options.seeds + 1):
        for arm, problems in arms.items():
            name = f"{arm}-{seed}"
            model = trained(name, base, problems, options.steps, seed, options)
            answers = options.out / name / "answers.jsonl"
            right[arm].append(answers_right(ledom.load(str(model)), test, answers))
            print(arm, seed, right[arm][-1].mean(), flush=True)
        show_training({name: np.mean(values, axis=0) for name, values in right.items()})


def show_training(means: Mapping[str, NDArray[np.float64]]) -> None:
    """Print the accuracy of each arm, and its paired differences from three of them."""
    others = ("real", "forward", "solutions")
    print_head("trained on", "right, %", *(f"minus {other}" for other in others))
    for name, values in means.items():
        cells = [accuracy(share_interval(values))]
        for other in others:
            versus = difference(paired_share_interval(values, means[other]))
            cells.append("–" if name == other else versus)
        print_row(name, *cells)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("what", choices=["agreement", "training"])
    parser.add_argument("--num-seeds", type=int, default=100)
    parser.add_argument("--problems", type=Path, help="a JSONL file of problems with solutions")
    parser.add_argument("--num-real", type=int, default=90)
    parser.add_argument("--num-new", type=int, default=160, help="solutions to write questions for")
    parser.add_argument("--num-test", type=int, default=200)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rate", type=float, default=2e-3, help="of AdamW")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/synthesis"))
    options = parse(parser)
    {"agreement": measure_agreement, "training": measure_training}[options.what](options)


if __name__ == "__main__":
    main()
