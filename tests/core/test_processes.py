"""Processes that share a job: their shares, and rerank interrupted in every way."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from torch.distributed import run as launcher

from command_line import Run
from ledom.core import processes as parallel
from ledom.core.errors import InputError
from ledom.core.records import Problem, write_records
from ledom.model.native.library import _openmp
from ledom.text.tokenizer import Tokenizer
from stand_ins import CompletionsServer, Reply
from started import Started, ledom, port_of_a_group, started

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures")]

PROBLEMS = [Problem(id=f"p{i}", question=f"What is {i} + 1?", answer=str(i % 3)) for i in range(12)]


def test_one_process_owns_everything() -> None:
    assert parallel.share(range(5), lambda i: i) == [0, 1, 2, 3, 4]
    assert parallel.is_first()
    assert parallel.is_first_failure()
    parallel.wait()


def test_every_group_has_one_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [(group, i) for group in "cabde" for i in range(3)]
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(parallel.share(items, lambda item: item[0]))
    assert [sorted({group for group, _ in share}) for share in shares] == [
        ["c", "d"],
        ["a", "e"],
        ["b"],
    ]
    assert sorted(item for share in shares for item in share) == sorted(items)


def test_torchrun_variables_without_torchrun_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match="start ledom with torchrun, or without these variables"):
        parallel.wait()


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """Scores determined by the ids, and texts determined by the seed."""
    choices: list[dict[str, Any]]
    if body.get("echo"):
        values = [None, *(-((7 * a + b) % 11) / 7 for a, b in pairwise(body["prompt"]))]
        choices = [{"index": 0, "text": "", "logprobs": {"token_logprobs": [*values, -1.0]}}]
    else:
        numbers = [body["seed"] + 5 * i * (body["temperature"] > 0) for i in range(body["n"])]
        choices = [
            {"index": i, "text": f"{n % 97} + 1\n#### {n % 3}", "finish_reason": "stop"}
            for i, n in enumerate(numbers)
        ]
    return {"id": "c", "object": "text_completion", "created": 1, "choices": choices}


class Mortal(CompletionsServer):
    """A server that answers a set number of requests and then hangs up, or runs a callback."""

    def __init__(self) -> None:
        super().__init__(answer)
        self.answered: list[dict[str, Any]] = []
        self.live(10**9)

    def live(self, count: int, then: Callable[[], None] = lambda: None) -> None:
        """Answer `count` more requests, and those that only ask whether it can score."""
        last, lock = len(self.answered) + count, Lock()

        def reply(body: dict[str, Any]) -> Reply | None:
            if body.get("echo") and len(body["prompt"]) == 3:  # of each process that is to sample
                return self.reply(body)
            with lock:
                if len(self.answered) == last:
                    then()
                    return None
                self.answered.append(body)
            return self.reply(body)

        self.always = reply


@pytest.fixture
def server() -> Iterator[Mortal]:
    server = Mortal()
    yield server
    server.close()


@pytest.fixture
def command(server: Mortal, tokenizer: Tokenizer, tmp_path: Path) -> list[str]:
    """The rerank command with both models behind the server, without the output folder."""
    write_records(tmp_path / "problems.jsonl", PROBLEMS)
    tokenizer.save(tmp_path)
    model = f"openai:m,tokenizer={tmp_path},base_url={server.url},max_retries=0,concurrency=2"
    return (
        f"rerank --problems {tmp_path}/problems.jsonl --forward {model} --reverse {model} "
        "--samples 3 --out"
    ).split()


def results(out: Path) -> dict[str, Any]:
    names = ("candidates.jsonl", "scores.forward.jsonl", "scores.reverse.jsonl", "selected.jsonl")
    found: dict[str, Any] = {name: (out / name).read_text() for name in names}
    found["strategies"] = json.loads((out / "report.json").read_text())["strategies"]
    for row in found["strategies"]:
        assert row["cost"].pop("seconds") >= 0
    return found


def torchrun(*arguments: str) -> None:
    """Like torchrun, but in forks of this process, which has already imported the modules."""
    config_of = launcher.config_from_args
    launcher.config_from_args = lambda given: (config_of(given)[0], _rank, arguments)
    forks = ["--standalone", "--nproc-per-node=2", "--start-method=fork"]
    launcher.main([*forks, "-m", "ledom", *arguments])


def _rank(*arguments: str) -> None:
    """One process of the job. A fork inherits torchrun's signal handlers; a real one does not."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ledom(*arguments)


