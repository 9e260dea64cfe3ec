"""Speed of log-probabilities: ledom against HFLM (lm-evaluation-harness) and CTranslate2.

    python benchmarks/scoring.py [--problems test.jsonl --candidates candidates.jsonl]
        [--demonstrations train.jsonl] [--cases pair forward shots smollm2 wide memory]
        [--questions 16] [--answers 8] [--rounds 3] [--batches 8 32]

Needs `pip install ledom[bench]`. The default is small: some minutes on two cores. Published figures
need 64 questions with 16 answers and five rounds. All score the same spans with the same weights
and threads: log P(x|y) in reverse, log P(y|x) forward; in fp32, CTranslate2 also in int8. The other
programs run at several batch sizes, CTranslate2 with its threads sharing each matmul or computing a
batch each, and their best is compared. The table gives the largest difference of a sum: fp32 must
agree to 1e-3. Without files, problems are generated and the embedded model answers them. Shares of
the rates of plain matmuls (`rates.py`) count only the necessary work (`needed_flops`).
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import (
    add_answers,
    in_process,
    new_parser,
    parse,
    print_head,
    print_row,
    read_answers,
    resident,
    spread,
)
from ctranslate import CTranslate2
from hflm import HarnessScorer
from rates import MatmulRates, seconds
from transformers import AutoModelForCausalLM, LlamaConfig

from ledom.core.records import Problem, read_records
from ledom.data.problems import generate_problems
from ledom.lm import embedded_folder, load
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.language_model import LanguageModel, TokenSpan
from ledom.model.checkpoint import save_checkpoint
from ledom.model.prefix_tree import PrefixTree

NUM_SHOTS = 8
LONG_CONTEXT = 4096  # tokens; holds the demonstrations
CASES = ("pair", "forward", "shots", "smollm2", "wide", "memory")


@dataclass(frozen=True)
class Measuring:
    """How to measure."""

    rounds: int
    batches: Sequence[int]
    """Batch sizes for the other programs; the best one of each is compared."""


def targets(
    lm: LanguageModel, pairs: list[tuple[str, str]], shots: list[tuple[str, str]]
) -> list[TokenSpan]:
    """The spans to score: log P(y|x) forward, log P(x|y) in reverse, after the demonstrations."""
    shown = [
        i
        for pair in lm.pair_format.encode(lm.tokenizer, shots, *lm.special_ids)
        for i in pair.ids[1:]
    ]
    made = []
    for pair in lm.pair_format.encode(lm.tokenizer, pairs, *lm.special_ids):
        if str(lm.direction) == "forward":
            ids = pair.ids[:1] + shown + pair.ids[1:]
            made.append(TokenSpan(ids, len(shown) + pair.solution[0], len(ids)))
        else:
            made.append(TokenSpan(pair.ids + shown, 0, pair.question[1]))
    return [target for target in made if len(target.ids) - 1 <= lm.context]


def needed_flops(lm: HFLanguageModel, asked: list[TokenSpan]) -> float:
    """FLOPs of the matmuls that every scorer needs; a prefix shared by texts counts once.

    This counts the keys and values of every token; the rest of each layer (in the last layer only
    at positions whose log-probability is wanted); causal attention; and one projection to the
    vocabulary per wanted log-probability.
    """
    config = lm.model.config
    ordered = ((lm.direction.to_model_order(list(t.ids)), t) for t in asked)
    pairs = sorted(ordered, key=lambda pair: pair[0])
    tree = PrefixTree.build([ids[:-1] for ids, _ in pairs])
    wanted: set[int] = set()
    for (ids, t), places in zip(pairs, tree.places, strict=True):
        start, end = lm.direction.span_to_model_order(t.start, t.end, len(ids))
        wanted.update(places[start - 1 : end - 1].tolist())
    seen = torch.tensor(tree.positions) + 1
    seen_by_wanted = seen[sorted(wanted)]
    layers = config.num_hidden_layers
    weights = sum(p.numel() for n, p in lm.model.named_parameters() if ".layers." in n) / layers
    keys_values = 2 * config.hidden_size * config.num_key_value_heads * config.head_dim
    attention = 2 * config.num_attention_heads * config.head_dim  # for weights and values
    total = (layers - 1) * (len(seen) * weights + int(seen.sum()) * attention)
    total += len(seen) * keys_values + len(seen_by_wanted) * (weights - keys_values)
    total += int(seen_by_wanted.sum()) * attention
    labels = sum(t.end - t.start for t in asked)
    return float(2 * (total + labels * lm.model.get_output_embeddings().weight.numel()))


@dataclass
class Peer:
    """Another scorer that sums the log-probabilities of each span."""

    name: str
    configurations: Sequence[Callable[[int], list[float]]]
    """Its configurations: functions from the batch size to the sums."""
    fastest: Callable[[int], list[float]] = field(init=False)
    """The fastest configuration."""
    batch: int = 0
    """The batch size at which it is fastest."""

    def warm_up(self, batches: Sequence[int]) -> None:
        """Run every configuration, and find the fastest with its batch size."""
        for run in self.configurations:
            run(batches[0])
        choices = [(run, size) for run in self.configurations for size in batches]
        self.fastest, self.batch = min(choices, key=lambda c: seconds(lambda: c[0](c[1])))

    def sums(self) -> list[float]:
        """The sum of each span in nats, computed by the fastest configuration."""
        return self.fastest(self.batch)


def peers(lm: HFLanguageModel, asked: list[TokenSpan], folder: Path) -> list[Peer]:
    """HFLM, and CTranslate2 in fp32 and int8; `folder` keeps its converted weights."""
    plain = AutoModelForCausalLM.from_pretrained(lm.name, dtype=torch.float32).eval()
    plain.config.max_position_embeddings = lm.context
    texts = [lm.direction.to_model_order(list(target.ids)) for target in asked]
    spans = [lm.direction.span_to_model_order(t.start, t.end, len(t.ids)) for t in asked]

    def ctranslate(precision: str, batch_per_thread: bool) -> Callable[[int], list[float]]:
        model = CTranslate2(lm, folder, precision, batch_per_thread)

        def sums(size: int) -> list[float]:
            found = model.logprobs(texts, size)
            return [
                sum(values[start - 1 : end - 1])
                for values, (start, end) in zip(found, spans, strict=True)
            ]

        return sums

    return [
        Peer("HFLM", [HarnessScorer(plain, lm, asked).sums]),
        Peer("CTranslate2", [ctranslate("float32", flag) for flag in (False, True)]),
        Peer("CTranslate2 int8", [ctranslate("int8", flag) for flag in (False, True)]),
    ]


def compare(
    case: str,
    lm: HFLanguageModel,
    pairs: Any,
    shots: Any,
    sample: int,
    folder: Path,
    measuring: Measuring,
) -> None:
    """Print the table of one case: median seconds of all scorers, which take turns.

    The others are timed on about `sample` evenly spaced spans. They share nothing between texts,
    so their time is proportional to the number of spans.
    """
    asked = targets(lm, pairs, shots)
    few = asked[:: max(1, len(asked) // sample)]
    others = peers(lm, few, folder)
    works: list[Callable[[], object]] = [lambda: lm.logprobs(asked)]
    for other in others:
        other.warm_up(measuring.batches)
        works.append(other.sums)
    works[0]()
    matmuls = MatmulRates(lm, lm.tokens_per_batch)
    matmuls.measure()
    rounds, shares, needed = [], [], needed_flops(lm, asked)
    for _ in range(measuring.rounds):
        ours = seconds(works[0])
        rates = matmuls.measure()
        shares.append([needed / ours / rate for rate in rates.values()])
        rounds.append([ours, *map(seconds, works[1:])])
    ours, *theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    middle = [statistics.median(column) for column in zip(*shares, strict=True)]
    kernels = matmuls.report()
    of_rates = ", ".join(f"{x:.0%} of {name}" for x, name in zip(middle, kernels, strict=True))
    differences = "difference of a sum, median and largest"
    print_head(f"{case}, {len(asked)} pairs", "s", "ledom's advantage (rounds)", differences)
    print_row(f"ledom, {needed / ours / 1e9:.0f} GFLOP/s: {of_rates}", f"{ours:.2f}", "", "")
    found = [float(values.sum()) for values in lm.logprobs(few)]
    scale = len(asked) / len(few)
    for place, (other, taken) in enumerate(zip(others, theirs, strict=True), start=1):
        print_peer(other, taken * scale, [scale * r[place] / r[0] for r in rounds], found)


def print_peer(peer: Peer, taken: float, ratios: Sequence[float], found: list[float]) -> None:
    """Print a peer's row of the table."""
    differences = [abs(a - b) for a, b in zip(found, peer.sums(), strict=True)]
    print_row(
        f"{peer.name}, batches of {peer.batch}",
        f"{taken:.2f}",
        spread(ratios),
        f"{statistics.median(differences):.1e}, {max(differences):.1e}",
    )


