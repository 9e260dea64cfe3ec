"""The plan's arithmetic, compared with published figures, a built model and hand calculations."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, InputError, LedomError, RecipeError
from ledom.data.packing import pack
from ledom.data.prepare import DataConfig, SourceConfig
from ledom.model.checkpoint import build_model, load_config, save_checkpoint
from ledom.model.presets import PRESETS, ModelConfig
from ledom.text.pair_format import PairFormat
from ledom.train.distributed import ParallelConfig
from ledom.train.estimate import Setup, activation_bytes, count_parameters, make_plan, memory
from ledom.train.loop import packed_losses
from ledom.train.lora import LoraConfig
from ledom.train.objective import ObjectiveConfig
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe, TrainConfig

VOCAB_SIZE = 64_000


def recipe(
    preset: str = "7b",
    steps: int = 103_750,
    parallel: ParallelConfig | None = None,
    **train: object,
) -> Recipe:
    settings = {"batch_size": 512, "seq_len": 8192, **train}
    return Recipe(
        name="test",
        data=DataConfig(vocab_size=VOCAB_SIZE),
        model=ModelConfig.model_validate(preset),
        optim=OptimConfig(steps=steps),
        train=TrainConfig.model_validate(settings),
        parallel=parallel or ParallelConfig(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_counts_equal_those_of_a_built_model(preset):
    config = ModelConfig.model_validate(preset)
    with torch.device("meta"):
        model = build_model(config, SimpleNamespace(vocab_size=VOCAB_SIZE, eos_id=0), seed=0)
    count = count_parameters(config, VOCAB_SIZE)
    assert count.total == sum(weight.numel() for weight in model.parameters())
    layers = sum(w.numel() for name, w in model.named_parameters() if "layers" in name)
    assert count.layer_matrices == layers - 2 * config.num_hidden_layers * config.hidden_size


@pytest.mark.parametrize(("preset", "hours", "implied"), [("7b", 628, 0.45), ("2b", 307, 0.27)])
def test_the_plan_matches_the_published_runs(preset, hours, implied):
    """435B tokens on 64 A100s: the hours imply a utilization, and vice versa."""
    count = count_parameters(ModelConfig.model_validate(preset), VOCAB_SIZE)
    reached = 6 * count.total * 435e9 / (hours * 3600 * 64 * 312e12)
    assert reached == pytest.approx(implied, abs=0.005)
    plan = make_plan(recipe(preset), Setup(64, "a100", utilization=reached))
    assert plan.tokens == pytest.approx(435e9, rel=1e-3)
    assert plan.hours == pytest.approx(hours, rel=1e-3)
    assert plan.tokens_per_second == pytest.approx(435e9 / hours / 3600, rel=1e-3)


def test_matmuls_in_fp32_have_their_own_peak():
    """67 TFLOP/s on an H100 without TF32, where bf16 has 989."""
    bf16, fp32 = (
        make_plan(recipe(precision=precision), Setup(8)) for precision in ("bfloat16", "float32")
    )
    assert fp32.hours / bf16.hours == pytest.approx(989 / 67)
    assert fp32.tokens_per_second == pytest.approx(0.4 * 8 * 67e12 / 6 / fp32.parameters.total)


def test_sizes_on_disk_are_right():
    plan = make_plan(recipe(), Setup(64))
    assert plan.model == pytest.approx(15.59e9, rel=1e-3)  # the published files
    assert plan.data == 2 * plan.tokens  # 64,000 ids fit in 16 bits
    # Weights, Muon's momentum for the layers' matrices, AdamW's two moments for the rest.
    count = plan.parameters
    assert plan.checkpoint == 8 * count.layer_matrices + 12 * (count.total - count.layer_matrices)


SHAPE = ModelConfig(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def test_memory_in_fp32_on_one_device_equals_that_by_hand():
    # Embedding 80; per layer 8*8*2 + 8*4*2 + 3*8*16 = 576 in matrices and 16 in norms; last norm 8.
    part = memory(SHAPE, 10, tokens=5, precision="float32")
    assert part.weights == part.gradients == 4 * (80 + 3 * 592 + 8)
    assert part.optimizer == 4 * 3 * 576 + 8 * (80 + 3 * 16 + 8)
    # A layer keeps 6h + 4h + 4f numbers per token and one per head; the loss keeps 3h and one.
    kept = 4 * (3 * (10 * 8 + 4 * 16 + 2) + 3 * 8 + 1)
    # The loss keeps its logits; it works with logits, the head's gradient and its increment.
    assert part.activations == 5 * kept + 4 * 5 * 10 + 4 * (5 * 10 + 2 * 10 * 8)
    assert part.peak == part.weights + part.optimizer + max(part.gradients, part.activations)
    assert part.checkpoint == part.weights + part.optimizer
    more = memory(SHAPE, 10, tokens=5, precision="float32", accumulate=True)
    assert more.peak == part.weights + part.optimizer + part.gradients + part.activations
    adamw = memory(SHAPE, 10, tokens=5, precision="float32", matrix_optimizer="adamw")
    assert adamw.optimizer == 2 * adamw.weights


def test_activations_equal_what_autograd_saves(tokenizer):
    """Hooks count what the training step's forward pass saves, apart from weights."""
    config = SHAPE.model_copy(update={"hidden_size": 64, "intermediate_size": 176})
    model = build_model(config, tokenizer, seed=0)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    num_tokens = 96
    window = np.arange(num_tokens + 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        packed_losses(model, pack([window], Direction.FORWARD, tokenizer.eos_id)).mean()
    layers, loss = activation_bytes(config, "float32", activation_checkpointing=False)
    logits = 4 * num_tokens * tokenizer.vocab_size  # few enough to be kept
    assert sum(kept.values()) == pytest.approx(num_tokens * (layers + loss) + logits, rel=0.03)


def test_memory_is_sharded_except_for_what_is_in_use():
    whole, quarter = (memory(SHAPE, 10, tokens=5, shards=shards) for shards in (1, 4))
    assert whole.weights == 6 * 1864  # fp32, and autocast's bf16 copies
    assert quarter.weights == 1864 + 2 * (2 * 576 + 136)  # two layers and the rest in bf16
    assert quarter.optimizer == whole.optimizer / 4
    assert quarter.checkpoint == whole.checkpoint / 4
    assert quarter.activations == whole.activations


def test_recomputed_layers_keep_only_their_input():
    (full, loss), (less, same) = (activation_bytes(SHAPE, "float32", r) for r in (False, True))
    assert less == 3 * 4 * 8 + full / 3
    assert same == loss


def test_a_pass_that_does_not_fit_gets_advice_that_works():
    for gpu, tokens, recompute, passes in (("h100", 8192, False, 8), ("a100-40gb", 40960, True, 2)):
        setup = Setup(64, gpu)
        plan = make_plan(recipe(), setup)
        assert not plan.fits
        also = " parallel.activation_checkpointing=true" if recompute else ""
        assert plan.advice == f"does not fit; give parallel.tokens_per_microbatch={tokens}{also}"
        parallel = ParallelConfig(tokens_per_microbatch=tokens, activation_checkpointing=recompute)
        mended = make_plan(recipe(parallel=parallel), setup)
        assert mended.fits
        assert (mended.advice, mended.passes) == (None, passes)
        more = ParallelConfig(
            tokens_per_microbatch=tokens + 8192, activation_checkpointing=recompute
        )
        assert not make_plan(recipe(parallel=more), setup).fits
    hopeless = make_plan(recipe(), Setup(2, "rtx4090"))
    assert "shard over more GPUs" in str(hopeless.advice)


def test_a_contrast_also_reads_wrong_pairs_and_pairs_are_not_split() -> None:
    """Each right pair has a wrong one, and all are processed in one pass."""
    small = recipe("tiny", steps=100, batch_size=8, seq_len=256)
    plain = make_plan(small, Setup())
    objective = ObjectiveConfig(contrastive=1.0, negatives="wrong.jsonl")
    pairs = small.model_copy(update={"objective": objective})
    plan = make_plan(pairs, Setup())
    assert plan.tokens == 2 * plain.tokens == 2 * 100 * 8 * 256
    assert plan.tokens_per_pass == 2 * plain.tokens_per_pass == 2 * 8 * 256
    assert plan.hours == pytest.approx(2 * plain.hours)
    assert plan.memory == memory(pairs.model, VOCAB_SIZE, 2 * 8 * 256)
    with pytest.raises(RecipeError, match="run in one process"):
        make_plan(pairs, Setup(2))
    large = recipe(batch_size=64).model_copy(update={"objective": objective})
    assert make_plan(large, Setup()).advice == (
        "does not fit; lower train.batch_size, since the pairs of a step take one pass"
    )


def test_sharding_within_a_node_needs_more_memory_than_over_all():
    in_node = make_plan(recipe(parallel=ParallelConfig(shard_size=8)), Setup(64))
    over_all = make_plan(recipe(), Setup(64))
    assert in_node.memory.optimizer == 8 * over_all.memory.optimizer
    assert in_node.memory.activations == over_all.memory.activations
    assert in_node.checkpoint == over_all.checkpoint
    alone = make_plan(recipe(parallel=ParallelConfig(shard_size=8)), Setup(1))  # no sharding
    assert alone.memory == make_plan(recipe(), Setup(1)).memory
    with pytest.raises(RecipeError, match=r"shard_size is 8, which does not divide the 12 proc"):
        make_plan(recipe(parallel=ParallelConfig(shard_size=8)), Setup(12))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": 0}, "gpus is 0; it must be at least 1"),
        ({"gpu": "h10"}, "gpu is 'h10'; the known ones are a100, "),
        ({"utilization": 1.5}, r"utilization is 1.5; it must lie in \(0, 1\]"),
    ],
)
def test_an_impossible_setup_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Setup(**settings)


