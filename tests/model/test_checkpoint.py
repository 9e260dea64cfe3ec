import json
import logging
import os
import shutil
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models
from transformers import AutoConfig

from architectures import tiny
from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, DirectionError, InputError, OutputError
from ledom.model.architectures import longest_text
from ledom.model.checkpoint import (
    build_model,
    load_checkpoint,
    load_config,
    quiet,
    readable,
    save_checkpoint,
)
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer, train_tokenizer

IDS = torch.tensor([[0, 40, 41, 42, 99, 7]])


@pytest.fixture
def folder(tmp_path, checkpoints):
    """A copy of the reverse model's folder that tests can damage."""
    return shutil.copytree(checkpoints["reverse"], tmp_path / "model")


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    kept = {key: value for key, value in config.items() if value != "REMOVE"}
    (folder / "config.json").write_text(json.dumps(kept))


def test_equal_seeds_give_equal_weights(tokenizer, tiny_config):
    first, again, other = (build_model(tiny_config, tokenizer, seed) for seed in (3, 3, 4))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert first.config.vocab_size == tokenizer.vocab_size


@pytest.mark.slow
def test_a_vocabulary_with_gaps_has_room_for_its_largest_id(tmp_path, tiny_config):
    vocabulary = {"<|end|>": 0, "a": 1, "b": 9}
    holes = Tokenizer(RustTokenizer(models.WordLevel(vocabulary, unk_token="a")))
    model = build_model(tiny_config, holes, 0)
    assert model.config.vocab_size == 10
    save_checkpoint(tmp_path / "m", model, holes, Direction.FORWARD, PairFormat())
    (ids,) = load_checkpoint(tmp_path / "m").tokenizer.encode_ids(["b"])
    assert model(torch.tensor([ids])).logits.shape == (1, 1, 10)


@pytest.mark.parametrize("direction", Direction)
def test_a_saved_model_is_loaded_unchanged(tmp_path, tokenizer, tiny_config, direction):
    model = build_model(tiny_config, tokenizer, 0)
    pair_format = PairFormat("Q {question} A {solution}")
    save_checkpoint(tmp_path / "m", model, tokenizer, direction, pair_format)
    loaded = load_checkpoint(tmp_path / "m")
    assert loaded.direction is direction
    assert loaded.pair_format == pair_format
    assert loaded.bos_ids == [tokenizer.eos_id]
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    assert not loaded.model.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name])
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, loaded.model(IDS).logits)


def test_weights_can_be_saved_in_bf16(tmp_path, tokenizer, tiny_config):
    model = build_model(tiny_config, tokenizer, 0)
    save_checkpoint(
        tmp_path / "m", model, tokenizer, Direction.FORWARD, PairFormat(), torch.bfloat16
    )
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    assert model.dtype == torch.float32  # the model in memory is unchanged
    loaded = load_checkpoint(tmp_path / "m").model
    assert loaded.dtype == torch.float32
    for name, weight in model.state_dict().items():
        assert torch.equal(weight.bfloat16().float(), loaded.state_dict()[name])
    assert load_checkpoint(tmp_path / "m", dtype=torch.bfloat16).model.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_tied_weights_are_stored_once_and_load_tied(tmp_path, tokenizer, tiny_config, dtype):
    model = build_model(tiny_config, tokenizer, 0)
    save_checkpoint(tmp_path / "m", model, tokenizer, Direction.FORWARD, PairFormat(), dtype)
    assert "lm_head.weight" not in load_file(tmp_path / "m" / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "m").model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_loading_prints_nothing(tmp_path, tokenizer, tiny_config, capfd):
    model = build_model(tiny_config, tokenizer, 0)
    save_checkpoint(tmp_path / "m", model, tokenizer, Direction.FORWARD, PairFormat())
    load_checkpoint(tmp_path / "m")
    assert capfd.readouterr() == ("", "")


def test_the_direction_survives_save_pretrained(tmp_path, checkpoints):
    loaded = load_checkpoint(checkpoints["reverse"])
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["ledom_direction"] == "reverse"
    assert load_checkpoint(tmp_path).direction is Direction.REVERSE


