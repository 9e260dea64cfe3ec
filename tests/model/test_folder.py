"""Which files of a model folder are loaded, and the hash of every byte of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ledom.core.errors import CheckpointError
from ledom.core.reading import read_json_object
from ledom.model import folder as module
from ledom.model.checkpoint import load_checkpoint, read_checkpoint_info
from ledom.model.folder import file_digest, read_config, refuse_quantized, weight_files
from waiting import until


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache for this test, for files of any age and size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_CACHED_BYTES", 0)
    monkeypatch.setattr(module, "_SETTLED_SECONDS", -1.0)
    return tmp_path / "cache" / "ledom" / "digests"


@pytest.fixture
def model(tmp_path: Path, checkpoints: dict[str, Path]) -> Path:
    return Path(shutil.copytree(checkpoints["reverse"], tmp_path / "model"))


def fingerprint(folder: Path, **options: str) -> str:
    return read_checkpoint_info(folder, **options).fingerprint


def test_a_digest_covers_every_byte(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    contents = bytearray(2**24 + 1)
    file.write_bytes(contents)
    assert file_digest(file) == hashlib.sha256(contents).hexdigest()
    contents[-1] = 1
    file.write_bytes(contents)
    assert file_digest(file) == hashlib.sha256(contents).hexdigest()


def test_a_known_file_is_not_read_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    first = file_digest(file)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert file_digest(file) == first


def test_a_changed_file_is_read_again_even_if_it_looks_the_same(tmp_path: Path) -> None:
    """It is written in place, with the same size and modification time."""
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    before, times = file_digest(file), file.stat()
    # Rewrite it until the file system's clock has ticked.
    until(lambda: file.write_bytes(b"1235") and file.stat().st_ctime_ns != times.st_ctime_ns)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_digest(file) != before


def test_the_digest_of_a_file_just_written_is_not_cached(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 60.0)
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    file_digest(file)
    assert not cache.exists()


@pytest.mark.parametrize("kept", [b"", b"{", b"[1, 2]", b"[]", b"null", b"\xff", b"7"])
def test_a_damaged_cache_is_not_trusted(tmp_path: Path, cache: Path, kept: bytes) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    digest = file_digest(file)
    (entry,) = cache.iterdir()
    entry.write_bytes(kept)
    assert file_digest(file) == digest


@pytest.mark.parametrize("place", ["/dev/null", "/proc/ledom"])
def test_it_works_without_a_place_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", place)
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    assert file_digest(file) == hashlib.sha256(b"1234").hexdigest()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_every_loaded_file_affects_the_fingerprint(model: Path, name: str) -> None:
    before = fingerprint(model)
    contents = bytearray((model / name).read_bytes())
    if name.endswith(".json"):
        contents += b" "
    else:
        contents[-1] ^= 1
    (model / name).write_bytes(contents)
    assert fingerprint(model) != before


def test_other_files_do_not_affect_the_fingerprint(model: Path) -> None:
    before = fingerprint(model)
    for name in ("README.md", "optimizer.bin", "other.safetensors", "pytorch_model.bin"):
        (model / name).write_text("not loaded: model.safetensors is there")
    assert fingerprint(model) == before
    assert fingerprint(Path(shutil.copytree(model, model.with_name("copy")))) == before


def test_the_use_of_a_model_affects_the_fingerprint(model: Path) -> None:
    assert fingerprint(model) != fingerprint(model, eos_token="a")
    config = read_json_object(model / "config.json")
    del config["ledom_direction"]
    (model / "config.json").write_text(json.dumps(config))
    assert fingerprint(model, direction="forward") != fingerprint(model, direction="reverse")


def sharded_weights(model: Path) -> Iterator[Path]:
    weights = load_file(model / "model.safetensors")
    shards = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(weights)}
    for shard in sorted(set(shards.values())):
        part = {name: weights[name] for name in weights if shards[name] == shard}
        save_file(part, model / shard, metadata={"format": "pt"})
        yield model / shard
    index = {"metadata": {"total_size": 1}, "weight_map": shards}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    yield model / "model.safetensors.index.json"


def test_a_shard_that_git_has_not_downloaded_is_named(model: Path) -> None:
    shard = next(file for file in list(sharded_weights(model)) if file.suffix == ".safetensors")
    (model / "model.safetensors").unlink()
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match=rf"{shard.name}: .* run 'git lfs pull'$"):
        refuse_quantized(model)


def test_weights_in_shards_affect_the_fingerprint(model: Path) -> None:
    files = list(sharded_weights(model))
    (model / "model.safetensors").unlink()
    assert set(weight_files(model, {})) == set(files)
    before = fingerprint(model)
    with files[0].open("ab") as out:
        out.write(b"0")
    assert fingerprint(model) != before


def test_an_adapter_is_not_mistaken_for_its_base(model: Path) -> None:
    """transformers would load another folder's weights instead of these."""
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "other"}')
    with pytest.raises(CheckpointError, match=r"has an adapter .*merge_and_unload"):
        fingerprint(model)
    (model / "config.json").unlink()  # peft saves only the adapter
    with pytest.raises(CheckpointError, match=r"has an adapter .*merge_and_unload"):
        read_config(model)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_anything_but_a_regular_file_is_refused(model: Path, name: str, kind: str) -> None:
    (model / name).unlink()
    if kind == "pipe":
        os.mkfifo(model / name)
    else:
        (model / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name}: this is a {kind}"):
        fingerprint(model)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.int8, "I8"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.complex64, "C64"),
    ],
)
def test_only_plain_floats_are_weights_without_a_quantization_config(
    model: Path, dtype: torch.dtype, name: str
) -> None:
    weights = load_file(model / "model.safetensors")
    key, tensor = next(item for item in weights.items() if item[0].endswith("weight"))
    save_file(weights | {key: tensor.to(dtype)}, model / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{key}' is stored as {name}, like quantized"):
        load_checkpoint(model)
    config = json.loads((model / "config.json").read_text())
    for settings in ({"quant_method": "modelopt"}, {"bits": 4}, {"quant_method": "fp8"}):
        quantized = config | {"quantization_config": settings}
        (model / "config.json").write_text(json.dumps(quantized))
        known = settings == {"quant_method": "fp8"}  # transformers skips others, or cannot load
        with nullcontext() if known else pytest.raises(CheckpointError, match="no .* transformers"):
            refuse_quantized(model)


def test_a_mask_of_whole_numbers_is_no_weight(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    mask = torch.ones(2, 2, dtype=torch.bool)
    save_file(weights | {"h.0.attn.bias": mask}, model / "model.safetensors")  # as old GPT-2s have
    refuse_quantized(model)
    save_file(weights | {"h.0.attn.weight": mask}, model / "model.safetensors")
    with pytest.raises(CheckpointError, match="'h.0.attn.weight' is stored as BOOL"):
        refuse_quantized(model)


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "weights.safetensors"])
def test_weights_without_their_index_are_to_be_imported(model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / name)
    with pytest.raises(CheckpointError, match=f"no weights here; .* run: ledom import {model}"):
        weight_files(model, {})
    with pytest.raises(CheckpointError, match="expected other.safetensors$"):  # import needs it too
        weight_files(model, {"transformers_weights": "other.safetensors"})


@pytest.mark.parametrize("index", ["{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_refused(model: Path, index: str) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json: no weight_map"):
        fingerprint(model)


def test_the_error_for_a_missing_shard_names_it(model: Path) -> None:
    files = list(sharded_weights(model))
    (model / "model.safetensors").unlink()
    files[1].unlink()
    missing = f"index.json: names the shard '{files[1].name}', which is missing"
    with pytest.raises(CheckpointError, match=re.escape(missing)):
        fingerprint(model)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"[1]", "expected a JSON object, found list"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{", "not JSON: "),
        (b"[" * 10**5 + b"]" * 10**5, "nested more than 64 deep"),
        (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "nested more than 64 deep"),
    ],
)
def test_only_a_json_object_is_accepted(tmp_path: Path, contents: bytes, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(contents)
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        read_json_object(file)


def test_the_error_for_a_run_folder_names_its_model(tmp_path: Path) -> None:
    run = tmp_path / "reverse"
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"/reverse: no config.json here; give .*/model$"):
        read_config(run)
    with pytest.raises(CheckpointError, match=r"no config.json here; give .*/reverse/model$"):
        read_config(tmp_path)  # the folder of both directions
