"""Memory and time of importing a checkpoint of LEDOM-7B's shape, from empty shards.

    python benchmarks/importing.py [--folder /tmp/import-benchmark] [--keep]

Writes four sparse safetensors files (15.6 GB nominal, almost nothing on disk), imports them without
the self-check, then runs the self-check's forward pass on the result. Each step runs in its own
process, whose peak resident memory is printed; `start` only imports the code. The imported
folder takes 15.6 GB of disk.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from common import in_process, new_parser, resident

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 64256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
SHARDS = 4


def tensors() -> dict[str, list[int]]:
    """The shape of every tensor, by name."""
    width, inner, vocabulary = (
        CONFIG[k] for k in ("hidden_size", "intermediate_size", "vocab_size")
    )
    found = {"model.embed_tokens.weight": [vocabulary, width]}
    for layer in range(CONFIG["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        for name in "qkvo":
            found[f"{block}.self_attn.{name}_proj.weight"] = [width, width]
        found |= {f"{block}.mlp.{name}_proj.weight": [inner, width] for name in ("gate", "up")}
        found[f"{block}.mlp.down_proj.weight"] = [width, inner]
        for name in ("input", "post_attention"):
            found[f"{block}.{name}_layernorm.weight"] = [width]
    return found | {"model.norm.weight": [width], "lm_head.weight": [vocabulary, width]}


def write_source(folder: Path) -> None:
    """Write a model folder whose weight files are sparse."""
    from ledom.lm import embedded_folder

    folder.mkdir(parents=True)
    shapes = tensors()
    size = -(-len(shapes) // SHARDS)
    names, places = list(shapes), {}
    for number in range(SHARDS):
        header, end = {}, 0
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        for name in names[number * size : (number + 1) * size]:
            count = 2
            for length in shapes[name]:
                count *= length
            offsets = [end, end + count]
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": offsets}
            end += count
            places[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded_folder("reverse") / name, folder / name)


def step(name: str, folder: Path) -> None:
    """Run one step in this process, and print its peak resident memory and its time."""
    start = time.perf_counter()
    from transformers import AutoConfig

    from ledom.core.direction import Direction
    from ledom.model.checkpoint import read_checkpoint_info
    from ledom.model.foreign.check import check_model
    from ledom.model.foreign.importer import ImportOptions, import_model
    from ledom.model.foreign.skeleton import build_skeleton

    out = folder / "imported"
    if name == "import":
        import_model(str(folder / "source"), out, ImportOptions("reverse", check=False))
    elif name == "check":
        tokenizer = read_checkpoint_info(out).tokenizer.backend
        skeleton = build_skeleton(AutoConfig.from_pretrained(out))
        found = check_model(out, skeleton, tokenizer, Direction.REVERSE)
        print(f"loss {found.reverse_loss:.3f} nats per token (all weights 0: ln 64256 = 11.071)")
    seconds = time.perf_counter() - start
    print(f"{name}: peak {resident('VmHWM') / 1e9:.2f} GB resident, {seconds:.0f} s", flush=True)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/import-benchmark"))
    parser.add_argument("--keep", action="store_true", help="do not delete the files")
    options = parser.parse_args()
    try:
        write_source(options.folder / "source")
        files = (options.folder / "source").glob("*.safetensors")
        print(f"source: {sum(file.stat().st_size for file in files) / 1e9:.2f} GB")
        for name in ("start", "import", "check"):
            in_process(step, name, options.folder)
    finally:
        if not options.keep:
            shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