@contextmanager
def two_processes(folder: Path, arguments: list[str]) -> Iterator[list[Started]]:
    """Run a command in two processes, as torchrun starts them."""
    job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        port = stack.enter_context(port_of_a_group())
        job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        yield [
            stack.enter_context(
                started(
                    folder / f"said.{rank}",
                    *arguments,
                    environment=job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
            )
            for rank in range(2)
        ]


def ask_twice(requests: list[dict[str, Any]]) -> int:
    """The number of requests that had been answered before."""
    texts = [json.dumps(body, sort_keys=True) for body in requests]
    return len(texts) - len(set(texts))


def test_two_processes_give_the_same_result_as_one_through_any_stop(
    run: Run, server: Mortal, command: list[str], tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*command, whole)[0] == 0
    expected = len(server.answered)
    server.answered.clear()

    # The server dies during sampling: one clear line, and finished work is kept.
    server.live(20)
    with started(tmp_path / "said", *command, out, run=torchrun) as process:
        assert process.wait() != 0
    text = process.said()
    assert text.count("error: ") == 1, text
    assert "error: m: no usable answer from the server" in text
    assert text.count("problems: 12; results in") == 1
    assert "Unable to shutdown" not in text  # torchrun stopped the other process at once

    assert len([part for part in out.iterdir() if ".part" in part.name]) == 2

    # The server is back, and both processes are killed during scoring.
    server.live(30, lambda: [os.kill(process.pid, signal.SIGKILL) for process in processes])
    with two_processes(tmp_path, [*command, str(out)]) as processes:
        assert [process.wait() for process in processes] == [-signal.SIGKILL] * 2
    assert (out / "candidates.jsonl").is_file()
    assert not (out / "scores.forward.jsonl").exists()
    scored = sum(bool(body.get("echo")) for body in server.answered)

    # A single process resumes, and the files are those of one process that never stopped.
    server.live(10**9)
    assert run(*command, out)[0] == 0
    assert results(out) == results(whole)
    assert not [part for part in out.iterdir() if ".part" in part.name]
    # Requested again: greedy answers of unfinished problems, requests in flight, and scores not
    # yet written at the kill.
    again = len(server.answered) - expected
    assert again == ask_twice(server.answered) <= 12 + 2 * 4 + scored


@pytest.mark.parametrize("alive", [5, 50])
def test_a_server_that_dies_loses_nothing(
    run: Run, server: Mortal, command: list[str], tmp_path: Path, alive: int
) -> None:
    """One request at a time: 12 greedy answers, 12 times 3 samples, then one score per request."""
    command = [part.replace("concurrency=2", "concurrency=1") for part in command]
    server.live(alive)
    code, text = run(*command, tmp_path / "out")
    assert code == 2
    assert text.strip().splitlines()[-1].startswith("error: m: no usable answer from the server")
    server.live(10**9)
    assert run(*command, tmp_path / "out")[0] == 0
    greedy = [body for body in server.answered if body["temperature"] == 0 and not body.get("echo")]
    others = [body for body in server.answered if body not in greedy]
    assert ask_twice(others) == 0
    # A greedy answer is saved with its problem's samples.
    assert ask_twice(greedy) == (alive if alive < 12 else max(0, 24 - alive))
    assert run(*command, tmp_path / "whole")[0] == 0
    assert results(tmp_path / "out") == results(tmp_path / "whole")


@pytest.mark.parametrize("alive", [5, 20, 30])
def test_an_early_stop_loses_nothing_either(
    run: Run, server: Mortal, command: list[str], tmp_path: Path, alive: int
) -> None:
    """Every round is kept, whether the server dies in greedy decoding, round one or scoring."""
    command = [part.replace("concurrency=2", "concurrency=1") for part in command]
    command = [*command[:-1], "--early-stop", "--out"]
    server.live(alive)
    assert run(*command, tmp_path / "out")[0] == 2
    server.live(10**9)
    assert run(*command, tmp_path / "out")[0] == 0
    assert ask_twice(server.answered) == 0
    assert run(*command, tmp_path / "whole")[0] == 0
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "12:memory:/x\n4:cpu,cpuacct:/box\n1:name=systemd:/x\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, 8),
        # The tightest enclosing group counts.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "500000 100000\n",
            },
            2,
        ),
        # A container sees its own group as the root, whatever it is called outside.
        ({"proc/self/cgroup": "0::/gone/x\n", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "50000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_the_number_of_cpus_follows_the_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert parallel.available_cpus(write(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 6),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "3,2", "MKL_NUM_THREADS": "5"}, 3),
        ({"MKL_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "16"}, 16),
        ({"OMP_NUM_THREADS": "0"}, 6),
        ({"OMP_NUM_THREADS": "many"}, 6),
        ({"LOCAL_WORLD_SIZE": "3"}, 2),
        ({"LOCAL_WORLD_SIZE": "8"}, 1),
        ({"LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}, 1),
        # torchrun's own default is not the user's choice.
        ({"LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, 2),
        ({"LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "4", "TORCHELASTIC_RUN_ID": "x"}, 4),
    ],
)
def test_the_default_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: int
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parallel, "available_cpus", lambda: 6)
    assert parallel.default_threads() == expected


def test_the_thread_setting_reaches_torch_and_others(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "7")
    parallel.set_threads(2)
    assert said == [2]
    assert [os.environ[name] for name in names] == ["2"] * 4
    parallel.set_threads(None)
    assert said == [2, 2]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_idle_threads_sleep_soon_unless_the_user_sets_how_they_wait(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    parallel.set_threads(2)
    assert environment.get("GOMP_SPINCOUNT") == expected


@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP is libgomp on Linux only")
def test_torch_reads_the_setting_for_idle_threads() -> None:
    """Its OpenMP library is loaded alone: the rest of torch takes two seconds."""
    code = "import ctypes; from ledom.core.processes import set_threads; set_threads(2)"
    code += f"; ctypes.CDLL({_openmp()!r})"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    environment["OMP_DISPLAY_ENV"] = "verbose"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert b"GOMP_SPINCOUNT = '10000'" in done.stderr


def test_a_limit_is_lowered_but_never_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    free = resource.RLIM_INFINITY
    for present, most in (((free, free), 50), ((90, free), 50), ((20, free), 20), ((20, 40), 20)):
        made: list[Any] = []
        monkeypatch.setattr(resource, "getrlimit", lambda kind, now=present: now)
        monkeypatch.setattr(resource, "setrlimit", lambda *given, made=made: made.append(given))
        parallel.lower_limit("AS", 50)
        assert made == [(resource.RLIMIT_AS, (most, most))]


def test_a_system_that_refuses_a_limit_is_left_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS refuses limits on memory."""
    asked: list[int] = []

    def refuse(kind: int, limits: tuple[int, int]) -> None:
        asked.append(kind)
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    parallel.lower_limit("AS", 50)
    assert asked == [resource.RLIMIT_AS]
