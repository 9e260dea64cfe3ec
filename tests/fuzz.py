"""Seeded damaged input for every command, and a process that tries it.

A case is a command line, a file in a good folder, and a way to damage it. `Worker` runs many
command lines in one long-lived process, since imports cost more than the commands. A process that
hangs is killed and replaced.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pkgutil
import random
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import ledom
from started import PROCESSES
from waiting import SECONDS

CPU_SECONDS = 20.0
"""CPU seconds after which a command counts as hanging, whatever else runs on the machine. One that
waits for something counts as hanging after `waiting.SECONDS`."""
_MEMORY = 12 << 30  # bytes of data, so that an absurd shape gives an error and not a crash

RERANK = "rerank --problems problems.jsonl --candidates candidates.jsonl --forward none"
RERANK += " --reverse model"
DRAWS = "rerank --problems problems.jsonl --forward forward --reverse model --samples 2 "
DRAWS += "--max-tokens 4 --out"
SEARCH = "search --problems problems.jsonl --forward forward --reverse model --width 1 "
SEARCH += "--expansions 1 --max-steps 1 --max-tokens 4"
IMPORT = "import model --direction reverse --no-check"
RANK = "rank queries.jsonl passages.jsonl --model model"
SYNTHESIZE = "synthesize seeds.jsonl --forward forward --reverse model --samples 1 --answers 1 "
SYNTHESIZE += "--max-tokens 4"
INVERT = "invert outputs.jsonl --forward forward --reverse model --samples 2 --max-tokens 4"
FILL = "generate --after a --before b --forward forward --reverse model --max-tokens 4"
EVAL = "eval choices.jsonl --forward none --reverse model"
COMMANDS: dict[str, list[str]] = {
    "problems.jsonl": [
        f"{RERANK} --out out",
        f"{SEARCH} --out out",
        "augment problems.jsonl --out out",
        "tune done --problems problems.jsonl --out out.yaml",
        "train recipe.yaml --direction reverse --out out",
        f"{RERANK} --demonstrations problems.jsonl --out out",
    ],
    "candidates.jsonl": [
        f"{RERANK} --out out",
        f"{RERANK} --folds 2 --out out",
        "tune done --candidates candidates.jsonl --out out.yaml",
        "explain Why? candidates.jsonl --reverse model --id p1 --out out",
    ],
    "model/config.json": [
        "generate --before abc --reverse model --max-tokens 3",
        "explain Why? because --reverse model",
        f"{RERANK} --out out",
        f"{IMPORT} --out out",
        "export model --out out",
        "train init.yaml --direction reverse --out out",
    ],
    "model/tokenizer.json": [
        "generate --before abc --reverse model --max-tokens 3",
        "tokenize docs.jsonl --tokenizer model --workers 1 --out out",
        "export model --out out",
        f"{IMPORT} --out out",
    ],
    "model/model.safetensors": [
        f"{IMPORT} --out out",
        "generate --before abc --reverse model --max-tokens 3",
        f"{RERANK} --out out",
        "export model --out out",
    ],
    "model": ["generate --before abc --reverse model --max-tokens 3", "export model --out out"],
    "done/candidates.jsonl": ["tune done --out out.yaml", f"{DRAWS} done"],
    "done/candidates.jsonl.settings.json": ["tune done --out out.yaml", f"{DRAWS} done"],
    "done/scores.forward.jsonl": ["tune done --out out.yaml", f"{DRAWS} done"],
    "done/scores.reverse.jsonl": ["tune done --out out.yaml", f"{DRAWS} done"],
    "done/scores.reverse.jsonl.settings.json": ["tune done --out out.yaml", f"{DRAWS} done"],
    "done/problems.jsonl": ["tune done --out out.yaml", f"{DRAWS} done"],
    "choices.jsonl": [f"{EVAL} --out out"],
    "queries.jsonl": [f"{RANK} --out out"],
    "outputs.jsonl": [f"{INVERT} --out out"],
    "passages.jsonl": [f"{RANK} --out out", "rank Why? passages.jsonl --model model"],
    "seeds.jsonl": [f"{SYNTHESIZE} --out out"],
    "gaps/middles.jsonl": ["gallery gaps --reverse model --out out.html"],
    "gaps/gaps.jsonl": ["gallery gaps --reverse model --out out.html", f"{FILL} --out gaps"],
    "gaps/proposals.jsonl": [f"{FILL} --out gaps"],
    "weights.json": [f"{RERANK} --weights weights.json --out out"],
    "recipe.yaml": ["train recipe.yaml --direction reverse --out out", "plan recipe.yaml"],
    "docs.jsonl": [
        "train-tokenizer docs.jsonl --vocab-size 300 --out out",
        "tokenize docs.jsonl --tokenizer model --workers 1 --out out",
    ],
    "docs.txt": ["train-tokenizer docs.txt --vocab-size 300 --out out"],
    "docs.jsonl.gz": ["train-tokenizer docs.jsonl.gz --vocab-size 300 --out out"],
    "run/reverse/metrics.jsonl": ["compare run --out out"],
    "run/recipe.yaml": ["export run/reverse --out out", "compare run --out out"],
    "store/manifest.json": ["train stored.yaml --direction reverse --out out", "export store"],
}
"""For each damaged file, the command lines that read it."""

_VALUES = [None, True, -1, 0, 1e308, 10**30, "", "x", [], {}, ["a"], {"a": 1}, "\ud800", "\x00"]
_PATHS = ["", "nowhere", "/dev/null", "/dev/full", "problems.jsonl", "done", "a\x01b", "x" * 5000]
_NUMBERS = ["-1", "0", "nan", "inf", "1e400", str(10**30), "x", "", "1e-320", "-0"]
_OPTIONS = {  # by command
    "demo": "--problems --samples --threads",
    "rerank": (
        "--problems --forward --weights --lambda --folds --num-problems --split --score-field "
        "--samples --temperature --top-k --top-p --max-tokens --seed --device --dtype --threads "
        "--demonstrations --candidates --flip --contrast --confidence --window --stop-unsure "
        "--mask-copies"
    ),
    "search": "--problems --border --width --expansions --lambda --temperature",
    "tune": "--problems --candidates --score-field --out",
    "explain": "--id --reverse --out --device --dtype",
    "generate": "--reverse --after --samples --temperature --top-k --top-p",
    "eval": "--suite --data --limit --num-fewshot --reverse --out --seed",
    "rank": "--model --direction --top --out --dtype --threads",
    "gallery": "--examples --reverse --out --dtype --seed --threads",
    "synthesize": "--num-seeds --known --agreement --similarity --answers --out",
    "invert": "--samples --top-p --seed --forward --reverse --out",
    "serve": (
        "--strategy --weights --lambda --mask-copies --empty-reward --upstream --prompt-price "
        "--host --port --reports --max-waiting --max-candidates --max-seconds --dtype --threads"
    ),
    "train": "--direction --out --device --threads",
    "compare": "--out",
    "plan": "--gpus --gpu --utilization",
    "export": "--out --direction --license",
    "train-tokenizer": "--vocab-size --num-documents --format --text-key --out",
    "tokenize": "--tokenizer --eos-token --executor --workers --tasks --slurm",
    "augment": "--variants --wrong --false-results --out --seed",
    "import": "--direction --tokenizer --eos-token --softcap --out",
    "docs": "--",
}
OPTIONS = {command: options.split() for command, options in _OPTIONS.items()}
"""Options that get odd values; `ARGUMENTS` are the other, valid arguments of each command."""
ARGUMENTS = {
    "rerank": f"{RERANK} --out out",
    "search": f"{SEARCH} --out out",
    "tune": "tune done --out out.yaml",
    "explain": "explain Why? because --reverse model",
    "generate": "generate --before abc --reverse model --max-tokens 3",
    "eval": f"{EVAL} --out out",
    "rank": f"{RANK} --out out",
    "gallery": "gallery --reverse model --out out.html",
    "synthesize": f"{SYNTHESIZE} --out out",
    "invert": f"{INVERT} --out out",
    "serve": "serve --forward none --reverse none",  # with a model it would never end
    "train": "train recipe.yaml --direction reverse --out out",
    "compare": "compare run --out out",
    "plan": "plan recipe.yaml",
    "export": "export model --out out",
    "train-tokenizer": "train-tokenizer docs.jsonl --vocab-size 300 --out out",
    "tokenize": "tokenize docs.jsonl --tokenizer model --workers 1 --out out",
    "augment": "augment problems.jsonl --out out",
    "import": f"{IMPORT} --out out",
}


@dataclass(frozen=True)
class Case:
    """A command line, and the damage done to the good folder before it runs."""

    name: str
    arguments: list[str]
    damage: Callable[[Path], None]


def cases(seed: int, count: int) -> list[Case]:
    """Generate `count` cases, cycling through the commands; equal seeds give equal cases."""
    rng = random.Random(seed)
    reading: dict[str, list[tuple[str, str]]] = {command: [] for command in OPTIONS}
    for target, lines in COMMANDS.items():
        for line in lines:
            reading[line.split()[0]].append((target, line))
    turns = [*OPTIONS, "rerank", "rerank", "tune"]  # these read the most files
    made = []
    for number in range(count):
        command = turns[number % len(turns)]
        if not reading[command] or rng.random() < 0.25:
            made.append(_odd_option(rng, number, command))
            continue
        target, line = rng.choice(reading[command])
        damage = rng.choice(list(_DAMAGES)) if target != "model" else "file in it"
        own = random.Random(rng.random())
        made.append(
            Case(
                f"{number}: {damage} {target}: {line}",
                line.split(),
                lambda folder, d=damage, t=target, r=own: _apply(d, folder / t, r),
            )
        )
    return made


def _odd_option(rng: random.Random, number: int, command: str) -> Case:
    option = rng.choice(OPTIONS[command])
    value = rng.choice([*_NUMBERS, *_PATHS, os.fsdecode(b"\xff\xfe")])
    if command == "demo":
        value = rng.choice(["-1", "0", "nan", "1e400", "x", ""])  # all would take minutes
    arguments = [*ARGUMENTS.get(command, command).split(), option, value]
    return Case(f"{number}: {ascii(arguments)[:200]}", arguments, lambda folder: None)


def _apply(name: str, path: Path, rng: random.Random) -> None:
    if name == "file in it":
        path = rng.choice(sorted(path.iterdir()))
        name = rng.choice(list(_DAMAGES))
    data = path.read_bytes()
    made = _DAMAGES[name](data, rng, path)
    if made is not None:
        path.write_bytes(made)


def _bit_flips(data: bytes, rng: random.Random, _: Path) -> bytes:
    changed = bytearray(data)
    for _i in range(3):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _wrong_type(data: bytes, rng: random.Random, _: Path) -> bytes:
    """Change the type of a value in one line (or in the whole file)."""
    try:
        lines = data.decode().splitlines()
        place = rng.randrange(len(lines))
        whole = data[:2] in (b"{\n", b"{ ") or len(lines) == 1
        value = json.loads(data if whole else lines[place])
        _replace_one(value, rng)
    except (ValueError, IndexError, TypeError, KeyError):
        return re.sub(rb": [^\n,}]+", b": [{}]", data, count=rng.randint(1, 3))
    text = json.dumps(value)
    return (text if whole else "\n".join([*lines[:place], text, *lines[place + 1 :]])).encode()


def _replace_one(value: Any, rng: random.Random) -> None:
    while True:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.6:
            value = value[key]
            continue
        value[key] = rng.choice(_VALUES)
        return


def _instead(make: Callable[[Path], None]) -> Callable[..., None]:
    def damage(data: bytes, rng: random.Random, path: Path) -> None:
        path.unlink()
        make(path)

    return damage


_DAMAGES: dict[str, Callable[[bytes, random.Random, Path], bytes | None]] = {
    "truncated": lambda data, rng, _: data[: rng.randrange(len(data))],
    "bits flipped in": _bit_flips,
    "wrong type in": _wrong_type,
    "another wrong type in": _wrong_type,
    "empty": lambda data, rng, _: b"",
    "blank": lambda data, rng, _: b" \n\n",
    "invalid UTF-8 in": lambda data, rng, _: (
        data[: (cut := rng.randrange(len(data)))] + b"\xff\xfe" + data[cut:]
    ),
    "deep nesting in": lambda data, rng, _: (
        rng.choice([b"[", b'{"a":', b"- ", b'{"id": "a", "question": [']) * 50_000
    ),
    "huge numbers in": lambda data, rng, _: re.sub(rb"(?<=[ :\[])\d+", b"9" * 40, data),
    "longer numbers in": lambda data, rng, _: re.sub(
        rb"(?<=[ :\[])\d+", b"9" * 6000, data, count=2
    ),
    "negative numbers in": lambda data, rng, _: re.sub(rb"(?<=[ :])(\d)", rb"-\1", data),
    "null bytes in": lambda data, rng, _: data[:10] + b"\0" * 100 + data[10:],
    "a list instead of": lambda data, rng, _: b"[1, 2, 3]\n",
    "a number instead of": lambda data, rng, _: b"3\n",
    "doubled": lambda data, rng, _: data + data,
    "a folder instead of": _instead(lambda path: path.mkdir()),
    "a FIFO instead of": _instead(os.mkfifo),
    "a dangling link instead of": _instead(lambda path: path.symlink_to("nowhere")),
    "a link to itself instead of": _instead(lambda path: path.symlink_to(path.name)),
    "/dev/zero instead of": _instead(lambda path: path.symlink_to("/dev/zero")),
    "missing": _instead(lambda path: None),
}


class Worker:
    """A worker process that runs command lines; see `run`."""

    def __init__(self) -> None:
        self._process: BaseProcess | None = None

    def run(
        self, folder: Path, arguments: list[str], seconds: float = CPU_SECONDS
    ) -> tuple[int | None, str]:
        """Return the exit code (None: it hung or the process died) and standard error."""
        if self._process is None:
            self._process = self._start()
        self._pipe.send((str(folder), arguments))
        if not self._answers(self._process, seconds):
            self.close()
            return None, f"hung for {seconds:.0f} s"
        try:
            code, said = self._pipe.recv()
        except EOFError:
            self.close()
            return None, "died"
        return code, said

    def _answers(self, process: BaseProcess, seconds: float) -> bool:
        """Whether the process answers, or dies, before it hangs; see `CPU_SECONDS`."""
        assert process.pid is not None
        began, used = time.monotonic(), _seconds_used(process.pid)
        while not self._pipe.poll(1.0):
            worked = _seconds_used(process.pid) - used
            if worked > seconds or time.monotonic() - began - worked > SECONDS:
                return False
        return True

    def _start(self) -> BaseProcess:
        self._pipe, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=_serve, args=(theirs,))
        process.start()
        theirs.close()
        if not self._pipe.poll(SECONDS):
            process.kill()
            raise TimeoutError("the process that runs the commands did not start")
        self._pipe.recv()  # it has imported what it needs
        return process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join(SECONDS)
            self._process = None


def _seconds_used(process: int) -> float:
    """The CPU time of a process so far; without Linux's /proc, the time of day."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(pipe: Connection) -> None:
    """Run (folder, arguments) from the pipe; answer with (exit code, standard error)."""
    from ledom.cli import app, run

    for module in pkgutil.walk_packages(ledom.__path__, "ledom."):  # so that no case pays for it
        with contextlib.suppress(ImportError):  # of an extra that is not installed
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    sys.stdin = io.TextIOWrapper(io.BytesIO(b""))
    pipe.send("ready")
    while True:
        folder, arguments = pipe.recv()
        os.chdir(folder)
        sys.argv = ["ledom", *arguments]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code: Any = run.run(app.all_commands())
            except SystemExit as stop:
                code = stop.code or 0
            except BaseException as error:  # a user would see a traceback
                code = f"{type(error).__name__}: {error}"
        pipe.send((code, err.getvalue()))
