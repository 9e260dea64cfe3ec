"""`ledom import`: what it writes, what it refuses, and that refusals leave nothing behind."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import ledom
from architectures import tiny
from command_line import Run, check_refused
from ledom.core.errors import CheckpointError
from ledom.lm import embedded_folder
from ledom.model.checkpoint import load_checkpoint
from ledom.model.foreign import importer, tensors
from ledom.model.foreign.importer import ImportOptions, import_model
from ledom.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow
IDS = torch.arange(3, 23)[None]


def change_config(folder: Path, change: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def as_bin(folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Convert its weights to two torch.save files with an index."""
    weights = {k: v.to(dtype) for k, v in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    places = {name: f"pytorch_model-0000{i % 2 + 1}.bin" for i, name in enumerate(weights)}
    for file in set(places.values()):
        torch.save({n: weights[n] for n in weights if places[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_an_imported_model_scores_like_the_original(foreign: Path, tmp_path: Path) -> None:
    made = import_model(str(foreign), tmp_path / "out", ImportOptions("reverse"))
    ours, theirs = ledom.load(made.folder), ledom.load("tiny", "reverse")
    assert (ours.direction, made.eos_token) == (ledom.Direction.REVERSE, "<|end|>")
    text = "Ava has 3 pens.\n\n3 + 4 = 7\n#### 7"
    ids = theirs.add_special_tokens(theirs.tokenizer.encode(text).ids)
    target = [ledom.TokenSpan(ids, 0, len(ids) - 1)]
    np.testing.assert_array_equal(ours.logprobs(target)[0], theirs.logprobs(target)[0])
    record = json.loads((made.folder / "ledom_import.json").read_text())
    assert record["source"] == str(foreign)
    assert set(record["sha256"]) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert sorted(os.listdir(tmp_path)) == ["foreign", "out"]


def test_the_most_likely_special_token_becomes_eos(foreign: Path, tmp_path: Path) -> None:
    """The folder names another one, as LEDOM-7B's config.json does."""
    tokenizer = Tokenizer.load(embedded_folder("reverse"))
    tokenizer.backend.add_special_tokens(["a"])
    tokenizer.eos_token = "a"
    tokenizer.save(foreign)
    made = import_model(str(foreign), tmp_path / "out", ImportOptions("reverse"))
    assert made.eos_token == "<|end|>"
    assert made.notes == ["the document-end token is <|end|>; the source says a"]
    assert ledom.load(made.folder).tokenizer.eos_token == "<|end|>"


def test_other_tokens_that_end_a_text_are_kept(foreign: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(foreign)
    tokenizer.backend.add_special_tokens(["a"])
    tokenizer.save(foreign)
    ends = [tokenizer.token_id("b"), tokenizer.token_id("a"), tokenizer.eos_id]
    (foreign / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    made = import_model(str(foreign), tmp_path / "out", ImportOptions("reverse", check=False))
    config = json.loads((made.folder / "config.json").read_text())
    assert config["eos_token_id"] == [tokenizer.eos_id, tokenizer.token_id("a")]
    assert ledom.load(made.folder).stop_ids == {tokenizer.eos_id, tokenizer.token_id("a")}


def test_a_tokenizer_larger_than_the_model_is_refused(foreign: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(foreign)
    tokenizer.backend.add_tokens(["<|extra|>"])
    tokenizer.save(foreign)
    with pytest.raises(CheckpointError, match="has 2049 tokens, the model only 2048;"):
        import_model(str(foreign), tmp_path / "out", ImportOptions("reverse"))


def assert_same_logits(folder: Path, made: Path) -> None:
    """Check that the import's logits are bit-identical to transformers' on the source."""
    plain, ours = (
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()(IDS).logits
        for place in (folder, made)
    )
    torch.testing.assert_close(ours, plain, atol=0, rtol=0)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_single_file_takes_precedence_over_shards_as_in_transformers(
    tmp_path: Path, tokenizer: Tokenizer, suffix: str
) -> None:
    """The model was saved first in shards, then in a single file."""
    folder = tmp_path / "in"
    tiny("llama", tokenizer).save_pretrained(folder)
    tokenizer.save(folder)
    weights = load_file(folder / "model.safetensors")
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    old = {name: value + 1 for name, value in weights.items()}
    (folder / "model.safetensors").unlink()
    for file, held in ((f"{stem}.{suffix}", weights), (f"{stem}-1.{suffix}", old)):
        if suffix == "bin":
            torch.save(held, folder / file)
        else:
            save_file(held, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, f"{stem}-1.{suffix}")}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    made = import_model(str(folder), tmp_path / "out", ImportOptions("forward", check=False))
    assert_same_logits(folder, made.folder)


def test_an_adapter_next_to_the_weights_is_refused(foreign: Path, tmp_path: Path) -> None:
    """transformers would add it to the weights."""
    (foreign / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="foreign: has an adapter .*; merge it into its base"):
        import_model(str(foreign), tmp_path / "out", ImportOptions("reverse"))


def test_the_weights_named_by_the_config_are_used(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "in"
    tiny("llama", tokenizer).save_pretrained(folder)
    tokenizer.save(folder)
    other = {name: value + 1 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(other, folder / "other.safetensors", metadata={"format": "pt"})
    change_config(folder, lambda config: config | {"transformers_weights": "other.safetensors"})
    made = import_model(str(folder), tmp_path / "out", ImportOptions("forward", check=False))
    assert_same_logits(folder, made.folder)
    ledom.load(made.folder)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_a_separate_head_is_kept_whatever_the_config_says(
    tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    """transformers unties weights that a config ties if the files contain two different ones."""
    folder = tmp_path / "in"
    tiny(kind, tokenizer, tie_word_embeddings=False).save_pretrained(folder)
    tokenizer.save(folder)
    change_config(folder, lambda config: config | {"tie_word_embeddings": True})
    made = import_model(str(folder), tmp_path / "out", ImportOptions("forward", check=False))
    assert made.notes == ["the head is not the embedding, although config.json ties them"]
    assert_same_logits(folder, made.folder)


@pytest.mark.parametrize(
    "kind",
    [
        "apertus",  # stored buffers
        "camembert",  # the tied head precedes the embedding, whose name is in the file
        "mamba2",  # an infinity in config.json
        "gemma3n_text",
    ],
)
@torch.no_grad()
def test_everything_in_a_file_is_kept(tmp_path: Path, tokenizer: Tokenizer, kind: str) -> None:
    model = tiny(kind, tokenizer)
    stored = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in stored and buffer.is_floating_point():
            buffer += 0.5
    model.save_pretrained(tmp_path / "in")
    tokenizer.save(tmp_path / "in")
    made = import_model(
        str(tmp_path / "in"), tmp_path / "out", ImportOptions("forward", check=False)
    )
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "in", dtype=torch.float32).eval()
    ours = load_checkpoint(made.folder).model
    torch.testing.assert_close(ours(IDS).logits, plain(IDS).logits, atol=1e-5, rtol=0)


def test_the_refusal_of_renamed_weights_names_a_remedy(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    tiny("mixtral", tokenizer).save_pretrained(tmp_path / "in")
    tokenizer.save(tmp_path / "in")
    with pytest.raises(CheckpointError, match=r"not part of a mixtral .*without importing it"):
        import_model(str(tmp_path / "in"), tmp_path / "out", ImportOptions("forward"))
    assert ledom.load(tmp_path / "in", "forward").num_parameters > 0


def older_state(kind: str, model: Any) -> dict[str, torch.Tensor]:
    """Weights as saved by older versions: other names, and buffers that are now computed."""
    state = {name: weight.half() for name, weight in model.state_dict().items()}
    mask = torch.ones(1, 1, 64, 64)
    if kind == "gpt2":
        named = {name.removeprefix("transformer."): weight for name, weight in state.items()}
        del named["lm_head.weight"]  # the embedding
        return named | {"h.0.attn.bias": mask}
    state["embed_out.weight"] = state.pop("lm_head.weight")
    layer = "gpt_neox.layers.0.attention"
    buffers = {
        "bias": mask,
        "masked_bias": torch.tensor(-1e9),
        "rotary_emb.inv_freq": torch.ones(4),
    }
    return state | {f"{layer}.{name}": value for name, value in buffers.items()}


@pytest.mark.parametrize(
    ("kind", "embedding"),
    [("gpt2", "transformer.wte.weight"), ("gpt_neox", "gpt_neox.embed_in.weight")],
)
def test_older_formats_give_the_same_results(
    tmp_path: Path, checkpoints: dict[str, Path], tokenizer: Tokenizer, kind: str, embedding: str
) -> None:
    """In fp16, as one .bin file, with the tokenizer from another folder."""
    model, folder = tiny(kind, tokenizer), tmp_path / "in"
    folder.mkdir()
    torch.save(older_state(kind, model), folder / "pytorch_model.bin")
    model.config.save_pretrained(folder)
    options = ImportOptions("reverse", checkpoints["reverse"], check=False)
    made = import_model(str(folder), tmp_path / "out", options)
    with torch.no_grad():
        found, expected = load_checkpoint(made.folder).model(IDS), model.half().float()(IDS)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    assert load_file(made.folder / "model.safetensors")[embedding].dtype == torch.float16


def test_shards_are_read_and_written(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(foreign / "model.safetensors")
    as_bin(foreign, torch.bfloat16)
    for name in ("_SHARD", "_MAPPED"):
        monkeypatch.setattr(tensors, name, 2**20)
    monkeypatch.setattr(tensors, "_PIECE", 1000)
    made = import_model(str(foreign), tmp_path / "out", ImportOptions("reverse", check=False))
    shards = sorted(made.folder.glob("*.safetensors"))
    assert len(shards) > 3
    found = {k: v for shard in shards for k, v in load_file(shard).items()}
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found)
    assert all(torch.equal(found[name], weights[name].bfloat16()) for name in found)
    assert ledom.load(made.folder, dtype="bfloat16").num_parameters > 2e6


def damage(what: str, folder: Path) -> None:
    """Damage a foreign folder in one way."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "model.norm.weight"
    if what == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif what == "shape":
        save_file(weights | {name: torch.ones(7)}, file)
    elif what == "missing":
        save_file({k: v for k, v in weights.items() if k != name}, file)
    elif what == "unknown":
        save_file(weights | {"model.extra": torch.ones(7)}, file)
    elif what == "none":
        file.unlink()
    elif what == "pipe":
        file.unlink()
        os.mkfifo(file)
    elif what == "shard":
        as_bin(folder)
        (folder / "pytorch_model-00002.bin").unlink()
    elif what == "elsewhere":
        (folder / "inside").mkdir()
        (folder / "model.safetensors").rename(folder / "inside" / "model.safetensors")
        index = {"weight_map": {name: "inside/model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif what in ("cut bin", "pickle", "zipped pickle", "nested"):
        as_bin(folder)
        file, touches = folder / "pytorch_model-00001.bin", Touches(folder / "ran")
        if what == "cut bin":
            file.write_bytes(file.read_bytes()[:5000])
        elif what == "pickle":
            file.write_bytes(pickle.dumps(touches, 2))
        else:
            torch.save({"step": 1, "model": {}} if what == "nested" else {name: touches}, file)
    elif what == "code":
        auto_map = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
        (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
        change_config(folder, lambda config: config | {"auto_map": auto_map, "model_type": "own"})
    elif what == "quantized":
        quantized = {"quantization_config": {"quant_method": "gptq"}}
        change_config(folder, lambda config: config | quantized)
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "no type":
        change_config(folder, lambda config: {k: v for k, v in config.items() if k != "model_type"})


class Touches:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("cut", ["model.safetensors: truncated or damaged"]),
        ("shape", ["'model.norm.weight' has the shape [7], config.json needs [192]"]),
        ("missing", ["lack 1 tensors", "'model.norm.weight'"]),
        ("unknown", ["'model.extra' is not part of a llama model"]),
        ("none", ["no weights here"]),
        ("pipe", ["model.safetensors: this is a pipe"]),
        ("shard", ["names the shard 'pytorch_model-00002.bin', which is missing"]),
        ("elsewhere", ["names the shard 'inside/model.safetensors', which is missing"]),
        ("cut bin", ["pytorch_model-00001.bin: truncated or damaged"]),
        ("pickle", ["pytorch_model-00001.bin: is a pickle that calls"]),
        ("zipped pickle", ["pytorch_model-00001.bin: is a pickle that calls"]),
        ("nested", ["pytorch_model-00001.bin: holds step, model, expected tensors by name; save"]),
        ("code", ["needs its own Python code, which ledom does not run"]),
        ("quantized", ["quantized"]),
        ("no config", ["no config.json here"]),
        ("no type", ["model_type is None"]),
    ],
)
def test_bad_folders_are_refused_in_one_line(
    run: Run, foreign: Path, tmp_path: Path, what: str, parts: list[str]
) -> None:
    damage(what, foreign)
    result = run("import", foreign, "--direction", "reverse", "--out", tmp_path / "out")
    check_refused(result, *parts)
    assert not (foreign / "ran").exists()
    assert os.listdir(tmp_path) == ["foreign"]


def test_bad_arguments_are_refused_in_one_line(run: Run, foreign: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_refused(run("import", "ledom-9b", "--out", out), "ledom-9b", "ledom-7b, ledom-2b")
    without = run("import", foreign, "--out", out)
    check_refused(without, "records no direction", "--direction")
    check_refused(run("import", foreign, "--direction", "up", "--out", out), "'up'")
    given = ("import", foreign, "--direction", "reverse")
    check_refused(run(*given, "--out", foreign), "exists already")
    check_refused(run(*given, "--out", out, "--softcap", 20), "--softcap 20")
    check_refused(run(*given, "--out", out, "--revision", "main"), "--revision main")
    check_refused(run(*given, "--out", out, "--eos-token", "<x>"), "has no token '<x>'")
    check_refused(run(*given, "--out", out, "--tokenizer", tmp_path / "no"), "no tokenizer here")
    check_refused(run("import", foreign / "config.json", "--out", out), "expected a model folder")
    check_refused(run(*given, "--out", foreign / "config.json" / "x"), "not a folder")
    assert os.listdir(tmp_path) == ["foreign"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_stopped_import_leaves_nothing_behind(
    run: Run, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    pieces = tensors._file_pieces

    def stopped(file: Path, start: int, count: int) -> Any:
        def read() -> Any:
            yield from pieces(file, start, count)()
            if start > 10**6:
                raise stop

        return read

    monkeypatch.setattr(tensors, "_file_pieces", stopped)
    result = run("import", foreign, "--direction", "reverse", "--out", tmp_path / "out")
    if isinstance(stop, OSError):
        check_refused(result, "out: cannot be written: No space left on device")
    else:
        assert result[0] == 130
    assert os.listdir(tmp_path) == ["foreign"]


def test_a_disk_that_is_too_small_is_refused_before_any_work(
    run: Run, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=1_000)
    monkeypatch.setattr(importer.shutil, "disk_usage", lambda folder: usage)
    result = run("import", foreign, "--direction", "reverse", "--out", tmp_path / "out")
    size = os.path.getsize(foreign / "model.safetensors") / 1e6  # with a header of a few kB
    check_refused(result, f"needs {size:.1f} MB, but 0.0 MB are free", "another disk")


def test_load_says_which_command_to_run(foreign: Path, tmp_path: Path) -> None:
    as_bin(foreign)
    (tmp_path / "x.gguf").touch()
    for name, remedy in {
        "ledom-7b": "ledom import ledom-7b --out ledom-7b",
        "Corning/LEDOM-2B": "ledom import Corning/LEDOM-2B --out LEDOM-2B",
        str(foreign): f"ledom import {foreign} --out foreign-imported",
        str(tmp_path / "x.gguf"): "x.gguf --out x-imported",
    }.items():
        with pytest.raises(CheckpointError) as caught:
            ledom.load(name, "reverse")
        assert remedy in str(caught.value)
