"""Multiple choice with long contexts: ledom's harness model against lm-eval's own HFLM.

    python benchmarks/evaluating.py [--documents 12] [--shots 2] [--model FOLDER]

Needs `pip install 'ledom[eval,bench]'`. Both answer the same requests with the same weights:
questions with four choices, each after its own solved examples. HFLM runs at several batch sizes,
and the best one is compared. Times are CPU seconds, which other work on the machine hardly affects.
Every log-likelihood must agree to 1e-3.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import new_parser
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from ledom.evaluate.choices import problem_questions
from ledom.evaluate.harness import LedomLM
from ledom.lm import embedded_folder, load

ROUNDS = 3
BATCHES = (1, 8, 32)


def requests(documents: int, shots: int) -> list[Instance]:
    """Four requests per document, one per choice; each document follows its own examples."""
    questions = problem_questions("after", documents * (shots + 1), seed=5)
    made = []
    for number in range(documents):
        last, *examples = questions[number * (shots + 1) : (number + 1) * (shots + 1)]
        shown = [f"{e.question}\n\n{e.choices[e.answer_index]}" for e in examples]
        context = "\n\n".join([*shown, last.question])
        made += [
            Instance("loglikelihood", {}, (context, f"\n\n{c}"), i, metadata=("t", number, 1))
            for i, c in enumerate(last.choices)
        ]
    return made


def timed(answer: Callable[[], Any]) -> tuple[float, list[float]]:
    """Return the CPU seconds of one call and its log-likelihoods."""
    start = time.process_time()
    found = answer()
    return time.process_time() - start, [value for value, _ in found]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--shots", type=int, default=2, help="solved examples")
    parser.add_argument("--model", default=str(embedded_folder("forward")))
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = requests(options.documents, options.shots)
    ours = LedomLM(load(options.model, "forward", device="cpu"))
    theirs = {
        size: HFLM(options.model, device="cpu", dtype=torch.float32, batch_size=size)
        for size in BATCHES
    }
    lengths = [len(ours.tok_encode("".join(i.args))) for i in asked]
    print(f"{len(asked)} requests of {statistics.mean(lengths):.0f} tokens")
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        spent, found = timed(lambda: ours.loglikelihood(asked))
        times.setdefault("ledom", []).append(spent)
        for size, lm in theirs.items():
            spent, expected = timed(lambda lm=lm: lm.loglikelihood(asked, disable_tqdm=True))  # type: ignore[misc]
            times.setdefault(f"HFLM, batch {size}", []).append(spent)
            assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-3
    for name, spent_each in times.items():
        print(f"{name}: {statistics.median(spent_each):.2f} CPU s")
    best = min(statistics.median(t) for name, t in times.items() if name != "ledom")
    print(f"ledom is {best / statistics.median(times['ledom']):.1f} times as fast as the best")


if __name__ == "__main__":
    main()
