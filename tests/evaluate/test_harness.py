"""`LedomLM` in lm-evaluation-harness: against its own HFLM, and what it does in reverse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

import ledom
from command_line import Run
from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.records import Problem
from ledom.lm import embedded_folder
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.model.checkpoint import build_model, save_checkpoint
from ledom.model.presets import ModelConfig
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

pytest.importorskip("lm_eval")
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from ledom.evaluate.harness import LedomLM, document_batches
from ledom.evaluate.scorings import Request

CONTEXT = 48
PAIRS = [
    ("Ava has 12 apples and gives 4 away. How many are left?\n\n", "12 - 4 = 8"),
    ("Ava has 12 apples and gives 4 away. How many are left?", "\n\n12 + 4 = 16\n#### 16"),
    ("Ava has 12 apples and gives 4 away. How many are left? ", " 8"),
    ("", " a question without a context"),
    ("word " * 60, "is cut"),
    ("x", "y"),
]


def requests(
    kind: str, arguments: Sequence[tuple[Any, ...]], task: str | None = None
) -> list[Instance]:
    """Requests as the harness makes them, each of a document of its own."""
    return [
        Instance(kind, {}, args, 0, metadata=(task, place, 1))  # type: ignore[arg-type]
        for place, args in enumerate(arguments)
    ]


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, tiny_config: ModelConfig
) -> dict[str, Path]:
    """Random models with a context of 48; `bos` puts a token in front of every text."""
    root = tmp_path_factory.mktemp("harness")
    config = tiny_config.model_copy(update={"max_position_embeddings": CONTEXT})
    for direction in Direction:
        model = build_model(config, tokenizer, 3)
        save_checkpoint(root / str(direction), model, tokenizer, direction, PairFormat())
    backend = tokenizer.backend.from_str(tokenizer.backend.to_str())
    backend.add_special_tokens(["<s>"])
    first = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = TemplateProcessing("<s> $A", special_tokens=[first])
    other = Tokenizer(backend, tokenizer.eos_token)
    save_checkpoint(
        root / "bos", build_model(config, other, 3), other, Direction.FORWARD, PairFormat()
    )
    for name, change in (("tokenizer_config", {"bos_token": "<s>"}), ("config", {})):
        file = root / "bos" / f"{name}.json"
        known = json.loads(file.read_text())
        known.pop("ledom_bos_tokens", None)  # as of a checkpoint made elsewhere
        file.write_text(json.dumps(known | change))
    return {name: root / name for name in ("forward", "reverse", "bos")}


@pytest.fixture(scope="module", params=["forward", "bos"])
def twins(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[LedomLM, Any]:
    """A forward model as ledom runs it, and as the harness does."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    folder = folders[request.param]
    theirs = huggingface.HFLM(
        str(folder), device="cpu", dtype=torch.float32, batch_size=2, max_length=CONTEXT
    )
    return LedomLM(ledom.load(folder, "forward", device="cpu")), theirs


def test_forward_log_likelihoods_are_those_of_hflm(twins: tuple[LedomLM, Any]) -> None:
    ours, theirs = twins
    asked = requests("loglikelihood", PAIRS)
    found = ours.loglikelihood(asked)
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    np.testing.assert_allclose([v for v, _ in found], [v for v, _ in expected], atol=1e-4)
    assert [g for _, g in found] == [g for _, g in expected]
    assert ours.prefix_token_id == theirs.prefix_token_id
    assert ours.eot_token_id == theirs.eot_token_id