def test_fewer_windows_than_gpus_are_refused():
    with pytest.raises(RecipeError, match="batch_size is 32: too few windows for 64 processes"):
        make_plan(recipe(batch_size=32), Setup(64))


def test_windows_longer_than_the_context_are_refused_as_in_training():
    with pytest.raises(RecipeError, match=r"train.seq_len is 8193: the model's context is 8192"):
        make_plan(recipe(seq_len=8193), Setup(8))


def test_the_shape_may_come_from_the_initial_model(checkpoints, tokenizer, tiny_config):
    start = Recipe(
        name="test",
        init_from=str(checkpoints["forward"].parent / "{direction}"),
        data=DataConfig(train="none.jsonl"),
        optim=OptimConfig(steps=1),
    )
    count = make_plan(start, Setup()).parameters
    assert count == count_parameters(tiny_config, tokenizer.vocab_size)
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder"):
        make_plan(start.model_copy(update={"init_from": "nowhere"}), Setup())
    with pytest.raises(InputError, match="key lora: the plan is for training all weights"):
        make_plan(start.model_copy(update={"lora": LoraConfig()}), Setup())


def test_models_of_both_directions_are_planned(tmp_path, tokenizer, tiny_config):
    """Whichever one exists is used; a plan for two shapes would be wrong for one of them."""
    start = recipe(seq_len=32).model_copy(
        update={"model": None, "init_from": str(tmp_path / "{direction}")}
    )
    deeper = tiny_config.model_copy(update={"num_hidden_layers": 5})
    save_checkpoint(
        tmp_path / "reverse",
        build_model(deeper, tokenizer, 0),
        tokenizer,
        Direction.REVERSE,
        PairFormat(),
    )
    count = make_plan(start, Setup()).parameters
    assert count == count_parameters(deeper, tokenizer.vocab_size)
    shutil.copytree(tmp_path / "reverse", tmp_path / "forward")
    assert make_plan(start, Setup()).parameters == count
    file = tmp_path / "forward" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 2}))
    with pytest.raises(InputError, match="forward and .*reverse have different shapes; name one"):
        make_plan(start, Setup())


