"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

import ledom

PACKAGE = Path(ledom.__file__).parent
MODULES = sorted(
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    for file in PACKAGE.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_are_true(name: str) -> None:
    module = importlib.import_module(name.removesuffix(".__init__"))
    done = doctest.testmod(module)
    assert done.attempted
    assert not done.failed