def test_what_is_written_greedily_is_greedy_in_both() -> None:
    """Eight tokens that the embedded model itself writes, and the same with another at the end."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    folder = embedded_folder("forward")
    ours = LedomLM(ledom.load(folder, device="cpu"))
    theirs = huggingface.HFLM(str(folder), device="cpu", dtype=torch.float32, batch_size=2)
    context = "Ava has 12 apples and gives 4 away. How many are left?"
    ids = ours.tok_encode(context)
    with torch.no_grad():
        for _ in range(8):
            logits = theirs.model(torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits.argmax()))
    text = ours.lm.tokenizer.decode(ids[len(ours.tok_encode(context)) :])
    assert ours.tok_encode(context + text) == ids
    asked = requests("loglikelihood", [(context, text), (context, text + " so")])
    assert [g for _, g in ours.loglikelihood(asked)] == [True, False]
    assert [g for _, g in theirs.loglikelihood(asked, disable_tqdm=True)] == [True, False]


def test_forward_rolling_log_likelihoods_are_those_of_hflm(twins: tuple[LedomLM, Any]) -> None:
    ours, theirs = twins
    asked = requests("loglikelihood_rolling", [("Ava has 3 pens. " * 20,), ("7",), ("a b",)])
    expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    np.testing.assert_allclose(ours.loglikelihood_rolling(asked), expected, atol=1e-3)


def test_forward_texts_are_those_of_hflm(twins: tuple[LedomLM, Any]) -> None:
    ours, theirs = twins
    contexts = ["Ava has 12 apples", "How many", "7 + 4"]
    if not ours.convention.first:  # where HFLM cuts a prompt, it loses the special tokens too
        contexts.append("word 7 " * 60)
    for settings in ({"until": ["a", "12"], "max_gen_toks": 12}, {"until": [], "max_gen_toks": 9}):
        asked = requests("generate_until", [(context, settings) for context in contexts])
        expected = theirs.generate_until(asked, disable_tqdm=True)
        assert ours.generate_until(asked) == expected


def plain(folder: Path, ids: list[int]) -> list[float]:
    """log P of each id but the first, as transformers computes it, ids in the order fed."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        values = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [values[i, token].item() for i, token in enumerate(ids[1:])]


@pytest.fixture(scope="module")
def reverse(folders: dict[str, Path]) -> LedomLM:
    return LedomLM(ledom.load(folders["reverse"], device="cpu"))


def test_reverse_scores_are_those_of_tokens_flipped_by_hand(
    reverse: LedomLM, folders: dict[str, Path]
) -> None:
    context, continuation = "Ava has 12 apples.", " 12 - 4 = 8"
    encode = reverse.lm.tokenizer.encode
    both, alone = encode(context + continuation).ids, encode(context).ids
    eos = reverse.eot_token_id
    joint = plain(folders["reverse"], [eos, *both[::-1]])
    marginal = plain(folders["reverse"], [eos, *alone[::-1]])
    ((value, greedy),) = reverse.loglikelihood(requests("loglikelihood", [(context, continuation)]))
    assert value == pytest.approx(sum(joint) - sum(marginal), abs=1e-4)
    assert not greedy
    posterior = LedomLM(reverse.lm, scoring="posterior")
    ((value, _),) = posterior.loglikelihood(requests("loglikelihood", [(context, continuation)]))
    assert value == pytest.approx(sum(joint[len(both) - len(alone) :]), abs=1e-4)


def test_reverse_rolling_windows_start_at_the_texts_end(
    reverse: LedomLM, folders: dict[str, Path]
) -> None:
    """A text of two windows: the last 48 tokens behind the end marker, the others behind what
    was read before them, as much of it as the model can read."""
    text = "Ava has 3 pens. " * 6
    ids = reverse.lm.tokenizer.encode(text).ids[::-1]
    assert CONTEXT < len(ids) < 2 * CONTEXT
    first = plain(folders["reverse"], [reverse.eot_token_id, *ids[:CONTEXT]])
    rest = len(ids) - CONTEXT
    second = plain(folders["reverse"], ids[-CONTEXT - 1 :])[-rest:]
    (found,) = reverse.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    assert found == pytest.approx(sum(first) + sum(second), abs=1e-3)


def test_a_context_that_is_too_long_is_counted(folders: dict[str, Path]) -> None:
    for direction in ("forward", "reverse"):
        lm = LedomLM(ledom.load(folders[direction], device="cpu"))
        lm.loglikelihood(requests("loglikelihood", PAIRS, task="mine"))
        assert lm.cut == {"mine": 1}


class Writer(FakeLanguageModel):
    """Writes one text, whatever it is asked, and never stops early; keeps the prompts."""

    stops_at_patterns = False

    def __init__(self, tokenizer: Tokenizer, direction: Direction, text: str, **more: Any) -> None:
        super().__init__(tokenizer, direction, [text], **more)
        self.asked: list[tuple[list[str], Any]] = []

    def generate(self, prompts: Any, sampling: Any, *more: Any, **options: Any) -> Iterator[Any]:
        self.asked.append((list(prompts), sampling))
        return super().generate(prompts, sampling, *more, **options)


