"""Scoring, sampling and training on a GPU, in one run of under ten minutes.

    python benchmarks/gpu.py [--shapes base 2b] [--device cuda]
    python benchmarks/gpu.py --quick     # a tiny shape and few texts: a smoke test

Needs `pip install ledom[bench]`; vLLM is compared if it is installed. Models have random weights,
the embedded pair's vocabulary, and bf16 (fp32 on a CPU). Texts are generated problems with
solutions. Each table gives tokens per second, ledom's advantage, and the FLOP/s as a share of what
a plain matmul of the shape's width reaches here. Training counts 6 FLOPs per weight and token,
scoring and sampling 2. Scoring is log P(question | solution), reverse. Arms:

    plain       transformers, one text at a time (sampling: `generate` in batches)
    HFLM        lm-evaluation-harness, at its best batch size
    vLLM        its prompt log-probabilities, and its sampler
    plain-c     training only: whole batches, fused AdamW, compiled; ledom-c: parallel.compile

Slow programs are timed on fewer texts. Arms run one after the other; the first call of each is not
counted.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import new_parser, print_head, print_row
from hflm import HarnessScorer
from rates import left_padded, median_seconds, processor
from training import SEQ_LEN, WARM, flops_per_token, make_recipe, run_ledom, run_plain
from transformers import AutoModelForCausalLM, PreTrainedModel

import ledom
from ledom.data.prepare import prepare_data
from ledom.data.problems import generate_problems
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.language_model import LanguageModel, Sampling, TokenSpan
from ledom.model.checkpoint import build_model, save_checkpoint
from ledom.model.device import fast_bfloat16
from ledom.model.presets import ModelConfig

_HAS_VLLM = importlib.util.find_spec("vllm") is not None


@dataclass(frozen=True)
class Size:
    """How much to measure."""

    texts: int
    few: int
    """Texts for slow programs."""
    samples: int
    max_tokens: int
    steps: int
    warm: int
    """The first steps, which are not counted."""
    rounds: int
    batches: tuple[int, ...]
    """Batch sizes for HFLM; the best one is reported."""
    arms: tuple[str, ...]
    """Training arms."""


FULL = Size(
    texts=4096,
    few=256,
    samples=1024,
    max_tokens=128,
    steps=30,
    warm=WARM,
    rounds=3,
    batches=(16, 64, 256),
    arms=("ledom", "ledom-c", "plain", "plain-c"),
)
QUICK_SHAPE = ModelConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)
QUICK = Size(
    texts=12,
    few=6,
    samples=4,
    max_tokens=8,
    steps=2,
    warm=1,
    rounds=1,
    batches=(8,),
    arms=("ledom", "plain"),
)


def wait_for(device: str) -> None:
    """Wait until the device has finished all asynchronously launched kernels."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def warm_seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    """Median seconds of one call; the first call is not counted."""

    def finished() -> None:
        work()
        wait_for(device)

    finished()
    return median_seconds(finished, rounds)


def product_rate(config: ModelConfig, dtype: torch.dtype, device: str, rows: int) -> float:
    """FLOP/s of a plain matmul, [rows, width] x [width, inner]."""
    width, inner = config.hidden_size, config.intermediate_size
    x, weight = (
        torch.randn(*size, device=device, dtype=dtype) for size in ((rows, width), (width, inner))
    )
    return 2 * rows * width * inner / warm_seconds(lambda: x @ weight, device, rounds=20)


def random_model(config: ModelConfig, direction: str, folder: Path) -> Path:
    """Write a model folder of this shape, with the embedded pair's tokenizer."""
    small = ledom.load("tiny", direction)
    model = build_model(config, small.tokenizer, seed=0)
    path = folder / direction
    save_checkpoint(path, model, small.tokenizer, small.direction, small.pair_format)
    return path