@pytest.mark.parametrize("asked", ["forward", Direction.FORWARD])
def test_the_wrong_direction_is_refused(checkpoints, asked):
    with pytest.raises(DirectionError, match="a reverse model, used as forward"):
        load_checkpoint(checkpoints["reverse"], asked)
    assert load_checkpoint(checkpoints["forward"], asked).direction is Direction.FORWARD


def test_a_foreign_checkpoint_needs_an_explicit_direction(folder):
    change_config(folder, ledom_direction="REMOVE", ledom_pair_format="REMOVE")
    with pytest.raises(DirectionError, match="records no direction"):
        load_checkpoint(folder)
    with pytest.raises(InputError, match="'sideways'; give forward or reverse"):
        load_checkpoint(folder, "sideways")
    forward = load_checkpoint(folder, "forward")
    assert forward.direction is Direction.FORWARD
    assert forward.pair_format == PairFormat()
    assert forward.bos_ids == load_checkpoint(folder, "reverse").bos_ids == [0]


def test_an_unknown_recorded_direction_is_refused(folder):
    change_config(folder, ledom_direction="sideways")
    with pytest.raises(DirectionError, match="config.json: direction is 'sideways'"):
        load_checkpoint(folder)


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_truncated_weights_are_refused(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="model.safetensors: damaged"):
        load_checkpoint(folder)


def test_weights_that_lack_a_tensor_are_refused(folder):
    """transformers would initialize it randomly and continue."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    lacks = r"the weights lack model\.layers\.1\.mlp\.up_proj\.weight"
    with pytest.raises(CheckpointError, match=f"{lacks}; the file"):
        load_checkpoint(folder)
    weights["_orig_mod.up_proj.weight"] = torch.ones(3)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{lacks} and have '_orig_mod.up_proj.weight'; the"):
        load_checkpoint(folder)


@pytest.mark.slow
def test_a_missing_expert_is_named_as_the_reason(tmp_path, tokenizer):
    """transformers refers to a report that it has logged."""
    model = tiny("qwen3_moe", tokenizer)
    save_checkpoint(tmp_path / "m", model, tokenizer, Direction.FORWARD, PairFormat())
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.0.mlp.experts.2.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="cannot be loaded: experts or scales are missing"):
        load_checkpoint(tmp_path / "m")


def test_weights_of_another_shape_are_refused(folder):
    change_config(folder, intermediate_size=128)
    with pytest.raises(CheckpointError, match=r"down_proj.weight' has the shape \[32, 64\]"):
        load_checkpoint(folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_the_error_for_a_missing_file_names_it(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=f"(?s){folder}.*{missing}"):
        load_checkpoint(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings", "context"),
    [
        ("llama", {"max_position_embeddings": 64, "sliding_window": 20}, 64),
        ("gpt2", {"n_positions": 48}, 48),
        ("mpt", {"max_seq_len": 40}, 40),
        ("gemma3", {"text_config": {"max_position_embeddings": 33}}, 33),
        ("mamba", {}, 2**31 - 1),
        ("bloom", {}, 2**31 - 1),
        ("whisper", {"max_target_positions": 30}, 30),
        ("roberta", {"max_position_embeddings": 50, "pad_token_id": 1}, 48),  # positions 2 to 49
        ("camembert", {"max_position_embeddings": 50, "pad_token_id": 0}, 49),
    ],
)
def test_the_context_is_read_from_the_architectures_own_key(tmp_path, kind, settings, context):
    AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    assert longest_text(load_config(tmp_path)) == context


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none: no such folder"):
        load_checkpoint(tmp_path / "none")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"model_type": "none"}', '{"model_type": "llama", "hidden_size": "x"}'],
)
def test_a_damaged_config_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, "reverse")
    assert str(caught.value).startswith(f"{folder}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_attention_heads", 0, "is 0; it must be a whole number above 0"),
        ("num_hidden_layers", 10**9, "is 1000000000; it must lie from 0 to 10000"),
        ("num_hidden_layers", -1, "is -1; it must be a whole number above 0"),
        ("hidden_size", "32", "is '32'; it must be"),
        ("vocab_size", 400.5, "is 400.5; it must be"),
        ("ledom_pair_format", 3, "is 3; it must be a string"),
        ("ledom_pair_format", "{question}", "pair format '{question}' needs"),
        ("ledom_solution_style", ["plain"], "is ['plain']; it must be a string"),
        ("ledom_solution_style", "verse", "solution style 'verse'; the styles are as written"),
    ],
)
def test_the_error_for_a_bad_config_value_names_it(folder, key, value, message):
    change_config(folder, **{key: value})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    prefix = "" if "style '" in message or "pair format '" in message else f"{key} "
    assert str(caught.value).startswith(f"{folder / 'config.json'}: {prefix}{message}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 9999, "1.0e+07 weights (9999 layers of width 32, 400 tokens)"),
        ("vocab_size", 10**9, "3.2e+10 weights (2 layers of width 32, 1000000000 tokens)"),
    ],
)
def test_a_config_that_does_not_match_the_weights_is_refused_early(folder, key, value, message):
    change_config(folder, **{key: value})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert f"describes at least {message}; the folder has " in str(caught.value)


class Opens:
    """An object whose pickle does something when it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_without_running_it(folder, tmp_path, legacy):
    (folder / "model.safetensors").unlink()
    weights = {"lm_head.weight": Opens(tmp_path / "ran")}
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="no weights here; .* run: ledom import") as caught:
        load_checkpoint(folder)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_models_custom_code_is_refused(folder):
    change_config(
        folder, model_type="other", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "c.M"}
    )
    with pytest.raises(CheckpointError, match="needs its own Python code"):
        load_checkpoint(folder)


