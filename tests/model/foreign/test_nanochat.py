"""nanochat's versions: recognized by names and shapes, with the same results as nanochat.

The numbers in LOGITS come from nanochat's own forward pass at each commit (fp32, CPU) with the
weights of `weights` and the ids of `ids_of`.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import ledom
from ledom.core.errors import CheckpointError, InputError
from ledom.model.checkpoint import load_checkpoint
from ledom.model.foreign.importer import ImportOptions, import_model
from ledom.model.foreign.nanochat_import import find_checkpoint

pytestmark = pytest.mark.slow

VOCABULARY, WIDTH, LAYERS, HEADS, GROUPS = 100, 64, 5, 4, 2
COLUMNS = [0, 17, 42, 63, 99]
SHORT, LONG = (32, 30), (256, 150)  # context, length of the text

LOGITS = {
    "3a5e0bc": [
        [4.16705, -2.1222, 4.48669, 2.09476, 0.83596],
        [-0.79484, -1.09079, 6.13193, -0.35197, 0.76781],
        [2.33891, 0.53742, 3.07129, 4.40076, 4.97439],
    ],
    "f1bf69d": [
        [4.16705, -2.1222, 4.48669, 2.09476, 0.83596],
        [-0.79484, -1.09079, 6.13193, -0.35197, 0.76781],
        [2.33891, 0.53742, 3.07129, 4.40076, 4.97439],
    ],
    "aa530cd": [
        [4.39956, -1.85873, 4.54329, 1.92905, 1.05705],
        [-0.81557, -0.72103, 5.97639, -0.43326, 0.77105],
        [2.53505, 0.63951, 3.32801, 4.56733, 5.00411],
    ],
    "fbc1484": [
        [4.39956, -1.85873, 4.54329, 1.92905, 1.05705],
        [-0.81557, -0.72103, 5.97639, -0.43326, 0.77105],
        [2.68842, -0.53124, 4.26011, 4.30542, 4.86378],
    ],
    "a91743c": [
        [4.20862, -1.87993, 3.06704, 2.1021, 3.2865],
        [1.32346, -3.00759, 3.69937, 1.78541, 1.92609],
        [0.12988, -1.69136, 4.75466, 4.15463, 3.36493],
    ],
    "aba30cb": [
        [4.25842, -1.88426, 3.08604, 2.10816, 3.30994],
        [1.32497, -3.02549, 3.73296, 1.78911, 1.93075],
        [0.12988, -1.69452, 4.8271, 4.20251, 3.39011],
    ],
    "6ed7d1d": [
        [4.22192, -2.69262, 1.36418, 2.9962, 4.85395],
        [4.76135, 1.20443, 5.8782, 2.39687, -0.22534],
        [-0.96963, -3.12979, 4.89005, 4.15373, 0.34716],
    ],
}
"""By commit: logits of the first, middle and last token at COLUMNS."""

# Contents of the checkpoints of each commit: padded rows, residual scales, windows, gate inputs.
VERSIONS = {
    "3a5e0bc": (False, False, False, 0),
    "f1bf69d": (True, False, False, 0),
    "aa530cd": (True, True, False, 0),
    "fbc1484": (True, True, True, 0),
    "a91743c": (True, True, True, 32),
    "aba30cb": (True, True, True, 32),
    "6ed7d1d": (True, True, True, 12),
}


def ids_of(length: int) -> torch.Tensor:
    places = np.arange(length)
    return torch.from_numpy((places * 37 + places**2 * 11) % VOCABULARY)[None]


def shapes(commit: str) -> dict[str, tuple[int, ...]]:
    padded, residual, _, gate = VERSIONS[commit]
    rows, kv = 128 if padded else VOCABULARY, WIDTH * GROUPS // HEADS
    found: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (rows, WIDTH)}
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}"
        found |= {
            f"{block}.attn.c_{k}.weight": (n, WIDTH)
            for k, n in zip("qkv", (WIDTH, kv, kv), strict=True)
        }
        found[f"{block}.attn.c_proj.weight"] = (WIDTH, WIDTH)
        found[f"{block}.mlp.c_fc.weight"] = (4 * WIDTH, WIDTH)
        found[f"{block}.mlp.c_proj.weight"] = (WIDTH, 4 * WIDTH)
        if gate and layer % 2 == (LAYERS - 1) % 2:
            found[f"{block}.attn.ve_gate.weight"] = (GROUPS, gate)
            found[f"value_embeds.{layer}.weight"] = (rows, kv)
    if residual:
        found |= {"resid_lambdas": (LAYERS,), "x0_lambdas": (LAYERS,)}
    return found | {"lm_head.weight": (rows, WIDTH)}


def weights(commit: str) -> dict[str, torch.Tensor]:
    """Normal numbers, seeded by the name and scaled so that every part matters."""
    made = {}
    for name, shape in shapes(commit).items():
        seed = zlib.crc32(name.encode())
        values = np.random.RandomState(seed).standard_normal(shape)  # its stream never changes
        if name == "resid_lambdas":
            values = 1 + 0.2 * values
        elif name == "x0_lambdas":
            values = 0.3 * values
        elif "wte" not in name and "value_embeds" not in name:
            values = values * ((3.0 if name == "lm_head.weight" else 1.5) / shape[1] ** 0.5)
        made[name] = torch.from_numpy(values.astype(np.float32))
    return made


@pytest.fixture
def encoding_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that looks like tiktoken's to pickle."""
    module = ModuleType("tiktoken.core")
    encoding = type("Encoding", (), {"__module__": "tiktoken.core"})
    module.Encoding = encoding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiktoken", ModuleType("tiktoken"))
    monkeypatch.setitem(sys.modules, "tiktoken.core", module)
    return encoding


