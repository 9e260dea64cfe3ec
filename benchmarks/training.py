"""Training speed: ledom's loop, Hugging Face's Trainer and a plain loop, in one run.

    python benchmarks/training.py [--shape tiny 10m] [--steps 60] [--rounds 2]

Needs `pip install ledom[bench]`. Every arm trains the same Llama from the same weights on the same
windows of generated problems, with fp32 weights (under bf16 autocast if the processor has bf16
instructions), AdamW at the same rates and clipping at 1. Arms take turns, each in its own process:

    trainer         Trainer at its defaults: batches of 8
    trainer-16      the same with ledom's batch; -c: compiled
    plain           a loop as in nanoGPT: whole batches, fused AdamW; -c: compiled
    ledom           `ledom.train.loop.train`, with AdamW for all weights; -c: parallel.compile

Speed is that of the median step, without the first ten, and the median over rounds. It is compared
round by round with that of `trainer`, or of the first arm. `loss` is the mean over the last twenty
steps. The share of a plain matmul counts 6 FLOPs per weight and token, and the causal half of
attention.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import in_process, new_parser, parse, print_head, print_row, spread

BATCH, SEQ_LEN, WARM = 16, 256, 10
RATE = 2e-3
SHAPES: dict[str, Any] = {
    "tiny": "tiny",
    "10m": {
        "hidden_size": 320,
        "intermediate_size": 896,
        "num_hidden_layers": 7,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
    },
}
ARMS = ("trainer", "trainer-16", "trainer-16-c", "plain", "plain-c", "ledom", "ledom-c")


@dataclass(frozen=True)
class Run:
    """A finished training."""

    seconds: list[float]
    """Seconds of each step."""
    losses: list[float]
    batch: int
    """Windows per step."""


def make_recipe(shape: Any, steps: int, compiled: bool) -> Any:
    """The recipe of all arms: fixed windows, with attention across documents as in the peers."""
    from ledom.data.prepare import DataConfig
    from ledom.model.presets import ModelConfig
    from ledom.train.distributed import ParallelConfig
    from ledom.train.optim import OptimConfig
    from ledom.train.recipe import Recipe, TrainConfig

    return Recipe(
        name="training",
        data=DataConfig(
            num_documents=2 * BATCH * steps + 200,
            num_valid=20,
            packing="fixed",
            mask_across_documents=False,
            reset_position_ids=False,
        ),
        model=ModelConfig.model_validate(shape),
        optim=OptimConfig(
            steps=steps, matrix_optimizer="adamw", adamw_lr=RATE, warmup_steps=WARM, decay_steps=0
        ),
        train=TrainConfig(
            batch_size=BATCH, seq_len=SEQ_LEN, validate_every=steps, checkpoint_every=steps
        ),
        parallel=ParallelConfig(compile=compiled),
    )


def run_ledom(recipe: Any, data: Any, folder: Path, device: str = "cpu") -> Run:
    """Train with ledom's loop; its metrics give the seconds of each step."""
    from ledom.core.direction import Direction
    from ledom.train.distributed import connect
    from ledom.train.loop import train
    from ledom.train.metrics import read_metrics

    with connect(device) as world:
        train(recipe, Direction.FORWARD, data, folder, world=world)
    rows = read_metrics(folder / "metrics.jsonl")
    seconds = [row["tokens"] / row["tokens_per_second"] for row in rows]
    return Run(seconds, [row["loss"] for row in rows], BATCH)


