"""Record what the page of `ledom serve` shows before any model is asked.

    python docs/record_examples.py src/ledom/serve/page/examples.json

The first problems of the test split, whatever the models make of them: the last lines of each
solution go to the reverse model and each question to the forward model, which write at temperature
0; then the first distinct answers of a sample are judged. `make examples` runs it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

import ledom
from ledom.core.records import Problem
from ledom.data.problems import generate_problems
from ledom.rerank.weights import choose_weights
from ledom.serve.app import make_app
from ledom.serve.judge import Judge
from ledom.serve.service import Service
from ledom.serve.settings import Settings

SEED = 0
NUM_PROBLEMS, NUM_ANSWERS, NUM_SAMPLES = 4, 4, 16
GIVEN_LINES = 2  # of a solution: the last step and the answer
ALTERNATIVES = 5
DIGITS = 4  # of a log-probability, after the point


@contextmanager
def embedded_server() -> Iterator[TestClient]:
    """A server of the embedded pair, in this process."""
    forward, reverse = ledom.load("tiny", "forward"), ledom.load("tiny", "reverse")
    weights = choose_weights(None, None, "tiny", "tiny")  # as ledom serve
    judge = Judge(forward, reverse, weights=weights)
    with TestClient(make_app(Service(judge, Settings())), base_url="http://127.0.0.1") as client:
        yield client


def ask(client: TestClient, path: str, body: dict[str, Any] | None = None) -> Any:
    """An answer of the server."""
    answer = client.get(path) if body is None else client.post(path, json=body)
    answer.raise_for_status()
    return answer.json()


def record(client: TestClient, problem: Problem, template: str) -> dict[str, Any]:
    """One example."""
    before, after = template.split("{question}")
    between, end = after.split("{solution}")
    last_lines = "\n".join((problem.solution or "").splitlines()[-GIVEN_LINES:])
    given = {
        "reverse": last_lines + end,
        "forward": f"{before}{problem.question}{between}",
    }
    write = {name: written(client, name, prompt) for name, prompt in given.items()}
    sampling = {"n": NUM_SAMPLES, "temperature": 1.0, "seed": SEED, "max_tokens": 256}
    prompt = {"model": "forward", "prompt": given["forward"], **sampling}
    choices = ask(client, "/v1/completions", prompt)["choices"]
    answers = list(dict.fromkeys(choice["text"] for choice in choices))[:NUM_ANSWERS]
    body = {"question": problem.question, "answers": answers}
    return {
        "question": problem.question,
        "answers": answers,
        "write": write,
        "judge": slim_verdict(ask(client, "/ledom/score", body)),
    }


def written(client: TestClient, model: str, prompt: str) -> dict[str, Any]:
    """What a model writes on a prompt, as far as the page shows it."""
    body = {"model": model, "prompt": prompt, "max_tokens": 256, "alternatives": ALTERNATIVES}
    made = ask(client, "/ledom/generate", body)
    return {
        "given": prompt,
        "tokens": [
            {**slim(token), "alternatives": [slim(one) for one in token["alternatives"]]}
            for token in made["tokens"]
        ],
        "next": [slim(one) for one in made["next"]],
        "finish_reason": made["finish_reason"],
    }


def slim(token: dict[str, Any]) -> dict[str, Any]:
    """Its text and log-probability."""
    return {"text": token["text"], "logprob": round(token["logprob"], DIGITS)}


def slim_verdict(found: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a verdict."""
    features = ("forward", "reverse", "prior")
    names = [name + mean for name in features for mean in ("", "_mean")]
    return {
        "weights": found["weights"],
        "results": [
            {
                "index": result["index"],
                "features": {name: round(result["features"][name], DIGITS) for name in names},
                "scores": {"x|y": {"words": slim_words(result["scores"]["x|y"]["words"])}},
            }
            for result in found["results"]
        ],
    }


def slim_words(words: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The words with rounded numbers."""
    rounded = [None if w["logprob"] is None else round(w["logprob"], DIGITS) for w in words]
    return [{"text": w["text"], "logprob": r} for w, r in zip(words, rounded, strict=True)]


def record_all() -> dict[str, Any]:
    """The whole file."""
    problems = list(generate_problems("test", NUM_PROBLEMS, seed=SEED))
    with embedded_server() as client:
        models = ask(client, "/ledom/models")["models"]
        template = models["forward"]["template"]
        body = {"model": "forward", "prompt": "", "max_tokens": 0}
        return {
            "command": f"docs/record_examples.py with seed {SEED}",
            "fingerprints": {name: model["fingerprint"] for name, model in models.items()},
            "template": template,
            "end": ask(client, "/ledom/generate", body)["end"],
            "examples": [record(client, problem, template) for problem in problems],
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.write_text(json.dumps(record_all(), ensure_ascii=False, separators=(",", ":")) + "\n")
