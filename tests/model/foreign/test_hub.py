"""Imports from the hub and its cache, with a folder as a mock of the hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

import ledom
from command_line import Run, check_refused
from ledom.core.errors import CheckpointError
from ledom.model.checkpoint import load_checkpoint
from ledom.model.foreign.importer import ImportOptions, import_model

IDS = torch.arange(3, 23)[None]


class Hub:
    """A hub with a single repository, which is a folder."""

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


@pytest.mark.slow
def test_an_alias_is_fetched_at_one_commit(run: Run, hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "pytorch_model.bin").touch()  # the less preferred of two formats
    (hub.folder / "consolidated.safetensors").touch()  # the same weights under other names
    (hub.folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    (hub.folder / "special_tokens_map.json").write_text("{}")
    (hub.folder / "tokenization_neo.py").write_text("raise SystemExit(1)")
    code, text = run("import", "ledom-7b", "--out", tmp_path / "out")
    assert code == 0, text
    repo = "Corning/Reverse-Model-7B-348B"
    assert hub.asked == [(repo, None), (repo, "c0ffee")]
    assert hub.fetched == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    record = json.loads((tmp_path / "out" / "ledom_import.json").read_text())
    assert (record["source"], record["commit"]) == (repo, "c0ffee")
    assert ledom.load(tmp_path / "out").direction is ledom.Direction.REVERSE


@pytest.mark.slow
def test_the_revision_is_requested(
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
    check_refused(result, "Corning/LEDOM-2B: cannot be downloaded: Name or service not known")
    assert os.listdir(tmp_path) == []


def cached(folder: Path, cache: Path, commit: str = "c0ffee") -> Path:
    """Lay out a model as the hub's client does, with links to blobs; returns its repository."""
    repo = cache / "models--me--twin"
    links = repo / "snapshots" / commit
    links.mkdir(parents=True)
    (repo / "blobs").mkdir(exist_ok=True)
    for file in folder.iterdir():
        blob = hashlib.sha256(file.read_bytes()).hexdigest()
        blob = blob if file.suffix == ".safetensors" else blob[:40]  # git's hash if small
        shutil.copy(file, repo / "blobs" / blob)
        (links / file.name).symlink_to(f"../../blobs/{blob}")
    return repo


@pytest.mark.slow
def test_the_hubs_cache_is_a_source(foreign: Path, tmp_path: Path) -> None:
    """A repository's folder, or that of one commit, is scored and imported like its files."""
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


@pytest.mark.slow
def test_without_a_network_the_hubs_cache_is_used(
    run: Run,
    foreign: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Cached files are used if their bytes match their hashes, and the user is told."""
    commit = "c0ffee" + "0" * 34
    repo = cached(foreign, tmp_path / "hub", commit)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    given = ("import", "me/twin", "--direction", "reverse", "--no-check", "--out", tmp_path / "out")
    code, text = run(*given)
    assert code == 0, text
    assert f"the hub cannot be reached; using commit {commit} from the cache" in caplog.text
    record = json.loads((tmp_path / "out/ledom_import.json").read_text())
    assert (record["source"], record["commit"]) == ("me/twin", commit)
    shutil.rmtree(tmp_path / "out")
    blob = (repo / "snapshots" / commit / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    check_refused(run(*given), "model.safetensors: its sha256 is", blob.name)
    blob.unlink()
    check_refused(run(*given), "model.safetensors")
    assert not (tmp_path / "out").exists()


def test_one_of_several_gguf_files_must_be_chosen(hub: Hub, tmp_path: Path) -> None:
    """Such a repository has one model in many precisions; none is downloaded by default."""
    for file in hub.folder.iterdir():
        file.unlink()
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
        (hub.folder / name).touch()
    for source in ("user/name", str(hub.folder)):
        with pytest.raises(
            CheckpointError, match=r"has 2 GGUF files; give .*: m-Q4_K_M.gguf, m-Q8"
        ):
            import_model(source, tmp_path / "out", ImportOptions("forward"))
    assert hub.fetched == []