def plain_model(recipe: Any, data: Any) -> Any:
    """A model with the same weights and transformers' own attention."""
    import torch
    from transformers import AutoModelForCausalLM

    from ledom.model.checkpoint import build_model

    ours = build_model(recipe.model, data.tokenizer, recipe.seed)
    config = type(ours.config)(**{**ours.config.to_dict(), "attn_implementation": "sdpa"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(ours.state_dict())
    return model


def batches(recipe: Any, data: Any) -> Iterator[Any]:
    """Each step's token ids, [BATCH, SEQ_LEN + 1]."""
    import numpy as np
    import torch

    from ledom.core.direction import Direction
    from ledom.train.start import training_batches

    source = training_batches(recipe, Direction.FORWARD, data)
    for step in range(recipe.optim.steps):
        yield torch.from_numpy(np.stack(source[step].windows))


def run_plain(recipe: Any, data: Any, compiled: bool, bf16: bool, device: str = "cpu") -> Run:
    """Train with a plain loop: whole batches, autocast, fused AdamW, clipping."""
    import torch
    from torch.nn.functional import cross_entropy

    model = plain_model(recipe, data).train().to(device)
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True
    )
    seconds, losses = [], []
    for step, ids in enumerate(batches(recipe, data)):
        started = time.perf_counter()
        ids = ids.to(device)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            logits = run(input_ids=ids[:, :-1], use_cache=False).logits
            loss = cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    return Run(seconds, losses, BATCH)


def run_trainer(recipe: Any, data: Any, folder: Path, arm: str, bf16: bool) -> Run:
    """Train with Trainer. It shifts the labels itself, so it reads one more token per window."""
    from torch.optim.lr_scheduler import LambdaLR
    from torch.utils.data import Dataset, SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    rows = [row for ids in batches(recipe, data) for row in ids]

    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": rows[index], "labels": rows[index]}

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(Rows())

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            """Use the same rates as the other arms; Trainer's own begin with a step at rate 0."""
            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(chosen, lambda step: min(1.0, (step + 1) / WARM))
            return self.lr_scheduler

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not ends:
                ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    batch = 8 if arm == "trainer" else BATCH
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.optim.steps,
        per_device_train_batch_size=batch,
        bf16=bf16,
        use_cpu=True,
        torch_compile=arm.endswith("-c"),
        learning_rate=RATE,
        adam_beta2=0.95,
        adam_epsilon=1e-10,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = InOrder(
        plain_model(recipe, data), arguments, train_dataset=Rows(), callbacks=[Clock()]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    seconds = [end - start for start, end in pairwise(ends)]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return Run(seconds, losses, batch)


def run_arm(arm: str, shape: str, steps: int, folder: Path) -> tuple[Run, float, float]:
    """Train one arm in this process; returns the run, and the figures of `needed_flops`."""
    import torch

    from ledom.data.prepare import prepare_data
    from ledom.model.device import fast_bfloat16

    recipe = make_recipe(SHAPES[shape], steps, arm.endswith("-c"))
    data = prepare_data(recipe.data, folder / "data")
    bf16 = fast_bfloat16(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        if arm.startswith("ledom"):
            made = run_ledom(recipe, data, Path(scratch))
        elif arm.startswith("plain"):
            made = run_plain(recipe, data, arm.endswith("-c"), bf16)
        else:
            made = run_trainer(recipe, data, Path(scratch), arm, bf16)
    return made, *needed_flops(recipe, data)


def flops_per_token(recipe: Any, data: Any) -> float:
    """FLOPs of a training step per token: 6 per weight, plus causal attention."""
    from ledom.model.checkpoint import build_model

    shape = recipe.model
    model: Any = build_model(shape, data.tokenizer, 0)
    weights: int = sum(p.numel() for p in model.parameters())
    # Causal attention needs half of 12 FLOPs.
    attention: int = 6 * shape.num_hidden_layers * shape.hidden_size * SEQ_LEN
    return 6.0 * weights + attention


def needed_flops(recipe: Any, data: Any) -> tuple[float, float]:
    """FLOPs per token, and the FLOP/s of a plain matmul."""
    import torch
    from rates import median_seconds

    from ledom.model.device import fast_bfloat16

    shape = recipe.model
    dtype = torch.bfloat16 if fast_bfloat16(torch.device("cpu")) else torch.float32
    a = torch.randn(BATCH * SEQ_LEN, shape.hidden_size).to(dtype)
    b = torch.randn(shape.hidden_size, shape.intermediate_size).to(dtype)
    seconds = median_seconds(lambda: a @ b, rounds=100)
    return flops_per_token(recipe, data), 2 * a.shape[0] * b.numel() / seconds


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    args = parse(parser)
    for shape in args.shape:
        compare(shape, args)


def compare(shape: str, args: Any) -> None:
    """Print a table of all arms, which take turns in every round."""
    rates: dict[str, list[float]] = {arm: [] for arm in args.arms}
    losses: dict[str, float] = {}
    product, flops = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for arm in args.arms:
                made, flops, rate = in_process(run_arm, arm, shape, args.steps, Path(folder))
                rates[arm].append(made.batch * SEQ_LEN / statistics.median(made.seconds[WARM:]))
                losses[arm] = statistics.mean(made.losses[-20:])
                product.append(rate)
    peak = statistics.median(product)
    base = "trainer" if "trainer" in rates else next(iter(rates))
    print(f"\n{shape}: {flops / 1e6:.1f} MFLOP per token; a plain matmul {peak / 1e9:.0f} GFLOP/s")
    print_head("arm", "tokens/s", f"relative to {base} (rounds)", "of a plain matmul", "loss")
    for arm, found_rates in rates.items():
        rate = statistics.median(found_rates)
        ratios = [found / other for found, other in zip(found_rates, rates[base], strict=True)]
        share = f"{rate * flops / peak:.0%}"
        print_row(arm, f"{rate:.0f}", spread(ratios), share, f"{losses[arm]:.3f}")


if __name__ == "__main__":
    main()
