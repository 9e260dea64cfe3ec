"""`ledom serve`: what it refuses before any work, and how it serves, stops and reports it."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest

from command_line import Run
from started import started
from waiting import SECONDS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "LEDOM_TOKEN"),
        (["--upstream", "http://up/v1"], "--upstream-model"),
        (["--upstream", "up", "--upstream-model", "m"], "give its address"),
        (["--prompt-price", "1"], "no --upstream"),
        (["--forward", "none", "--strategy", "all_terms"], "answer with these models and"),
        (["--forward", "none", "--lambda", "0.5"], "--lambda would have no effect"),
        (
            ["--strategy", "reverse_only", "--lambda", "0.3"],
            "--lambda would have no effect: the st",
        ),
        (["--reverse", "none", "--mask-copies", "4"], "--mask-copies would have no effect"),
        (["--forward", "none", "--reverse", "none"], "no model to judge with"),
    ],
)
@pytest.mark.usefixtures("fakes")
def test_models_that_cannot_be_served_are_refused(
    run: Run, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEDOM_TOKEN", raising=False)
    code, printed = run("serve", "--port", 0, *options)
    assert code == 2
    assert message in printed


@pytest.mark.parametrize("strategy", ["reverse-reward", "majority"])
def test_a_strategy_that_is_no_reward_is_refused_before_models_are_loaded(
    run: Run, strategy: str
) -> None:
    code, printed = run("serve", "--port", 0, "--strategy", strategy, "--reverse", "missing")
    assert code == 2
    assert f"strategy '{strategy}' cannot score one answer; choose among: forward, " in printed


def test_an_empty_reward_that_is_no_number_is_refused_before_models_are_loaded(run: Run) -> None:
    code, printed = run("serve", "--port", 0, "--empty-reward", "nan", "--reverse", "missing")
    assert code == 2
    assert "Invalid value for '--empty-reward'" in printed


def test_a_missing_package_names_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, printed = run("serve")
    assert code == 2
    assert "pip install 'ledom[serve]'" in printed


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_gets_a_signal(signal_number: int, tmp_path: Path) -> None:
    command = ("serve", "--port", 0, "--threads", 1)
    with started(tmp_path / "said", *command, environment={"LEDOM_TOKEN": "secret"}) as process:
        said = process.first_line()
        found = re.search(r"serving on (http://127\.0\.0\.1:\d+): clients must send", said)
        assert found is not None, said
        body = {"queries": "How many?", "documents": ["7", "8"]}
        # The port is open before this line, so an early client is answered once it serves.
        assert httpx.get(f"{found[1]}/healthz", timeout=SECONDS).status_code == 200
        assert httpx.post(f"{found[1]}/score", json=body, timeout=SECONDS).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        answer = httpx.post(f"{found[1]}/score", json=body, headers=headers, timeout=SECONDS)
        assert len(answer.json()["data"]) == 2
        os.kill(process.pid, signal_number)
        assert process.wait() == (0 if signal_number == signal.SIGINT else -signal.SIGTERM)
