"""Shared fixtures: a tiny tokenizer, a pair of tiny random models, and the command line."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

import ledom.lm
from command_line import QUESTIONS, Run
from ledom.cli import app as cli
from ledom.cli.run import DEBUG_VARIABLE
from ledom.core import processes as parallel
from ledom.core.direction import Direction
from ledom.core.records import Candidate, Problem, write_records
from ledom.data.problems import generate_problems
from ledom.lm import EMBEDDED
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import LanguageModel
from ledom.model.checkpoint import build_model, save_checkpoint
from ledom.model.presets import ModelConfig
from ledom.report import curves, figures
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer, train_tokenizer
from started import prepare_server

prepare_server()
# The same examples in every run, and no deadline: on a busy machine, anything can be slow.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")
# Tests of Ctrl-C and the processes they start need SIGINT, which programs that a shell runs in the
# background ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Skip fsync: files survive a kill without it, and it took a tenth of the tests' time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def problems() -> list[Problem]:
    """120 generated training problems."""
    return list(generate_problems("train", 120, seed=5))


@pytest.fixture(scope="session")
def tokenizer(problems: list[Problem]) -> Tokenizer:
    """A tokenizer of 400 tokens, trained on the generated problems."""
    return train_tokenizer((p.question + "\n\n" + (p.solution or "") for p in problems), 400)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Two layers of width 32 with grouped-query attention; large weights make context matter."""
    return ModelConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
    )


@pytest.fixture(scope="session")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, tiny_config: ModelConfig
) -> dict[str, Path]:
    """Folders of two tiny random models, `forward` and `reverse`; copy them before writing."""
    root = tmp_path_factory.mktemp("checkpoints")
    for seed, direction in enumerate(Direction):
        model = build_model(tiny_config, tokenizer, seed)
        save_checkpoint(root / str(direction), model, tokenizer, direction, PairFormat())
    return {str(direction): root / str(direction) for direction in Direction}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line; returns its exit code and what it printed."""

    monkeypatch.setattr(parallel, "set_threads", lambda threads: None)  # later tests need one
    monkeypatch.setattr(cli, "prepare_process", lambda: None)  # the streams belong to pytest
    monkeypatch.setenv(DEBUG_VARIABLE, "")  # and removed afterwards

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ledom", *map(str, arguments)])
        code: int | str | None = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        assert isinstance(code, int | None)
        return code or 0, captured.out + captured.err

    return call


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> dict[str, FakeLanguageModel]:
    """Fake models in place of every model folder."""
    models = {str(d): FakeLanguageModel(tokenizer, d) for d in Direction}

    def load(path: str, direction: str, **options: object) -> LanguageModel:
        return models[direction]

    monkeypatch.setattr(ledom.lm, "load", load)
    return models


@pytest.fixture(scope="session")
def _embedded() -> dict[tuple[str, ...], LanguageModel]:
    """The models loaded by `embedded_once`, by direction and options."""
    return {}


@pytest.fixture
def embedded_once(
    monkeypatch: pytest.MonkeyPatch, _embedded: dict[tuple[str, ...], LanguageModel]
) -> None:
    """Share the embedded models between tests, since loading one takes a third of a second."""
    load = ledom.lm.load

    def load_once(
        model: str | Path = EMBEDDED, direction: Direction | str | None = None, **options: Any
    ) -> LanguageModel:
        if model != EMBEDDED or direction is None:
            return load(model, direction, **options)
        key = (str(direction), *(f"{name} {value}" for name, value in options.items() if value))
        if key not in _embedded:
            _embedded[key] = load(model, direction, **options)
        return _embedded[key]

    for module in (ledom, ledom.lm):
        monkeypatch.setattr(module, "load", load_once)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, which take most of a small job's time; tests/report/ covers them."""
    for module in (figures, curves):
        monkeypatch.setattr(module, "draw_svg", lambda *_: "<svg></svg>")


@pytest.fixture
def problem_file(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    write_records(path, QUESTIONS)
    return path


@pytest.fixture
def candidate_file(tmp_path: Path) -> Path:
    path = tmp_path / "candidates.jsonl"
    rows = [
        Candidate(problem_id=p.id, index=i, text=f"so it is {i}\n#### {i}")
        for p in QUESTIONS
        for i in range(4)
    ]
    write_records(path, rows)
    return path


@pytest.fixture
def four_threads() -> Iterator[None]:
    """Let torch use four threads; the test must leave the number unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; without it, tests are skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    flags = ["--disable-gpu", "--no-first-run", "--disable-background-networking"]
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # usual in a container
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=flags + root)
        yield browser
        browser.close()