def written(lm: LedomLM, context: str, **settings: Any) -> str:
    return lm.generate_until(requests("generate_until", [(context, settings)]))[0]


def test_stop_strings_are_met_in_the_order_of_writing(tokenizer: Tokenizer) -> None:
    text = "one\n\ntwo\n\nthree"
    forward = LedomLM(Writer(tokenizer, Direction.FORWARD, text))
    assert written(forward, "x", until=["\n\n"]) == "one"
    reverse = LedomLM(Writer(tokenizer, Direction.REVERSE, text))
    assert written(reverse, "x", until=["\n\n"]) == "three"
    assert written(reverse, "x", until=["two", "ee"]) == ""
    assert written(reverse, "x", until=[]) == text


@pytest.mark.parametrize("until", [["asa", "agn"], ["agn", "asa"]])
def test_of_stop_strings_that_overlap_the_one_met_first_counts(
    tokenizer: Tokenizer, until: list[str]
) -> None:
    """Written from the end, "lasagna last?" has agn before it has asa."""
    model = FakeLanguageModel(tokenizer, Direction.REVERSE, ["a lasagna last?"])
    model.stops_at_patterns = False  # type: ignore[misc]
    asked = requests("generate_until", [("How long?", {"until": until, "max_gen_toks": 20})])
    assert LedomLM(model).generate_until(asked) == ["a last?"]


@pytest.mark.usefixtures("embedded_once")
def test_a_stop_string_across_tokens_stops_a_reverse_model() -> None:
    """The string is the end of one token and the start of the next, in reading order."""
    lm = LedomLM(ledom.load("tiny", "reverse", device="cpu"))
    prompt = "\n\nAva has 12 - 4 = 8 pens left.\n#### 8"
    whole = written(lm, prompt, until=[], max_gen_toks=80)
    pieces = [lm.lm.tokenizer.decode([i]) for i in lm.lm.tokenizer.encode_inside(whole)]
    assert "".join(pieces) == whole
    ends = [(a[-1:] + b[:2], a, b) for a, b in pairwise(pieces)]
    stop = next(end for end, a, b in ends[4:] if whole.count(end) == 1 and len(end) == 3)
    assert not any(stop in piece for piece in pieces)
    text = written(lm, prompt, until=[stop], max_gen_toks=80)
    assert text == whole.split(stop)[1]
    assert 0 < len(text) < len(whole)


def test_a_long_prompt_loses_the_end_that_is_far_from_what_is_written(tokenizer: Tokenizer) -> None:
    words = " ".join(map(str, range(200)))
    for direction, kept in (
        (Direction.FORWARD, words.endswith),
        (Direction.REVERSE, words.startswith),
    ):
        writer = Writer(tokenizer, direction, "so", context=60)
        lm = LedomLM(writer)
        assert written(lm, words, until=["."], max_gen_toks=20) == "so"
        ((prompt,),) = [prompts for prompts, _ in writer.asked]
        assert kept(prompt)
        assert 30 < len(tokenizer.encode(prompt).ids) <= 40
        assert sum(lm.cut.values()) == 1


def test_a_task_that_writes_more_than_the_model_reads_is_refused(tokenizer: Tokenizer) -> None:
    lm = LedomLM(Writer(tokenizer, Direction.FORWARD, "so", context=60))
    with pytest.raises(InputError, match="60 new tokens leave no room"):
        written(lm, "x", until=["."], max_gen_toks=60)


def test_scorings_are_those_of_the_direction(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        InputError, match="for a forward model it is one of conditional, whole text"
    ):
        LedomLM(FakeLanguageModel(tokenizer, "forward"), scoring="Bayes")
    lm = LedomLM(FakeLanguageModel(tokenizer, "forward"), scoring="whole text")
    with pytest.raises(
        InputError, match="'whole text' does not apply to a document with one context"
    ):
        lm.loglikelihood(requests("loglikelihood", [("a", "b")]))


