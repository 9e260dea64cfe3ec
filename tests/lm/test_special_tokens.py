"""BOS, EOS and spaces at the joint, compared with plain transformers on foreign models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import ledom
from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, InputError
from ledom.core.records import Candidate, Problem
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.backends.local import HFLanguageModel
from ledom.lm.engine.pattern import PatternSearch
from ledom.lm.language_model import LanguageModel, Sampling, TokenSpan
from ledom.rerank.score import score_candidates
from ledom.text.tokenizer import Tokenizer
from stand_ins import sentencepiece_like

QUESTION, SOLUTION = "Once upon", "a time it is so"


def foreign(
    folder: Path,
    tokenizer: Tokenizer,
    bos: bool,
    more: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A random Llama saved by transformers, whose tokenizer puts `<s>` in front or nothing."""
    torch.manual_seed(1)
    size = tokenizer.vocab_size
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    llama = LlamaConfig(vocab_size=size, num_hidden_layers=2, initializer_range=0.3, **sizes)
    llama.update(config)
    LlamaForCausalLM(llama).save_pretrained(folder)
    if bos:
        start = ("<s>", tokenizer.token_id("<s>"))
        tokenizer.backend.post_processor = TemplateProcessing("<s> $A", special_tokens=[start])
    tokenizer.save(folder)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.eos_token}
    settings |= {"bos_token": "<s>"} if bos else {}
    settings |= more or {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


_SAYS_NOT = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
"""A setting that transformers 5 ignores if the post-processor adds BOS."""


@pytest.fixture(params=[{}, _SAYS_NOT], ids=["plain", "add_bos_token false"])
def llama(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return foreign(tmp_path / "llama", sentencepiece_like(), bos=True, more=request.param)


def plain_logprobs(folder: Path, ids: list[int]) -> list[float]:
    """log P of each id but the first, in the order given."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [logprobs[i, token].item() for i, token in enumerate(ids[1:])]


def plain_greedy(folder: Path, ids: list[int], count: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    settings = {"do_sample": False, "max_new_tokens": count, "eos_token_id": 2, "pad_token_id": 2}
    return model.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist()


@pytest.mark.slow
def test_a_forward_model_reads_its_own_bos_in_scoring_and_sampling(llama: Path) -> None:
    lm = ledom.load(llama, "forward", device="cpu")
    theirs = AutoTokenizer.from_pretrained(llama)
    assert lm.bos_ids == [1]
    problem = Problem(id="p", question=QUESTION)
    solution = Candidate(problem_id="p", index=0, text=SOLUTION)
    ((score,),) = score_candidates([problem], [solution], lm)
    ids = [*theirs(f"{QUESTION}\n\n{SOLUTION}").input_ids, 2]
    assert ids[0] == 1
    expected = plain_logprobs(llama, ids)[-score.num_tokens :]
    np.testing.assert_allclose(score.token_logprobs or [], expected, atol=2e-5)
    assert score.num_tokens == len(lm.tokenizer.encode_inside(SOLUTION)) + 1

    ((_, (made,)),) = lm.generate([QUESTION], Sampling(temperature=0, max_tokens=8))
    greedy = plain_greedy(llama, theirs(QUESTION).input_ids, 8)
    assert made.ids + [2] * (made.finish_reason == "stop") == greedy


@pytest.mark.slow
def test_demonstrations_have_their_own_special_tokens(llama: Path) -> None:
    """<s> demonstration </s> <s> question solution </s>: each is a document, as in training."""
    lm = ledom.load(llama, "forward", device="cpu")
    shown = Problem(id="d", question="two blanks", solution="b c")
    problem = Problem(id="p", question=QUESTION)
    solution = Candidate(problem_id="p", index=0, text=SOLUTION)
    ((score,),) = score_candidates([problem], [solution], lm, [shown])
    first = lm.tokenizer.encode("two blanks\n\nb c").ids
    second = lm.tokenizer.encode(f"{QUESTION}\n\n{SOLUTION}").ids
    expected = plain_logprobs(llama, [1, *first, 2, 1, *second, 2])[-score.num_tokens :]
    np.testing.assert_allclose(score.token_logprobs or [], expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("first", [["<s>"], ["</s>"]])
def test_a_reverse_model_ends_with_eos_whatever_it_reads_first(
    tmp_path: Path, first: list[str]
) -> None:
    folder = foreign(tmp_path / "m", sentencepiece_like(), bos=True, ledom_bos_tokens=first)
    lm = ledom.load(folder, "reverse", device="cpu")
    bos = 1 if first == ["<s>"] else 2
    problem = Problem(id="p", question=QUESTION)
    shown = Problem(id="d", question="two blanks", solution="b c")
    solution = Candidate(problem_id="p", index=0, text=SOLUTION)
    ((question, _),) = score_candidates([problem], [solution], lm, [shown])
    inner, outer = (
        lm.tokenizer.encode(text).ids[::-1]
        for text in (f"{QUESTION}\n\n{SOLUTION}", "two blanks\n\nb c")
    )
    between = [2, 1] if bos == 1 else [2]
    fed = [bos, *outer, *between, *inner, 2]
    expected = plain_logprobs(folder, fed)[-question.num_tokens :][::-1]
    np.testing.assert_allclose(question.token_logprobs or [], expected, atol=2e-5)
    assert lm.add_special_tokens([7, 8]) == [2, 7, 8, bos]


@pytest.mark.slow
def test_a_model_without_bos_reads_eos_first_by_default(tmp_path: Path) -> None:
    """GPT-2's and Pythia's documents are separated by EOS."""
    folder = foreign(tmp_path / "m", sentencepiece_like(), bos=False)
    assert ledom.load(folder, "forward").bos_ids == [2]
    assert ledom.load(folder, "forward", bos_token="<s>").bos_ids == [1]
    none = ledom.load(f"{folder},bos_token=", "forward")
    assert none.bos_ids == []
    assert none.fingerprint != ledom.load(folder, "forward").fingerprint
    ids = none.tokenizer.encode(QUESTION).ids
    ((_, (made,)),) = none.generate([QUESTION], Sampling(temperature=0, max_tokens=5))
    assert made.ids + [2] * (made.finish_reason == "stop") == plain_greedy(folder, ids, 5)
    with pytest.raises(CheckpointError, match="no token '<bos>'"):
        ledom.load(folder, "forward", bos_token="<bos>")


@pytest.mark.parametrize("recorded", ["<s>", 3, [1]])
def test_a_recorded_bos_that_makes_no_sense_is_refused(tmp_path: Path, recorded: object) -> None:
    folder = foreign(tmp_path / "m", sentencepiece_like(), bos=False, ledom_bos_tokens=recorded)
    with pytest.raises(CheckpointError, match=r"config\.json: ledom_bos_tokens is "):
        ledom.load(folder, "forward")


@pytest.mark.parametrize("form", ["prepend", "metaspace"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.slow
def test_prompt_plus_text_is_the_text_of_all_ids(tmp_path: Path, form: str, direction: str) -> None:
    lm = ledom.load(foreign(tmp_path / "m", sentencepiece_like(form), True), direction)
    blanks = 0
    for prompt in ("Once upon", "two\n\n", " and they" if direction == "reverse" else "a"):
        known = lm.prompt_ids(prompt, 1)[1:]
        for _, texts in lm.generate([prompt], Sampling(max_tokens=6, seed=2), 20):
            for text in texts:
                if direction == "forward":
                    assert prompt + text.text == lm.tokenizer.decode([*known, *text.ids])
                    blanks += text.text.startswith(" ")
                else:
                    whole = [*text.ids, *known[::-1]]
                    assert text.text + prompt == lm.tokenizer.decode(whole)
    assert blanks or direction == "reverse"


@pytest.mark.slow
def test_the_prompt_of_a_reverse_model_is_the_end_of_a_document(llama: Path) -> None:
    """Its ids are those of the whole document there, without a space at the joint."""
    lm = ledom.load(llama, "reverse", device="cpu")
    whole = lm.tokenizer.encode("Once upon a time").ids
    assert lm.prompt_ids(" a time", 1) == [2, *lm.tokenizer.encode_inside(" a time")[::-1]]
    assert lm.tokenizer.encode("Once upon").ids + lm.prompt_ids(" a time", 1)[:0:-1] == whole
    assert lm.prompt_ids("time", 1) != [2, *lm.tokenizer.encode("time").ids[::-1]]


def pieces(lm: LanguageModel, prompt: str, seed: int) -> tuple[str, list[int]]:
    """Text and ids in reading order, generated from stop to stop."""
    sampling = Sampling(max_tokens=12, seed=seed, stop_pattern=r"\S")
    ((_, (part,)),) = lm.generate([prompt], sampling)
    text, ids = part.text, part.ids
    forward = str(lm.direction) == "forward"
    while part.finish_reason == "pattern" and len(ids) < 40:
        ((_, (part,)),) = lm.generate([part], sampling)
        text, ids = (
            (text + part.text, ids + part.ids) if forward else (part.text + text, part.ids + ids)
        )
    return text, ids


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_parts_between_patterns_add_up_to_the_whole_text(tmp_path: Path, direction: str) -> None:
    tokenizer = sentencepiece_like(byte_fallback=False)
    lm = ledom.load(foreign(tmp_path / "m", tokenizer, bos=True), direction, device="cpu")
    blanks = 0
    for seed in range(12):
        text, ids = pieces(lm, "", seed)
        assert text == lm.tokenizer.decode(ids)
        blanks += " " in text
    assert blanks


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("where", ["config", "generation_config"])
@pytest.mark.slow
def test_a_text_ends_at_any_token_at_which_generate_ends(
    tmp_path: Path, where: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chat models list an end-of-turn token next to EOS. Only special tokens end a text."""
    tokenizer = sentencepiece_like()
    tokenizer.backend.add_special_tokens(["<turn>"])
    turn = tokenizer.token_id("<turn>")
    folder = foreign(tmp_path / "m", tokenizer, bos=True)
    file = folder / f"{where}.json"
    settings = json.loads(file.read_text()) | {"eos_token_id": [2, turn, 40]}
    (folder / "generation_config.json").unlink()
    file.write_text(json.dumps(settings))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():  # it ends the turn at the third token, and would continue
        model.lm_head.weight[turn] = model.lm_head.weight[2] = 0
        ids = [1, *tokenizer.encode(QUESTION).ids]
        greedy: Any = {"do_sample": False, "max_new_tokens": 8}
        free = model.generate(torch.tensor([ids]), eos_token_id=2, **greedy)
        model.lm_head.weight[turn] = 2 * model.lm_head.weight[free[0, len(ids) + 2]]
    model.save_pretrained(folder)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [2, turn, 40]}))
    out = model.generate(torch.tensor([ids]), eos_token_id=[2, turn], **greedy)
    expected = out[0, len(ids) :].tolist()
    assert expected[-1] == turn
    lm = ledom.load(folder, "forward", device="cpu")
    assert isinstance(lm, HFLanguageModel)
    assert lm.stop_ids == {2, turn}
    monkeypatch.setattr(lm, "_reach", lm._reach * packed)
    ((_, (made,)),) = lm.generate([QUESTION], Sampling(temperature=0, max_tokens=8))
    assert (made.ids, made.finish_reason) == (expected[:-1], "stop")


