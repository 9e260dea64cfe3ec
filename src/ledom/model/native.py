"""Kernels of ledom's own for inference in fp32 on a CPU, each with a fallback in plain torch.

They fuse what torch computes in several passes over memory, and one call computes the attention of
all texts. `native.c` is compiled on first use, by the system's C compiler or the one that the
environment variable `CC` names, into the user's cache folder; this takes a second. If nothing can
be written there, each process compiles it again. Without a compiler, on other devices, in other
precisions and where gradients are wanted, the fallbacks run; they give the same results up to
rounding.

Shapes: T tokens, Q queries, H query heads, K key-value heads, G = H / K, D head width, A texts.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ledom.core.files import cache_folder

__all__ = [
    "LANES",
    "cache_attention",
    "draw",
    "has_native",
    "rms_norm",
    "rotate",
    "silu_product",
    "tree_attention",
]

LANES = 16
"""Numbers in the widest vector; `cache_attention` reads rows of keys in multiples of it."""
_SOURCE = Path(__file__).with_name("native.c")
_MARCH = {"AVX512": "-march=x86-64-v4", "AVX2": "-march=x86-64-v3"}
_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_FAILURES = OSError, ValueError
"""What files raise: `ctypes` raises the second one if the path in a message is not in UTF-8."""
_WIDEST_HEAD = 256  # MOST_WIDTH in native.c

_P, _N, _F, _T = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_SIGNATURES = {
    "rms_norm": (_P, _P, _P, _N, _N, _F, _T),
    "silu_product": (_P, _P, _N, _N, _T),
    "rotate": (_P, _P, _P, _N, _N, _N, _N, _T),
    "transpose_keys": (_P, _N, _P, _N, _N, _N, _T),
    "tree_attention": (_P, _N, _P, _N, _P, _N, _P, _N, _N, _N, _P, _N, _P, _P, _T),
    "cache_attention": (
        *(_P, _P, _P, _N, _N, _N, _P, _P, _N, _N, _P, _P, _P, _P, _N, _P, _N, _N, _N, _N, _T),
    ),
    "draw": (_P, _N, _N, _F, _P, _P, _P, _P, _T),
}


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    """The compiled kernels; None if they cannot be compiled or loaded."""
    try:
        library = _loaded()
    except (*_FAILURES, subprocess.SubprocessError) as error:
        logging.getLogger("ledom").info("plain torch, as there are no compiled kernels: %s", error)
        return None
    for name, signature in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = signature, None
    return library


def _loaded() -> ctypes.CDLL:
    """The library in the cache folder; compiled now if it is not there, or damaged."""
    flags = [*_FLAGS, *_MARCH.get(torch.backends.cpu.get_cpu_capability(), "").split()]
    openmp = _openmp()
    known = [_SOURCE.read_bytes(), *map(os.fsencode, (*flags, str(openmp), platform.machine()))]
    name = f"native-{hashlib.sha256(bytes(1).join(known)).hexdigest()[:16]}.so"
    folder = cache_folder()
    if folder is not None:
        file = folder / name
        with suppress(*_FAILURES):
            return ctypes.CDLL(str(file))
        with suppress(*_FAILURES):  # nothing can be written there, or no code there may run
            folder.mkdir(parents=True, exist_ok=True)
            return _compiled(flags, openmp, file)
    return _compiled(flags, openmp, None)


def _compiled(flags: list[str], openmp: Path | None, file: Path | None) -> ctypes.CDLL:
    """The library, compiled now and kept as this file, or in memory only."""
    with tempfile.TemporaryDirectory(dir=file and file.parent) as scratch:
        built = _build(Path(scratch), flags, openmp)
        library = ctypes.CDLL(str(built))
        if file is not None:
            built.replace(file)
    return library


def _build(folder: Path, flags: list[str], openmp: Path | None) -> Path:
    compiler = _compiler()
    part, built = str(folder / "native.o"), folder / "native.so"
    threads, linked = (["-fopenmp"], [str(openmp)]) if openmp else (["-fopenmp-simd"], [])
    for command in (
        [*compiler, *flags, *threads, "-c", str(_SOURCE), "-o", part],
        [*compiler, "-shared", part, *linked, "-lm", "-o", str(built)],
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
        raise FileNotFoundError("there is no C compiler (cc); install one for more speed")
    return found


def _openmp() -> Path | None:
    """torch's own OpenMP library: a second one would start threads of its own."""
    package = Path(torch.__file__).parent
    folders = (package / "lib", package.parent / "torch.libs")
    return next((file for folder in folders for file in sorted(folder.glob("libgomp*.so*"))), None)