def memory(num_candidates: int) -> None:
    """Print resident memory before scoring, and its rise to the peak.

    Texts have 2,048 tokens from a vocabulary of 151,936; every token but the first is scored. The
    model is narrow, so that activations are small.
    """
    before, peak = in_process(score_long_texts, num_candidates)
    more = (peak - before) / 1e6
    print(f"\nmemory, {num_candidates} texts: {before / 1e6:.0f} MB before, {more:.0f} MB more")


def score_long_texts(num_candidates: int) -> tuple[float, float]:
    """Resident memory in bytes, before scoring and at the peak."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        lm = random_model(Path(folder) / "long", width=64, inner=128, layers=1, heads=2)
        texts = torch.randint(lm.tokenizer.vocab_size, (num_candidates, 2048)).tolist()
        lm.logprobs([TokenSpan(texts[0][:64], 0, 63)])
        before = resident("VmRSS")
        lm.logprobs([TokenSpan(ids, 0, 2047) for ids in texts])
        return before, resident("VmHWM")


def random_model(
    folder: Path,
    width: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int = 2,
    vocab_size: int = 151_936,
) -> HFLanguageModel:
    """A reverse model with random weights, by default with Qwen2.5's vocabulary size."""
    small = load("tiny", "reverse")
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab_size,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=small.tokenizer.eos_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    save_checkpoint(folder, model, small.tokenizer, small.direction, small.pair_format)
    return HFLanguageModel(folder)


