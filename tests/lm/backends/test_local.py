"""The torch backend beyond the contract: batches, stop patterns, draws, dtypes, devices."""

from __future__ import annotations

import pickle
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import ledom
from architectures import tiny
from ledom.core.errors import InputError
from ledom.core.records import Problem
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.engine.block import Job
from ledom.lm.engine.decoder import Writer
from ledom.lm.language_model import Sampling
from ledom.model.checkpoint import save_checkpoint
from ledom.model.native.attention import has_native
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer
from made import whole_text

TEXTS = [
    "Ava has 12 apples.\n\n12 + 3 = 15\n#### 15",
    "naïve café, 数学は楽しい 🎉🎉",
    "שלום עולם 42",
    "7",
]


@pytest.fixture(scope="module", params=["forward", "reverse"])
def lm(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> HFLanguageModel:
    """A model of each direction, in turn."""
    loaded = ledom.load(checkpoints[request.param], device="cpu", rows=8)
    assert isinstance(loaded, HFLanguageModel)
    return loaded


@pytest.fixture(scope="module")
def plain(lm: HFLanguageModel) -> PreTrainedModel:
    """The same weights as transformers loads them."""
    return AutoModelForCausalLM.from_pretrained(lm.name, dtype=torch.float32).eval()


@torch.no_grad()
def by_hand(plain: PreTrainedModel, ids: list[int], reverse: bool) -> list[float]:
    """Per-token log-probabilities in reading order, one text at a time; ids flipped by hand."""
    fed = list(reversed(ids)) if reverse else ids
    logprobs = plain(torch.tensor([fed])).logits[0].log_softmax(-1)
    values = [logprobs[i - 1, fed[i]].item() for i in range(1, len(fed))]
    return list(reversed(values)) if reverse else values


def test_batches_change_nothing(lm: HFLanguageModel) -> None:
    """Ledom's own kernels return the same bits, whatever prefix a text shares with others."""
    shared = " 1 + 2 = 3" * 4
    texts = [*TEXTS, *(shared + own + shared for own in ("", " 7", " so 8", " 7 is"))]
    targets = [whole_text(lm, text) for text in texts]
    together = lm.logprobs(targets * 3)
    lm.tokens_per_batch = 40
    small = lm.logprobs(targets * 3)
    lm.tokens_per_batch = 4096
    alone = [lm.logprobs([target])[0] for target in targets] * 3
    exact = has_native(*torch.ones(2, 1, 8))
    for found in (small, alone):
        for a, b in zip(together, found, strict=True):
            assert np.array_equal(a, b) if exact else np.allclose(a, b, atol=1e-4)


def test_shared_prefixes_change_nothing(lm: HFLanguageModel, plain: PreTrainedModel) -> None:
    """The texts share prefixes in model order; some are whole texts, some occur twice."""
    shared, more = " 1 + 2 = 3" * 4, " 4 + 5 = 9" * 4
    parts = [(shared, ""), (shared, " 7"), (shared + more, " 8"), (shared + more, " 99 is so")] * 2
    reverse = str(lm.direction) == "reverse"
    targets = [whole_text(lm, own + common if reverse else common + own) for common, own in parts]
    for target, values in zip(targets, lm.logprobs(targets), strict=True):
        expected = by_hand(plain, list(target.ids), reverse)
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_a_copied_model_is_complete(lm: HFLanguageModel) -> None:
    text = whole_text(lm, "Tom had 48 apples.")
    (expected,) = lm.logprobs([text])
    for copied in (deepcopy(lm), pickle.loads(pickle.dumps(lm))):
        assert np.array_equal(copied.logprobs([text])[0], expected)
        assert copied.fingerprint == lm.fingerprint
        for weight in copied.model.parameters():
            weight.data.mul_(2)
        assert not np.allclose(copied.logprobs([text])[0], expected)
    assert np.array_equal(lm.logprobs([text])[0], expected)


class Adapter(nn.Module):
    """An adapter like those of other packages; it can be turned off."""

    def __init__(self, base: nn.Linear, scale: float) -> None:
        super().__init__()
        self.base, self.scale, self.on = base, scale, True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x)
        return out * self.scale if self.on else out


def test_a_changed_model_has_another_fingerprint(checkpoints: dict[str, Path]) -> None:
    """A file made with one is not resumed with the other; equal changes have equal fingerprints."""
    marks = []
    for scale in (2.0, 2.0, 3.0):
        loaded = ledom.load(checkpoints["forward"], device="cpu")
        assert isinstance(loaded, HFLanguageModel)
        of_files = loaded.fingerprint
        loaded.logprobs([whole_text(loaded, TEXTS[0])])
        assert loaded.fingerprint == of_files
        attention: Any = loaded.model.base_model.layers[0].self_attn
        adapter = attention.q_proj = Adapter(attention.q_proj, scale)
        marks.append(loaded.fingerprint)
        adapter.on = False
        assert loaded.fingerprint not in marks
    assert marks[0] == marks[1]
    with torch.no_grad():
        adapter.base.weight[0, 1] += 1
    assert len({of_files, *marks, loaded.fingerprint}) == 4


