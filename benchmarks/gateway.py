"""Does the gateway of `ledom serve` choose the same answers as `ledom rerank`?

    python benchmarks/gateway.py [--problems 200] [--samples 8] [--out out/gateway]

`ledom rerank` samples candidates for generated problems and chooses among them. A mock upstream
then sends the same candidates to a gateway, which also chooses among them. The benchmark compares
the two choices, and their accuracies with that of a random choice.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from common import new_parser, parse

from ledom.core.records import Candidate, Problem, read_records
from ledom.data.problems import generate_problems
from ledom.rerank.weights import Selection
from ledom.serve.judge import MASK_COPIES
from ledom.text.answers import equal_answers, extract_answer
from serving import HOST, serving

SEED = 3


def rerank(problems: int, samples: int, out: Path) -> list[Selection]:
    """The answers that `ledom rerank` chooses from candidates that it samples into `out`."""
    command = [sys.executable, "-m", "ledom", "rerank", "--split", "test", "--seed", str(SEED)]
    command += ["--num-problems", str(problems), "--samples", str(samples)]
    command += ["--mask-copies", str(MASK_COPIES), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return list(read_records(out / "selected.jsonl", Selection))


@contextmanager
def upstream(texts: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A chat server (OpenAI's protocol) that returns these texts by question; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            drawn = texts[body["messages"][-1]["content"]]
            choices = [{"message": {"role": "assistant", "content": text}} for text in drawn]
            answer = json.dumps({"choices": choices}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer((HOST, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{HOST}:{server.server_port}/v1"
    finally:
        server.shutdown()


def served(problems: Sequence[Problem], texts: Mapping[str, Sequence[str]]) -> list[str]:
    """The answers that the gateway returns for the problems' questions."""
    with upstream(texts) as address:
        options = ["--upstream", address, "--upstream-model", "any"]
        with serving(options=options) as (port, _):
            url = f"http://{HOST}:{port}/v1/chat/completions"
            answers = []
            for problem in problems:
                messages = [{"role": "user", "content": problem.question}]
                name = f"ledom/auto,n={len(texts[problem.question])}"
                body = {"model": name, "messages": messages}
                answer = httpx.post(url, json=body, timeout=600).raise_for_status().json()
                answers.append(answer["choices"][0]["message"]["content"])
            return answers


def main() -> None:
    """Print one line of JSON."""
    parser = new_parser(__doc__)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("out/gateway"))
    given = parse(parser)
    selections = rerank(given.problems, given.samples, given.out)
    problems = list(generate_problems("test", given.problems, seed=SEED))
    candidates = list(read_records(given.out / "candidates.jsonl", Candidate))
    texts: dict[str, list[str]] = {
        problem.question: [
            c.text for c in candidates if c.problem_id == problem.id and not c.greedy
        ]
        for problem in problems
    }
    answers = served(problems, texts)

    def right(problem: Problem, text: str) -> bool:
        return equal_answers(extract_answer(text) or "", problem.answer or "")

    count = len(problems)
    by_chance = [
        sum(right(problem, text) for text in texts[problem.question]) / len(texts[problem.question])
        for problem in problems
    ]
    by_gateway = sum(map(right, problems, answers))
    by_rerank = sum(right(p, s.text) for p, s in zip(problems, selections, strict=True))
    found = {
        "problems": count,
        "same choice": sum(a == s.text for a, s in zip(answers, selections, strict=True)),
        "accuracy, gateway": round(by_gateway / count, 4),
        "accuracy, rerank": round(by_rerank / count, 4),
        "accuracy, random choice": round(sum(by_chance) / count, 4),
        "strategy": selections[0].strategy,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
