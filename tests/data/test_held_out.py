"""Overlap of training and validation data is reported; the loss would not generalize."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ledom.core.records import Document, Problem, write_records
from ledom.data.prepare import DataConfig, SourceConfig, prepare_data, read_split, shortfalls
from ledom.data.store import write_store
from ledom.text.tokenizer import Tokenizer


def test_a_validation_file_that_contains_training_texts_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Five of ten documents are for validation; the last has the same text as the first."""
    file = tmp_path / "documents.jsonl"
    write_records(file, [Document(id=str(i), text=f"Document {i % 9}.") for i in range(10)])
    config = DataConfig(train=str(file), valid=str(file), num_valid=5, vocab_size=257)
    prepare_data(config, tmp_path / "data")
    assert caplog.messages == [
        f"{file}: 6 records to train on have the text or question of a validation record, which "
        "lowers the validation loss; remove them"
    ]
    read_split(config)  # again, for the pairs of an objective
    assert len(caplog.messages) == 1


def test_other_solutions_to_a_held_out_question_are_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 51 problems, 0 and 50 are held out; 1 asks what 0 asks, and has another solution."""
    file = tmp_path / "problems.jsonl"
    asked = ["1 + 1?", "1 +  1?", *(f"{i} + 1?" for i in range(2, 51))]
    records = [Problem(id=str(i), question=q, solution=f"#{i}") for i, q in enumerate(asked)]
    write_records(file, records)
    prepare_data(DataConfig(train=str(file), vocab_size=300), tmp_path / "data")
    assert len(caplog.messages) == 1
    assert f"{file}: 1 records to train on have the text or question of a" in caplog.messages[0]


def test_a_validation_store_trained_on_is_noted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in ("a", "b", "valid"):
        write_store(tmp_path / name, [f"{name} {number}" for number in range(9)], tokenizer)
        tokenizer.save(tmp_path / name)
    shutil.copytree(tmp_path / "b", tmp_path / "copy")

    def noted(valid: str) -> list[str]:
        named = tuple(SourceConfig(path=str(tmp_path / name)) for name in ("a", "b"))
        config = DataConfig(sources=named, valid=str(tmp_path / valid))
        return shortfalls(config, prepare_data(config, tmp_path / "run"))

    assert noted("valid") == []
    copy = tmp_path / "copy"
    assert noted("copy") == [f"data.valid is {copy}, a store that is also trained on"]


def test_the_text_of_a_problem_is_no_source(tmp_path: Path) -> None:
    """Data for translation has the text to translate under `source`."""
    records = [
        Problem(id=str(i), question="?", solution="!", extra={"source": f"{i}" * 201})
        for i in range(51)
    ]
    write_records(tmp_path / "texts.jsonl", records)
    config = DataConfig(train=str(tmp_path / "texts.jsonl"), vocab_size=300)
    assert prepare_data(config, tmp_path / "data").valid.document_sources() == []
