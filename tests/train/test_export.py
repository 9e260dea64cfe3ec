"""A released folder used without ledom, and uploads to the hub."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoTokenizer

import ledom
from architectures import tiny
from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, DirectionError, InputError, OutputError
from ledom.core.hub import push
from ledom.core.records import Problem, write_records
from ledom.data.prepare import DataConfig, prepare_data
from ledom.data.store import write_store
from ledom.model.checkpoint import load_checkpoint, save_checkpoint
from ledom.model.presets import ModelConfig
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer
from ledom.train.export import export_model, find_run, write_dataset_card
from ledom.train.loop import train
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe, TrainConfig, save_recipe
from waiting import SECONDS

pytestmark = pytest.mark.slow


def snippet(card: Path) -> str:
    """The program shown in the card."""
    found = re.search(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


IDS = [[0, 17, 256, 3, 99, 311, 7]]
TEXT = "How many 🍎 are 12?"
PLAIN = f"""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({{folder!r}})
tokenizer = AutoTokenizer.from_pretrained({{folder!r}})
with torch.no_grad():
    logits = model(torch.tensor({IDS})).logits
torch.save((logits, tokenizer({TEXT!r})["input_ids"], tokenizer.eos_token_id), {{out!r}})
"""


def test_without_ledom_the_numbers_are_the_same(tmp_path, checkpoints, tokenizer):
    """In a fresh process with plain transformers, for both directions and the model folder."""
    programs = [PLAIN.format(folder=str(checkpoints["reverse"]), out=str(tmp_path / "out.pt"))]
    for direction, folder in checkpoints.items():
        out = export_model(find_run(folder), tmp_path / direction)
        program = snippet(out / "README.md")
        assert len([line for line in program.splitlines() if line]) == 11
        programs.append(program + "print('scores', scores)\n")
    programs.append("import sys; print('ledom' in sys.modules)")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)],
        cwd=tmp_path,  # the cards load the folders by name
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    logits, ids, eos_id = torch.load(tmp_path / "out.pt")
    with torch.no_grad():
        ours = load_checkpoint(checkpoints["reverse"]).model(torch.tensor(IDS)).logits
    torch.testing.assert_close(logits, ours, atol=1e-5, rtol=0)
    assert (ids, eos_id) == (tokenizer.encode(TEXT).ids, tokenizer.eos_id)
    printed = re.findall(r"^scores (.*)$", done.stdout, re.MULTILINE)
    for direction, line in zip(checkpoints, printed, strict=True):
        lm = ledom.load(tmp_path / direction)
        assert str(lm.direction) == direction
        ids = lm.add_special_tokens(
            lm.tokenizer.encode("and so they lived happily ever after.").ids
        )
        ours = lm.logprobs([ledom.TokenSpan(ids, 1, len(ids) - 1)])[0]
        assert json.loads(line) == pytest.approx(ours.tolist(), abs=1e-5)


def test_the_card_reads_the_tokenizer_as_ledom_does(tmp_path, checkpoints, monkeypatch):
    """transformers' AutoTokenizer applies Qwen2's rules to any tokenizer of a qwen2 model."""
    folder = Path(shutil.copytree(checkpoints["reverse"], tmp_path / "qwen"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    program = snippet(export_model(find_run(folder), tmp_path / "card") / "README.md")
    lines = [line for line in program.splitlines() if line.startswith(("from ", "tokenizer ="))]
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), names)
    apart = "cafe\u0301 12345"  # e and its accent, which Qwen2 composes
    ids = Tokenizer.load(folder).encode(apart).ids
    assert names["tokenizer"](apart, add_special_tokens=False).input_ids == ids
    assert AutoTokenizer.from_pretrained(folder)(apart).input_ids != ids


@pytest.fixture(scope="module")
def run_folder(
    tmp_path_factory: pytest.TempPathFactory, problems: list[Problem], tiny_config: ModelConfig
) -> Path:
    """A short run in the reverse direction, as written by `ledom train`."""
    root = tmp_path_factory.mktemp("runs") / "test"
    write_records(root / "problems.jsonl", problems)
    recipe = Recipe(
        name="test",
        data=DataConfig(train=str(root / "problems.jsonl"), vocab_size=400),
        model=tiny_config,
        optim=OptimConfig(steps=10),
        train=TrainConfig(batch_size=2, seq_len=64, precision="float32"),
    )
    data = prepare_data(recipe.data, root / "data")
    train(recipe, Direction.REVERSE, data, root / "reverse")
    save_recipe(recipe, root / "recipe.yaml")
    return root


def test_the_card_of_a_run_says_how_the_model_was_trained(tmp_path, run_folder):
    out = export_model(find_run(run_folder / "reverse"), tmp_path / "out", license="apache-2.0")
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert "reverse-language-model" in front["tags"]
    last = json.loads((run_folder / "reverse" / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"| 10 | {last['loss']:.3f} | {last['valid_loss']:.3f} |" in card
    stored = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)[0])
    recipe = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    recipe["data"]["train"] = "problems.jsonl"  # not its path on this machine
    assert stored == recipe
    assert str(run_folder) not in card
    manifest = json.loads((run_folder / "data" / "train" / "manifest.json").read_text())
    assert f"| train | problems.jsonl | {manifest['num_documents']} |" in card
    assert r"end token `<\|end\|>` |" in card  # a bare | would end the cell
    assert "read first: `<|end|>`." in card  # in plain text, a backslash would be visible
    config = json.loads((out / "config.json").read_text())
    assert config["ledom_direction"] == "reverse"
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [0]
    assert out.stat().st_mode & 0o777 == 0o755


def test_the_card_names_the_stores_that_a_recipe_mixes(tmp_path, checkpoints, tokenizer):
    for name, texts in {"prose": ["a", "b", "c"], "sums": ["1 + 1"], "held": ["d", "e"]}.items():
        write_store(tmp_path / name, texts, tokenizer, source=f"the {name}")
    run = tmp_path / "runs" / "mix"
    shutil.copytree(checkpoints["reverse"], run / "reverse" / "model")
    (run / "reverse" / "metrics.jsonl").write_text(
        '{"step": 7, "loss": 2.0, "tokens": 5, "valid_loss": 2.1, "valid_tokens": 1200}\n'
    )
    sources = [{"path": str(tmp_path / name), "weight": 1} for name in ("prose", "sums", "gone")]
    data = {"sources": sources, "valid": str(tmp_path / "held")}
    recipe = yaml.safe_dump({"name": "mix", "data": data, "init_from": "that-of-its-twin"})
    (run / "reverse" / "run.json").write_text('{"recipe": {"init_from": "its-own"}}')
    (run / "recipe.yaml").write_text(f"{recipe}\nmade: 2020-01-01\n")  # a YAML date
    card = (export_model(find_run(run / "reverse"), tmp_path / "out") / "README.md").read_text()
    assert "| prose | the prose | 3 |" in card
    assert "| sums | the sums | 1 |" in card
    assert "- path: sums" in card
    assert "init_from: its-own" in card
    assert "made: '2020-01-01'" in card
    assert str(tmp_path) not in card
    assert "| valid | the held | 2 |" in card
    assert "validation on 1,200 tokens." in card  # not on all documents in the store
    assert "| tokens read in training | 5 in 1 of 7 steps |" in card  # the other rows are missing


def test_the_model_folder_is_found_from_the_run_folder(run_folder):
    assert find_run(run_folder / "reverse") == find_run(run_folder / "reverse" / "model")
    rows = find_run(run_folder / "reverse").metrics
    assert [row["step"] for row in rows if "valid_loss" in row] == [10]


@pytest.mark.parametrize(("kind", "context"), [("gpt2", "128 tokens"), ("mamba", "any length")])
def test_the_card_knows_the_shape_of_every_architecture(tmp_path, tokenizer, kind, context):
    """GPT-2's config.json has no keys hidden_size and num_hidden_layers."""
    model = tiny(kind, tokenizer)
    save_checkpoint(tmp_path / "in", model, tokenizer, Direction.REVERSE, PairFormat())
    card = (export_model(find_run(tmp_path / "in"), tmp_path / "out") / "README.md").read_text()
    assert "| width, layers | 32, 2 |" in card
    assert f"| context | {context} |" in card


