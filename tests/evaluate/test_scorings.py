"""Every scoring and metric of a task, computed by hand from the ids fed to the models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluated import QUESTIONS, evaluate, found_rows, logprobs, write_rows
from ledom.core.direction import Direction
from ledom.lm.backends.fake import FakeLanguageModel

pytest.importorskip("lm_eval")

from ledom.evaluate.harness_tasks import build_task
from ledom.evaluate.results import ENTROPY
from ledom.evaluate.tasks import Options, Source, find_source

FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE


@pytest.mark.slow
def test_every_scoring_of_a_task_equals_that_by_hand(
    choices: Path, models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    """Here the choices are scored from the ids fed, one text at a time."""
    found = evaluate(find_source(str(choices), Options()), tmp_path / "out", *models.values())
    encode = models[FORWARD].tokenizer.encode
    eos = models[FORWARD].tokenizer.eos_id
    right: dict[tuple[str, str], list[bool]] = {}
    for row in QUESTIONS:
        context = f"Question: {row['question']}\nAnswer:"
        known = len(encode(context).ids)
        scores: dict[tuple[str, str], list[float]] = {}
        for choice in row["choices"]:
            ids = encode(f"{context} {choice}").ids
            values = logprobs(models[FORWARD], ids)[known - 1 :]
            scores.setdefault(("forward", "conditional"), []).append(sum(values))
            alone = sum(logprobs(models[FORWARD], [eos, *encode(f" {choice}").ids]))
            scores.setdefault(("forward", "mutual information"), []).append(sum(values) - alone)
            flipped = logprobs(models[REVERSE], [eos, *ids[::-1]])
            scores.setdefault(("reverse", "Bayes"), []).append(sum(flipped))
            scores.setdefault(("reverse", "posterior"), []).append(sum(flipped[len(ids) - known :]))
            swapped = encode(f"{choice} {context}").ids
            values = logprobs(models[REVERSE], [eos, *swapped[::-1]])
            count = len(encode(choice).ids)
            scores.setdefault(("reverse", "reversed prompt"), []).append(sum(values[-count:]))
        for key, one in scores.items():
            right.setdefault(key, []).append(int(np.argmax(one)) == row["answer_index"])
    rows = found_rows(found, "acc")
    assert {key: row["value"] for key, row in rows.items()} == {
        key: pytest.approx(np.mean(one)) for key, one in right.items()
    }
    posterior = rows["reverse", "posterior"]
    difference = np.mean(right["reverse", "posterior"]) - np.mean(right["forward", "conditional"])
    assert posterior["less_forward"]["mean"] == pytest.approx(difference)
    difference = np.mean(right["reverse", "posterior"]) - np.mean(
        right["reverse", "reversed prompt"]
    )
    assert posterior["less_reversed"]["mean"] == pytest.approx(difference)
    assert found["tasks"][0]["chance"] == 0.25
    assert found["tasks"][0]["num_documents"] == 12


def test_the_entropy_is_that_of_the_right_choice(
    choices: Path, models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    found = evaluate(find_source(str(choices), Options()), tmp_path / "out", models[FORWARD])
    encode = models[FORWARD].tokenizer.encode
    expected = []
    for row in QUESTIONS:
        context = f"Question: {row['question']}\nAnswer:"
        ids = encode(f"{context} {row['choices'][row['answer_index']]}").ids
        expected.append(-sum(logprobs(models[FORWARD], ids)[len(encode(context).ids) - 1 :]))
    (row,) = found_rows(found, ENTROPY).values()
    assert row["value"] == pytest.approx(np.mean(expected), abs=1e-5)


@pytest.mark.slow
def test_choices_in_front_are_scored_as_whole_texts_both_ways(
    choices_in_front: Path, models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    source = find_source(str(choices_in_front), Options())
    found = evaluate(source, tmp_path / "out", *models.values())
    assert {*found_rows(found, "acc")} == {
        ("forward", "conditional"),
        ("forward", "whole text"),
        ("forward", "reversed prompt"),
        ("reverse", "Bayes"),
        ("reverse", "posterior"),
        ("reverse", "mutual information"),
    }
    (task,) = source.load(FORWARD)
    task.build_all_requests()
    first = QUESTIONS[0]
    continuation = f" {first['question']}"  # unchanged: its answer comes before it
    assert [i.args for i in task.instances[:4]] == [(c, continuation) for c in first["choices"]]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["after", "before"])
def test_a_reverse_model_reads_the_examples_before_the_choice(
    place: str, models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    """Before the question, it would read them last and count them in its posterior."""
    rows = [row | {"place": place} for row in QUESTIONS]
    file = write_rows(tmp_path / "shown.jsonl", rows)
    source = find_source(str(file), Options(num_fewshot=2))
    found = evaluate(source, tmp_path / "out", models[REVERSE])

    def parts(row: dict[str, Any], choice: str) -> tuple[str, str]:
        """Context and continuation."""
        if place == "before":
            return choice, f" {row['question']}"
        return f"Question: {row['question']}\nAnswer:", f" {choice}"

    shown = ["".join(parts(row, row["choices"][row["answer_index"]])) for row in rows[:2]]
    after = "\n\n" + "\n\n".join(shown)
    encode, eos = models[REVERSE].tokenizer.encode, models[REVERSE].tokenizer.eos_id
    right, entropies = [], []
    for row in rows[2:]:
        scores = []
        for choice in row["choices"]:
            context, continuation = parts(row, choice)
            ids = encode(context + continuation + after).ids
            flipped = logprobs(models[REVERSE], [eos, *ids[::-1]])
            scores.append(sum(flipped[-len(encode(context).ids) :]))
        right.append(int(np.argmax(scores)) == row["answer_index"])
        entropies.append(-scores[row["answer_index"]])
    assert found_rows(found, "acc")["reverse", "posterior"]["value"] == np.mean(right)
    entropy = found_rows(found, ENTROPY)["reverse", "posterior"]["value"]
    assert entropy == pytest.approx(np.mean(entropies), abs=1e-5)


def test_a_forward_models_control_begins_with_the_examples(
    models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    """Its question and its choice stay next to each other."""
    rows = [row | {"place": "before"} for row in QUESTIONS]
    file = write_rows(tmp_path / "shown.jsonl", rows)
    evaluate(find_source(str(file), Options(num_fewshot=2)), tmp_path / "out", models[FORWARD])
    saved = (tmp_path / "out/forward/shown.loglikelihood.jsonl").read_text().splitlines()
    found = [json.loads(line)["value"]["reversed_prompt"] for line in saved]
    examples = [f"{row['choices'][row['answer_index']]} {row['question']}" for row in rows[:2]]
    encode, expected = models[FORWARD].tokenizer.encode, []
    for row in rows[2:]:
        asked = "\n\n".join([*examples, row["question"]])
        for choice in row["choices"]:
            values = logprobs(models[FORWARD], encode(f"{asked} {choice}").ids)
            expected.append(sum(values[len(encode(asked).ids) - 1 :]))
    assert found == pytest.approx(expected, abs=1e-5)


def test_greedy_metrics_are_not_applicable_in_reverse(
    models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    """Trap 4: the accuracy of a task such as LAMBADA means greedy decoding."""
    from datasets import Dataset

    rows = [{"text": "a b", "target": f"{i}"} for i in range(4)]
    config = {
        "task": "last_word",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": lambda doc: doc["text"],
        "doc_to_target": lambda doc: " " + doc["target"],
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    source = Source("last_word", lambda direction: [build_task(dict(config))])
    found = evaluate(source, tmp_path / "out", *models.values())
    rows_found = found_rows(found, "acc")
    assert rows_found["reverse", "Bayes"]["note"].startswith("not applicable")
    assert "note" not in rows_found["forward", "conditional"]
    assert "less_forward" not in rows_found["reverse", "Bayes"]
    assert found["tasks"][0]["chance"] is None  # there is nothing to choose from


def test_a_metric_that_is_not_a_mean_is_the_harnesss_own_number(
    models: dict[Direction, FakeLanguageModel], tmp_path: Path
) -> None:
    """Perplexity is exp(-mean log P), so an interval in percent would be nonsense."""
    from datasets import Dataset

    def words(name: str, *texts: str) -> Any:
        rows = Dataset.from_list([{"t": text} for text in texts])
        return build_task(
            {
                "task": name,
                "custom_dataset": lambda **_: {"test": rows},
                "test_split": "test",
                "output_type": "loglikelihood",
                "doc_to_text": "x",
                "doc_to_target": lambda doc: " " + doc["t"],
                "num_fewshot": 0,
                "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
            }
        )

    model = models[FORWARD]

    def perplexity(*texts: str) -> float:
        fed = [model.tokenizer.encode(f"x {text}").ids for text in texts]
        return math.exp(-sum(sum(logprobs(model, ids)) for ids in fed) / len(texts))

    one = Source("words", lambda direction: [words("words", "a b", "a c d")])
    (row,) = found_rows(evaluate(one, tmp_path / "one", model), "perplexity").values()
    assert row["value"] == pytest.approx(perplexity("a b", "a c d"))
    assert "interval" not in row

    two = Source("both", lambda direction: [words("short", "a b"), words("long", "a c d", "e f")])
    (task,) = evaluate(two, tmp_path / "two", model)["tasks"]
    shown = {row["metric"]: row["value"] for row in task["rows"] if "perp" in row["metric"]}
    assert shown == {
        "perplexity of short": pytest.approx(perplexity("a b")),
        "perplexity of long": pytest.approx(perplexity("a c d", "e f")),
    }
