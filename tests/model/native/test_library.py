"""Compiling and caching the kernels, working without them, and memory that passes reuse."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import pytest
import torch

from ledom.model.device import LARGE
from ledom.model.native import library
from ledom.model.native.draws import draw
from ledom.model.native.layers import rms_norm, silu_product
from ledom.model.native.library import workspace
from ledom.model.prefix_tree import PrefixTree
from ledom.model.tree_attention import TreeAttention

KERNELS = library._SOURCES


@pytest.fixture(autouse=True)
def empty_kernels(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions that do nothing, in two files: compiling them takes a fraction of the time."""
    folder = tmp_path_factory.mktemp("sources")
    names = ["panel_width", *library._SIGNATURES]
    sources = {folder / "first.c": names[:1], folder / "others.c": names[1:]}
    for source, some in sources.items():
        source.write_text("".join(f"void {name}(void) {{}}\n" for name in some))
    monkeypatch.setattr(library, "_SOURCES", [*sources])


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and no kernels loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library._library.cache_clear()
    yield tmp_path / "ledom"
    library._library.cache_clear()


def test_the_kernels_are_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library._library() is not None
    (file,) = fresh.iterdir()
    library._library.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert library._library() is not None
    assert list(fresh.iterdir()) == [file]


@pytest.mark.usefixtures("fresh")
def test_the_compiler_command_may_have_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -O2 -D'SOME NAME=1'")
    assert library._library() is not None


@pytest.mark.usefixtures("fresh")
@pytest.mark.slow
def test_no_input_leads_to_undefined_behavior(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Uses the compiler's own sanitizer, which writes to standard error.

    Without optimization, compiling takes a twentieth of the time.
    """
    flags = tuple(flag for flag in library._FLAGS if flag != "-O3")
    monkeypatch.setattr(library, "_FLAGS", flags)
    monkeypatch.setattr(library, "_SOURCES", KERNELS)
    monkeypatch.setenv("CC", "cc -fsanitize=undefined,float-cast-overflow")
    if library._library() is None:
        pytest.skip("this compiler has no such check")
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e-45, -100.0, 0.0])
    pairs = torch.cat([odd.repeat_interleave(8), odd.repeat(8)])
    silu_product(pairs[None])
    x = pairs.view(8, 16)
    rms_norm(x, x[0], 0.0)
    draw(x, 0.5, [-1.0, 0.0, 0.5, 0.999] * 2)
    attention = TreeAttention(PrefixTree.build([range(8)]), None, x.device, x.dtype)
    attention(0, x[:, None], x[:, None], x[:, None])
    assert "runtime error" not in capfd.readouterr().err


def test_threads_may_compile_at_the_same_time(fresh: Path) -> None:
    openmp = library._openmp()
    assert openmp is not None
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: library._loaded(openmp), range(2))
    assert first.rms_norm
    assert second.rms_norm
    assert len(list(fresh.iterdir())) == 1


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("false", "false: exit status 1;"),
        ("no-such-compiler", "No such file or directory: 'no-such-compiler';"),
        ("cc 'an open quote", "CC=cc 'an open quote: No closing quotation;"),
        ("cc --no-such-flag", "no-such-flag"),
    ],
)
def test_without_a_compiler_plain_torch_takes_over(
    compiler: str,
    reason: str,
    fresh: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is slower, so a warning says why it is used."""
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.WARNING, logger="ledom"):
        assert silu_product(torch.tensor([[0.0, 5.0]])).tolist() == [[0.0]]
        assert silu_product(torch.tensor([[0.0, 5.0]])).tolist() == [[0.0]]
    assert reason in caplog.text
    assert "no compiled kernels, so models run slower" in caplog.text
    assert "a folder where code may run, in XDG_CACHE_HOME or TMPDIR" in caplog.text
    assert caplog.text.count("\n") == 1
    assert list(fresh.iterdir()) == []


def test_the_kernels_use_the_threads_of_torch(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On macOS, the compiler does not support torch's OpenMP library."""
    assert Path(library._openmp()).is_relative_to(Path(torch.__file__).resolve().parent)
    monkeypatch.setattr(library, "_OPENMP", re.compile("no such library"))
    with caplog.at_level(logging.INFO, logger="ledom"):
        assert library._library() is None
    assert "no OpenMP library" in caplog.text
    assert list(fresh.parent.iterdir()) == []


def test_torchs_openmp_library_is_preferred_behind_a_symbolic_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, link = tmp_path / "installed", tmp_path / "link"
    link.symlink_to(installed)
    files = [tmp_path / "sklearn.libs/libgomp-a49a47f9.so.1", installed / "torch/lib/libgomp.so.1"]
    lines = "".join(f"7f00-7f01 r-xp 00000000 fe:01 42  {file}\n" for file in files)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: lines)
    monkeypatch.setattr(torch, "__file__", str(link / "torch/__init__.py"))
    assert library._openmp() == str(files[1])


@pytest.mark.slow
def test_a_damaged_library_is_compiled_again(fresh: Path) -> None:
    assert library._library() is not None
    (file,) = fresh.iterdir()
    damaged = file.read_bytes()[:100]
    file.unlink()
    file.write_bytes(damaged)
    library._library.cache_clear()
    assert library._library() is not None


@pytest.mark.parametrize("there", ["a file", "a folder without room"])
def test_an_unwritable_cache_does_no_harm(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there == "a file":
        (tmp_path / "ledom").write_text("a file where the folder should be")
    else:
        (tmp_path / "ledom").symlink_to("/proc/self")  # nobody can write there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library._library.cache_clear()
    try:
        assert library._library() is not None
    finally:
        library._library.cache_clear()


def test_a_full_cache_does_no_harm(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler reports a full disk like any other failure."""
    compiler = fresh.parent / "cc"
    full = f'case "$*" in *{fresh}/*) echo "No space left on device" >&2; exit 1;; esac'
    compiler.write_text(f'#!/bin/sh\n{full}\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert library._library() is not None
    assert list(fresh.iterdir()) == []


@pytest.mark.usefixtures("fresh")
def test_it_works_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "cache_folder", lambda: None)
    assert library._library() is not None


@pytest.mark.parametrize("name", ["a home", "дом", "caf\udce9"])  # the last is not UTF-8
def test_the_cache_folder_may_have_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    library._library.cache_clear()
    try:
        assert library._library() is not None
    finally:
        library._library.cache_clear()
    assert len(list((tmp_path / name / "ledom").iterdir())) == 1


_SIZE = LARGE // 4  # numbers in fp32


def test_a_large_tensor_reuses_the_memory_of_the_previous_one() -> None:
    first = workspace("test", 2, _SIZE)
    assert workspace("test", _SIZE).data_ptr() == first.data_ptr()
    assert workspace("another test", _SIZE).data_ptr() != first.data_ptr()


def test_a_small_tensor_has_its_own_memory() -> None:
    small = [workspace("test", _SIZE - 1).fill_(i) for i in range(2)]
    assert [tensor[0].item() for tensor in small] == [0, 1]


def test_threads_do_not_share_memory() -> None:
    here, there = workspace("test", _SIZE).fill_(1), []
    thread = Thread(target=lambda: there.append(workspace("test", _SIZE).fill_(2)))
    thread.start()
    thread.join()
    assert here.data_ptr() != there[0].data_ptr()
    assert here.eq(1).all()


def test_memory_from_inference_mode_can_be_written_outside_it() -> None:
    with torch.inference_mode():
        made = workspace("inference", _SIZE).data_ptr()
    again = workspace("inference", _SIZE)
    assert again.data_ptr() == made
    assert not again.is_inference()
    assert again.fill_(1).eq(1).all()