def test_a_card_for_the_hub_loads_the_model_from_there(tmp_path, checkpoints):
    out = export_model(find_run(checkpoints["forward"]), tmp_path / "out", name="me/mine")
    assert 'from_pretrained("me/mine")' in snippet(out / "README.md")
    assert "# mine\n" in (out / "README.md").read_text()


def test_any_name_and_license_give_a_readable_card(tmp_path, checkpoints):
    out = export_model(find_run(checkpoints["forward"]), tmp_path / 'm"x', license="a: b\nc: 1")
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "a: b\nc: 1"
    compile(snippet(out / "README.md"), "card", "exec")


def test_exported_models_stop_at_the_same_tokens(tmp_path, checkpoints):
    """For example, an end-of-turn token that a converted model kept from its chat model."""
    folder = tmp_path / "in"
    shutil.copytree(checkpoints["reverse"], folder)
    backend = json.loads((folder / "tokenizer.json").read_text())
    backend["added_tokens"].append({**backend["added_tokens"][0], "id": 5, "content": "<turn>"})
    backend["model"]["vocab"] = {
        "<turn>" if i == 5 else token: i for token, i in backend["model"]["vocab"].items()
    }
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 0]}')
    before = ledom.load(folder).stop_ids
    out = export_model(find_run(folder), tmp_path / "out")
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [0, 5]
    assert ledom.load(out).stop_ids == before


def test_a_model_without_a_direction_needs_an_explicit_one(tmp_path, checkpoints):
    folder = tmp_path / "foreign"
    shutil.copytree(checkpoints["forward"], folder)
    config = json.loads((folder / "config.json").read_text())
    del config["ledom_direction"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DirectionError, match="records no direction"):
        export_model(find_run(folder), tmp_path / "out")
    out = export_model(find_run(folder), tmp_path / "out", direction="forward")
    assert json.loads((out / "config.json").read_text())["ledom_direction"] == "forward"
    with pytest.raises(OutputError, match="exists already"):
        export_model(find_run(folder), out, direction="forward")