@dataclass
class Table:
    """Print a row per arm: tokens per second, ledom's advantage, share of a matmul's rate."""

    title: str
    flops: float
    """FLOPs per token."""
    rate: float
    """FLOP/s of a plain matmul."""

    def __post_init__(self) -> None:
        self._ours = 0.0
        print()
        print_head(self.title, "tokens/s", "ledom's advantage", "of a plain matmul")

    def row(self, arm: str, tokens_per_second: float) -> None:
        """Print an arm's row; the first must be ledom's."""
        self._ours = self._ours or tokens_per_second
        share = tokens_per_second * self.flops / self.rate
        advantage = self._ours / tokens_per_second
        print_row(arm, f"{tokens_per_second:,.0f}", f"{advantage:.2f}x", f"{share:.1%}")


def scoring(lm: HFLanguageModel, device: str, size: Size, rate: float) -> None:
    """Print the scoring table; the tokens of questions and solutions count once per text."""
    problems = generate_problems("test", size.texts, seed=9)
    pairs = [(problem.question, problem.require_solution()) for problem in problems]
    encoded = lm.pair_format.encode(lm.tokenizer, pairs, *lm.special_ids)
    asked = [TokenSpan(pair.ids, 0, pair.question[1]) for pair in encoded]
    table = Table("scoring, reverse", 2.0 * (lm.num_parameters or 0), rate)

    def rate_of(work: Callable[[list[TokenSpan]], object], spans: list[TokenSpan]) -> float:
        tokens = sum(len(span.ids) for span in spans)
        return tokens / warm_seconds(lambda: work(spans), device, size.rounds)

    table.row("ledom", rate_of(lm.logprobs, asked))
    plain = plain_model(lm)
    table.row("plain", rate_of(lambda spans: plain_sums(plain, lm, spans), asked[: size.few]))
    harness = HarnessScorer(plain, lm, asked[: size.few])
    best = max(
        rate_of(partial(lambda batch, spans: harness.sums(batch), batch), asked[: size.few])
        for batch in size.batches
    )
    table.row("HFLM, best batch", best)
    check(lm, plain, asked[: size.few])
    if _HAS_VLLM:
        del plain
        other = ledom.load(f"vllm:{lm.name}", lm.direction)
        table.row("vLLM", rate_of(other.logprobs, asked))


def plain_model(lm: HFLanguageModel) -> PreTrainedModel:
    """The same model as transformers loads it, in the same precision on the same device."""
    model: Any = AutoModelForCausalLM.from_pretrained(lm.name, dtype=lm.model.dtype)
    moved: PreTrainedModel = model.to(lm.model.device).eval()
    return moved


def plain_sums(
    model: PreTrainedModel, lm: LanguageModel, asked: Sequence[TokenSpan]
) -> list[float]:
    """The sum of each span's log-probabilities in nats, one text at a time."""
    sums = []
    for target in asked:
        ids = torch.tensor(lm.direction.to_model_order(list(target.ids)), device=model.device)
        start, end = lm.direction.span_to_model_order(target.start, target.end, len(ids))
        with torch.inference_mode():
            logits = model(ids[None, :-1], use_cache=False).logits[0, start - 1 : end - 1].float()
        chosen = logits.log_softmax(-1).gather(1, ids[start:end, None])
        sums.append(float(chosen.sum()))
    return sums


def check(lm: LanguageModel, plain: PreTrainedModel, asked: list[TokenSpan]) -> None:
    """Print the largest difference between ledom's sums and transformers'."""
    ours = [float(values.sum()) for values in lm.logprobs(asked)]
    differences = [abs(a - b) for a, b in zip(ours, plain_sums(plain, lm, asked), strict=True)]
    print(f"largest difference of a sum from transformers': {max(differences):.1e} nats")


