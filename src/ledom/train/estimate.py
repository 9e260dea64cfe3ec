"""Estimates what a run will need before it starts: memory, time and file sizes.

This is arithmetic on a recipe; no model is built, nothing is measured. Sizes are in bytes.
Symbols: P parameters, D tokens, L layers, h width, f feed-forward width, V vocabulary.

The estimates assume the step of `ledom.train`: fp32 weights and optimizer state, matmuls in bf16 or
fp32, attention that does not store a score matrix, and FSDP2 for sharded state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PretrainedConfig

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.reading import as_type, exists, require
from ledom.model.checkpoint import load_config
from ledom.model.presets import ModelConfig
from ledom.text.tokenizer import Tokenizer
from ledom.train.objective import working_bytes
from ledom.train.optim import STATE_PER_WEIGHT, MatrixOptimizer
from ledom.train.recipe import Recipe
from ledom.train.start import check_lengths, check_shareable

__all__ = ["Plan", "Setup", "count_parameters", "make_plan", "memory", "planned_shape"]

Precision = Literal["float32", "bfloat16"]

_FP32, _BF16 = 4, 2  # bytes
_FLOPS = 6
"""FLOPs per parameter and token: 2 forward, 4 backward (Kaplan et al. 2020, section 2.1).
Attention's own matmuls, about 6 L h times the tokens seen, and recomputed layers are not counted;
the embedding's look-up is counted as a matmul."""
_PLANNED = ("llama", "mistral")  # architectures for which `count_parameters` is right
_USABLE = 0.92
"""Share of GPU memory for tensors; context, kernels, buffers and fragmentation take the rest."""


@dataclass(frozen=True)
class Gpu:
    """One accelerator, from its vendor's data sheet."""

    flops: float  # peak of dense bf16 matmuls, FLOP/s
    fp32_flops: float  # the same in fp32, without TF32, as torch computes by default
    memory: float  # bytes


GPUS = {
    "a100": Gpu(312e12, 19.5e12, 80e9),
    "a100-40gb": Gpu(312e12, 19.5e12, 40e9),
    "b200": Gpu(2250e12, 75e12, 180e9),
    "h100": Gpu(989e12, 67e12, 80e9),
    "h200": Gpu(989e12, 67e12, 141e9),
    "l40s": Gpu(362e12, 91.6e12, 48e9),
    "rtx4090": Gpu(165e12, 82.6e12, 24e9),
}
"""Accelerators by name (NVIDIA's data sheets, SXM versions; no sparsity)."""


@dataclass(frozen=True)
class Setup:
    """The hardware of a run; the recipe's `parallel` gives the sharding."""

    gpus: int = 1
    gpu: str = "h100"
    """A name of `GPUS`."""
    utilization: float = 0.4
    """Model FLOPs (6PD) as a share of the GPUs' peak (Chowdhery et al. 2022, appendix B): an
    assumption; measure yours."""

    def __post_init__(self) -> None:
        checks = {
            f"gpus is {self.gpus}; it must be at least 1": self.gpus >= 1,
            f"gpu is {self.gpu!r}; the known ones are {', '.join(GPUS)}": self.gpu in GPUS,
            f"utilization is {self.utilization}; it must lie in (0, 1]": 0 < self.utilization <= 1,
        }
        require(checks)


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a Llama shape, by part."""

    embedding: int
    head: int
    """The output projection; 0 if it is tied to the embedding."""
    layer_matrices: int
    """Attention and feed-forward matrices of all layers."""
    norms: int

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.layer_matrices + self.norms


def count_parameters(model: ModelConfig, vocab_size: int) -> ParameterCount:
    """Parameters of a Llama shape: no biases, a gated feed-forward layer.

    >>> count_parameters(ModelConfig.model_validate("tiny"), vocab_size=2048).total
    2755008
    """
    width, layers = model.hidden_size, model.num_hidden_layers
    kv_width = width // model.num_attention_heads * model.num_key_value_heads
    attention = 2 * width * width + 2 * width * kv_width
    return ParameterCount(
        embedding=vocab_size * width,
        head=0 if model.tie_word_embeddings else vocab_size * width,
        layer_matrices=layers * (attention + 3 * width * model.intermediate_size),
        norms=(2 * layers + 1) * width,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, by part."""

    weights: float
    """The fp32 weights, and copies in the precision of the matmuls."""
    gradients: float
    optimizer: float
    activations: float
    """Tensors kept for the backward pass, and the loss's own working space."""
    peak: float
    """The peak during a step."""
    checkpoint: float
    """Host memory in use while a checkpoint is written: a copy of weights and optimizer state."""