def main() -> None:
    parser = new_parser(__doc__)
    add_answers(parser, questions=16)
    parser.add_argument("--demonstrations", type=Path)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32], help="of the others")
    args = parse(parser)
    problems, candidates = read_answers(args)
    solved = (
        read_records(args.demonstrations, Problem)
        if args.demonstrations
        else list(generate_problems("train", NUM_SHOTS, seed=9))
    )
    shots = [(p.question, p.solution or "") for p in solved[:NUM_SHOTS]]
    questions = {problem.id: problem.question for problem in problems}
    pairs = [(questions[c.problem_id], c.text) for c in candidates]
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases:
            run_case(case, pairs, shots, Path(folder), Measuring(args.rounds, args.batches))


def run_case(case: str, pairs: Any, shots: Any, folder: Path, measuring: Measuring) -> None:
    """Measure one of `CASES`; `folder` is for models. The peers score only part of the pairs."""
    slow = pairs[: min(64, max(16, len(pairs) // 16))]  # for models that take seconds per pair
    if case in ("pair", "forward"):
        direction = "reverse" if case == "pair" else "forward"
        lm, name = HFLanguageModel(embedded_folder(direction)), f"{direction}, embedded pair"
        compare(name, lm, pairs, [], len(pairs) // 4, folder / f"peer-{direction}", measuring)
    elif case == "shots":
        for direction in ("reverse", "forward"):
            lm, peer = _long(direction, folder / direction), folder / f"shots-{direction}"
            name, few = f"{direction}, {NUM_SHOTS} demonstrations", max(8, len(pairs) // 32)
            compare(name, lm, pairs, shots, few, peer, measuring)
    elif case == "smollm2":  # SmolLM2-135M's shape
        lm = random_model(folder / case, 576, 1536, 30, heads=9, kv_heads=3, vocab_size=49_152)
        name = "reverse, SmolLM2-135M's shape"
        compare(name, lm, slow, [], len(slow) // 4, folder / "peer-smollm2", measuring)
    elif case == "wide":  # Qwen2.5-0.5B's width and heads, 6 of its 24 layers
        lm = random_model(folder / case, 896, 4864, layers=6, heads=14)
        compare("reverse, wide", lm, slow, [], len(slow) // 4, folder / "peer-wide", measuring)
    else:
        for num_candidates in (16, 64):
            memory(num_candidates)


def _long(direction: str, folder: Path) -> HFLanguageModel:
    """A copy of an embedded model in `folder`, with a context that holds the demonstrations.

    The context must be set before loading: loading finds the length up to which packed rows are
    exact, and longer texts are scored one by one.
    """
    shutil.copytree(embedded_folder(direction), folder)
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"max_position_embeddings": LONG_CONTEXT}
    file.write_text(json.dumps(config))
    return HFLanguageModel(folder)


if __name__ == "__main__":
    main()
