"""`ledom serve` under load, compared with the same judge without a server.

    python benchmarks/serving.py [--rounds 5] [--posts 256] [--minutes 10]

Throughput: `posts` one-sample requests at once. They take turns with the same pairs judged in this
process, so that other work on the machine affects both. The ratios are of median times and of CPU
times. Latency: a small request of median length, repeated, alone and alongside four clients that
send 200 answers each. Memory: the server's resident memory from the second minute of full load to
the last. Kill: the server is killed under load and restarted; every client must see a broken
connection or a right answer, never a wrong one.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common import new_parser, parse, resident

HOST = "127.0.0.1"
LARGE = 200  # answers in a large request


def pairs(count: int) -> list[tuple[str, str]]:
    """Questions and solutions like those the embedded pair was trained on."""
    from ledom.data.problems import generate_problems

    problems = generate_problems("test", count, seed=11)
    return [(problem.question, problem.solution or "") for problem in problems]


@contextmanager
def serving(
    port: int = 0, options: Sequence[str] = ()
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Run a server in its own process; yields its port and the process."""
    command = [sys.executable, "-m", "ledom", "serve", "--port", str(port), *options]
    command += ["--max-seconds", "3600"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r":(\d+): ", line)
        if found is None:
            raise SystemExit(f"the server did not start: {line}")
        yield int(found[1]), process
    finally:
        process.terminate()
        process.wait(60)


