"""The memory that a training run takes, compared with the prediction of `ledom plan`.

    python benchmarks/memory.py [--preset small] [--tokens 512 2048 8192] [--steps 3]

Each case trains a few steps on the CPU in fp32, in its own process, on documents of random words,
and writes a checkpoint. The measured memory is the process's peak resident memory minus its memory
after a few steps of a small model, which load the code. The predicted peak is the larger of two:
that of a step, and that of weights and optimizer state with their copy for the checkpoint. ledom
lets glibc keep freed memory; `MALLOC_MMAP_THRESHOLD_` makes glibc return it, so that only memory
in use is measured.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from random import Random

from common import in_process, new_parser, resident

VOCAB_SIZE, SEQ_LEN = 8192, 512
MB = 1e6


def measure(folder: Path, preset: str, tokens: int, steps: int) -> dict[str, int]:
    """Train in this process; returns memory before and at the peak, in bytes, and sizes."""
    import torch

    from ledom.core.direction import Direction
    from ledom.data.prepare import DataConfig, prepare_data
    from ledom.model.presets import ModelConfig
    from ledom.train.loop import train
    from ledom.train.metrics import read_metrics
    from ledom.train.optim import OptimConfig
    from ledom.train.recipe import Recipe, TrainConfig

    torch.set_num_threads(1)
    seq_len = min(tokens, SEQ_LEN)
    config = DataConfig(train=str(folder / "train.jsonl"), num_valid=1, vocab_size=VOCAB_SIZE)
    data = prepare_data(config, folder / "data")

    def run(preset: str, batch_size: int, seq_len: int, name: str) -> None:
        recipe = Recipe(
            name=name,
            data=config,
            model=ModelConfig.model_validate(preset),
            optim=OptimConfig(steps=steps),
            train=TrainConfig(batch_size=batch_size, seq_len=seq_len, precision="float32"),
        )
        train(recipe, Direction.FORWARD, data, folder / name)

    run("tiny", 1, 64, "warm")  # loads code that is imported lazily
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    run(preset, tokens // seq_len, seq_len, "run")
    rows = read_metrics(folder / "run" / "metrics.jsonl")
    return {
        "before": before,
        "peak": resident("VmHWM"),
        "vocab_size": data.tokenizer.vocab_size,
        # A document's last window is shorter, and the first step has no optimizer state yet.
        "tokens": max(row["tokens"] for row in rows[1:]),
    }


def write_documents(file: Path, count: int) -> None:
    """Write documents of random words, each longer than a window."""
    rng = Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(20_000)]
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            text = " ".join(rng.choices(words, k=600))
            out.write(json.dumps({"id": str(number), "text": text}) + "\n")


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # for the processes that follow
    from ledom.model.presets import ModelConfig
    from ledom.train.estimate import memory

    print(
        "tokens  weights  gradients  optimizer  activations  checkpoint     plan  measured  "
        "plan/measured  (MB)"
    )
    for tokens in arguments.tokens:
        with tempfile.TemporaryDirectory() as folder:
            write_documents(Path(folder) / "train.jsonl", 400)
            found = in_process(measure, Path(folder), arguments.preset, tokens, arguments.steps)
        model = ModelConfig.model_validate(arguments.preset)
        part = memory(model, found["vocab_size"], found["tokens"], "float32")
        planned = max(part.peak, part.weights + part.optimizer + part.checkpoint)
        used = found["peak"] - found["before"]
        print(
            f"{found['tokens']:6} {part.weights / MB:8.0f} {part.gradients / MB:10.0f} "
            f"{part.optimizer / MB:10.0f} {part.activations / MB:12.0f} "
            f"{part.checkpoint / MB:11.0f} "
            f"{planned / MB:8.0f} {used / MB:9.0f} {planned / used:14.2f}"
        )


if __name__ == "__main__":
    main()
