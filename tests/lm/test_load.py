"""`ledom.load`: names, options, and the embedded pair."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import ledom
from ledom.core.errors import CheckpointError, DirectionError, InputError, MissingExtraError
from ledom.lm import read_options
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.backends.openai import OpenAILanguageModel


def test_direction_is_read_from_the_checkpoint(checkpoints: dict[str, Path]) -> None:
    assert ledom.load(checkpoints["reverse"]).direction is ledom.Direction.REVERSE
    with pytest.raises(DirectionError, match="used as forward"):
        ledom.load(checkpoints["reverse"], direction="forward")


def test_the_error_for_a_missing_folder_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        ledom.load(tmp_path / "nowhere", direction="forward")


@pytest.mark.parametrize("name", ["x" * 300, f"me/{'x' * 300}", "x" * 300 + ".gguf"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name}: no such (model )?folder"):
        ledom.load(name, "reverse")


def test_the_embedded_name_requires_a_direction() -> None:
    with pytest.raises(DirectionError, match="forward.*reverse"):
        ledom.load("tiny")


@pytest.mark.slow
def test_fingerprints_distinguish_models(checkpoints: dict[str, Path]) -> None:
    forward, reverse = (ledom.load(folder) for folder in checkpoints.values())
    assert forward.fingerprint != reverse.fingerprint
    assert forward.fingerprint == ledom.load(checkpoints["forward"]).fingerprint


@pytest.mark.slow
def test_options_may_follow_a_name(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["reverse"]
    lm = ledom.load(f"{folder},rows=7,dtype=bfloat16", device="cpu")
    assert isinstance(lm, HFLanguageModel)
    assert (lm.rows, str(lm.model.dtype)) == (7, "torch.bfloat16")
    assert lm.name == str(folder)
    written = f"openai:m,tokenizer={folder},base_url=http://localhost:1/v1,requests_per_second=0.5"
    server = ledom.load(written, dtype="bfloat16", device="cuda")  # ignored for a server
    assert isinstance(server, OpenAILanguageModel)
    assert server._limit._pause == 2.0


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("rows=many", "rows=many: .*valid integer"),
        (
            "row=7",
            "'row=7' is not an option; write key=value, with one of bos_token, device, dtype",
        ),
        ("fast", "'fast' is not an option"),
        ("rows=1,rows=2", "rows is given twice"),
        ("direction=forward", "the command has its own option"),
    ],
)
def test_bad_options_are_refused(checkpoints: dict[str, Path], written: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ledom.load(f"{checkpoints['reverse']},{written}")


@pytest.mark.slow
def test_untyped_options_are_checked() -> None:
    class Backend(FakeLanguageModel):
        def __init__(self, name: str, **options: object) -> None: ...

    assert read_options(Backend, ["a=1", "b=[x]"], "m") == {"a": 1, "b": ["x"]}
    for written, message in (
        ("a=" + "[" * 9000, "nested more than 64 deep"),
        ("a=!!python/name:os.system x", "the tag .* is not allowed"),
        ("a=010", "the number 010 is not decimal"),
        ("a=[", "not YAML"),
    ):
        with pytest.raises(InputError, match=message):
            read_options(Backend, [written], "m")


def test_an_api_key_on_the_command_line_is_refused() -> None:
    with pytest.raises(InputError, match="environment variable OPENAI_API_KEY"):
        ledom.load("openai:m,api_key=secret")


def test_a_folder_may_have_any_name(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "openai:lr=0.1,rows=2"
    odd.symlink_to(checkpoints["reverse"])
    assert ledom.load(odd).direction is ledom.Direction.REVERSE


@pytest.mark.slow
def test_a_tokenizer_without_eos_is_refused_unless_eos_is_given(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for file in checkpoints["reverse"].iterdir():
        text = file.read_bytes()
        if file.suffix == ".json":
            text = text.replace(b"<|end|>", b"<|fin|>")
        (tmp_path / file.name).write_bytes(text)
    (tmp_path / "tokenizer_config.json").unlink()
    assert ledom.load(tmp_path).tokenizer.eos_token == "<|fin|>"  # by its id in config.json
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    with pytest.raises(CheckpointError, match=r"'<\|end\|>', the default if its files name no EOS"):
        ledom.load(tmp_path)
    for name in (str(tmp_path), f"openai:m,base_url=http://localhost:1/v1,tokenizer={tmp_path}"):
        assert ledom.load(f"{name},eos_token=<|fin|>").tokenizer.eos_token == "<|fin|>"


@pytest.mark.parametrize("backend", ["vllm", "openai"])
def test_a_missing_extra_error_names_it(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'ledom\[{backend}\]'"):
        ledom.load(f"{backend}:m", direction="forward")


@pytest.mark.parametrize("option", ["rows=0", "rows=-1", "tokens_per_batch=0"])
def test_a_batch_must_have_room(option: str) -> None:
    folder, (name, _, value) = ledom.lm.embedded_folder("forward"), option.partition("=")
    with pytest.raises(InputError, match=f"{option}: Input should be greater than 0"):
        ledom.load(f"{folder},{option}")
    with pytest.raises(InputError, match=f"{name} is {value}; it must be at least 1"):
        ledom.load(str(folder), **{name: int(value)})


def test_spelling_out_special_tokens_changes_the_fingerprint(checkpoints: dict[str, Path]) -> None:
    lm = ledom.load(checkpoints["forward"])
    before = lm.fingerprint
    lm.tokenizer.spell_out_special_tokens()
    assert lm.fingerprint == f"{before}-spelled-out"  # the name of EOS is scored differently
    lm.bos_ids = []
    assert not lm.fingerprint.startswith(f"{before}-spelled")


def test_the_hash_of_a_loaded_tokenizer_is_computed_once(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes 0.1 s for 128k tokens; but a caller that holds the tokenizer may change it."""
    lm = ledom.load(checkpoints["forward"])
    before, known = lm.fingerprint, lm.tokenizer._backend
    monkeypatch.setattr(lm.tokenizer, "_backend", None)
    assert lm.tokenizer.fingerprint
    monkeypatch.setattr(lm.tokenizer, "_backend", known)
    backend = lm.tokenizer.backend
    assert lm.fingerprint == before
    for token in ("<one>", "<two>"):
        backend.add_tokens([token])
        assert lm.fingerprint != before
        before = lm.fingerprint
