"""Find the prompt that made a model write a text: a reverse model proposes, the model verifies.

    python examples/invert_prompt.py
    python examples/invert_prompt.py --pairs 1000 --steps 100
    python examples/invert_prompt.py --output "..." --forward FOLDER --reverse FOLDER

With --steps, the reverse model is first fine-tuned on outputs of the model to be inverted. Pairs
and model stay in the folder --out, where an interrupted training run resumes. Without --steps, this
script does the same as `ledom invert`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import ledom
from ledom.core.stage import no_progress
from ledom.data.prepare import DataConfig, prepare_data
from ledom.data.problems import generate_problems
from ledom.evaluate.inversion import Output, invert, sample_pairs
from ledom.evaluate.proposals import Prompt
from ledom.lm import embedded_folder
from ledom.train.loop import train
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe, TrainConfig

OUTPUT = """Noah can eat 4 * 2 = 8 pieces a day.
Together, Ava and Noah can eat 4 + 8 = 12 pieces a day.
So, a pizza will last for 24 / 12 = 2 days.
#### 2"""


def train_inverter(
    forward: ledom.LanguageModel, reverse: str, num_pairs: int, steps: int, out: Path
) -> str:
    """Fine-tune a reverse model on the forward model's answers; returns its folder."""
    problems = generate_problems("train", num_pairs, seed=1)
    prompts = [Prompt(problem.id, problem.question) for problem in problems]
    sampling = ledom.Sampling(temperature=0.7)
    pairs = sample_pairs(forward, prompts, sampling, out / "outputs.jsonl", no_progress)
    ledom.write_records(out / "pairs.jsonl", pairs)
    recipe = Recipe(
        name="inverter",
        init_from=reverse,
        data=DataConfig(train=str(out / "pairs.jsonl")),
        optim=OptimConfig(steps=steps, warmup_steps=0, decay_steps=steps, muon_lr=0.002),
        train=TrainConfig(batch_size=16),
    )
    data = prepare_data(recipe.data_of(ledom.Direction.REVERSE), out / "data")
    return str(train(recipe, ledom.Direction.REVERSE, data, out / "inverter", lambda _: None))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default=OUTPUT, help="what the model wrote")
    parser.add_argument("--forward", default="tiny", help="the model that wrote it, a folder")
    parser.add_argument("--reverse", default=str(embedded_folder("reverse")), help="a folder")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=1000, help="pairs to train on")
    parser.add_argument("--steps", type=int, default=0, help="training steps; 0: none")
    parser.add_argument("--out", type=Path, default=Path("out/invert"), help="where to train")
    options = parser.parse_args()

    forward = ledom.load(options.forward, "forward")
    folder = options.reverse
    if options.steps:
        folder = train_inverter(forward, folder, options.pairs, options.steps, options.out)
        print(f"the trained reverse model: {folder}\n")
    reverse = ledom.load(folder, "reverse")
    outputs = [Output(id="output", text=options.output)]
    sampling = ledom.Sampling(temperature=0.7)
    with TemporaryDirectory() as out:  # the files are specific to this output and these models
        found = invert(outputs, reverse, forward, sampling, options.samples, Path(out), no_progress)
    for one in found[:3]:
        print(f"{one.rank}. log P(prompt, output) = {one.score:.1f}\n{one.prompt}\n")


if __name__ == "__main__":
    main()