def activation_bytes(
    model: ModelConfig, precision: Precision, activation_checkpointing: bool
) -> tuple[float, float]:
    """Bytes per token kept for the backward pass: (by all layers, by the loss).

    The count follows Korthikanti et al. 2022, section 4.1, for this shape. A layer keeps: for each
    of two norms its input, the normalized input and the scaled input, of which only the last is in
    matmul precision (6h); queries, keys and values, repeated for every head, and attention's output
    (4h); gate, activated gate, up-projection and their product (4f); and attention's normalizers.
    The loss keeps the last norm's tensors and a normalizer per token.
    """
    width, inner = model.hidden_size, model.intermediate_size
    size = _FP32 if precision == "float32" else _BF16
    norm = width * (2 * _FP32 + size)
    layer = 2 * norm + size * (4 * width + 4 * inner) + _FP32 * model.num_attention_heads
    loss = norm + _FP32
    if activation_checkpointing:
        return model.num_hidden_layers * _FP32 * width + layer, loss
    return model.num_hidden_layers * layer, loss


def memory(
    model: ModelConfig,
    vocab_size: int,
    tokens: int,
    precision: Precision = "bfloat16",
    shards: int = 1,
    activation_checkpointing: bool = False,
    accumulate: bool = False,
    matrix_optimizer: MatrixOptimizer = "muon",
) -> Memory:
    """Bytes that a step needs on one GPU with `tokens` tokens per pass.

    Weights, gradients and state are in fp32, spread over `shards` GPUs (Rajbhandari et al. 2020,
    stage 3). The state has `STATE_PER_WEIGHT` numbers per parameter: `matrix_optimizer` keeps those
    of the layers' matrices, AdamW the others. Copies for matmuls are added: without sharding,
    autocast keeps all weights in bf16; with sharding, two layers (one in use, one prefetched), the
    embedding and the head are gathered. Without accumulation, gradients grow while activations are
    freed, so the larger counts.
    """
    count = count_parameters(model, vocab_size)
    rest = count.total - count.layer_matrices
    size = _FP32 if precision == "float32" else _BF16
    layer = count.layer_matrices / model.num_hidden_layers
    unsharded = 0 if size == _FP32 else size * count.total
    copies = size * (2 * layer + rest) if shards > 1 else unsharded
    weights = _FP32 * count.total / shards + copies
    gradients = _FP32 * count.total / shards + (size * layer if shards > 1 else 0)
    state = count.layer_matrices * STATE_PER_WEIGHT[matrix_optimizer]
    state += rest * STATE_PER_WEIGHT["adamw"]
    optimizer = _FP32 * state / shards
    activations = tokens * sum(activation_bytes(model, precision, activation_checkpointing))
    activations += working_bytes(tokens, vocab_size, model.hidden_size, size)
    passing = gradients + activations if accumulate else max(gradients, activations)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        peak=weights + optimizer + passing,
        checkpoint=_FP32 * count.total / shards + optimizer,
    )


@dataclass(frozen=True)
class Plan:
    """The needs of one direction of a recipe on some GPUs; its twin needs the same again."""

    setup: Setup
    parameters: ParameterCount
    steps: int
    tokens: int
    """Tokens read in all steps, at most: windows may be shorter than `seq_len`."""
    passes: int
    """Forward and backward passes per step, into which a GPU's share of the batch is split."""
    tokens_per_pass: int
    memory: Memory
    """Memory per GPU."""
    usable: float
    """Bytes of a GPU's memory that are available to tensors."""
    flops: float
    tokens_per_second: float
    """Tokens per second of all GPUs together."""
    hours: float
    checkpoint: float
    """Bytes of a checkpoint: fp32 weights and optimizer state."""
    model: float
    """Bytes of the finished bf16 model."""
    data: float
    """Bytes of the token store, if no token is read twice."""
    advice: str | None
    """What to change if there is not enough memory, else None."""

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.usable


def make_plan(recipe: Recipe, setup: Setup) -> Plan:
    """Estimate what a recipe needs.

    Raises `RecipeError` if the GPUs cannot share the run or windows are longer than the model's
    context; `InputError` for adapters (`lora`), which are not covered, and for an `init_from` whose
    two models differ in shape; `CheckpointError` if the recipe's `init_from` or tokenizer is
    missing.
    """
    if recipe.lora is not None:
        raise InputError("key lora: the plan is for training all weights; leave lora out")
    check_shareable(recipe, setup.gpus)  # a process per GPU
    directions = _startable(recipe)
    shapes = [planned_shape(recipe, direction) for direction in directions]
    for direction in directions:
        check_lengths(recipe, direction)
    if shapes[1:] and shapes[0] != shapes[1]:
        folders = " and ".join(map(recipe.init_folder, directions))
        raise InputError(
            f"key init_from: {folders} have different shapes; name one of them to plan its run"
        )
    return _plan(recipe, setup, *shapes[0])


