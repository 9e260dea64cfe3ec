"""Train a model with TRL's GRPO and Reverse Reward.

    pip install trl
    python examples/trl_grpo.py --steps 30

Each step prints the reward, the accuracy, and the fraction of the answers copied from the question.
Watch that fraction: an answer that restates the question explains it perfectly.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import ledom
from ledom.data.problems import generate_problems
from ledom.lm import embedded_folder
from ledom.rewards import trl_reward


def accuracy(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """Return 1 for a right answer, else 0. Only logged: its weight in the reward is 0."""
    found = [ledom.extract_answer(completion) or "" for completion in completions]
    return [float(ledom.equal_answers(*pair)) for pair in zip(found, answer, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(embedded_folder("forward")), help="a model folder")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8, help="answers per question")
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--out", default="out/grpo")
    options = parser.parse_args()
    try:
        import datasets
        import trl
    except ImportError as error:
        sys.exit(f"error: {error.name} is missing; install it with: pip install trl")

    problems = list(generate_problems("train", 512, seed=7))
    rows = datasets.Dataset.from_dict(
        {
            "prompt": [f"{problem.question}\n\n" for problem in problems],
            "answer": [problem.answer for problem in problems],
        }
    )
    settings = trl.GRPOConfig(
        output_dir=options.out,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        num_generations=options.samples,
        max_completion_length=options.max_tokens,
        reward_weights=[1.0, 0.0],
        learning_rate=1e-5,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    trainer = trl.GRPOTrainer(
        model=options.model,
        reward_funcs=[trl_reward(), accuracy],
        args=settings,
        train_dataset=rows,
    )
    trainer.train()
    for row in trainer.state.log_history:
        if "rewards/accuracy/mean" in row:
            copied = next(value for key, value in row.items() if "copied_share" in key)
            print(
                f"step {row['step']}  reward {row['rewards/reverse_reward/mean']:.4f}  "
                f"accuracy {row['rewards/accuracy/mean']:.2f}  copied {copied:.2f}"
            )


if __name__ == "__main__":
    main()
