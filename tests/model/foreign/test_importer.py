"""`ledom import`: what it writes, what it refuses, and that nothing is left behind then."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

import ledom
from architectures import tiny
from command_line import Run, check_refused
from ledom.core.errors import CheckpointError, InputError
from ledom.lm import embedded_folder
from ledom.model.architectures import longest_text
from ledom.model.checkpoint import load_checkpoint
from ledom.model.foreign import check, importer, tensors
from ledom.model.foreign.importer import ImportOptions, import_model
from ledom.text.tokenizer import Tokenizer

IDS = torch.arange(3, 23)[None]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """The embedded reverse model, as someone who does not know ledom would publish it."""
    folder = tmp_path / "foreign"
    shutil.copytree(embedded_folder("reverse"), folder)
    change_config(folder, lambda config: {k: v for k, v in config.items() if "ledom" not in k})
    return folder


def change_config(folder: Path, change: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def as_bin(folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Its weights in two files of torch.save, with an index."""
    weights = {k: v.to(dtype) for k, v in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    places = {name: f"pytorch_model-0000{i % 2 + 1}.bin" for i, name in enumerate(weights)}
    for file in set(places.values()):
        torch.save({n: weights[n] for n in weights if places[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_an_imported_model_scores_as_the_original(foreign: Path, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_the_other_direction_is_refused(run: Run, foreign: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("import", foreign, "--direction", "forward", "--out", out)
    check_refused(result, "does not look like a forward model", "--direction reverse", "--no-check")
    assert not out.exists()
    code, text = run("import", foreign, "--direction", "forward", "--no-check", "--out", out)
    assert code == 0, text
    assert ledom.load(out).direction is ledom.Direction.FORWARD


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "embedded",
        "bloom",  # without a longest text
        "mamba2",  # a module reads another's weights: without them PyTorch returns noise
        "apertus",  # buffers that are stored
        "camembert",  # tied
        "gemma4",  # needs to be in memory as a whole
    ],
)
def test_the_check_measures_as_transformers_does(
    foreign: Path, tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    """One text at a time, the whole model in memory."""
    if kind != "embedded":
        foreign = tmp_path / "other"
        made = tiny(kind, tokenizer, max_position_embeddings=256)
        made.save_pretrained(foreign)
        tokenizer.save(foreign)
    model = AutoModelForCausalLM.from_pretrained(foreign, dtype=torch.float32).eval()
    tokenizer = Tokenizer.load(foreign)
    found = check.check_model(foreign, model.config, tokenizer.backend, ledom.Direction.REVERSE)
    context = longest_text(model.config)
    sums, count, ends = {1: 0.0, -1: 0.0}, 0, []
    for text in check.TEXTS:
        ids = torch.tensor(tokenizer.encode(text).ids[:context])
        count += len(ids) - 1
        for step in sums:
            order = ids if step == 1 else ids.flip(0)
            with torch.no_grad():
                logprobs = model(order[None]).logits[0].log_softmax(-1)
            sums[step] -= logprobs[:-1].gather(1, order[1:, None]).sum().item()
        ends.append(logprobs[-1, tokenizer.eos_id].item())
    assert found.forward_loss == pytest.approx(sums[1] / count, rel=1e-4)
    assert found.reverse_loss == pytest.approx(sums[-1] / count, rel=1e-4)
    assert found.eos_token == tokenizer.eos_token
    assert found.eos_probability == pytest.approx(np.exp(np.mean(ends)), rel=1e-3)


@pytest.mark.slow
def test_the_likeliest_special_token_becomes_eos(foreign: Path, tmp_path: Path) -> None:
    """The folder says another one, as LEDOM-7B's config.json does."""
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
    tokenizer.backend.add_special_tokens(["<|extra|>"])
    tokenizer.save(foreign)
    with pytest.raises(CheckpointError, match="has the id 2048, the model only 2048 tokens"):
        import_model(str(foreign), tmp_path / "out", ImportOptions("reverse"))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_single_file_comes_before_shards_as_in_transformers(
    tmp_path: Path, tokenizer: Tokenizer, suffix: str
) -> None:
    """A model that was saved once in shards, and again in one file."""
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
    plain, ours = (
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()(IDS).logits
        for place in (folder, made.folder)
    )
    torch.testing.assert_close(ours, plain, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_a_head_of_its_own_is_kept_whatever_the_config_says(
    tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    """transformers unties weights that a config ties, if the files hold two that differ."""
    tiny(kind, tokenizer, tie_word_embeddings=False).save_pretrained(tmp_path / "in")
    tokenizer.save(tmp_path / "in")
    change_config(tmp_path / "in", lambda config: config | {"tie_word_embeddings": True})
    made = import_model(
        str(tmp_path / "in"), tmp_path / "out", ImportOptions("forward", check=False)
    )
    assert made.notes == ["the head is not the embedding, although config.json ties them"]
    plain, ours = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits
        for folder in (tmp_path / "in", made.folder)
    )
    torch.testing.assert_close(ours, plain, atol=0, rtol=0)


@pytest.mark.parametrize(
    "kind",
    [
        "apertus",  # buffers that are stored
        "camembert",  # the tied head comes before the embedding, whose name the file has
        "mamba2",  # an infinity in config.json
        "gemma3n_text",
    ],
)
@torch.no_grad()
def test_what_a_file_holds_is_all_kept(tmp_path: Path, tokenizer: Tokenizer, kind: str) -> None:
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


def test_weights_with_other_names_in_files_are_refused_with_a_remedy(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    tiny("mixtral", tokenizer).save_pretrained(tmp_path / "in")
    tokenizer.save(tmp_path / "in")
    with pytest.raises(CheckpointError, match=r"not part of a mixtral .*without an import"):
        import_model(str(tmp_path / "in"), tmp_path / "out", ImportOptions("forward"))
    assert ledom.load(tmp_path / "in", "forward").num_parameters > 0


@pytest.mark.parametrize("kind", ["gpt2", "neox"])
def test_older_formats_compute_the_same(
    tmp_path: Path, checkpoints: dict[str, Path], kind: str
) -> None:
    """Names without the model's prefix, buffers that are computed today, fp16 in .bin files."""
    torch.manual_seed(0)
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=400,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=64,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        state = {
            k.removeprefix("transformer."): v.half()
            for k, v in model.transformer.state_dict().items()
        }
        state["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    else:
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=400,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=64,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        state = {k: v.half() for k, v in model.state_dict().items()}
        state["embed_out.weight"] = state.pop("lm_head.weight")
        state |= {
            "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 64, 64),
            "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
        }
    folder = tmp_path / kind
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    model.config.save_pretrained(folder)
    options = ImportOptions("reverse", checkpoints["reverse"], check=False)
    made = import_model(str(folder), tmp_path / "out", options)
    expected = model.half().float().eval()
    found = load_checkpoint(made.folder).model
    with torch.no_grad():
        torch.testing.assert_close(found(IDS).logits, expected(IDS).logits, atol=1e-5, rtol=0)
    assert (
        load_file(made.folder / "model.safetensors")[
            next(iter(state)) if kind == "neox" else "transformer.wte.weight"
        ].dtype
        == torch.float16
    )


@pytest.mark.slow
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
    """Make a foreign folder bad in one way."""
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
    elif what == "shard":
        as_bin(folder)
        (folder / "pytorch_model-00002.bin").unlink()
    elif what == "elsewhere":
        (folder / "inside").mkdir()
        (folder / "model.safetensors").rename(folder / "inside" / "model.safetensors")
        index = {"weight_map": {name: "inside/model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif what == "cut bin":
        as_bin(folder)
        file = folder / "pytorch_model-00001.bin"
        file.write_bytes(file.read_bytes()[:5000])
    elif what == "pickle":
        as_bin(folder)
        (folder / "pytorch_model-00001.bin").write_bytes(pickle.dumps(Touches(folder / "ran"), 2))
    elif what == "zipped pickle":
        as_bin(folder)
        torch.save({name: Touches(folder / "ran")}, folder / "pytorch_model-00001.bin")
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
        ("cut", ["model.safetensors: cut short or damaged"]),
        ("shape", ["'model.norm.weight' has the shape [7], config.json needs [192]"]),
        ("missing", ["lack 1 tensors", "'model.norm.weight'"]),
        ("unknown", ["'model.extra' is not part of a llama model"]),
        ("none", ["no weights here"]),
        ("shard", ["names the shard 'pytorch_model-00002.bin', which is missing"]),
        ("elsewhere", ["names the shard 'inside/model.safetensors', which is missing"]),
        ("cut bin", ["pytorch_model-00001.bin: cut short or damaged"]),
        ("pickle", ["pytorch_model-00001.bin: is a pickle that calls"]),
        ("zipped pickle", ["pytorch_model-00001.bin: is a pickle that calls"]),
        ("code", ["runs no code that comes with a model"]),
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
    check_refused(
        run("import", foreign, "--out", out), "--direction forward or --direction reverse"
    )
    check_refused(run("import", foreign, "--direction", "up", "--out", out), "'up'")
    given = ("import", foreign, "--direction", "reverse")
    check_refused(run(*given, "--out", foreign), "exists already")
    check_refused(run(*given, "--out", out, "--softcap", 20), "--softcap 20")
    check_refused(run(*given, "--out", out, "--revision", "main"), "--revision main")
    check_refused(run(*given, "--out", out, "--eos-token", "<x>"), "no such token")
    check_refused(run(*given, "--out", out, "--tokenizer", tmp_path / "no"), "no tokenizer here")
    check_refused(run("import", foreign / "config.json", "--out", out), "expected a model folder")
    check_refused(run(*given, "--out", foreign / "config.json" / "x"), "is a file")
    assert os.listdir(tmp_path) == ["foreign"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_an_import_that_was_stopped(
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
    usage = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr(importer.shutil, "disk_usage", lambda folder: usage)
    result = run("import", foreign, "--direction", "reverse", "--out", tmp_path / "out")
    check_refused(result, "GB are free", "another disk")


def test_load_says_what_to_run(foreign: Path, tmp_path: Path) -> None:
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


class Hub:
    """A hub with one repository: a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sha256: dict[str, str] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.fetched: list[str] = []

    def model_info(self, repo: str, revision: str | None, files_metadata: bool) -> Any:
        self.asked.append((repo, revision))
        assert files_metadata
        names = [
            f.relative_to(self.folder).as_posix() for f in self.folder.rglob("*") if f.is_file()
        ]
        lfs = {name: SimpleNamespace(sha256=value) for name, value in self.sha256.items()}
        siblings = [SimpleNamespace(rfilename=name, lfs=lfs.get(name)) for name in names]
        return SimpleNamespace(sha="c0ffee", siblings=siblings)

    def snapshot_download(self, repo: str, revision: str, allow_patterns: list[str]) -> str:
        self.asked.append((repo, revision))
        self.fetched = allow_patterns
        return str(self.folder)


@pytest.fixture
def hub(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(foreign)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_an_alias_is_fetched_at_one_commit(run: Run, hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "pytorch_model.bin").touch()  # the worse of two formats
    (hub.folder / "tokenization_neo.py").write_text("raise SystemExit(1)")
    code, text = run("import", "ledom-7b", "--out", tmp_path / "out")
    assert code == 0, text
    repo = "Corning/Reverse-Model-7B-348B"
    assert hub.asked == [(repo, None), (repo, "c0ffee")]
    assert hub.fetched == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    record = json.loads((tmp_path / "out" / "ledom_import.json").read_text())
    assert (record["source"], record["commit"]) == (repo, "c0ffee")
    assert ledom.load(tmp_path / "out").direction is ledom.Direction.REVERSE


def test_a_revision_is_asked_for(
    run: Run, hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = ("--direction", "reverse", "--no-check", "--out", tmp_path / "out")
    assert run("import", "some/model", "--revision", "refs/pr/2", *given)[0] == 0
    assert "some/model: no such folder or file here; looking for it on the" in caplog.text
    assert hub.asked[0] == ("some/model", "refs/pr/2")


def test_a_wrong_checksum_is_refused(run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.sha256 = {"model.safetensors": "0" * 64}
    result = run("import", "2tpg", "--out", tmp_path / "out")
    check_refused(result, "model.safetensors: its sha256 is", "0" * 64)
    assert not (tmp_path / "out").exists()


def unreachable(*_: Any, **__: Any) -> None:
    raise ConnectionError("Name or service not known\nand more")


def test_no_network_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "no-hub"))
    result = run("import", "ledom-2b", "--out", tmp_path / "out")
    check_refused(result, "Corning/LEDOM-2B: cannot be downloaded: Name or service not known;")
    assert os.listdir(tmp_path) == []


def cached(folder: Path, cache: Path, commit: str = "c0ffee") -> Path:
    """A model as the hub's client lays it out: links to blobs, named by hash; its repository."""
    repo = cache / "models--me--twin"
    links = repo / "snapshots" / commit
    links.mkdir(parents=True)
    (repo / "blobs").mkdir(exist_ok=True)
    for file in folder.iterdir():
        blob = hashlib.sha256(file.read_bytes()).hexdigest()
        blob = blob if file.suffix == ".safetensors" else blob[:40]  # small files: git's hash
        shutil.copy(file, repo / "blobs" / blob)
        (links / file.name).symlink_to(f"../../blobs/{blob}")
    return repo


def test_the_hubs_cache_is_a_source(foreign: Path, tmp_path: Path) -> None:
    """A repository's folder in it, or that of one commit: scored and imported like its files."""
    repo = cached(foreign, tmp_path / "hub")
    (repo / "snapshots/c0ffee/config.json").resolve().unlink()
    cached(foreign, tmp_path / "hub", "decade")
    (repo / "snapshots/older").mkdir()
    with pytest.raises(CheckpointError, match="holds 3 commits, and refs/main names none"):
        ledom.load(repo, "reverse")
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("decade")
    expected = load_checkpoint(foreign, "reverse").model(IDS).logits
    for place in (repo, repo / "snapshots/decade"):
        out = tmp_path / "out"
        import_model(str(place), out, ImportOptions("reverse", check=False, eos_token="<|end|>"))
        assert torch.equal(load_checkpoint(out).model(IDS).logits, expected)
        shutil.rmtree(out)
    direct, through = ledom.load(foreign, "reverse"), ledom.load(repo, "reverse")
    assert direct.identity["hash"] == through.identity["hash"]
    assert not (tmp_path / "out").exists()


def test_without_a_network_the_hubs_cache_is_asked(
    run: Run,
    foreign: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is there is taken if its bytes are what their name says, and the user is told."""
    commit = "c0ffee" + "0" * 34
    repo = cached(foreign, tmp_path / "hub", commit)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    given = ("import", "me/twin", "--direction", "reverse", "--no-check", "--out", tmp_path / "out")
    code, text = run(*given)
    assert code == 0, text
    assert f"the hub cannot be reached; taking commit {commit} from its cache" in caplog.text
    record = json.loads((tmp_path / "out/ledom_import.json").read_text())
    assert (record["source"], record["commit"]) == ("me/twin", commit)
    shutil.rmtree(tmp_path / "out")
    blob = (repo / "snapshots" / commit / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    check_refused(run(*given), "model.safetensors: its sha256 is", blob.name)
    blob.unlink()
    check_refused(run(*given), "model.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_pipe_among_the_weights_is_refused(foreign: Path, tmp_path: Path) -> None:
    (foreign / "model.safetensors").unlink()
    os.mkfifo(foreign / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: this is a pipe"):
        import_model(str(foreign), tmp_path / "out", ImportOptions(direction="reverse"))
    assert not (tmp_path / "out").exists()