def test_replacing_the_model_is_refused(checkpoints: dict[str, Path]) -> None:
    """The new model would not be used; the results would be those of the first."""
    lm = HFLanguageModel(checkpoints["forward"], device="cpu")
    with pytest.raises(AttributeError, match="has no setter"):
        lm.model = lm.model  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_dropout_is_off(kind: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The model may be in training mode between two calls."""
    plain = tiny(kind, tokenizer, **dict.fromkeys(("attn_pdrop", "attention_dropout"), 0.5))
    save_checkpoint(tmp_path, plain, tokenizer, ledom.Direction.FORWARD, PairFormat())
    lm = HFLanguageModel(tmp_path, device="cpu", dtype="float32")
    target, greedy = whole_text(lm, TEXTS[0]), Sampling(temperature=0, max_tokens=5)
    expected = lm.logprobs([target])[0], dict(lm.generate([TEXTS[0]], greedy))
    lm.model.train()
    found = lm.logprobs([target])[0], dict(lm.generate([TEXTS[0]], greedy))
    assert np.array_equal(found[0], expected[0])
    assert found[1] == expected[1]
    assert all(module.training for module in lm.model.modules())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_hook_on_the_whole_model_is_applied(
    kind: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """It changes the logits, which are otherwise computed from the model's parts."""
    save_checkpoint(
        tmp_path, tiny(kind, tokenizer), tokenizer, ledom.Direction.FORWARD, PairFormat()
    )
    lm = HFLanguageModel(tmp_path, device="cpu", dtype="float32")
    target, greedy = whole_text(lm, TEXTS[0]), Sampling(temperature=0, max_tokens=5)
    before = lm.logprobs([target])[0], dict(lm.generate([TEXTS[0]], greedy))

    def forbid(module: nn.Module, given: Any, output: Any) -> Any:
        output.logits[..., before[1][0][0].ids[0]] -= 100
        return output

    hook = lm.model.register_forward_hook(forbid)
    ids = torch.tensor([target.ids])
    logits = lm.model(ids[:, :-1]).logits[0].log_softmax(-1)
    expected = logits.gather(1, ids[0, 1:, None])[target.start - 1 :, 0].detach().numpy()
    assert np.allclose(lm.logprobs([target])[0], expected, atol=1e-4)
    written = dict(lm.generate([TEXTS[0]], greedy))
    assert before[1][0][0].ids[0] not in written[0][0].ids
    hook.remove()
    assert np.array_equal(lm.logprobs([target])[0], before[0])
    assert dict(lm.generate([TEXTS[0]], greedy)) == before[1]


def prompts(problems: list[Problem], count: int) -> list[str]:
    return [problem.question[: 20 + 7 * i] for i, problem in enumerate(problems[:count])]


@pytest.mark.slow
def test_greedy_equals_generate(
    lm: HFLanguageModel, plain: PreTrainedModel, problems: list[Problem]
) -> None:
    """Token by token, with more prompts than rows, so that rows are reused."""
    texts = prompts(problems, 12)
    made = dict(lm.generate(texts, Sampling(temperature=0, max_tokens=24)))
    reverse = str(lm.direction) == "reverse"
    eos = lm.tokenizer.eos_id
    for place, text in enumerate(texts):
        ids = lm.tokenizer.encode(text).ids
        context = [eos, *(reversed(ids) if reverse else ids)]
        out = plain.generate(
            torch.tensor([context]), do_sample=False, max_new_tokens=24, pad_token_id=eos
        )[0, len(context) :].tolist()
        new = out[: out.index(eos)] if eos in out else out
        assert made[place][0].ids == (new[::-1] if reverse else new)
        assert made[place][0].finish_reason == ("stop" if eos in out else "length")
        assert made[place][0].text == lm.tokenizer.decode(made[place][0].ids)


@pytest.mark.slow
def test_a_model_that_is_not_packed_generates_the_same(
    lm: HFLanguageModel, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First no text is generated together with others, then some are."""
    texts, sampling = prompts(problems, 3), Sampling(temperature=0, max_tokens=8)
    packed = dict(lm.generate(texts, sampling))
    lengths = sorted(len(lm.prompt_ids(text, 8)) for text in texts)
    for reach in (0, lengths[0] + 8):
        monkeypatch.setattr(lm, "_reach", reach)
        alone = dict(lm.generate(texts, sampling))
        assert [alone[i][0].ids for i in range(3)] == [packed[i][0].ids for i in range(3)]


@pytest.mark.parametrize("packed", [True, False])
def test_a_caller_that_stops_iterating_ends_generation(
    lm: HFLanguageModel, problems: list[Problem], monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """Each step draws one token of each text, and nothing is drawn after the last step."""
    assert lm._decodes  # found by a trial on first use, which draws tokens too
    drawn = []
    take = Writer._take

    def count(self: Writer, logits: torch.Tensor, jobs: list[Job]) -> None:
        drawn.append(len(jobs))
        take(self, logits, jobs)

    monkeypatch.setattr(Writer, "_take", count)
    if not packed:
        monkeypatch.setattr(lm, "_reach", 0)
    steps = lm.generate_in_steps(prompts(problems, 1), Sampling(temperature=0, max_tokens=8), 2)
    assert [next(steps) for _ in range(3)] == [[], [], []]
    del steps
    assert drawn == ([2, 2, 2] if packed else [1, 1, 1])


@pytest.mark.slow
@torch.no_grad()
def test_self_certainty_is_the_divergence_from_uniform(
    lm: HFLanguageModel, plain: PreTrainedModel, problems: list[Problem]
) -> None:
    """KL(uniform || p) summed over the vocabulary, from one plain pass over the whole text.

    Temperature and truncation change what is drawn, not how certain the model is.
    """
    eos, size = lm.tokenizer.eos_id, plain.config.vocab_size
    reverse = str(lm.direction) == "reverse"
    texts = prompts(problems, 12)
    endings = set()
    for sampling in (Sampling(1.3, top_k=200, max_tokens=60), Sampling(0, max_tokens=24)):
        for place, generations in lm.generate(texts, sampling, 4):
            ids, one = lm.tokenizer.encode(texts[place]).ids, generations[-1]
            drawn = one.ids + [eos] * (one.finish_reason == "stop")
            endings.add(one.finish_reason)
            if reverse:
                ids, drawn = ids[::-1], one.ids[::-1] + drawn[len(one.ids) :]
            logits = plain(torch.tensor([[eos, *ids, *drawn]])).logits[0, len(ids) : -1].double()
            p = logits.softmax(-1)
            divergence = ((1 / size) * (torch.log(torch.tensor(1 / size)) - p.log())).sum(-1)
            assert one.self_certainty == pytest.approx(divergence.mean().item(), rel=1e-4)
    assert endings == {"stop", "length"}


def test_rows_that_end_together_are_refilled(lm: HFLanguageModel) -> None:
    """Eight rows end together, one of them after a long prompt; seven texts follow."""
    eos = lm.tokenizer.eos_id
    long = "7" * 55
    assert len(lm.tokenizer.encode(long).ids) == 55
    texts = ["7"] * 7 + [long] + ["8"] * 7
    made = dict(lm.generate(texts, Sampling(temperature=0, max_tokens=9)))
    assert len(made) == len(texts)
    assert all(made[i][0].ids == made[8][0].ids for i in range(8, 15))
    assert eos not in made[7][0].ids


@pytest.mark.slow
def test_a_draw_does_not_depend_on_the_batch(lm: HFLanguageModel) -> None:
    """Prompts of any length with their samples separated, and texts longer than a block's step."""
    prompts = ["7", TEXTS[0], "Ava has", TEXTS[0]]
    sampling = Sampling(temperature=0.9, max_tokens=70, seed=5)
    lm.rows = 1  # one at a time: no shared prompts and no padding
    alone = [
        [dict(lm.generate([prompt], sampling, 1, first_sample=n))[0][0] for n in range(3)]
        for prompt in prompts
    ]
    assert max(len(text.ids) for texts in alone for text in texts) > 32
    for rows in (2, 5, 64):
        lm.rows = rows
        for place, texts in lm.generate(prompts, sampling, 3):
            for text, expected in zip(texts, alone[place], strict=True):
                assert text.ids == expected.ids
                assert text.self_certainty == pytest.approx(expected.self_certainty, abs=1e-5)
    lm.rows = 8


@pytest.mark.slow
def test_samples_follow_the_models_distribution(
    lm: HFLanguageModel, plain: PreTrainedModel
) -> None:
    """Compares first-token frequencies over many samples with the model's probabilities."""
    lm.rows, before = 256, lm.rows
    try:
        sampling = Sampling(temperature=0.5, max_tokens=1, seed=1)
        samples = dict(lm.generate(["7"], sampling, num_samples=4000))[0]
    finally:
        lm.rows = before
    eos = lm.tokenizer.eos_id
    with torch.no_grad():
        logits = plain(torch.tensor([[eos, *lm.tokenizer.encode("7").ids]])).logits[0, -1]
    probabilities = (logits / 0.5).softmax(-1)
    drawn = [g.ids[0] if g.ids else eos for g in samples]
    for token in probabilities.topk(3).indices.tolist():
        expected = probabilities[token].item()
        error = (expected * (1 - expected) / 4000) ** 0.5
        assert abs(drawn.count(token) / 4000 - expected) < 5 * error


def test_top_k_and_top_p_keep_the_most_likely(lm: HFLanguageModel, plain: PreTrainedModel) -> None:
    eos = lm.tokenizer.eos_id
    with torch.no_grad():
        logits = plain(torch.tensor([[eos, *lm.tokenizer.encode("7").ids]])).logits[0, -1]
    order = logits.softmax(-1).sort(descending=True)
    allowed = set(order.indices[:3].tolist())
    samples = dict(lm.generate(["7"], Sampling(top_k=3, max_tokens=1), num_samples=60))[0]
    assert {g.ids[0] if g.ids else eos for g in samples} <= allowed
    nucleus = order.indices[: int((order.values.cumsum(0) < 0.3).sum()) + 1].tolist()
    samples = dict(lm.generate(["7"], Sampling(top_p=0.3, max_tokens=1), num_samples=60))[0]
    assert {g.ids[0] if g.ids else eos for g in samples} <= set(nucleus)


def test_resuming_from_a_pattern_changes_nothing(lm: HFLanguageModel) -> None:
    prompt = "Ava has 12 apples.\n\n"
    greedy = Sampling(temperature=0.0, max_tokens=30)
    ((_, (expected,)),) = lm.generate([prompt], greedy)
    pieces = replace(greedy, stop_pattern="[^ ]")  # nearly every token
    ((_, (part,)),) = lm.generate([prompt], pieces)
    ids = part.ids
    while part.finish_reason == "pattern" and len(ids) < len(expected.ids):
        ((_, (part,)),) = lm.generate([part], pieces)
        ids = ids + part.ids if str(lm.direction) == "forward" else part.ids + ids
    assert len(part.ids) < len(expected.ids)  # it did come in parts
    # The last one may be longer: bytes of an incomplete character match no pattern.
    written = lm.direction.to_model_order(ids)[: len(expected.ids)]
    assert written == lm.direction.to_model_order(expected.ids)


def test_many_samples_resume_from_one_pattern(lm: HFLanguageModel) -> None:
    """Cached keys and values give the same draws as reading the prompt again."""
    pieces = Sampling(temperature=1.0, max_tokens=12, seed=3, stop_pattern="[ .0-9]")
    ((_, firsts),) = lm.generate(["Ava has 12 apples.\n\n"], pieces, 6)
    cut = [first for first in firsts if first.finish_reason == "pattern"]
    assert cut
    anew = [replace(first, state=replace(first.state, kv_cache=None)) for first in cut]
    assert dict(lm.generate(cut, pieces, 3)) == dict(lm.generate(anew, pieces, 3))
    other = ledom.load(lm.name, device="cpu")
    for writer, part in ((lm, replace(cut[0], state=None)), (other, cut[0])):
        with pytest.raises(InputError, match="by the model that wrote it"):
            list(writer.generate([part], pieces))


def test_a_changed_model_rereads_the_text_that_it_continues(lm: HFLanguageModel) -> None:
    torch.manual_seed(0)
    changed = deepcopy(lm)
    pieces = Sampling(temperature=0.0, max_tokens=12, stop_pattern="[^ ]")
    ((_, (part,)),) = changed.generate(["Ava has 12 apples.\n\n"], pieces)
    assert part.state.kv_cache is not None
    with torch.no_grad():
        for weight in changed.model.parameters():
            weight += 0.1 * weight.std() * torch.randn(weight.shape)
    anew = replace(part, state=replace(part.state, kv_cache=None))
    ((_, (expected,)),) = changed.generate([anew], pieces)
    ((_, (found,)),) = changed.generate([part], pieces)
    assert found.self_certainty == expected.self_certainty


def test_dtypes_are_set_by_name(checkpoints: dict[str, Path]) -> None:
    exact = ledom.load(checkpoints["reverse"], device="cpu")
    rough = ledom.load(checkpoints["reverse"], device="cpu", dtype="bfloat16")
    assert isinstance(rough, HFLanguageModel)
    assert rough.model.dtype == torch.bfloat16
    target = whole_text(rough, TEXTS[0])
    np.testing.assert_allclose(rough.logprobs([target])[0], exact.logprobs([target])[0], atol=0.3)
    assert rough.fingerprint != exact.fingerprint  # their scores must not be mixed
    message = "dtype is 'int4'; give auto, float32, bfloat16, float16 or int8"
    with pytest.raises(InputError, match=message):
        ledom.load(checkpoints["reverse"], dtype="int4")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_missing_device_is_refused(checkpoints: dict[str, Path], device: str) -> None:
    with pytest.raises(InputError, match=f"device '{device}' cannot be used .*give cpu, cuda"):
        ledom.load(checkpoints["reverse"], device=device)
