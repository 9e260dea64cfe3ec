"""Everything that a GPU is for, in one run of under ten minutes: scoring, sampling, training.

    python benchmarks/gpu.py [--shapes base 2b] [--device cuda]
    python benchmarks/gpu.py --quick     # tiny, a few texts, on whatever is here: does it run?

Needs `pip install ledom[bench]`; vLLM is a peer where it is installed. Models have random weights
of the shapes, with the embedded pair's vocabulary, in bf16 (fp32 on a CPU); texts are generated
problems with solutions. Each table gives tokens per second, the ratio to ledom's, and the share of
what a plain product of the shape's width reaches here (for training: 6 operations per weight and
token; for scoring and sampling 2). Scoring: log P(question | solution) reverse. Arms:

    plain       transformers, one text at a time (sampling: `generate` in batches)
    HFLM        lm-evaluation-harness, at the best of some batch sizes
    vLLM        its prompt log-probabilities, and its sampler
    plain-c     training only: whole batches, fused AdamW, compiled; ledom-c: parallel.compile

Peers are timed on fewer texts where they would take long. No two arms run at once; the first call
of each is not counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hflm import HarnessScorer
from rates import left_padded, median_seconds, processor
from training import SEQ_LEN, WARM, make_recipe, run_ledom, run_plain
from transformers import AutoModelForCausalLM, PreTrainedModel

import ledom
from ledom.core.processes import fast_bfloat16
from ledom.data.prepare import prepare_data
from ledom.data.problems import generate_problems
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.language_model import LanguageModel, Sampling, TokenSpan
from ledom.model.checkpoint import build_model, save_checkpoint
from ledom.model.presets import ModelConfig

_HAS_VLLM = importlib.util.find_spec("vllm") is not None


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    texts: int
    few: int
    """Texts for peers that take them one by one."""
    samples: int
    max_tokens: int
    steps: int
    warm: int
    """Steps that are not counted."""
    rounds: int
    batches: tuple[int, ...]
    """Of HFLM: the best of them."""
    arms: tuple[str, ...]
    """Of the training."""


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
    """Kernels run behind Python's back: until they are done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def warm_seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    """The median time of one call, after a first that is not counted."""

    def whole() -> None:
        work()
        wait_for(device)

    whole()
    return median_seconds(whole, rounds)


def product_rate(config: ModelConfig, dtype: torch.dtype, device: str, rows: int) -> float:
    """FLOP/s of a plain product of the shape on so many rows."""
    width, inner = config.hidden_size, config.intermediate_size
    x, weight = (
        torch.randn(*size, device=device, dtype=dtype) for size in ((rows, width), (width, inner))
    )
    return 2 * rows * width * inner / warm_seconds(lambda: x @ weight, device, rounds=20)


def random_model(config: ModelConfig, direction: str, folder: Path) -> Path:
    """A model folder of the shape, with the embedded pair's tokenizer."""
    small = ledom.load("tiny", direction)
    model = build_model(config, small.tokenizer, seed=0)
    place = folder / direction
    save_checkpoint(place, model, small.tokenizer, small.direction, small.pair_format)
    return place


@dataclass
class Table:
    """Rows of arms: tokens per second, beside ledom's and a product's rate."""

    title: str
    flops: float
    """Per token."""
    rate: float
    """FLOP/s of a plain product."""

    def __post_init__(self) -> None:
        self._ours = 0.0
        print(f"\n| {self.title} | tokens/s | ledom's advantage | of a plain product |")
        print("|---|---|---|---|")

    def row(self, arm: str, tokens_per_second: float) -> None:
        """The first is ledom's."""
        self._ours = self._ours or tokens_per_second
        share = tokens_per_second * self.flops / self.rate
        print(
            f"| {arm} | {tokens_per_second:,.0f} | {self._ours / tokens_per_second:.2f}x "
            f"| {share:.1%} |",
            flush=True,
        )


