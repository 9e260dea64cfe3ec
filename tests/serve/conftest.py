"""A server with fake models in this process, and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import ledom
from ledom.core.direction import Direction
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.serve.app import make_app
from ledom.serve.judge import Judge
from ledom.serve.server import Server
from ledom.serve.service import Service
from ledom.serve.settings import Limits, Settings
from ledom.text.tokenizer import Tokenizer
from serving import Models, running


@pytest.fixture
def pair(tokenizer: Tokenizer) -> tuple[FakeLanguageModel, FakeLanguageModel]:
    """Fake models of both directions, each with its own tokenizer that tests may change."""
    copies = [Tokenizer(type(tokenizer.backend).from_str(tokenizer.backend.to_str())) for _ in "fr"]
    forward, reverse = (
        FakeLanguageModel(copy, direction)
        for copy, direction in zip(copies, Direction, strict=True)
    )
    return forward, reverse


@pytest.fixture
def limits() -> Limits:
    """Small limits that tests can reach; a test module may define its own."""
    return Limits(max_candidates=50, max_tokens=5000, max_bytes=50_000)


@pytest.fixture
def client(
    pair: tuple[FakeLanguageModel, FakeLanguageModel], limits: Limits
) -> Iterator[TestClient]:
    """A client of a server with fake models."""
    app = make_app(Service(Judge(*pair), Settings(limits=limits)))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def server(checkpoints: dict[str, Path]) -> Iterator[Server]:
    """A server with two tiny random models on a real port."""
    models = {name: ledom.load(folder, name) for name, folder in checkpoints.items()}
    with running(Judge(models["forward"], models["reverse"]), Limits()) as server:
        yield server


@pytest.fixture(scope="module")
def models(checkpoints: dict[str, Path]) -> Models:
    """Tiny random models of both directions."""
    return ledom.load(checkpoints["forward"], "forward"), ledom.load(
        checkpoints["reverse"], "reverse"
    )