@pytest.fixture
def source(tmp_path: Path, encoding_class: type) -> Any:
    """Write a checkpoint as nanochat does; returns its folder."""

    def write(commit: str, extra: dict[str, torch.Tensor] | None = None, prefix: str = "") -> Path:
        folder = tmp_path / "nanochat"
        (folder / "tokenizer").mkdir(parents=True)
        context = (LONG if commit == "6ed7d1d" else SHORT)[0]
        shape = {"n_layer": LAYERS, "n_head": HEADS, "n_kv_head": GROUPS, "n_embd": WIDTH}
        shape |= {"vocab_size": VOCABULARY, "sequence_len": context}
        windows = {"window_pattern": "SSSL"} if VERSIONS[commit][2] else {}
        (folder / "meta_000007.json").write_text(json.dumps({"model_config": shape | windows}))
        state = {prefix + name: value for name, value in (weights(commit) | (extra or {})).items()}
        torch.save(state, folder / "model_000007.pt")
        encoding = encoding_class()
        ranks = {bytes([32 + rank]): rank for rank in range(95)}
        encoding.__dict__ |= {"name": "x", "pat_str": ".", "mergeable_ranks": ranks}
        encoding.special_tokens = {"<|bos|>": 95}
        (folder / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
        return folder

    return write


def options(**changes: Any) -> ImportOptions:
    return ImportOptions(direction="reverse", check=False, **changes)


@pytest.mark.parametrize("commit", VERSIONS)
def test_every_version_gives_the_same_results_as_nanochat(
    source: Any, tmp_path: Path, commit: str
) -> None:
    softcap = 20.0 if commit == "aba30cb" else None
    prefix = "_orig_mod." if commit in ("f1bf69d", "6ed7d1d") else ""
    folder = source(commit, prefix=prefix)
    made = import_model(str(folder), tmp_path / "out", options(softcap=softcap))
    assert made.eos_token == "<|bos|>"
    ids = ids_of((LONG if commit == "6ed7d1d" else SHORT)[1])
    for implementation in ("ledom", "sdpa"):
        model = load_checkpoint(made.folder).model
        model.config._attn_implementation = implementation
        with torch.no_grad():
            logits = model(ids).logits[0]
        expected = torch.tensor(LOGITS[commit])
        rows = [0, len(logits) // 2, len(logits) - 1]
        torch.testing.assert_close(logits[rows][:, COLUMNS], expected, atol=2e-5, rtol=0)


def test_scores_equal_those_of_the_model(source: Any, tmp_path: Path) -> None:
    """Scored together with other texts, one of them longer than the window."""
    made = import_model(str(source("6ed7d1d")), tmp_path / "out", options())
    lm = ledom.load(made.folder)
    assert lm.context == 256
    texts = [ids_of(40)[0].tolist(), ids_of(150)[0].tolist(), ids_of(25)[0].tolist()[3:]]
    got = lm.logprobs([ledom.TokenSpan(ids, 0, len(ids) - 1) for ids in texts])
    model = load_checkpoint(made.folder).model
    for ids, values in zip(texts, got, strict=True):
        flipped = torch.tensor(ids[::-1])[None]
        with torch.no_grad():
            logprobs = model(flipped).logits[0, :-1].log_softmax(-1)
        expected = logprobs.gather(1, flipped[0, 1:, None])[:, 0].flip(0)
        np.testing.assert_allclose(values, expected.numpy(), atol=1e-4)


def test_packed_texts_longer_than_the_window_are_refused(source: Any, tmp_path: Path) -> None:
    made = import_model(str(source("fbc1484")), tmp_path / "out", options())
    model = load_checkpoint(made.folder).model
    model.config._attn_implementation = "ledom"
    with pytest.raises(CheckpointError, match="18 tokens is longer than this model's window of 17"):
        model(ids_of(22), cu_seq_lens_q=torch.tensor([0, 18, 22]))
    with torch.no_grad():
        packed = model(
            torch.cat([ids_of(9), ids_of(17)], 1),
            position_ids=torch.cat([torch.arange(9), torch.arange(17)])[None],
            cu_seq_lens_q=torch.tensor([0, 9, 26]),
        ).logits[0, 9:]
        torch.testing.assert_close(packed, model(ids_of(17)).logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smear_gate.weight", "smear"),
        ("smear_lambda", "smear"),
        ("backout_lambda", "smear"),
        ("value_embed.weight", "reverted"),
        ("value_embeds_low.weight", "reverted"),
        ("v0_lambdas", "reverted"),
        ("bigram_embed.weight", "reverted"),
        ("new_lambdas", "not part of"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_other_versions_are_named_and_refused(
    source: Any, tmp_path: Path, name: str, message: str, prefix: str
) -> None:
    folder = source("a91743c", {name: torch.ones(3, 24)}, prefix)
    with pytest.raises(CheckpointError, match=f"{re.escape(name)}.*{message}"):
        import_model(str(folder), tmp_path / "out", options())
    assert not (tmp_path / "out").exists()


def test_a_gate_of_another_width_is_refused(source: Any, tmp_path: Path) -> None:
    gates = {n: torch.ones(GROUPS, 16) for n in shapes("a91743c") if "ve_gate" in n}
    with pytest.raises(CheckpointError, match=r"reads \[16\] inputs"):
        import_model(str(source("a91743c", gates)), tmp_path / "out", options())


@pytest.mark.parametrize(
    ("commit", "cap"), [("3a5e0bc", 20.0), ("6ed7d1d", 20.0), ("a91743c", 7.0)]
)
def test_an_impossible_logit_cap_is_refused(
    source: Any, tmp_path: Path, commit: str, cap: float
) -> None:
    with pytest.raises(InputError, match=f"--softcap {cap:g}: give 15 or 20"):
        import_model(str(source(commit)), tmp_path / "out", options(softcap=cap))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_head", 0, "key n_head: Input should be greater than 0, found 0"),
        ("n_head", 5, "n_embd must be an even multiple of n_head"),
        ("n_layer", "5", "key n_layer: Input should be a valid integer, found '5'"),
        ("vocab_size", 30, "128 rows, expected the vocabulary's 30, or 64"),
        ("n_embd", 128, "has the shape"),
        ("window_pattern", "SXL", "key window_pattern: .*, found 'SXL'"),
    ],
)
def test_a_meta_file_that_does_not_match_is_refused(
    source: Any, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    folder = source("f1bf69d")
    meta = json.loads((folder / "meta_000007.json").read_text())
    meta["model_config"][key] = value
    (folder / "meta_000007.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match=message):
        import_model(str(folder), tmp_path / "out", options())


def test_weights_are_in_one_folder_with_their_meta_file(tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "model_000010.pt").touch()
    with pytest.raises(CheckpointError, match="several models here; give one of .*/a, .*/b$"):
        find_checkpoint(tmp_path)
    message = r"/a/meta_000010\.json: missing; it records the shape of model_000010\.pt$"
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(tmp_path / "a")


def test_inferred_settings_are_reported(source: Any, tmp_path: Path) -> None:
    made = import_model(str(source("a91743c")), tmp_path / "out", options())
    assert "3 layers see 17 tokens" in made.notes[0]
    assert "--softcap 20" in made.notes[1]
