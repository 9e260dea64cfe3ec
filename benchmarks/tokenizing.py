"""`ledom tokenize` against plain `tokenizers.encode_batch` plus a numpy write, in CPU seconds.

    python benchmarks/tokenizing.py [--documents FILE.jsonl --tokenizer FILE --eos-token TOKEN]

Both encode the same documents with the same tokenizer, on one thread per process. The plain side
has its texts in memory before timing starts. ledom's time is that of the whole command: starting
Python, reading JSON, encoding, writing, checksums and manifest, in all its processes. Without
options, the documents are random words and the tokenizer is trained on them. The two take turns;
the figures are medians.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from statistics import median

import numpy as np
from common import new_parser

BATCH = 1000  # documents that the plain side encodes at a time


def plain(texts: list[str], tokenizer_file: Path, eos: str, out: Path) -> tuple[int, float, float]:
    """Encode texts in memory and write the ids; returns tokens, CPU and wall-clock seconds."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    eos_id = tokenizer.token_to_id(eos)
    total, cpu, wall = 0, time.process_time(), time.perf_counter()
    with out.open("wb") as file:
        for start in range(0, len(texts), BATCH):
            for encoding in tokenizer.encode_batch(
                texts[start : start + BATCH], add_special_tokens=False
            ):
                ids = np.array([*encoding.ids, eos_id], np.uint16)
                file.write(ids.tobytes())
                total += len(ids)
    return total, time.process_time() - cpu, time.perf_counter() - wall


def ledom(
    documents: Path, tokenizer_file: Path, eos: str, out: Path, workers: int
) -> tuple[int, float, float]:
    """Run the whole command; returns tokens, CPU seconds and wall-clock seconds."""
    command = [sys.executable, "-m", "ledom", "tokenize", str(documents), "--out", str(out)]
    command += ["--tokenizer", str(tokenizer_file), "--eos-token", eos, "--workers", str(workers)]
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - wall
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads((out / "manifest.json").read_text())["num_tokens"], cpu, wall


def write_documents(file: Path, megabytes: float) -> None:
    """Write documents of random words; a few words are frequent and most are rare."""
    rng = Random(0)
    words = ["".join(rng.choices("aeiounrstlmdp", k=rng.randint(2, 10))) for _ in range(30_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    left = megabytes * 1e6
    with file.open("w", encoding="utf-8") as out:
        while left > 0:
            text = " ".join(rng.choices(words, weights, k=rng.randint(50, 1500)))
            left -= out.write(json.dumps({"id": "d", "text": text}) + "\n")


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--documents", type=Path, help="a JSONL file with a key text")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json")
    parser.add_argument("--eos-token", default="<|end|>")
    parser.add_argument("--megabytes", type=float, default=20, help="of generated documents")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        documents = arguments.documents or folder / "documents.jsonl"
        if arguments.documents is None:
            write_documents(documents, arguments.megabytes)
        lines = documents.read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        tokenizer = arguments.tokenizer
        if tokenizer is None:
            from ledom.text.tokenizer import train_tokenizer

            tokenizer = folder / "tokenizer.json"
            train_tokenizer(texts[:2000], 6400).save(folder)
        measured: dict[str, list[tuple[int, float, float]]] = {}
        for number in range(arguments.rounds):
            measured.setdefault("plain encode_batch", []).append(
                plain(texts, tokenizer, arguments.eos_token, folder / "plain.bin")
            )
            for workers in arguments.workers:
                out = folder / f"{workers}-{number}"
                measured.setdefault(f"ledom, {workers} workers", []).append(
                    ledom(documents, tokenizer, arguments.eos_token, out, workers)
                )
    show(measured)


def show(measured: dict[str, list[tuple[int, float, float]]]) -> None:
    """Print rates, and their ratios to the plain side's in the same round."""
    base = measured["plain encode_batch"]
    tokens = base[0][0]
    assert all(found[0] == tokens for rounds in measured.values() for found in rounds)
    print(f"{tokens:,} tokens, {len(base)} rounds")
    print("                        tokens/CPU s   of plain (by round)      tokens/s, wall")
    for name, rounds in measured.items():
        ratios = [b[1] / r[1] for r, b in zip(rounds, base, strict=True)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"{name:22} {tokens / median(r[1] for r in rounds):13,.0f}   {median(ratios):.2f} "
            f"({each})  {tokens / median(r[2] for r in rounds):13,.0f}"
        )


if __name__ == "__main__":
    main()
