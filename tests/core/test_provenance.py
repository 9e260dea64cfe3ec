"""Settings are compared key by key, models by their hash."""

import hashlib
from pathlib import Path

import pytest

from ledom.core.errors import InputError
from ledom.core.files import check_settings, differences, file_hash, fingerprint


def test_nested_keys_are_reported_by_path():
    there = {"a": 1, "b": {"c": [1], "d": {"e": "x"}}, "only": True}
    now = {"a": 1, "b": {"c": [2], "d": {"e": "y"}}}
    assert list(differences(there, now)) == [
        "b.c: [1] there, [2] now",
        "b.d.e: 'x' there, 'y' now",
        "only: True there, None now",
    ]
    assert list(differences(there, there)) == []


def test_models_are_compared_by_hash_alone():
    there = {"model": {"name": "/a/model", "hash": "1"}}
    moved = {"model": {"name": "/b/model", "hash": "1"}}
    other = {"model": {"name": "/a/model", "hash": "2"}}
    check_settings(there, moved, Path("out.jsonl"))
    with pytest.raises(InputError, match=r"^out.jsonl: .*\(model: /a/model \(1\) there, /a/model"):
        check_settings(there, other, Path("out.jsonl"))


def test_hashes_match_known_values(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_hash(tmp_path / "file").startswith("ba7816bf8f01cfea414140de5dae2223")
    assert fingerprint([("a", "b"), ("c",)]) == hashlib.sha256(b"a\0b\0c\0").hexdigest()[:16]


def test_the_error_for_another_precision_says_how_to_continue() -> None:
    def of(hash_: str) -> dict[str, dict[str, str]]:
        return {"model": {"name": "m", "hash": hash_}}

    assert [*differences(of("24c8"), of("24c8-bfloat16"))] == [
        "model: m (24c8) there, m (24c8-bfloat16) now, the same weights in another precision: "
        "write ,dtype=float32 after its name"
    ]
    (line,) = differences(of("24c8-bfloat16"), of("24c8"))
    assert line.endswith("write ,dtype=bfloat16 after its name")
    for other in (of("07aa"), of("07aa-bfloat16"), of("24c8-vllm-float16-1a")):
        (line,) = differences(of("24c8"), other)
        assert line.endswith(" now")