def test_a_tokenizer_larger_than_the_model_is_refused(folder, problems):
    texts = [p.question for p in problems]
    train_tokenizer(texts, 450).save(folder)
    with pytest.raises(CheckpointError, match="the tokenizer has 450 tokens, the model only 400"):
        load_checkpoint(folder)


def test_saving_replaces_the_whole_folder(tmp_path, folder, tokenizer, tiny_config):
    (folder / "leftover").touch()
    model = build_model(tiny_config, tokenizer, 8)
    save_checkpoint(folder, model, tokenizer, Direction.FORWARD, PairFormat())
    assert not (folder / "leftover").exists()
    assert load_checkpoint(folder).direction is Direction.FORWARD
    assert os.listdir(tmp_path) == ["model"]


def test_a_failed_save_leaves_the_old_folder(tmp_path, folder, tokenizer, tiny_config, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", full)
    model = build_model(tiny_config, tokenizer, 8)
    with pytest.raises(OutputError, match="model: cannot be written: .*No space left"):
        save_checkpoint(folder, model, tokenizer, Direction.FORWARD, PairFormat())
    assert load_checkpoint(folder).direction is Direction.REVERSE
    assert os.listdir(tmp_path) == ["model"]


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path, tokenizer, tiny_config):
    (tmp_path / "file").touch()
    model = build_model(tiny_config, tokenizer, 0)
    with pytest.raises(OutputError, match="file/model: cannot be written"):
        save_checkpoint(
            tmp_path / "file" / "model", model, tokenizer, Direction.FORWARD, PairFormat()
        )


def test_too_little_memory_is_not_blamed_on_the_folder():
    full = RuntimeError("unable to mmap 9 bytes from file </model>: Cannot allocate memory (12)")
    with pytest.raises(RuntimeError) as caught, readable("model"):
        raise full
    assert caught.value is full


def test_warnings_return_when_the_last_of_several_quiet_blocks_ends():
    """Two threads may load models at the same time."""
    shown = []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with ExitStack() as second:
            with quiet():
                second.enter_context(quiet())
                logger.warning("in both blocks")
            logger.warning("in the second block")
            logger.error("an error")
        logger.warning("in neither")
    finally:
        logger.removeHandler(handler)
    assert shown == ["an error", "in neither"]