def scoring(lm: HFLanguageModel, device: str, size: Size, rate: float) -> None:
    """log P(question | solution), each token of both counted once per text."""
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
    """The model in transformers' own hands, in the same precision on the same device."""
    model: Any = AutoModelForCausalLM.from_pretrained(lm.name, dtype=lm.model.dtype)
    moved: PreTrainedModel = model.to(lm.model.device).eval()
    return moved


def plain_sums(
    model: PreTrainedModel, lm: LanguageModel, asked: Sequence[TokenSpan]
) -> list[float]:
    """The sum of each span, a text at a time."""
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
    """How far ledom's sums are from transformers'."""
    ours = [float(values.sum()) for values in lm.logprobs(asked)]
    differences = [abs(a - b) for a, b in zip(ours, plain_sums(plain, lm, asked), strict=True)]
    print(f"largest difference of a sum from transformers': {max(differences):.1e} nats")


def sampling(lm: HFLanguageModel, device: str, size: Size, rate: float) -> None:
    """Texts of random weights seldom end: nearly all have `max_tokens` tokens."""
    problems = generate_problems("test", size.samples, seed=9)
    prompts = [lm.pair_format.before_solution(problem.question) for problem in problems]
    drawn = Sampling(temperature=0.7, max_tokens=size.max_tokens)
    table = Table("sampling, forward", 2.0 * (lm.num_parameters or 0), rate)

    def rate_of(write: Callable[[], Iterator[int]]) -> float:
        counts: list[int] = []
        taken = warm_seconds(lambda: counts.append(sum(write())), device, size.rounds)
        return statistics.mean(counts) / taken

    def ledoms(which: LanguageModel) -> Iterator[int]:
        for _, texts in which.generate(prompts, drawn):
            yield from (len(text.ids) for text in texts)

    table.row("ledom", rate_of(lambda: ledoms(lm)))
    plain = plain_model(lm)
    table.row("plain, batches of 128", rate_of(lambda: generated(plain, lm, prompts, size)))
    if _HAS_VLLM:
        del plain
        other = ledom.load(f"vllm:{lm.name}", lm.direction)
        table.row("vLLM", rate_of(lambda: ledoms(other)))


def generated(
    model: PreTrainedModel, lm: LanguageModel, prompts: Sequence[str], size: Size
) -> Iterator[int]:
    """What `generate` writes to left-padded batches: tokens per text."""
    eos = lm.tokenizer.eos_id
    for start in range(0, len(prompts), 128):
        some = [lm.prompt_ids(p, size.max_tokens) for p in prompts[start : start + 128]]
        ids, mask = left_padded(some, eos, model.device)
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
    """Fixed windows of 256 tokens, 16 per step."""
    recipe = make_recipe(config, size.steps, compiled=False)
    data = prepare_data(recipe.data, folder / "data")
    weights = sum(p.numel() for p in build_model(recipe.model, data.tokenizer, 0).parameters())
    attention = 6 * recipe.model.num_hidden_layers * recipe.model.hidden_size * SEQ_LEN
    table = Table("training", 6.0 * weights + attention, rate)
    for arm in size.arms:
        compiled = arm.endswith("-c")
        if arm.startswith("ledom"):
            own = make_recipe(config, size.steps, compiled)
            made = run_ledom(own, data, folder / arm, device)
        else:
            made = run_plain(recipe, data, compiled, bf16, device)
        table.row(arm, made["batch"] * SEQ_LEN / statistics.median(made["seconds"][size.warm :]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
        print(f"a plain product {rate / 1e12:.3g} TFLOP/s", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            measure(config, args.device, dtype, size, rate, Path(folder))


def measure(
    config: ModelConfig, device: str, dtype: torch.dtype, size: Size, rate: float, folder: Path
) -> None:
    """The three tables of one shape."""
    for direction, table in (("reverse", scoring), ("forward", sampling)):
        place = random_model(config, direction, folder)
        table(HFLanguageModel(place, device=device, dtype=dtype), device, size, rate)
    training(config, device, size, rate, dtype == torch.bfloat16, folder)


if __name__ == "__main__":
    main()
