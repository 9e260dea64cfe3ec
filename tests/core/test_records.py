import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ledom.core.errors import InputError
from ledom.core.records import Candidate, Document, Problem, Score, read_records, write_records

GOOD = {"problem_id": "p", "index": 0, "text": "1 + 1 = 2"}


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def test_records_are_read_from_jsonl(tmp_path):
    file = write_lines(tmp_path / "c.jsonl", GOOD, "", {**GOOD, "index": 1, "greedy": True})
    assert read_records(file, Candidate) == [
        Candidate(problem_id="p", index=0, text="1 + 1 = 2"),
        Candidate(problem_id="p", index=1, text="1 + 1 = 2", greedy=True),
    ]


def test_unknown_keys_are_kept_and_written_back(tmp_path):
    row = {"id": "a", "text": "x", "language": "he", "nested": {"a": [1, None]}, "empty": None}
    file = write_lines(tmp_path / "d.jsonl", row)
    documents = read_records(file, Document)
    assert documents[0].extra == {
        "language": "he",
        "nested": {"a": [1, None]},
        "empty": None,
    }
    write_records(tmp_path / "out.jsonl", documents)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == row


def test_text_in_any_script_survives_a_round_trip(tmp_path):
    text = 'שלום 🍎 \u2028 line\nbreak \t \\ " Ω'
    write_records(tmp_path / "d.jsonl", [Document(id="1", text=text), Document(id="2", text="")])
    assert [d.text for d in read_records(tmp_path / "d.jsonl", Document)] == [text, ""]
    assert "🍎" in (tmp_path / "d.jsonl").read_text(encoding="utf-8")


def test_numbers_of_numpy_and_torch_are_written_as_jsons(tmp_path):
    path, quarter = tmp_path / "a.jsonl", np.float32(0.25)
    extra = {"score": quarter, "all": np.array([1, 2]), "other": torch.tensor(0.5), "ok": np.True_}
    write_records(path, [Candidate(problem_id="a", index=np.int64(3), text="4", extra=extra)])
    (found,) = read_records(path, Candidate)
    assert found.key == ("a", 3)
    assert found.extra == {"score": 0.25, "all": [1, 2], "other": 0.5, "ok": True}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "not JSON compliant"),
        (np.inf, "not JSON"),
        ("\ud800", "surrogates"),
        ({1}, ""),
    ],
)
def test_values_that_could_not_be_read_back_are_not_written(tmp_path, value, reason):
    path = tmp_path / "a.jsonl"
    write_records(path, [Document(id="a", text="")])
    records = [Document(id="a", text="b"), Document(id="b", text="b", extra={"x": value})]
    with pytest.raises(InputError, match=f"a.jsonl: record 2 cannot be written: .*{reason}"):
        write_records(path, records)
    assert [record.text for record in read_records(path, Document)] == [""]


def test_null_stands_for_a_missing_optional_key(tmp_path):
    file = write_lines(tmp_path / "p.jsonl", {"id": "a", "question": "q", "answer": None})
    assert read_records(file, Problem)[0].answer is None


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_any_line_end_is_read_and_blank_lines_are_skipped(tmp_path, line_end):
    file = tmp_path / "c.jsonl"
    file.write_bytes((line_end * 2 + json.dumps(GOOD) + line_end + "  " + line_end).encode())
    assert len(read_records(file, Candidate)) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        ('"text"', "expected a JSON object, found str"),
        ("null", "expected a JSON object, found NoneType"),
        ({"problem_id": "p", "index": 1}, "missing key 'text'"),
        ({**GOOD, "index": "1"}, "key index: Input should be a valid integer, found '1'"),
        ({**GOOD, "index": 1.0}, "key index: Input should be a valid integer, found 1.0"),
        ({**GOOD, "index": True}, "key index: Input should be a valid integer, found True"),
        ({**GOOD, "text": None}, "key text: Input should be a valid string, found None"),
        (
            {**GOOD, "text": 7},
            "key text: Input should be a valid string, found 7; put it in quotes",
        ),
        ({**GOOD, "text": "\ud83d"}, "half of a surrogate pair"),
        ({**GOOD, "greedy": 1}, "key greedy: Input should be a valid boolean, found 1"),
        ({**GOOD, "sampling": []}, "key sampling: Input should be a valid dictionary, found []"),
        (
            {**GOOD, "finish_reason": "eos"},
            "key finish_reason: Input should be 'stop', 'length' or 'unsure', found 'eos'",
        ),
        # An unknown reason must not be read as the default, "stop".
        (
            {**GOOD, "finish_reason": None},
            "key finish_reason: Input should be 'stop', 'length' or 'unsure', found None",
        ),
        ({**GOOD, "greedy": None}, "key greedy: Input should be a valid boolean, found None"),
    ],
)
def test_the_error_for_a_bad_line_names_file_and_line(tmp_path, line, expected):
    file = write_lines(tmp_path / "c.jsonl", GOOD, "", line, GOOD)
    with pytest.raises(InputError) as caught:
        read_records(file, Candidate)
    assert str(caught.value).startswith(f"{file}:3: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_error_of_a_failed_check_names_file_and_line(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(
        '{"id": "a", "question": "q", "solution": "s"}\n\n{"id": "b", "question": "q"}\n'
    )
    with pytest.raises(InputError, match=r"problems\.jsonl:3: problem 'b' has no solution"):
        read_records(path, Problem, Problem.require_solution)