def test_the_vocabulary_comes_from_the_initial_model(checkpoints, tokenizer, tiny_config):
    """Even if the recipe repeats its shape, `data.vocab_size` has no effect."""
    start = recipe(seq_len=32).model_copy(
        update={"model": tiny_config, "init_from": str(checkpoints["forward"])}
    )
    assert start.data.vocab_size == VOCAB_SIZE
    count = make_plan(start, Setup()).parameters
    assert count == count_parameters(tiny_config, tokenizer.vocab_size)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_keys_missing_in_a_config_have_the_architectures_defaults(tmp_path, kind):
    """Llama's first configs, for example, name neither key-value heads nor tied weights."""
    shape = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 2}
    config = {"model_type": kind, "num_attention_heads": 16, **shape}
    (tmp_path / "config.json").write_text(json.dumps(config))
    start = recipe(seq_len=64).model_copy(update={"model": None, "init_from": str(tmp_path)})
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(load_config(tmp_path))
    assert make_plan(start, Setup()).parameters.total == built.num_parameters()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[1]", "expected a JSON object, found list"),
        ('{"model_type": "llama", "num_hidden_layers": 0}', "num_hidden_layers is 0; it must be"),
        ('{"model_type": "gpt2", "n_embd": 8}', "key model_type is 'gpt2': the plan is only for"),
        (
            '{"model_type": "gemma", "hidden_size": 8}',
            "key model_type is 'gemma': the plan is only for",
        ),
        ('{"model_type": "llama", "attention_bias": true}', "key attention_bias is True: the plan"),
        (
            '{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "head_dim": 8}',
            "key head_dim is 8: the plan is only",
        ),
        ('{"hidden_size": "wide"}', "hidden_size is 'wide'; it must be a whole number above 0"),
    ],
)
def test_a_damaged_initial_model_is_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    start = recipe().model_copy(update={"model": None, "init_from": str(tmp_path)})
    with pytest.raises(LedomError, match=rf"config\.json: {message}"):
        make_plan(start, Setup())


def test_the_vocabulary_comes_from_the_token_stores_if_they_exist(tmp_path, tokenizer):
    store = tmp_path / "tokens"
    sources = DataConfig(sources=(SourceConfig(path=str(store)),), valid="v", vocab_size=64_000)
    mixed = recipe().model_copy(update={"data": sources})
    assert make_plan(mixed, Setup(64)).parameters.embedding == 64_000 * 3072
    store.mkdir()
    tokenizer.save(store)
    assert make_plan(mixed, Setup(64)).parameters.embedding == tokenizer.vocab_size * 3072
