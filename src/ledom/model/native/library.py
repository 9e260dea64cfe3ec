"""Compiles and loads ledom's own kernels, for fp32 on a CPU.

They fuse operations for which torch makes several passes over memory. The C files in this folder
are compiled by the system's C compiler, or the one named by the environment variable `CC`, into the
user's cache folder; this takes two seconds. If that folder is full or not writable, each process
compiles them again. Without a compiler (a warning says why), on other devices, in other precisions
and for gradients, plain torch computes the same, up to rounding.

The large buffers of a pass are kept for the next one (`workspace`), because allocating each again
in `model.device.large_blocks_apart` would cost page faults.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ledom.core.files import cache_folder
from ledom.model.device import LARGE

__all__ = ["library_for", "workspace"]

_SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
_MARCH = {"AVX512": "-march=x86-64-v4", "AVX2": "-march=x86-64-v3"}
_FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
_OPENMP = re.compile(r"/lib(g|i)?omp[^/]*\.so[^/]*$")  # libiomp and libomp have GNU's functions too
_FAILURES = OSError, ValueError
"""Errors of file access; `ctypes` raises the second if a path in a message is not UTF-8."""

_P, _N, _F, _T = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_SIGNATURES = {
    "rms_norm": (_P, _P, _P, _N, _N, _F, _T),
    "silu_product": (_P, _P, _N, _N, _T),
    "rotate": (_P, _P, _P, _N, _N, _N, _N, _T),
    "project": (_P, _N, _N, _P, _F, _P, _P, _N, _P, _P, _N, _N, _P, _P, _N, _T),
    "finish_layer": (_P, _N, _N, _P, _N, _P, _P, _P, _F, _P, _N, _P, _P, _N, _T),
    "hash_arrays": (_P, _P, _N, _P, _T),
    "transpose_keys": (_P, _N, _P, _N, _N, _N, _T),
    "pack_weight": (_P, _N, _N, _N, _N, _P, _T),
    "tree_attention": (_P, _N, _P, _N, _P, _N, _P, _N, _N, _N, _P, _N, _P, _P, _P, _T),
    "attention_backward": (_P, _P, _P, _P, _N, _N, _N, _F, _P, _N, _T),
    "backward_scratch": (_N, _N),
    "cache_attention": (_P, _P, _P, _N, _N, _N, _P, _P, _N, _P, _N, _N, _N, _N, _T),
    "draw": (_P, _N, _N, _F, _P, _P, _P, _P, _T),
    "label_logprobs": (_P, _N, _N, _P, _P, _T),
}


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    """The compiled kernels; None if they cannot be compiled or loaded."""
    log = logging.getLogger("ledom")
    if (openmp := _openmp()) is None:
        log.info("no compiled kernels: torch has loaded no OpenMP library that they could use")
        return None
    try:
        library = _loaded(openmp)
    except (*_FAILURES, subprocess.SubprocessError) as error:
        log.warning(
            "no compiled kernels, so models run slower: %s; they need GCC, or a compiler that CC "
            "names, and a folder where code may run, in XDG_CACHE_HOME or TMPDIR",
            _reason(error),
        )
        return None
    for name, signature in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = signature, None
    library.panel_width.restype = library.backward_scratch.restype = _N
    return library


def _reason(error: Exception) -> str:
    """Why the kernels cannot be compiled or loaded, on one line."""
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    said = error.stderr.decode(errors="replace").strip().partition("\n")[0]
    return f"{error.cmd[0]}: {said or f'exit status {error.returncode}'}"


def _loaded(openmp: str) -> ctypes.CDLL:
    """The library in the cache folder; compiled now if it is missing or damaged."""
    flags = [*_FLAGS, *_MARCH.get(torch.backends.cpu.get_cpu_capability(), "").split()]
    known = [
        *(file.read_bytes() for file in _SOURCES),
        *map(os.fsencode, (*flags, openmp, platform.machine())),
    ]
    name = f"native-{hashlib.sha256(bytes(1).join(known)).hexdigest()[:16]}.so"
    folder = cache_folder()
    if folder is not None:
        file = folder / name
        with suppress(*_FAILURES):
            return ctypes.CDLL(str(file))
        # The folder is not writable or has no room, or code in it may not run.
        with suppress(*_FAILURES, subprocess.CalledProcessError):
            folder.mkdir(parents=True, exist_ok=True)
            return _compiled(flags, openmp, file)
    return _compiled(flags, openmp, None)


def _compiled(flags: list[str], openmp: str, file: Path | None) -> ctypes.CDLL:
    """Compile the library and keep it as this file, or only in memory."""
    with tempfile.TemporaryDirectory(dir=file and file.parent) as scratch:
        built = _build(Path(scratch), flags, openmp)
        library = ctypes.CDLL(str(built))
        if file is not None:
            built.replace(file)
    return library


def _build(folder: Path, flags: list[str], openmp: str) -> Path:
    compiler = _compiler()
    built = folder / "native.so"
    sources = [file for file in _SOURCES if file.suffix == ".c"]
    parts = [(str(file), str(folder / f"{file.stem}.o")) for file in sources]
    for command in (
        *([*compiler, *flags, "-c", source, "-o", part] for source, part in parts),
        [*compiler, "-shared", *(part for _, part in parts), openmp, "-lm", "-o", str(built)],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    return built


def _compiler() -> list[str]:
    """The compiler and its first arguments: `CC` may be "gcc -m64" or "ccache gcc"."""
    try:
        given = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise ValueError(f"CC={os.environ['CC']}: {error}") from None
    found = given or [name for name in ("cc", "gcc") if shutil.which(name)][:1]
    if not found:
        raise FileNotFoundError("there is no C compiler (cc)")
    return found


def _openmp() -> str | None:
    """The OpenMP library that torch has loaded; a second one would start its own threads.

    Without one (on macOS), the kernels would run on one thread and be slower than torch.
    """
    loaded: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
        loaded = [line.split(maxsplit=5)[-1] for line in lines if _OPENMP.search(line)]
    # Other packages include one too; torch's is in its own folder, or it is the system's.
    own = Path(torch.__file__).resolve().parent  # the kernel lists files without symbolic links
    loaded.sort(key=lambda file: not Path(file).is_relative_to(own))
    return loaded[0] if loaded else None


def library_for(*tensors: Tensor) -> ctypes.CDLL | None:
    """The compiled kernels, if they support these tensors: in fp32, without gradients."""
    for x in tensors:
        if not x.is_cpu or x.dtype != torch.float32:
            return None
        if x.requires_grad and torch.is_grad_enabled():
            return None
    return _library()


_KEPT = threading.local()


def workspace(name: str, *shape: int) -> Tensor:
    """An uninitialized tensor in fp32, valid until this thread's next call with the same name.

    The memory of small tensors is not kept: allocating them is fast.

    >>> workspace("doctest", 2, 3).shape
    torch.Size([2, 3])
    """
    size = math.prod(shape)
    if 4 * size < LARGE:
        return torch.empty(shape, dtype=torch.float32)
    memory: dict[str, Tensor] = vars(_KEPT)
    kept = memory.get(name)
    if kept is None or len(kept) < size:
        memory.pop(name, None)  # frees the old one first
        with torch.inference_mode(False):
            kept = memory[name] = torch.empty(size, dtype=torch.float32)
    return kept[:size].view(shape)