def _for(*tensors: Tensor) -> ctypes.CDLL | None:
    """The compiled kernels, if they can compute with these tensors: in fp32, without gradients."""
    for x in tensors:
        if not x.is_cpu or x.dtype != torch.float32:
            return None
        if x.requires_grad and torch.is_grad_enabled():
            return None
    return _library()


def has_native(keys: Tensor, values: Tensor) -> bool:
    """Whether the compiled kernels compute attention over such keys and values, [..., D] both.

    >>> has_native(torch.ones(2, 64), torch.ones(2, 128))  # not with two widths
    False
    """
    width = keys.shape[-1]
    fits = width == values.shape[-1] and width % LANES == 0 and width <= _WIDEST_HEAD
    return fits and _for(keys, values) is not None


def draw(
    logits: Tensor, temperature: float, levels: Sequence[float]
) -> tuple[list[int], list[float], list[float]] | None:
    """A token for each row of logits [rows, V], by inverting the cumulative distribution.

    It is the first token at which the sum of the probabilities at this temperature exceeds the
    row's level in [0, 1), or the likeliest token if the level is negative. Also returns, for each
    row, KL(uniform || p) in nats at temperature 1, and the highest logit over the temperature;
    neither is finite if a logit is not. None without the compiled kernels.

    >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]])
    >>> found = draw(logits, 1.0, [0.6, -1.0])
    >>> found[0] if found else [2, 3]
    [2, 3]
    """
    native = _for(logits)
    if native is None:
        return None
    logits, (rows, vocabulary) = logits.contiguous(), logits.shape
    wanted, tokens = np.array(levels, np.float64), np.empty(rows, np.int64)
    certainties, highest = np.empty(rows, np.float32), np.empty(rows, np.float32)
    native.draw(
        *(logits.data_ptr(), rows, vocabulary, temperature, wanted.ctypes.data),
        *(tokens.ctypes.data, certainties.ctypes.data, highest.ctypes.data),
        torch.get_num_threads(),
    )
    return tokens.tolist(), certainties.tolist(), highest.tolist()


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x [T, width] over the root of its mean square, times the weight [width].

    >>> rms_norm(torch.tensor([[1.0, -1.0]]), torch.tensor([1.0, 2.0]), 0.0)
    tensor([[ 1., -2.]])
    """
    native = _for(x, weight)
    if native is None:
        return functional.rms_norm(x, weight.shape, weight, epsilon)
    x = x.contiguous()
    out = torch.empty_like(x)
    given = (x.data_ptr(), weight.data_ptr(), out.data_ptr(), *x.shape, epsilon)
    native.rms_norm(*given, torch.get_num_threads())
    return out


def silu_product(x: Tensor) -> Tensor:
    """SiLU of the first half of each row of x [T, 2 * width], times the second half.

    >>> silu_product(torch.tensor([[0.0, 5.0]]))
    tensor([[0.]])
    """
    native = _for(x)
    if native is None:
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)
    x = x.contiguous()
    out = x.new_empty(len(x), x.shape[1] // 2)
    native.silu_product(x.data_ptr(), out.data_ptr(), *out.shape, torch.get_num_threads())
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Apply rotary positions [T, D] in place to heads [T, heads, D], parts of wider rows.

    Dimension i is paired with i + D / 2.

    >>> x = torch.tensor([[[1.0, 2.0]]])
    >>> rotate(x, torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    >>> x
    tensor([[[-2.,  1.]]])
    """
    heads, width = x.shape[1:]
    half = width // 2
    native = _for(x, cos, sin)
    if native is None:
        cos, sin, before = cos[:, None], sin[:, None], x.clone()
        x.mul_(cos)
        x[..., :half].addcmul_(before[..., half:], sin[..., :half], value=-1)
        x[..., half:].addcmul_(before[..., :half], sin[..., half:])
        return
    cos, sin = cos.contiguous(), sin.contiguous()
    given = (x.data_ptr(), cos.data_ptr(), sin.data_ptr(), len(x), x.stride(0), heads, width)
    native.rotate(*given, torch.get_num_threads())