def sampling(lm: HFLanguageModel, device: str, size: Size, rate: float) -> None:
    """Print the sampling table. Random weights seldom emit EOS, so texts have `max_tokens`."""
    problems = generate_problems("test", size.samples, seed=9)
    prompts = [lm.pair_format.before_solution(problem.question) for problem in problems]
    options = Sampling(temperature=0.7, max_tokens=size.max_tokens)
    table = Table("sampling, forward", 2.0 * (lm.num_parameters or 0), rate)

    def rate_of(write: Callable[[], Iterator[int]]) -> float:
        counts: list[int] = []
        taken = warm_seconds(lambda: counts.append(sum(write())), device, size.rounds)
        return statistics.mean(counts) / taken

    def written(which: LanguageModel) -> Iterator[int]:
        for _, texts in which.generate(prompts, options):
            yield from (len(text.ids) for text in texts)

    table.row("ledom", rate_of(lambda: written(lm)))
    plain = plain_model(lm)
    table.row("plain, batches of 128", rate_of(lambda: generated(plain, lm, prompts, size)))
    if _HAS_VLLM:
        del plain
        other = ledom.load(f"vllm:{lm.name}", lm.direction)
        table.row("vLLM", rate_of(lambda: written(other)))


def generated(
    model: PreTrainedModel, lm: LanguageModel, prompts: Sequence[str], size: Size
) -> Iterator[int]:
    """Tokens per text generated by transformers' `generate`, in left-padded batches of 128."""
    eos = lm.tokenizer.eos_id
    for start in range(0, len(prompts), 128):
        batch = [lm.prompt_ids(p, size.max_tokens) for p in prompts[start : start + 128]]
        ids, mask = left_padded(batch, eos, model.device)
        generate: Any = model.generate  # typed as a tensor
        out = generate(
            ids,
            attention_mask=mask,
            max_new_tokens=size.max_tokens,
            do_sample=True,
            temperature=0.7,
            top_k=0,
            eos_token_id=eos,
            pad_token_id=eos,
        )
        for row in out[:, ids.shape[1] :].tolist():
            yield row.index(eos) if eos in row else len(row)


def training(
    config: ModelConfig, device: str, size: Size, rate: float, bf16: bool, folder: Path
) -> None:
    """Print the training table: fixed windows of 256 tokens, 16 per step."""
    recipe = make_recipe(config, size.steps, compiled=False)
    data = prepare_data(recipe.data, folder / "data")
    table = Table("training", flops_per_token(recipe, data), rate)
    for arm in size.arms:
        compiled = arm.endswith("-c")
        if arm.startswith("ledom"):
            own = make_recipe(config, size.steps, compiled)
            made = run_ledom(own, data, folder / arm, device)
        else:
            made = run_plain(recipe, data, compiled, bf16, device)
        table.row(arm, made.batch * SEQ_LEN / statistics.median(made.seconds[size.warm :]))


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", default=["base", "2b"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    size = QUICK if args.quick else FULL
    shapes = {shape: ModelConfig.model_validate(shape) for shape in args.shapes}
    if args.quick:
        shapes = {"a tiny shape": QUICK_SHAPE}
    bf16 = fast_bfloat16(torch.device(args.device)) and args.device != "cpu"
    dtype = torch.bfloat16 if bf16 else torch.float32
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else processor()
    for shape, config in shapes.items():
        rate = product_rate(config, dtype, args.device, 64 if args.quick else 4096)
        print(f"\n## {shape} in {dtype}: {name}, torch {torch.__version__}, ", end="")
        print(f"a plain matmul {rate / 1e12:.3g} TFLOP/s", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            measure(config, args.device, dtype, size, rate, Path(folder))


def measure(
    config: ModelConfig, device: str, dtype: torch.dtype, size: Size, rate: float, folder: Path
) -> None:
    """Print the three tables of one shape."""
    for direction, table in (("reverse", scoring), ("forward", sampling)):
        path = random_model(config, direction, folder)
        table(HFLanguageModel(path, device=device, dtype=dtype), device, size, rate)
    training(config, device, size, rate, dtype == torch.bfloat16, folder)


if __name__ == "__main__":
    main()