def test_the_error_for_a_missing_key_lists_the_required_keys(tmp_path):
    file = write_lines(tmp_path / "c.jsonl", {"text": "x"})
    with pytest.raises(InputError, match="each Candidate needs: problem_id, index, text$"):
        read_records(file, Candidate)


def test_the_numbers_of_a_score_are_checked(tmp_path):
    row = {
        "problem_id": "p",
        "index": 0,
        "model": "m",
        "direction": "reverse",
        "target": "x|y",
        "logprob": -3,
        "num_tokens": 2,
    }
    assert read_records(write_lines(tmp_path / "s.jsonl", row), Score)[0].logprob == -3
    for key, value in (("target", "y|z"), ("direction", "back"), ("logprob", True)):
        file = write_lines(tmp_path / "bad.jsonl", {**row, key: value})
        with pytest.raises(InputError, match=f"bad.jsonl:1: key {key}: "):
            read_records(file, Score)


def test_the_error_for_invalid_utf8_names_file_and_line(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b'\n{"text": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"c\.jsonl:2: not UTF-8 text"):
        read_records(file, Candidate)


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_the_error_for_an_empty_file_names_it(tmp_path, content):
    file = tmp_path / "c.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"c\.jsonl: the file has no Candidate records"):
        read_records(file, Candidate)


def test_the_error_for_an_unreadable_file_names_it(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        read_records(tmp_path / "none.jsonl", Document)
    with pytest.raises(InputError, match="this is a directory"):
        read_records(tmp_path, Document)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"x\.jsonl: no such file"):
        read_records(tmp_path / "file" / "x.jsonl", Document)


def test_a_byte_order_mark_is_not_part_of_a_record(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert read_records(file, Candidate) == [Candidate(**GOOD)]


@pytest.mark.parametrize(
    "line",
    [
        '{"problem_id": "p", "index": 0, "text": "a", "x": ' + "[" * 3000 + "]" * 3000 + "}",
        '{"problem_id": "p", "index": 0, "text": "a", "x": ' + "1" * 5000 + "}",
        '{"problem_id": "p", "index": 0, "text": "a", "x": "\\ud800"}',
        '{"problem_id": "p", "index": 0, "text": "a", "text": "b"}',
        '{"problem_id": "p", "index": "' + "9" * 5000 + '", "text": "a"}',
    ],
)
def test_records_that_could_not_be_read_back_are_refused(tmp_path, line):
    file = write_lines(tmp_path / "c.jsonl", GOOD, line)
    with pytest.raises(InputError) as caught:
        read_records(file, Candidate)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert len(str(caught.value)) < len(str(file)) + 200


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "c.jsonl")
    with pytest.raises(InputError, match=r"c\.jsonl: this is a pipe or a device"):
        read_records(tmp_path / "c.jsonl", Candidate)


@pytest.mark.parametrize(("decimals", "part"), [(5, 8), (12, 6)])
def test_the_tokens_of_scores_take_little_memory(decimals, part):
    """They take an eighth or a sixth of the memory of lists, and come back unchanged."""
    values = [round(-20 * random.Random(i).random(), decimals) for i in range(1000)]
    spans = [[1000 + i, 1002 + i] for i in range(1000)]
    row = {
        "problem_id": "a",
        "index": 0,
        "model": "m",
        "direction": "reverse",
        "target": "y",
        "logprob": sum(values),
        "num_tokens": 1000,
        "token_logprobs": values,
        "token_spans": spans,
    }
    score = Score.from_json(row)
    assert score.to_json() == row
    assert score == replace(score, token_spans=[list(span) for span in spans])
    assert score != replace(score, token_spans=spans[:-1])
    as_lists = sum(map(sys.getsizeof, [values, spans, *values, *spans]))
    held = sum(sys.getsizeof(value) for value in vars(score).values())
    assert held < as_lists / part


@pytest.mark.parametrize(
    "values",
    [
        {"token_logprobs": [None]},
        {"token_logprobs": [-1e6]},
        {"token_logprobs": [-1.000001]},
        {"token_logprobs": [float("-inf")]},
        *({"token_spans": [span]} for span in ([0], [0, 2**70], [-1, 2], [2**16, 2**16 + 1])),
    ],
)
def test_invalid_or_out_of_range_tokens_are_kept_unchanged(values):
    """The checks of a file can then say what is wrong."""
    row = {"problem_id": "a", "index": 0, "model": "m", "direction": "forward", "target": "y|x"}
    score = Score(**row, logprob=-1.0, num_tokens=1, **values)
    assert values.items() <= score.to_json().items()


@pytest.mark.parametrize("answer", ["2 + 2 = <<2+2=4>>4\n#### 4", "#### 4"])
def test_a_worked_solution_is_refused_as_an_answer(tmp_path, answer):
    """GSM8K's own files have this; compared with it, a candidate's 4 would always be wrong."""
    file = tmp_path / "problems.jsonl"
    file.write_text(json.dumps({"id": "a", "question": "2 + 2?", "answer": answer}))
    with pytest.raises(
        InputError, match=r"jsonl:1: the answer of problem 'a' is a worked solution"
    ):
        read_records(file, Problem)