def test_no_pattern_is_found_inside_a_character(llama: Path) -> None:
    tokenizer = Tokenizer.load(llama)
    search = PatternSearch(r"\S", tokenizer, Direction.FORWARD)
    bytes_of = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "🎉".encode()]
    assert [search(bytes_of[:count]) for count in (1, 2, 3, 4)] == [False, False, False, True]


@pytest.mark.slow
def test_a_foreign_models_scores_equal_those_by_hand(llama: Path) -> None:
    lm = ledom.load(llama, "forward", device="cpu")
    ids = lm.add_special_tokens(lm.tokenizer.encode("Once upon a time").ids)
    assert ids == [*AutoTokenizer.from_pretrained(llama)("Once upon a time").input_ids, 2]
    values = lm.logprobs([TokenSpan(ids, 1, len(ids))])[0]
    np.testing.assert_allclose(values, plain_logprobs(llama, ids), atol=2e-5)


def test_a_text_before_a_prompt_keeps_its_last_space() -> None:
    """This holds even if the tokenizer changes the prompt's letters, as BERT's does."""
    words = ["[UNK]", "[SEP]", "the", "cat", "sat"]
    backend = RustTokenizer(models.WordPiece({word: i for i, word in enumerate(words)}))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    lm = FakeLanguageModel(Tokenizer(backend, "[SEP]"), "reverse")
    for prompt in ("sat", "Sat"):
        assert lm.written_text(prompt, [2, 3]) == "the cat "
    assert lm.written_text("", [2, 3]) == "the cat"


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_prompt_with_a_token_that_the_model_lacks_is_refused(llama: Path, direction: str) -> None:
    lm = ledom.load(llama, direction)
    lm.tokenizer.backend.add_tokens([AddedToken("[new]", normalized=False)])
    message = f"token id {lm.vocab_size} is not in the vocabulary: this model's ids are 0 to"
    with pytest.raises(InputError, match=message):
        list(lm.generate(["so[new]"], Sampling(max_tokens=2)))


def test_special_tokens_may_lie_beyond_the_models_vocabulary(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Gemma 3's smallest models have a token for images in the tokenizer only."""
    folder = shutil.copytree(checkpoints["reverse"], tmp_path / "model")
    expected = ledom.load(folder).logprobs([TokenSpan([5, 6], 0, 1)])
    tokenizer = Tokenizer.load(folder)
    tokenizer.backend.add_special_tokens(["<image>"])
    tokenizer.save(folder)
    lm = ledom.load(folder)
    assert lm.logprobs([TokenSpan([5, 6], 0, 1)]) == expected
    with pytest.raises(InputError, match="token id 400 is not in .* ids are 0 to 399"):
        lm.logprobs([TokenSpan(lm.tokenizer.encode("an <image>").ids, 0, 1)])