def _with_whole_heads(x: Tensor) -> Tensor:
    """x [T, heads, D], copied if the heads of a row lie apart; the rows themselves may."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tasks: NDArray[np.int64],
    spans: NDArray[np.int64],
    limits: NDArray[np.int64],
) -> Tensor:
    """Attention [Q, H, D] of queries [Q, H, D] over spans of keys and values [T, K, D].

    Each of `tasks` [tasks, 4] is (first, last, begin, end): the queries [first, last) see the
    `spans` [begin, end) of keys, each a row (start, end) of [spans, 2]. Query i sees no key from
    `limits[i]` on. Needs `has_native`.
    """
    native = _library()
    assert native is not None
    q, k, v = _with_whole_heads(q), _with_whole_heads(k), _with_whole_heads(v)
    heads, width = q.shape[1:]
    columns = k.shape[1] * width
    # At least one vector more than the keys fill, as a span's last vector may reach past its end.
    # An odd number of vectors, as rows at powers of two would share cache lines.
    vectors = -(-len(k) // LANES)
    stride = LANES * (vectors + 1 + vectors % 2)
    keys = q.new_empty(columns * stride)
    threads = torch.get_num_threads()
    native.transpose_keys(
        k.data_ptr(), k.stride(0), keys.data_ptr(), stride, len(k), columns, threads
    )
    out = q.new_empty(q.shape)
    native.tree_attention(
        *(q.data_ptr(), q.stride(0), keys.data_ptr(), stride, v.data_ptr(), v.stride(0)),
        *(out.data_ptr(), k.shape[1], heads // k.shape[1], width),
        *(tasks.ctypes.data, len(tasks), spans.ctypes.data, limits.ctypes.data, threads),
    )
    return out


def cache_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    own: tuple[Tensor, Tensor],
    age: int,
    known: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    prompt_of: NDArray[np.int64],
    layer: int,
    out: Tensor,
) -> None:
    """Attention of one token per text, written to `out` [A, H, D]: q [A, H, D], k and v [A, K, D].

    Text a sees the tokens of prompt `prompt_of[a]`, then `age` tokens of its own, and then itself:
    k and v are first added to its own keys [A, K, D, room] and values [A, K, room, D]. The known
    prompts are given by the addresses of their keys [layers, K, D, C] and values [layers, K, T, D]
    and their lengths T; C is T up to a multiple of `LANES`, as is the room. Needs `has_native`.
    """
    native = _library()
    assert native is not None
    q, k, v = _with_whole_heads(q), _with_whole_heads(k), _with_whole_heads(v)
    texts, heads, width = q.shape
    kv_heads = k.shape[1]
    native.cache_attention(
        *(q.data_ptr(), k.data_ptr(), v.data_ptr(), q.stride(0), k.stride(0), v.stride(0)),
        *(own[0].data_ptr(), own[1].data_ptr(), own[0].shape[-1], age),
        *(array.ctypes.data for array in known),
        *(prompt_of.ctypes.data, layer, out.data_ptr()),
        *(texts, kv_heads, heads // kv_heads, width, torch.get_num_threads()),
    )