def test_folders_that_are_not_models_are_refused(tmp_path, checkpoints):
    with pytest.raises(CheckpointError, match="no finished model here"):
        find_run(tmp_path)
    folder = tmp_path / "bare"
    shutil.copytree(checkpoints["forward"], folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights here"):
        export_model(find_run(folder), tmp_path / "out")
    (folder / "model.safetensors").symlink_to("/dev/zero")  # which never ends
    with pytest.raises(CheckpointError, match=r"model\.safetensors: this is a pipe or a device"):
        export_model(find_run(folder), tmp_path / "out")


def test_only_the_models_own_weights_are_exported(tmp_path, checkpoints):
    """vLLM would also read another file of the same kind, whose weights may be older."""
    folder = Path(shutil.copytree(checkpoints["forward"], tmp_path / "model"))
    shutil.copy(folder / "model.safetensors", folder / "old.safetensors")
    whole = export_model(find_run(folder), tmp_path / "out")
    assert [file.name for file in whole.glob("*.safetensors")] == ["model.safetensors"]
    model = load_checkpoint(folder).model
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    parts = export_model(find_run(folder), tmp_path / "parts")
    assert not (parts / "old.safetensors").exists()
    ours, theirs = (load_checkpoint(f).model.state_dict() for f in (whole, parts))
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.items())


def test_the_data_card_is_complete(tmp_path, run_folder):
    folder = tmp_path / "data"
    shutil.copytree(run_folder / "data", folder)
    published = write_dataset_card(folder, "me/words", "cc0-1.0")
    theirs = [".env", "corpus.jsonl", "train/tasks/settings.json", "mine/tokens.ds", "train/x.ds"]
    stored = [f"{p}/{f}" for p in ("train", "valid") for f in ("manifest.json", "tokens.ds.index")]
    stored += ["tokenizer.json", "README.md"]
    assert [*filter_repo_objects(theirs + stored, allow_patterns=published)] == stored
    card = (folder / "README.md").read_text()
    assert "# words\n" in card
    for part in ("train", "valid"):
        manifest = json.loads((folder / part / "manifest.json").read_text())
        counts = f"{manifest['num_documents']:,} | {manifest['num_tokens']:,}"
        assert f"| {part} | problems.jsonl | {counts} |" in card
        for shard in manifest["shards"]:
            counts = f"{shard['num_documents']:,} | {shard['num_tokens']:,}"
            assert f"| {part}/{shard['file']} | {counts} | `{shard['sha256']}` |" in card
    names: dict[str, object] = {}
    program = snippet(folder / "README.md").replace('"train/', f'"{folder}/train/')
    exec(program, names)
    tokenizer = Tokenizer.load(folder)
    assert names["document"][-1] == tokenizer.eos_id  # type: ignore[index]


class Hub:
    """A mock of `huggingface_hub.HfApi` that records its calls."""

    calls: list[tuple[str, dict[str, object]]]

    def __init__(self) -> None:
        Hub.calls = []

    def create_repo(self, repo_id: str, **options: object) -> str:
        Hub.calls.append((repo_id, options))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, **options: object) -> None:
        Hub.calls.append(("upload", options))


def test_push_uploads_the_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    made = push(tmp_path, "me/mine", private=True, files=["*.ds"])
    assert made == "https://hub.example/me/mine"
    (made, options), (_, uploaded) = Hub.calls
    assert made == "me/mine"
    assert options == {"repo_type": "model", "private": True, "exist_ok": True}
    assert uploaded["folder_path"] == tmp_path
    assert uploaded["allow_patterns"] == ["*.ds"]
    assert (uploaded["repo_id"], uploaded["repo_type"]) == ("me/mine", "model")


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/mi ne", ""])
def test_a_name_that_the_hub_does_not_accept_is_refused(monkeypatch, tmp_path, name):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    with pytest.raises(InputError, match="the hub's name"):
        push(tmp_path, name)


def test_a_refusal_by_the_hub_is_reported(monkeypatch, tmp_path):
    class Closed(Hub):
        def create_repo(self, repo_id: str, **options: object) -> str:
            raise OSError("401 Unauthorized\nmore")

    monkeypatch.setattr(huggingface_hub, "HfApi", Closed)
    message = "me/mine: cannot be uploaded: 401 Unauthorized more; .* to log in: hf auth login"
    with pytest.raises(OutputError, match=message):
        push(tmp_path, "me/mine")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("- a", "expected keys and values, found list"),
        ("data: 3", "key data: "),
        ("data: {sources: [{share: 1}]}", "key data.sources.0.path: Field required"),
        ("data: {sources: [], valid: [a]}", "key data.valid: Input should be a valid string"),
    ],
)
def test_a_recipe_that_names_no_stores_is_refused(tmp_path, recipe, message):
    folder = tmp_path / "run" / "reverse"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 4.0, "tokens": 10}\n')
    (tmp_path / "run" / "recipe.yaml").write_text(recipe)
    with pytest.raises(InputError, match=rf"recipe\.yaml: {message}"):
        find_run(folder)
