"""Speed and memory of reading training data.

    python benchmarks/reading.py [--steps 30] [--tokens 435e9] [--store-gb 10]

Three measurements, each in its own process. **Opening**: seconds and resident memory to open a
store of 435 billion tokens (sparse files, so nothing is stored). **Memory**: windows read at random
from a store of 10 GB with a real index, in both packings. **Rate**: reading windows in shuffled
order and packing them for a model, against training the embedded pair's shape on the same batches
in the same process, on one core.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from common import in_process, new_parser, resident

SHARD_TOKENS = 250_000_000  # half a gigabyte
DOCUMENT_TOKENS = 1000  # in sparse stores; about the length of a web page
SEQ_LEN, BATCH = 2048, 16


def sparse_store(folder: Path, num_tokens: int, with_index: bool) -> None:
    """Write a finished store of zeros that takes no space, except for a real index."""
    folder.mkdir()
    shards = []
    for number in range(-(-num_tokens // SHARD_TOKENS)):
        tokens = min(SHARD_TOKENS, num_tokens - number * SHARD_TOKENS)
        entry: dict[str, Any] = {
            "file": f"{number:05d}_unshuffled.ds",
            "num_documents": tokens // DOCUMENT_TOKENS,
        }
        entry |= {"num_tokens": tokens, "max_id": 0, "sha256": "0" * 64, "index_sha256": "0" * 64}
        for name, size in (("", 2 * tokens), (".index", 8 * entry["num_documents"])):
            with (folder / (entry["file"] + name)).open("wb") as file:
                file.truncate(size)
        if with_index:
            ends = np.arange(1, entry["num_documents"] + 1, dtype="<u8") * DOCUMENT_TOKENS
            ends.tofile(folder / f"{entry['file']}.index")
        shards.append(entry)
    manifest: dict[str, Any] = {
        "num_documents": num_tokens // DOCUMENT_TOKENS,
        "num_tokens": num_tokens,
    }
    manifest |= {"dtype": "uint16", "eos_id": 0, "vocab_size": 50_000, "tokenizer": ""}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "shards": shards}))


def opening(folder: Path) -> dict[str, float]:
    """Open a store and read one batch: seconds and memory."""
    from ledom.data.packing import Batches, Windows
    from ledom.data.store import TokenStore

    before, start = resident(), time.perf_counter()
    store = TokenStore(folder)
    opened = time.perf_counter() - start
    batches = Batches([(Windows(store, SEQ_LEN, "fixed"), 1.0)], BATCH, seed=0)
    list(batches[12_345].windows)
    return {
        "tokens": store.manifest.num_tokens,
        "shards": len(store.shards),
        "open_s": opened,
        "first_batch_s": time.perf_counter() - start,
        "resident_mb": resident() / 1e6,
        "added_mb": (resident() - before) / 1e6,
    }


def reading(folder: Path, batches_read: int, packing: Any) -> dict[str, float]:
    """Read batches at random places in a store: speed and memory."""
    from ledom.data.packing import Batches, Windows
    from ledom.data.store import TokenStore

    windows = Windows(TokenStore(folder), SEQ_LEN, packing)
    batches = Batches([(windows, 1.0)], BATCH, seed=0)
    rng, start, count = Random(0), time.perf_counter(), 0
    for _ in range(batches_read):
        count += sum(map(len, batches[rng.randrange(len(windows) // BATCH)].windows))
    seconds = time.perf_counter() - start
    return {
        "windows_read": batches_read * BATCH,
        "windows": len(windows),
        "gigabytes_read": 2 * count / 1e9,
        "tokens_per_s": count / seconds,
        "resident_mb": resident() / 1e6,
        "peak_mb": resident("VmHWM") / 1e6,
    }


def rate(folder: Path, steps: int, packing: Any, seq_len: int) -> dict[str, float]:
    """Tokens/s of reading and packing, and of training the embedded shape on the same batches."""
    import torch

    from ledom.core.direction import Direction
    from ledom.data.prepare import DataConfig, PreparedData, SourceConfig
    from ledom.model.presets import ModelConfig
    from ledom.train.loop import train
    from ledom.train.metrics import read_metrics
    from ledom.train.optim import OptimConfig
    from ledom.train.recipe import Recipe, TrainConfig
    from ledom.train.start import training_batches

    torch.set_num_threads(1)
    store = str(folder / "store")
    recipe = Recipe(
        name="reading",
        data=DataConfig(
            sources=(SourceConfig(path=store),),
            valid=store,
            packing=packing,
            verify=False,
            num_valid=1,
        ),
        model=ModelConfig.model_validate("tiny"),
        optim=OptimConfig(steps=steps),
        train=TrainConfig(batch_size=BATCH, seq_len=seq_len, checkpoint_every=10**6),
    )
    data = PreparedData(folder, recipe.data)
    reading = read_rate(recipe, data)
    train(recipe, Direction.REVERSE, data, folder / f"run-{packing}")
    rows = read_metrics(folder / f"run-{packing}" / "metrics.jsonl")
    # The first steps are warm-up. A row's rate covers its step alone, including reading.
    training = float(np.median([row["tokens_per_second"] for row in rows[3:]]))
    assert len(training_batches(recipe, Direction.REVERSE, data)[0].windows) == BATCH
    return {"reading": reading, "training": training, "ratio": reading / training}


def read_rate(recipe: Any, data: Any) -> float:
    """Tokens/s of reading and packing batches, as the training loop does between steps."""
    from ledom.core.direction import Direction
    from ledom.data.packing import pack
    from ledom.train.start import training_batches

    batches = training_batches(recipe, Direction.REVERSE, data)
    rates = []
    for _ in range(5):
        count, start = 0, time.perf_counter()
        for step in range(100):
            packed = pack(batches[step].windows, Direction.REVERSE, data.tokenizer.eos_id)
            count += len(packed.targets)
        rates.append(count / (time.perf_counter() - start))
    return float(np.median(rates))


def write_rate_store(folder: Path) -> None:
    """Write a store of documents as long as the embedded pair's, with its tokenizer."""
    import ledom
    from ledom.data.store import write_store
    from ledom.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(Path(ledom.__file__).parent / "lm" / "embedded" / "forward")
    rng = Random(0)
    texts = (
        " ".join(str(rng.randrange(1000)) for _ in range(rng.randint(20, 80)))
        for _ in range(20_000)
    )
    write_store(folder / "store", texts, tokenizer)
    tokenizer.save(folder / "store")


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--steps", type=int, default=30, help="training steps")
    parser.add_argument("--tokens", type=float, default=435e9, help="size of the store to open")
    parser.add_argument("--store-gb", type=float, default=10, help="size of the store to read")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sparse_store(folder / "large", int(arguments.tokens), with_index=False)
        show("opening", in_process(opening, folder / "large"))
        sparse_store(folder / "read", int(arguments.store_gb * 1e9 / 2), with_index=True)
        for packing in ("fixed", "documents"):
            show(f"memory, {packing}", in_process(reading, folder / "read", 10_000, packing))
        write_rate_store(folder)
        for packing, seq_len in (("documents", 512), ("fixed", 512)):
            found = in_process(rate, folder, arguments.steps, packing, seq_len)
            show(f"rate, {packing}", found)


def show(title: str, found: dict[str, float]) -> None:
    """Print a line of figures."""
    print(f"{title}: " + ", ".join(f"{key} {value:,.5g}" for key, value in found.items()))


if __name__ == "__main__":
    main()
