"""Choose among sampled answers to a question.

    python examples/rerank_my_answers.py
    python examples/rerank_my_answers.py --question "..." --forward FOLDER --reverse FOLDER

The answers may come from anywhere; here the forward model samples them. The forward model then
scores each answer given the question, and the reverse model the question given the answer.
"""

from __future__ import annotations

import argparse

import ledom
from ledom.rerank.weights import choose_weights
from ledom.serve.judge import Judge, Pair

QUESTION = (
    "A pizza has 24 pieces. If Ava can eat 4 pieces a day while Noah can eat 2 times as much, "
    "how many days will the pizza last?"
)


def sample_answers(model: ledom.LanguageModel, question: str, count: int, seed: int) -> list[str]:
    """Return distinct answers, in the order in which they were sampled."""
    prompt = model.pair_format.before_solution(question)
    ((_, drawn),) = model.generate([prompt], ledom.Sampling(temperature=0.8, seed=seed), count)
    return list(dict.fromkeys(one.text for one in drawn))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--forward", default="tiny", help="a model folder")
    parser.add_argument("--reverse", default="tiny", help="a model folder")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    forward = ledom.load(options.forward, "forward")
    reverse = ledom.load(options.reverse, "reverse")
    answers = sample_answers(forward, options.question, options.samples, options.seed)

    weights = choose_weights(None, None, options.forward, options.reverse)
    judge = Judge(forward, reverse, weights=weights)
    judged = judge.judge([Pair(options.question, answer) for answer in answers])
    for i in sorted(range(len(answers)), key=lambda i: -judged[i].reward):
        parts = judged[i].logprobs
        print(f"reward {judged[i].reward:.4f}", end="  ")
        print(f"log P(y|x) {parts['log_p_yx']:.2f}  log P(x|y) {parts['log_p_xy']:.2f}")
        print(answers[i], end="\n\n")


if __name__ == "__main__":
    main()