class Client:
    """A persistent connection that posts JSON with as little work as possible."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and answer; raises `ConnectionError` if the server is gone."""
        if self.streams is None:
            self.streams = await asyncio.open_connection(HOST, self.port)
        reader, writer = self.streams
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        try:
            answer = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(answer.lower().split("content-length: ")[1].split("\r\n")[0])
            return int(answer.split()[1]), json.loads(await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.close()
            raise ConnectionError from None

    def close(self) -> None:
        """Close the connection."""
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


def small(pair: tuple[str, str]) -> dict[str, str]:
    """The body of a one-sample request."""
    return {"prompt": pair[0], "response": pair[1]}


async def all_at_once(clients: list[Client], given: list[tuple[str, str]]) -> float:
    """Seconds for one request per client, all at once, each on a new connection."""
    for client in clients:
        client.close()
    start = time.perf_counter()
    answers = await asyncio.gather(
        *(c.post("/reward", small(pair)) for c, pair in zip(clients, given, strict=True))
    )
    assert all(status == 200 for status, _ in answers)
    return time.perf_counter() - start


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """CPU seconds of a process's threads so far, to the microsecond."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


async def throughput(
    port: int, process: subprocess.Popen[str], given: list[tuple[str, str]], rounds: int
) -> dict[str, float]:
    """Pairs per second over HTTP and in this process, measured alternately.

    Also returns the ratio of CPU times, which other work on the machine affects less.
    """
    from ledom.lm import load
    from ledom.rerank.weights import choose_weights
    from ledom.serve.judge import Judge, Pair

    weights = choose_weights(None, None, "tiny", "tiny")
    judge = Judge(load("tiny", "forward"), load("tiny", "reverse"), None, weights)
    clients = [Client(port) for _ in given]
    await all_at_once(clients, given)  # connects, and warms up
    judge.judge([Pair(*pair) for pair in given[:8]])
    served, offline = [], []
    cpu_served = cpu_offline = 0.0
    for _ in range(rounds):
        start, own = time.perf_counter(), time.process_time()
        judge.judge([Pair(*pair) for pair in given])
        offline.append(time.perf_counter() - start)
        cpu_offline += time.process_time() - own
        before = cpu_seconds(process)
        served.append(await all_at_once(clients, given))
        cpu_served += cpu_seconds(process) - before
    for client in clients:
        client.close()
    ratio = statistics.median(offline) / statistics.median(served)
    return {
        "offline, pairs/s": round(len(given) / statistics.median(offline), 1),
        "served, pairs/s": round(len(given) / statistics.median(served), 1),
        "ratio": round(ratio, 3),
        "ratio of CPU time": round(cpu_offline / cpu_served, 3),
    }


async def timed(
    client: Client, process: subprocess.Popen[str], pair: tuple[str, str], count: int
) -> tuple[list[float], list[float]]:
    """Send one small request `count` times in sequence; returns two sorted lists of seconds.

    The first is wall-clock time, the second the CPU time of the server meanwhile.
    """
    times, busy = [], []
    for _ in range(count):
        start, before = time.perf_counter(), cpu_seconds(process)
        status, _ = await client.post("/reward", small(pair))
        assert status == 200
        times.append(time.perf_counter() - start)
        busy.append(cpu_seconds(process) - before)
    return sorted(times), sorted(busy)


async def latency(
    port: int, process: subprocess.Popen[str], given: list[tuple[str, str]], count: int
) -> dict[str, float]:
    """The latency of a small request: p50 alone, p99 alongside large ones."""
    client = Client(port)
    pair = sorted(given, key=lambda pair: sum(map(len, pair)))[len(given) // 2]
    await timed(client, process, pair, 20)
    alone, busy_alone = await timed(client, process, pair, count)
    question = given[0][0]
    body = {"query": question, "documents": [answer for _, answer in (given * 2)[:LARGE]]}

    async def large(client: Client) -> None:
        while True:
            await client.post("/rerank", body)

    crowd = [asyncio.create_task(large(Client(port))) for _ in range(4)]
    await asyncio.sleep(2)
    beside, busy_beside = await timed(client, process, pair, count)
    for task in crowd:
        task.cancel()
    p50, p99 = alone[count // 2], beside[int(0.99 * (count - 1))]
    busy_ratio = busy_beside[int(0.99 * (count - 1))] / busy_alone[count // 2]
    return {
        "p50 alone, ms": round(1e3 * p50, 1),
        "p99 alone, ms": round(1e3 * alone[int(0.99 * (count - 1))], 1),
        "p99 next to large ones, ms": round(1e3 * p99, 1),
        "ratio": round(p99 / p50, 2),
        "ratio of CPU time": round(busy_ratio, 2),
    }


async def memory(
    port: int, process: subprocess.Popen[str], given: list[tuple[str, str]], minutes: float
) -> dict[str, float]:
    """Resident memory under full load, after a fifth of the time and at the end."""
    clients = [Client(port) for _ in given]
    sizes: list[tuple[float, float]] = []
    start = time.monotonic()
    while (passed := time.monotonic() - start) < 60 * minutes:
        await all_at_once(clients, given)
        sizes.append((passed, resident(pid=process.pid) / 1e6))
    kept = [size for passed, size in sizes if passed >= 12 * minutes]
    for client in clients:
        client.close()
    return {
        "first, MB": round(kept[0], 1),
        "last, MB": round(kept[-1], 1),
        "most over first": round(max(kept) / kept[0], 3),
    }


async def killed(given: list[tuple[str, str]]) -> dict[str, float]:
    """What clients see when the server is killed under load and restarted."""
    errors = wrong = right = 0
    servers = ExitStack()
    port, process = servers.enter_context(serving())
    client = Client(port)
    expected = [(await client.post("/reward", small(pair)))[1] for pair in given]
    client.close()

    async def ask(number: int) -> None:
        nonlocal errors, wrong, right
        client = Client(port)
        for _ in range(600):
            try:
                status, value = await client.post("/reward", small(given[number]))
            except OSError:
                errors += 1
                await asyncio.sleep(0.2)
                continue
            if status != 200 or abs(value - expected[number]) > 1e-3:
                wrong += 1
            else:
                right += 1
            break
        client.close()

    jobs = [asyncio.create_task(ask(number)) for number in range(len(given))]
    await asyncio.sleep(0.3)
    process.kill()
    process.wait(60)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(servers.enter_context, serving(port))
    await asyncio.gather(*jobs)
    servers.close()
    return {"broken connections": errors, "right": right, "wrong": wrong}


def main() -> None:
    """Print a line of JSON per measurement."""
    parser = new_parser(__doc__)
    parser.add_argument("--posts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--requests", type=int, default=200, help="number of requests for the latency"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="under full load; 0: skip")
    given = parse(parser)
    texts = pairs(given.posts)
    with serving() as (port, process):
        show("throughput", throughput(port, process, texts, given.rounds))
        show("latency", latency(port, process, texts, given.requests))
        if given.minutes:
            show("memory", memory(port, process, texts, given.minutes))
    show("killed", killed(texts))


def show(name: str, measurement: Coroutine[Any, Any, dict[str, float]]) -> None:
    """Run a measurement and print its figures."""
    print(name, json.dumps(asyncio.run(measurement)), flush=True)


if __name__ == "__main__":
    main()
