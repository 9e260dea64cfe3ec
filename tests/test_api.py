"""The public names, and the cost of importing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ledom
from waiting import SECONDS


def test_public_names_are_pinned() -> None:
    assert sorted(ledom.__all__) == [
        "Candidate",
        "Direction",
        "Document",
        "Generation",
        "LanguageModel",
        "LedomError",
        "PairFormat",
        "Problem",
        "Sampling",
        "Score",
        "TokenSpan",
        "__version__",
        "equal_answers",
        "extract_answer",
        "load",
        "read_records",
        "write_records",
    ]
    for name in ledom.__all__:
        assert getattr(ledom, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        ledom.nonsense  # noqa: B018


@pytest.mark.slow
def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from ledom.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "rerank" in done.stdout
