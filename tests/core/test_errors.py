import pickle
from importlib import import_module
from pathlib import Path

import pytest

from ledom.core import errors


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({}, "bad"),
        ({"path": "a.jsonl"}, "a.jsonl: bad"),
        ({"path": Path("a.jsonl"), "line": 3}, "a.jsonl:3: bad"),
    ],
)
def test_an_input_error_starts_with_the_location(place, message):
    assert str(errors.InputError("bad", **place)) == message


def test_a_missing_extra_error_names_the_install_command():
    instead = "or name a model folder"
    with (
        pytest.raises(errors.MissingExtraError) as caught,
        errors.needs_extra("no_such_package", "vllm", otherwise=instead),
    ):
        import_module("no_such_package")
    assert str(caught.value) == (
        f"no_such_package is not installed; run: pip install 'ledom[vllm]'; {instead}"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # another process's


def test_a_package_that_fails_to_import_is_not_reported_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "too_old.py").write_text("from collections import no_such_name\n")
    (tmp_path / "in_need.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    for package, reason in (
        ("too-old", r"cannot import name 'no_such_name' from 'collections' .*"),
        ("in-need", "No module named 'no_such_dependency'"),
    ):
        message = (
            rf"^a task: {package} cannot be imported \({reason}\); run: pip install --upgrade "
        )
        with (
            pytest.raises(errors.MissingExtraError, match=message) as caught,
            errors.needs_extra(package, "lora", "a task"),
        ):
            import_module(package.replace("-", "_"))
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_every_error_can_be_caught_as_ledom_error():
    classes = [value for name in errors.__all__ if isinstance(value := getattr(errors, name), type)]
    assert len(classes) > 10
    assert all(issubclass(one, errors.LedomError) for one in classes)
    assert issubclass(errors.DirectionError, errors.CheckpointError)


def test_too_little_memory_to_import_a_package_is_no_reason_to_install_it() -> None:
    full = ImportError("libx.so: failed to map segment from shared object")
    with pytest.raises(ImportError) as caught, errors.needs_extra("json", "data"):
        raise full
    assert caught.value is full
