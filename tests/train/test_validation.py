"""What a validation adds to a row, compared with plain transformers and hand counts."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.data.packing import Windows, pack
from ledom.data.prepare import DataConfig, PreparedData
from ledom.data.store import write_store
from ledom.model.checkpoint import build_model
from ledom.train.distributed import ProcessGroup
from ledom.train.loop import packed_losses, train, validate
from ledom.train.metrics import ValidationStats, _numbered
from number_documents import ids_of

TEXTS = [
    "Ava has three pens and buys four more at the shop on the corner.",
    "Two.",
    "A pizza has 24 pieces, and Noah eats 8 of them; how many are left for the others to eat?",
    "Ten apples, five pears.",
]
SOURCES = ["shop", "count", "shop", "count"]
LONE = ProcessGroup(torch.device("cpu"))


@pytest.fixture
def valid(tmp_path, data):
    """A store of four documents from two sources."""
    runs = [["shop", 1], ["count", 1], ["shop", 1], ["count", 1]]
    return write_store(tmp_path / "valid", TEXTS, data.tokenizer, sources=runs)


def recipe_of(recipe, **changes):
    train = recipe.train.model_copy(update={k: v for k, v in changes.items() if k != "packing"})
    windows = recipe.data.model_copy(update={"packing": changes.get("packing", "documents")})
    return recipe.model_copy(update={"train": train, "data": windows})


@torch.no_grad()
def plain_rows(model, store, stretches, flip):
    """(document, position, loss) of each predicted token of [start, end) of documents, by hand."""
    config = type(model.config)(**{**model.config.to_dict(), "attn_implementation": "sdpa"})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    plain.load_state_dict(model.state_dict())
    documents = [[store.eos_id, *ids] for ids in ids_of(store)]
    rows = []
    for document, start, end in stretches:
        ids = documents[document][start : end + 1]
        ids = torch.tensor(ids[::-1] if flip else ids)
        logits = plain(input_ids=ids[None, :-1], use_cache=False).logits[0]
        losses = cross_entropy(logits, ids[1:], reduction="none").tolist()
        rows += [(document, position, loss) for position, loss in enumerate(losses)]
    return rows


def mean_by(rows, key):
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row[-1])
    return {name: sum(losses) / len(losses) for name, losses in groups.items()}


def bin_of(position):
    """The bin of a position (0, 1, 2-3, 4-7 ...), named by its first position."""
    start = 1
    while 2 * start <= position:
        start *= 2
    return str(start if position else 0)


@pytest.mark.slow
@pytest.mark.parametrize("direction", Direction)
def test_parts_of_the_loss_equal_those_of_plain_transformers(
    recipe, data, valid, tiny_config, direction
):
    model = build_model(tiny_config, data.tokenizer, 5)
    lengths = [len(ids) for ids in ids_of(valid)]
    stretches = [
        (document, start, min(start + 10, length))
        for document, length in enumerate(lengths)
        for start in range(0, length, 10)
    ]
    rows = plain_rows(model, valid, stretches, flip=direction is Direction.REVERSE)
    given = SimpleNamespace(valid=valid, tokenizer=data.tokenizer)
    found = validate(model, given, direction, recipe_of(recipe, seq_len=10, batch_size=3))
    near = {"abs": 1e-5}
    assert found["valid_loss"] == pytest.approx(np.mean([row[-1] for row in rows]), **near)
    assert found["valid_tokens"] == sum(lengths)
    assert found["valid_loss_by_source"] == pytest.approx(
        mean_by(rows, lambda row: SOURCES[row[0]]), **near
    )
    assert found["valid_loss_by_position"] == pytest.approx(
        mean_by(rows, lambda row: bin_of(row[1])), **near
    )
    sizes = [end - start for _, start, end in stretches]
    assert found["valid_tokens_by_window"] == sizes
    ends = np.cumsum(sizes)
    by_window = [
        np.mean([r[-1] for r in rows[e - s : e]]) for s, e in zip(sizes, ends, strict=True)
    ]
    assert found["valid_loss_by_window"] == pytest.approx(by_window, **near)
    assert sum(found["valid_tokens_by_source"].values()) == sum(lengths)
    assert found["valid_tokens_by_position"]["0"] == len(stretches)


@pytest.mark.slow
@pytest.mark.parametrize("direction", Direction)
def test_a_fixed_window_is_divided_among_its_documents(recipe, data, valid, tiny_config, direction):
    """One window over all documents gives the same as the documents alone, in any direction."""
    model = build_model(tiny_config, data.tokenizer, 5)
    lengths = [len(ids) for ids in ids_of(valid)]
    stretches = [(document, 0, length) for document, length in enumerate(lengths)]
    rows = plain_rows(model, valid, stretches, flip=direction is Direction.REVERSE)
    settings = recipe_of(recipe, seq_len=sum(lengths), packing="fixed")
    given = SimpleNamespace(valid=valid, tokenizer=data.tokenizer)
    found = validate(model, given, direction, settings)
    assert found["valid_tokens_by_window"] == [sum(lengths)]
    for name, key in (("source", lambda r: SOURCES[r[0]]), ("position", lambda r: bin_of(r[1]))):
        expected = mean_by(rows, key)
        assert found[f"valid_loss_by_{name}"] == pytest.approx(expected, abs=1e-5)
    assert found["valid_tokens_by_position"]["0"] == 4


@pytest.mark.slow
def test_both_directions_read_the_same_tokens_and_other_tokens_differ(
    tmp_path, recipe, data, tiny_config
):
    model = build_model(tiny_config, data.tokenizer, 5)
    rows = [validate(model, data, direction, recipe) for direction in Direction]
    for key in ("valid_data", "valid_tokens", "valid_tokens_by_window", "valid_tokens_by_position"):
        assert rows[0][key] == rows[1][key]
    assert rows[0]["valid_loss"] != rows[1]["valid_loss"]
    assert "valid_loss_by_source" not in rows[0]  # these problems name no source
    other = validate(model, data, Direction.FORWARD, recipe_of(recipe, seq_len=32))
    assert other["valid_data"] != rows[0]["valid_data"]


def test_a_validation_uses_passes_as_small_as_in_training(recipe, data, tiny_config, monkeypatch):
    """Otherwise a run whose micro-batches fit in memory would fail at its first validation."""
    model = build_model(tiny_config, data.tokenizer, 5)
    whole = validate(model, data, Direction.REVERSE, recipe)
    sizes: list[int] = []

    def measured(model, batch):
        sizes.append(len(batch.inputs))
        return packed_losses(model, batch)

    monkeypatch.setattr("ledom.train.loop.packed_losses", measured)
    parallel = recipe.parallel.model_copy(update={"tokens_per_microbatch": 1})
    found = validate(
        model, data, Direction.REVERSE, recipe.model_copy(update={"parallel": parallel})
    )
    assert len(sizes) == len(Windows(data.valid, recipe.train.seq_len))  # one at a time
    assert max(sizes) <= recipe.train.seq_len
    for key, value in whole.items():
        assert found[key] == (pytest.approx(value, abs=1e-5) if "_loss" in key else value)


def tally_of(store, most, num_tokens=1):
    tally = ValidationStats(Windows(store, num_tokens), most)
    return tally, range(len(tally.numbers))


def test_validation_windows_are_spread_over_the_store(tmp_path, data):
    store = write_store(tmp_path / "s", ["a"] * 10, data.tokenizer)
    assert tally_of(store, 4, 99)[0].numbers == [0, 2, 5, 7]
    assert tally_of(store, 16, 99)[0].numbers == list(range(10))


@pytest.mark.slow
def test_many_windows_and_sources_are_joined(tmp_path, data):
    """1,024 one-document windows give 512 blocks of two; 40 sources give the top 31 and others."""
    runs = [[f"s{i}", 40 - i] for i in range(40)] + [["end", 204]]
    store = write_store(tmp_path / "s", ["a"] * 1024, data.tokenizer, sources=runs)
    tally, places = tally_of(store, 9999, 2)
    batch = pack(tally.read(places), Direction.FORWARD, store.eos_id)
    tally.add(places, batch, np.arange(2048.0), Direction.FORWARD)
    row = tally.row(LONE.total)
    assert row["valid_tokens_by_window"] == [4] * 512
    assert row["valid_loss_by_window"][:2] == [1.5, 5.5]  # of 0 1 2 3 and of 4 5 6 7
    assert row["valid_loss"] == 1023.5
    assert row["valid_loss_by_position"] == {"0": 1023.0, "1": 1024.0}
    counts = row["valid_tokens_by_source"]
    assert len(counts) == 32
    assert counts["end"] == 408
    assert counts["s0"] == 80
    assert counts["other sources"] == 2 * sum(range(1, 11))  # s30 to s39
    names = [f"s{i:02}" for i in range(32)]
    assert _numbered(names)[0] == names  # none is left to join


@pytest.mark.slow
def test_a_store_too_small_to_validate_on_is_refused_before_the_first_step(
    recipe, data, data_folder, valid, tmp_path
):
    small = PreparedData(data_folder, DataConfig())
    small.valid = valid
    asked = recipe_of(recipe, packing="fixed", seq_len=400)
    steps = []
    with pytest.raises(InputError, match=r"valid: no window of 400 tokens fits"):
        train(asked, Direction.FORWARD, small, tmp_path / "run", steps.append)
    assert not steps
