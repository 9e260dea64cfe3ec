"""Convert a forward model into a reverse one: continue its training on reversed tokens.

    python examples/reverse_twin.py --steps 200
    python examples/reverse_twin.py --model FOLDER --documents corpus.jsonl --steps 2000

At the end, the twin writes what comes before a text. `ledom train` does the same from a recipe.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ledom
from ledom.data.prepare import DataConfig, prepare_data
from ledom.lm import embedded_folder
from ledom.train.loop import train
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe, TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(embedded_folder("forward")), help="a model folder")
    parser.add_argument("--documents", default="gsm_symbolic", help="a JSONL file of documents")
    parser.add_argument("--num-documents", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ending", default="So, the pizza will last for 24 / 12 = 2 days.\n#### 2")
    parser.add_argument("--out", type=Path, default=Path("out/twin"))
    options = parser.parse_args()

    recipe = Recipe(
        name="twin",
        init_from=options.model,
        data=DataConfig(train=options.documents, num_documents=options.num_documents),
        optim=OptimConfig(steps=options.steps, warmup_steps=0, decay_steps=options.steps // 2),
        train=TrainConfig(batch_size=16),
    )
    reverse = ledom.Direction.REVERSE
    data = prepare_data(recipe.data_of(reverse), options.out / "data")
    losses: list[float] = []
    folder = train(recipe, reverse, data, options.out / "reverse", lambda p: losses.append(p.loss))
    print(f"loss {losses[0]:.2f} at the first step, {losses[-1]:.2f} at the last; {folder}")

    twin = ledom.load(str(folder), "reverse")
    ((_, (made,)),) = twin.generate([options.ending], ledom.Sampling(temperature=0, max_tokens=96))
    print(made.text + options.ending)


if __name__ == "__main__":
    main()
