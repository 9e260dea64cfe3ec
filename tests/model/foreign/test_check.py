"""The self-check after an import: what it measures and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers
from transformers import AutoModelForCausalLM

import ledom
from architectures import tiny
from command_line import Run, check_refused
from ledom.core.errors import CheckpointError
from ledom.model.architectures import longest_text
from ledom.model.foreign import check, importer
from ledom.model.foreign.importer import ImportOptions, import_model
from ledom.model.foreign.skeleton import build_skeleton
from ledom.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


def test_the_wrong_direction_is_refused(run: Run, foreign: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("import", foreign, "--direction", "forward", "--out", out)
    check_refused(result, "does not look like a forward model", "--direction reverse", "--no-check")
    assert not out.exists()
    code, text = run("import", foreign, "--direction", "forward", "--no-check", "--out", out)
    assert code == 0, text
    assert ledom.load(out).direction is ledom.Direction.FORWARD


@pytest.mark.parametrize(
    "kind",
    [
        "embedded",
        "bloom",  # no maximum length
        "mamba2",  # a module reads another's weights; without them, PyTorch returns noise
        "apertus",  # stored buffers
        "camembert",  # tied weights
        "gemma4",  # must be in memory as a whole
    ],
)
def test_the_check_measures_as_transformers_does(
    foreign: Path, tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    """Transformers runs one text at a time, with the whole model in memory."""
    if kind != "embedded":
        foreign = tmp_path / "other"
        made = tiny(kind, tokenizer, max_position_embeddings=256)
        made.save_pretrained(foreign)
        tokenizer.save(foreign)
    model = AutoModelForCausalLM.from_pretrained(foreign, dtype=torch.float32).eval()
    tokenizer = Tokenizer.load(foreign)
    found = check.check_model(
        foreign, build_skeleton(model.config), tokenizer.backend, ledom.Direction.REVERSE
    )
    context = longest_text(model.config)
    sums, count, ends = {1: 0.0, -1: 0.0}, 0, []
    for text in check.TEXTS:
        ids = torch.tensor(tokenizer.encode(text).ids[:context])
        count += len(ids) - 1
        for step in sums:
            order = ids if step == 1 else ids.flip(0)
            with torch.no_grad():
                logprobs = model(order[None]).logits[0].log_softmax(-1)
            sums[step] -= logprobs[:-1].gather(1, order[1:, None]).sum().item()
        ends.append(logprobs[-1, tokenizer.eos_id].item())
    assert found.forward_loss == pytest.approx(sums[1] / count, rel=1e-4)
    assert found.reverse_loss == pytest.approx(sums[-1] / count, rel=1e-4)
    assert found.eos_token == tokenizer.eos_token
    assert found.eos_probability == pytest.approx(np.exp(np.mean(ends)), rel=1e-3)


def test_an_import_may_need_the_whole_model(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Gemma 4 fails part by part, so transformers loads the new folder, which has a config then."""
    made, source = tiny("gemma4", tokenizer), tmp_path / "foreign"
    made.save_pretrained(source)
    tokenizer.save(source)
    known = check.check_model(source, made, tokenizer.backend, ledom.Direction.FORWARD)
    way = "forward" if known.forward_loss < known.reverse_loss else "reverse"
    found = import_model(str(source), tmp_path / "out", ImportOptions(way)).check
    assert found is not None
    assert found.forward_loss == pytest.approx(known.forward_loss)
    assert found.reverse_loss == pytest.approx(known.reverse_loss)


def test_damaged_weights_do_not_pass(foreign: Path, tmp_path: Path) -> None:
    weights = load_file(foreign / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, foreign / "model.safetensors")
    with pytest.raises(CheckpointError, match="logits are not finite; its weights are damaged"):
        import_model(str(foreign), tmp_path / "out", ImportOptions("reverse"))


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        (True, "the tokenizer has no special token, so none can end a document; give a tokenizer"),
        (False, "foreign: records no document-end token; give --eos-token"),
    ],
)
def test_a_tokenizer_without_an_end_token_is_refused(
    foreign: Path, tmp_path: Path, checks: bool, message: str
) -> None:
    file = tmp_path / "plain" / "tokenizer.json"
    file.parent.mkdir()
    plain = RustTokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.save(str(file))
    config = json.loads((foreign / "config.json").read_text())
    del config["eos_token_id"]
    (foreign / "config.json").write_text(json.dumps(config))
    how = ImportOptions("reverse", tokenizer=file, check=checks)
    with pytest.raises(CheckpointError, match=message):
        import_model(str(foreign), tmp_path / "out", how)
    assert not (tmp_path / "out").exists()


def test_a_failed_check_names_the_way_around_it(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise IndexError("index out of range\nin self")

    monkeypatch.setattr(importer, "check_model", fail)
    message = r"the self-check failed \(index out of range in self\); give --no-check to import"
    with pytest.raises(CheckpointError, match=message):
        import_model(str(foreign), tmp_path / "out", ImportOptions("reverse"))