def _plan(recipe: Recipe, setup: Setup, shape: ModelConfig, vocab_size: int) -> Plan:
    train, steps, gpu = recipe.train, recipe.optim.steps, GPUS[setup.gpu]
    precision: Precision = "float32" if train.precision == "float32" else "bfloat16"
    shards = min(recipe.parallel.shard_size or setup.gpus, setup.gpus)

    def needs(tokens: int, activation_checkpointing: bool) -> Memory:
        return memory(
            shape,
            vocab_size,
            tokens,
            precision,
            shards,
            activation_checkpointing,
            accumulate=tokens < train.batch_size / setup.gpus * train.seq_len,
            matrix_optimizer=recipe.optim.matrix_optimizer,
        )

    count = count_parameters(shape, vocab_size)
    windows = train.batch_size * (2 if recipe.objective.contrastive else 1)  # wrong pairs too
    share = -(-windows // setup.gpus) * train.seq_len
    at_once = max(train.seq_len, min(share, recipe.parallel.tokens_per_microbatch or share))
    needed = needs(at_once, recipe.parallel.activation_checkpointing)
    tokens = steps * windows * train.seq_len
    peak = gpu.fp32_flops if precision == "float32" else gpu.flops
    rate = setup.utilization * setup.gpus * peak / (_FLOPS * count.total)
    usable = _USABLE * gpu.memory
    return Plan(
        setup=setup,
        parameters=count,
        steps=steps,
        tokens=tokens,
        passes=-(-share // at_once),
        tokens_per_pass=at_once,
        memory=needed,
        usable=usable,
        flops=_FLOPS * count.total * tokens,
        tokens_per_second=rate,
        hours=tokens / rate / 3600,
        checkpoint=needed.checkpoint * shards,
        model=_BF16 * count.total,
        data=tokens * (2 if vocab_size <= 2**16 else 4),
        advice=None if needed.peak <= usable else _advice(recipe, usable, needs),
    )


def _advice(recipe: Recipe, usable: float, needs: Callable[[int, bool], Memory]) -> str:
    """The smallest change that fits: smaller passes, activation checkpointing, or more GPUs."""
    if recipe.objective.needs_pairs:
        return "does not fit; lower train.batch_size, since the pairs of a step take one pass"
    seq_len = recipe.train.seq_len
    for checkpointing in dict.fromkeys((recipe.parallel.activation_checkpointing, True)):
        one, two = (needs(count * seq_len, checkpointing) for count in (1, 2))
        free = usable - one.peak
        if free >= 0:
            windows = 1 + int(free / (two.activations - one.activations))
            keys = f"parallel.tokens_per_microbatch={windows * seq_len}"
            also = " parallel.activation_checkpointing=true" if checkpointing else ""
            return f"does not fit; give {keys}{also}"
    return "does not fit with one window at a time and recomputed layers; shard over more GPUs"


def _startable(recipe: Recipe) -> list[Direction]:
    """The directions whose `init_from` exists; the forward one if neither does."""
    if "{direction}" not in (recipe.init_from or ""):
        return [Direction.FORWARD]  # both start the same way
    found = [direction for direction in Direction if exists(recipe.init_folder(direction))]
    return found or [Direction.FORWARD]


def planned_shape(recipe: Recipe, direction: Direction) -> tuple[ModelConfig, int]:
    """The model's shape and vocabulary size: those of `init_from`, else the recipe's."""
    if recipe.init_from is None:
        assert recipe.model is not None  # checked by the recipe
        data, tokenizer = recipe.data, recipe.data.tokenizer
        if tokenizer is None and data.sources and Path(data.sources[0].path).exists():
            tokenizer = data.sources[0].path
        if tokenizer is None:
            return recipe.model, data.vocab_size
        return recipe.model, Tokenizer.load(tokenizer, data.eos_token).vocab_size
    folder = Path(recipe.init_folder(direction))
    config = load_config(folder).get_text_config()  # with the defaults of keys that are left out
    file = folder / "config.json"
    _check_architecture(config, file)
    shape = {key: getattr(config, key) for key in ModelConfig.model_fields}
    return as_type(shape, ModelConfig, file), config.vocab_size


def _check_architecture(config: PretrainedConfig, file: Path) -> None:
    """Raise `InputError` for a model whose parameters `count_parameters` would miscount."""
    kind, key = config.model_type, "model_type"
    if kind in _PLANNED:
        unusual = [key for key in ("attention_bias", "mlp_bias") if getattr(config, key, False)]
        if config.num_attention_heads * (config.head_dim or 0) not in (0, config.hidden_size):
            unusual.append("head_dim")
        if not unusual:
            return
        key = unusual[0]
    raise InputError(
        f"key {key} is {getattr(config, key)!r:.80}: the plan is only for {' and '.join(_PLANNED)} "
        "without biases; give a similar shape as the recipe's model, without init_from",
        path=file,
    )