def test_what_the_model_was_trained_to_read_first_can_be_put_in_front(
    folders: dict[str, Path],
) -> None:
    lm = ledom.load(folders["forward"], device="cpu")
    ids = lm.tokenizer.encode("Ava has 3 pens").ids
    known = lm.tokenizer.encode("Ava has").ids
    for add, first in ((True, [lm.tokenizer.eos_id]), (False, []), (None, [])):
        ((value, _),) = LedomLM(lm, add_bos_token=add).loglikelihood(
            requests("loglikelihood", [("Ava has", " 3 pens")])
        )
        expected = plain(folders["forward"], [*first, *ids])[-(len(ids) - len(known)) :]
        assert value == pytest.approx(sum(expected), abs=1e-4)


def test_chat_templates_are_the_models_own(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["forward"], tmp_path / "chat")
    file = tmp_path / "chat" / "tokenizer_config.json"
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    lm = LedomLM(str(tmp_path / "chat"), device="cpu")
    said = lm.apply_chat_template([{"role": "user", "content": "hi"}])
    assert said == "[user] hi\n[assistant] "
    assert lm.chat_template(True) == template
    assert lm.tokenizer_name
    with pytest.raises(InputError, match="has no chat template"):
        LedomLM(str(folders["forward"]), device="cpu").apply_chat_template([])


def test_a_document_is_never_divided() -> None:
    asked = [Request("c", f" {i}", ("t", i // 50)) for i in range(600)]
    batches = document_batches(asked, lambda request: request.group)
    assert [request for batch in batches for request in batch] == asked
    assert len(batches) == 2
    groups = [{request.group for request in batch} for batch in batches]
    assert not groups[0] & groups[1]


@pytest.mark.slow
@pytest.mark.usefixtures("embedded_once")
def test_the_embedded_pair_prefers_the_right_solution(problems: list[Problem]) -> None:
    """A sanity check on trained weights: the solution of the question, not of another one."""
    problem, other = problems[0], problems[1]
    asked = [(problem.question, f"\n\n{p.solution}") for p in (problem, other)]
    for direction in Direction:
        instances = [
            Instance("loglikelihood", {}, args, i, metadata=("t", 0, 1))
            for i, args in enumerate(asked)
        ]
        right, wrong = LedomLM(ledom.load("tiny", direction, device="cpu")).loglikelihood(instances)
        assert right[0] > wrong[0]


@pytest.mark.slow
def test_the_harness_itself_and_our_command_give_the_same_numbers(
    run: Run, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lm_eval --model ledom`, its default device included, and `ledom eval` on one task file."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"q": "What is {i} + {i % 3}?", "n": {i}}}\n' for i in range(8)))
    task = tmp_path / "sums.yaml"
    task.write_text(
        "task: sums\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {rows}}}}}\ndoc_to_text: '{{{{q}}}}'\n"
        'doc_to_choice: \'{{[n ~ "", "about " ~ n, "none"]}}\'\ndoc_to_target: \'{{n % 3}}\'\n'
        "metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_mutual_info}]\n"
    )
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")  # not in HOME
    own = {str(d): folders[str(d)] for d in Direction}
    asked = [f"--{name}={folder}" for name, folder in own.items()]
    code, printed = run("eval", task, *asked, "--out", tmp_path / "out")
    assert code == 0, printed
    (found,) = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    for direction, folder in own.items():
        out = tmp_path / f"{direction}.json"
        model = f"model={folder},direction={direction}"
        options = ["--tasks", str(task), "--output_path", str(out)]
        monkeypatch.setattr(
            "sys.argv", ["lm_eval", "--model", "ledom", "--model_args", model, *options]
        )
        cli_evaluate()
        (written,) = tmp_path.glob(f"{direction}_*.json")
        theirs = json.loads(written.read_text())["results"]["sums"]
        ours = {
            row["metric"]: row["value"]
            for row in found["rows"]
            if row["model"] == direction and row["scoring"] in ("conditional", "Bayes")
        }
        for metric in ("acc", "acc_norm", "acc_mutual_info"):
            assert ours[metric] == theirs[f"{metric},none"]


def test_the_entry_point_is_the_registered_class() -> None:
    """How versions of the harness after 0.4.13 find the model."""
    (point,) = (p for p in entry_points(group="lm_eval.models") if p.name == "ledom")
    assert point.load() is LedomLM
    assert get_model("ledom") is LedomLM
