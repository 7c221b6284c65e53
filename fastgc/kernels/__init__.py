"""The arithmetic of gradient coding: small matrices times a few long rows, and batched small inverses.

Three backends do the same arithmetic: ``"cpp"`` (C++ with the instruction set chosen at run time; the environment
variable ``FASTGC_ISA`` forces one), ``"numba"``, which takes over, with a warning, where the extension is missing,
and ``"cuda"``, by way of CuPy, for arrays on a GPU. `fastgc.kernels.reference` says in plain NumPy what they compute.

The bits of a result depend on the numbers given and on nothing else: not on threads, alignment, strides or backend,
and not on the instruction set among those that fuse multiplication and addition (all but ``"portable"`` on x86-64).
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol, TypeAlias, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from fastgc import arrays
from fastgc.errors import NotDecodableError
from fastgc.kernels import _extension, _segments, reference
from fastgc.kernels._segments import DYNAMIC_RANGE, JUDGED
from fastgc.kernels._threads import get_num_threads, set_num_threads

__all__ = [
    "DYNAMIC_RANGE",
    "JUDGED",
    "backends",
    "decode",
    "decode_by_pattern",
    "decode_checked",
    "decoding_weights",
    "encode",
    "few_missing_table",
    "full_rank",
    "get_num_threads",
    "least_norm_weights",
    "lincomb",
    "missing_backends",
    "pattern_weights",
    "positions",
    "reference",
    "set_num_threads",
]

Array: TypeAlias = npt.NDArray[Any]
Rows: TypeAlias = Array | Sequence[Array]


class _Backend(Protocol):
    """What a backend module provides. All check their arguments themselves."""

    def lincomb(
        self, coefficients: Any, inputs: Any, out: Any = ..., accumulate: bool = ..., threads: int | None = ...
    ) -> Any: ...
    def encode(
        self, coefficients: Any, gradients: Any, out: Any = ..., accumulate: bool = ..., threads: int | None = ...
    ) -> Any: ...
    def decode(self, weights: Any, messages: Any, length: int, out: Any = ..., threads: int | None = ...) -> Any: ...
    def decode_checked(
        self,
        weights: Any,
        checks: Any,
        messages: Any,
        length: int,
        floors: Any,
        least: float,
        threads: int | None = ...,
    ) -> tuple[Any, list[int]]: ...
    def decoding_weights(
        self, generator: Any, patterns: Any, threads: int | None = ...
    ) -> tuple[npt.NDArray[np.float64], list[int]]: ...
    def least_norm_weights(
        self, generator: Any, patterns: Any, target: Any, table: Any = ..., threads: int | None = ...
    ) -> tuple[npt.NDArray[np.float64], list[int]]: ...
    def few_missing_table(self, generator: Any, target: Any) -> npt.NDArray[np.float64] | None: ...
    def positions(self, masks: int | Sequence[int]) -> npt.NDArray[np.int64]: ...


_loaded: dict[str, _Backend] = {}

if not _extension.missing:
    _loaded["cpp"] = _extension.core
    _default = "cpp"
else:
    _default = "numba"
    warnings.warn(
        f"fastgc's compiled kernels cannot be imported ({_extension.missing}); using the Numba kernels, which are "
        "slower to start",
        RuntimeWarning,
        stacklevel=2,
    )


def backends() -> tuple[str, ...]:
    """Names of the backends that work here, the default first.

    Returns
    -------
    tuple of str
        Of ``"cpp"``, ``"numba"`` and ``"cuda"``. The last is for arrays on a CUDA device, and asking for it imports
        CuPy, where that is installed.
    """
    missing = missing_backends()
    return tuple(name for name in ("cpp", "numba", "cuda") if name not in missing)


def missing_backends() -> dict[str, str]:
    """Why backends that do not work here do not.

    Returns
    -------
    dict of str
        The reason, in one line, by the backend's name.
    """
    reasons = {"cpp": _extension.missing and f"the extension cannot be imported: {_extension.missing}"}
    reasons["numba"] = "" if find_spec("numba") is not None else "Numba is not installed"
    reasons["cuda"] = _no_cuda()
    return {name: reason for name, reason in reasons.items() if reason}


@functools.cache
def _no_cuda() -> str:
    if find_spec("cupy") is None:
        return "CuPy is not installed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy's, about a machine without CUDA: that is what is asked
            missing: str = importlib.import_module("fastgc.kernels._cuda").missing()
    except ImportError as error:
        return f"CuPy cannot be imported: {str(error).strip().partition(chr(10))[0]}"
    return missing


def _backend(name: str | None) -> _Backend:
    try:
        return _loaded[name or _default]
    except (KeyError, TypeError):
        pass
    if (name or _default) not in backends():
        raise ValueError(f"backend: expected one of {', '.join(backends()) or '(none works here)'}, got {name!r}")
    module = {"numba": "fastgc.kernels._numba", "cuda": "fastgc.kernels._cuda"}[str(name or _default)]
    return _loaded.setdefault(str(name or _default), importlib.import_module(module))


def _at(name: str, rows: Any, out: Any, backend: str | None) -> tuple[arrays.Origin, _Backend]:
    """Where a call's arrays come from, and the backend for them."""
    where = arrays.origin_of_rows(name, rows)
    if where is arrays.NUMPY and arrays.origin_of_rows("out", out) is not where:
        where.rows("out", out)  # which says what is wrong
    if backend is not None and where.backend is not None and backend != where.backend:
        raise ValueError(f"backend: expected {where.backend!r} for arrays of {where}, got {backend!r}")
    return where, _backend(backend) if where.backend is None else arrays.cuda(name, where)


def _as_given(where: arrays.Origin, call: Callable[..., Any], *arguments: Any) -> Any:
    """The result for arrays that are what the backend sees; None if they are not, or not all, for views will tell."""
    if not where.native:
        return None
    try:
        return call(*arguments)
    except (TypeError, ValueError):
        if where is arrays.NUMPY:
            raise
        return None


def _listed(value: Any) -> bool:
    return isinstance(value, (list, tuple))


Function = TypeVar("Function", bound=Callable[..., Any])
Pattern = TypeVar("Pattern")


def _direct(function: Function) -> Function:
    """Let calls that leave `backend` alone reach C++ at once: of a short call, the detour is half the time."""
    if _default != "cpp":
        return function
    direct: Any = functools.update_wrapper(_extension.core.direct(function.__name__, function), function)
    return cast(Function, direct)


@overload
def lincomb(
    coefficients: npt.ArrayLike,
    inputs: Rows,
    out: None = None,
    *,
    accumulate: bool = False,
    threads: int | None = None,
    backend: str | None = None,
) -> Array: ...
@overload
def lincomb(
    coefficients: npt.ArrayLike,
    inputs: Rows,
    out: Array,
    *,
    accumulate: bool = False,
    threads: int | None = None,
    backend: str | None = None,
) -> Array: ...
@overload
def lincomb(
    coefficients: npt.ArrayLike,
    inputs: Rows,
    out: Sequence[Array] | None,
    *,
    accumulate: bool = False,
    threads: int | None = None,
    backend: str | None = None,
) -> Any: ...
@_direct
def lincomb(
    coefficients: npt.ArrayLike,
    inputs: Rows,
    out: Rows | None = None,
    *,
    accumulate: bool = False,
    threads: int | None = None,
    backend: str | None = None,
) -> Any:
    """Linear combinations of rows: ``out[p] = sum over q of coefficients[p, q] * inputs[q]``.

    Parameters
    ----------
    coefficients : array_like of real numbers, shape (P, Q)
        Rounded once to the type computed in: float64 for rows in float64, else float32.
    inputs : array of shape (Q, L), or sequence of Q arrays of shape (L,)
        Of NumPy, PyTorch, JAX, CuPy or any library with DLPack, all of one and on one device (`fastgc.arrays`).
        float32, float64, float16 or bfloat16 (of ml_dtypes) in native byte order, all of one type. Rows may have any
        distance from each other and any alignment; where the elements of a row are not next to each other, or not
        aligned to their size, the array is copied first. Never modified.
    out : array of shape (P, L), or sequence of P arrays of shape (L,), optional
        Where the result goes, of the inputs' library, device and element type; inputs in float16 or bfloat16 may also
        go out as float32, and inputs in float32 as either. Elements of a row must be next to each other. No row may
        overlap another or an input in memory. Made if not given.
    accumulate : bool
        Add to what `out` holds instead of replacing it.
    threads : int, optional
        Use at most this many threads, and no more than `get_num_threads`. Small calls use one in any case, and so do
        those in a child made by ``fork()``.
    backend : {"cpp", "numba"}, optional

    Returns
    -------
    array of shape (P, L) of the inputs' library and device, or `out` as it was given

    Raises
    ------
    TypeError
        Arrays of another element type or of different types, libraries or devices, or that `fastgc.arrays` refuses;
        something that is no array or not a number.
    ValueError
        Shapes that do not match, no rows or empty ones, coefficients that are not finite in the element type, `out`
        read-only, not contiguous along its rows or overlapping, `accumulate` without `out`, a backend that does not
        work here, or ``FASTGC_ISA`` naming an instruction set that this machine lacks. `out` is untouched.

    Notes
    -----
    Element x of row p is the chain ``c[p,0]*x_0``, ``fma(c[p,q], x_q, chain)`` for q = 1, 2, …, rounded once a step;
    with `accumulate` it starts with ``fma(c[p,0], x_0, out)``. So the absolute error is at most
    ``Q*u/(1 - Q*u) * sum of |c[p,q]| |x_q|`` with u = 2⁻²⁴ (float32) or 2⁻⁵³ (float64), and a sum over q that is
    split into consecutive calls with `accumulate` has the bits of the whole. On x86-64, instruction set ``"portable"``
    rounds product and sum separately: 2Q instead of Q, and other bits. NaN and infinity in the inputs go their way.
    Chains over float16 and bfloat16 are in float32 and rounded to `out` once, to nearest even, so that splitting a sum
    keeps the bits only where `out` is float32.
    """
    matrix = arrays.on_host("coefficients", coefficients)
    where, run = _at("inputs", inputs, out, backend)
    if (done := _as_given(where, run.lincomb, matrix, inputs, out, accumulate, threads)) is not None:
        return done
    rows = where.rows("inputs", inputs)
    return where.compute(
        lambda made: run.lincomb(matrix, rows, made, accumulate, threads),
        None if accumulate else lambda: ((len(matrix), len(rows[0])), rows[0].dtype),
        out,
    )


@_direct
def encode(
    coefficients: npt.ArrayLike,
    gradients: Rows,
    out: Array | None = None,
    *,
    accumulate: bool = False,
    threads: int | None = None,
    backend: str | None = None,
) -> Array:
    """A worker's message: ``sum over j, u of coefficients[j, u] * (block u of gradients[j])``.

    Block u of a gradient of length l is elements ``[u*B, (u+1)*B)`` with ``B = ceil(l/m)``. What lies beyond the
    gradient's end is absent; nothing is padded or copied, and every element of a gradient is read once.

    Parameters
    ----------
    coefficients : array_like of real numbers, shape (d, m)
        Row j holds the weights of gradient j's m blocks. Rounded once to the type computed in.
    gradients : array of shape (d, l), or sequence of d arrays of shape (l,)
        As `inputs` of `lincomb`.
    out : array of shape (ceil(l/m),), optional
        As in `lincomb`.
    accumulate, threads, backend
        As in `lincomb`. Encoding gradients in several consecutive calls with `accumulate` gives the bits of one, where
        `out` is float32 or float64.

    Returns
    -------
    array of shape (ceil(l/m),)

    Raises
    ------
    TypeError, ValueError
        As in `lincomb`.

    Notes
    -----
    Equation for y_i of Kadhe, Koyluoglu, Ramchandran 2020 (arXiv 2005.07184). Every element is the chain of `lincomb`
    over the terms that exist, j ascending, then u ascending; the error bound is that of `lincomb` with Q = d*m.
    """
    matrix = arrays.on_host("coefficients", coefficients)
    where, run = _at("gradients", gradients, out, backend)
    if (done := _as_given(where, run.encode, matrix, gradients, out, accumulate, threads)) is not None:
        return done  # type: ignore[no-any-return]
    rows = where.rows("gradients", gradients)
    return where.compute(  # type: ignore[no-any-return]
        lambda made: run.encode(matrix, rows, made, accumulate, threads),
        None if accumulate else lambda: (_segments.block_length(len(rows[0]), np.shape(matrix)[1]), rows[0].dtype),
        out,
    )


@_direct
def decode(
    weights: Sequence[npt.ArrayLike],
    messages: Sequence[Rows],
    length: int,
    out: Array | None = None,
    *,
    threads: int | None = None,
    backend: str | None = None,
) -> Array:
    """The gradient from the messages of all groups: blocks ``weights[g] @ messages[g]``, added over the groups g.

    Parameters
    ----------
    weights : sequence of array_like, shape (m, q_g)
        Decoding weights of each group; m is the same in all.
    messages : sequence of (array of shape (q_g, B), or sequence of q_g arrays of shape (B,))
        Each group's messages, ``B = ceil(length/m)``. Element types and strides as `inputs` of `lincomb`.
    length : int
        Length of the gradient.
    out : array of shape (length,), optional
        As in `lincomb`.
    threads, backend
        As in `lincomb`.

    Returns
    -------
    array of shape (length,)

    Raises
    ------
    TypeError, ValueError
        As in `lincomb`.

    Notes
    -----
    Decoding in Kadhe, Koyluoglu, Ramchandran 2020 (arXiv 2005.07184). A group's result is that of `lincomb`. Results
    are added by the tree ``[lo, hi) = [lo, mid) + [mid, hi)``, ``mid = (lo + hi) // 2``, so a master that decodes each
    group as it completes, and adds by ``lincomb([[1, 1]], [left, right])`` in the same tree, has the same bits. The
    error is at most that of each group's `lincomb` plus ceil(log2(number of groups)) roundings of the sums. Every
    message is read once and `out` written once. Groups of messages in float16 or bfloat16 are added in float32.
    """
    groups = list(messages) if arrays.is_array(messages) else messages
    matrices = [arrays.on_host(f"weights[{g}]", w) for g, w in enumerate(weights)] if _listed(weights) else weights
    where, run = _at("messages[0]", groups[0] if _listed(groups) and groups else None, out, backend)
    if (done := _as_given(where, run.decode, matrices, messages, length, out, threads)) is not None:
        return done  # type: ignore[no-any-return]
    rows = [where.rows(f"messages[{g}]", group) for g, group in enumerate(groups)]
    return where.compute(  # type: ignore[no-any-return]
        lambda made: run.decode(matrices, rows, length, made, threads), lambda: (length, rows[0][0].dtype), out
    )


@_direct
def decode_by_pattern(
    weights: Callable[[Pattern], Array],
    patterns: tuple[Pattern, ...],
    members: tuple[tuple[int, ...], ...],
    messages: Mapping[int, Array],
    length: int,
    out: Array | None = None,
) -> Array:
    """`decode` of messages by worker with weights by pattern: for what takes microseconds no detours.

    Parameters
    ----------
    weights : callable
        ``weights(pattern)`` are a pattern's weights.
    patterns : tuple
        Of each group.
    members : tuple of tuple of int
        The workers of each group whose messages the weights are for, in the order of their columns.
    messages : mapping from worker to array of shape (B,)
        This and `weights` may be asked for the same more than once.
    length, out
        As in `decode`.

    Returns
    -------
    array of shape (length,)

    Raises
    ------
    TypeError, ValueError
        As in `decode`.
    KeyError
        A member without a message.
    """
    sent = [[messages[worker] for worker in group] for group in members]
    return decode([weights(pattern) for pattern in patterns], sent, length, out)


def decode_checked(
    weights: Sequence[npt.ArrayLike],
    checks: Sequence[npt.ArrayLike],
    messages: Sequence[Rows],
    length: int,
    floors: npt.ArrayLike,
    least: float = 0.0,
    *,
    threads: int | None = None,
    backend: str | None = None,
) -> tuple[Array, list[int]]:
    """`decode`, and where ``checks[g] @ messages[g]`` is farther from zero than a floor, for some group g.

    Parameters
    ----------
    weights, messages, length
        As in `decode`.
    checks : sequence of array_like, shape (S_g, q_g)
        Parity checks of each group; a group that has none is not judged.
    floors : array_like, shape (groups, 2)
        How long a group's syndromes may be: the root of the sum of the squares of all S_g in `JUDGED` of the messages'
        columns. Relative to a size that the largest absolute value of the group's messages there is not below, and
        beside that.
    least : float
        A size that no messages count as below; nor do they as below the largest size anywhere, divided by
        `DYNAMIC_RANGE`.
    threads, backend
        As in `lincomb`.

    Returns
    -------
    gradient : ndarray of shape (length,)
        With the bits of `decode`, in the type computed in: float32, or float64 for messages in float64.
    doubtful : list of int
        The numbers of the stretches of `JUDGED` columns where the syndromes of some group exceed their floor, or
        nearly so, are not finite, or are so small that their squares, in the type computed in, may have vanished.

    Raises
    ------
    TypeError, ValueError
        As in `lincomb`.

    Notes
    -----
    Messages are read from memory once, and syndromes are never written to it. The size is the largest root mean square
    of a few columns. The order in which squares are added up may depend on where arrays lie: what is less than a
    two-thousandth below its floor may or may not be doubtful.
    """
    return _backend(backend).decode_checked(weights, checks, messages, length, floors, least, threads)


def decoding_weights(
    generator: npt.ArrayLike, patterns: npt.ArrayLike, *, backend: str | None = None
) -> npt.NDArray[np.float64]:
    """Inverses of selected rows of a generator: A with ``A @ generator[pattern] = I``, for many patterns at once.

    Parameters
    ----------
    generator : array_like of real numbers, shape (n, k)
        With k <= n; all entries finite.
    patterns : array_like of int, shape (B, k) or (k,)
        Each row names k different rows of the generator. Columns of A are in the order in which it names them.
    backend : {"cpp", "numba", "cuda"}, optional
        ``"cuda"`` also takes CuPy's arrays, in float64 and int64, makes one, and waits for the current stream.

    Returns
    -------
    ndarray of float64, shape (B, k, k), or (k, k) for a single pattern

    Raises
    ------
    NotDecodableError
        The rows of a pattern have numerical rank below k (by `fastgc.linalg.rank`). The message names the first such
        pattern by its index; `survivors` are its rows and `missing` the others.
    TypeError
        Patterns that are not integers, a generator that is not real numbers.
    ValueError
        Wrong shapes, k > n, a row out of range or named twice, entries that are not finite or so large or small
        that the inverse overflows.

    Notes
    -----
    LU with partial pivoting of ``generator[pattern].T``, which the rows of A solve: that makes the left residual small,
    ``|A @ G_F - I| <= c |A| |L| |U|`` with c of order k times 2⁻⁵³. Rounded products, differences and quotients in a
    fixed order: a pattern's weights have the same bits alone and in any batch, on any machine and either backend.
    """
    weights, doubtful = _backend(backend).decoding_weights(generator, patterns)
    if doubtful:
        _look_at_ranks(_fetched(generator), _fetched(patterns), _fetched(weights), doubtful)
    return weights


def _fetched(value: Any) -> Any:
    """A copy on the host of what the backend ``"cuda"`` took or made, other things as they are."""
    return value.get() if hasattr(value, "__cuda_array_interface__") else value


def least_norm_weights(
    generator: npt.ArrayLike,
    patterns: npt.ArrayLike,
    target: npt.ArrayLike,
    table: npt.NDArray[np.float64] | None = None,
    *,
    backend: str | None = None,
) -> npt.NDArray[np.float64]:
    """The shortest A with ``A @ generator[pattern] = target``, for patterns of at least k rows.

    Parameters
    ----------
    generator : array_like of real numbers, shape (n, k)
        With k <= n; all entries finite.
    patterns : array_like of int, shape (B, q) or (q,)
        Each row names q >= k different rows of the generator. Columns of A are in the order in which it names them.
    target : array_like of real numbers, shape (m, k)
        All entries finite; the identity gives the pseudoinverse.
    table : ndarray, optional
        What `few_missing_table` made of this generator and this target; only its shape is looked at.
    backend : {"cpp", "numba"}, optional

    Returns
    -------
    ndarray of float64, shape (B, m, q), or (m, q) for a single pattern

    Raises
    ------
    NotDecodableError
        As in `decoding_weights`, also where the target is spanned all the same.
    TypeError, ValueError
        As in `decoding_weights`, and a target that is not m rows of k finite real numbers.

    Notes
    -----
    Householder's QR of the selected rows, so that ``A = (target @ R⁻¹) @ Qᵀ``; the left residual is of order ``q*k``
    times 2⁻⁵³ times ``|A| |G_F|``. With a table, the weights of all rows and a combination of what changes nothing of
    ``A @ generator``, so that those of the missing rows vanish, refined once. The bits are the same alone and in any
    batch, on any machine and either backend.
    """
    weights, doubtful = _backend(backend).least_norm_weights(generator, patterns, target, table)
    if doubtful:
        _look_at_ranks(generator, patterns, weights, doubtful)
    return weights


def few_missing_table(
    generator: npt.ArrayLike, target: npt.ArrayLike, *, backend: str | None = None
) -> npt.NDArray[np.float64] | None:
    """What lets `least_norm_weights` solve for the rows that are missing instead of those that are there.

    Where s of n rows are missing it takes of order ``s³ + m*n*k`` instead of ``n*k²`` operations. To make it takes as
    long as some 20 patterns without it, and it has up to three times the generator's size.

    Parameters
    ----------
    generator : array_like of real numbers, shape (n, k)
    target : array_like of real numbers, shape (m, k)
    backend : {"cpp", "numba"}, optional

    Returns
    -------
    ndarray of float64, or None
        A row for every row of the generator, and zeros. None where the generator is so ill-conditioned that it
        should not be relied on.

    Raises
    ------
    TypeError, ValueError
        As in `least_norm_weights`.
    """
    return _backend(backend).few_missing_table(generator, target)


def full_rank(generator: npt.NDArray[np.float64], patterns: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether ``fastgc.linalg.rank(generator[pattern]) == k``, for many patterns at once.

    The bound on the condition number that comes with the weights proves it for nearly all; the others are ranked.

    Parameters
    ----------
    generator : ndarray of float64, shape (n, k)
    patterns : ndarray of int64, shape (B, q)
        With q >= k.

    Returns
    -------
    ndarray of bool, shape (B,)
    """
    from fastgc import linalg

    k = generator.shape[1]
    module = _backend(None)
    if patterns.shape[1] == k:
        _, doubtful = module.decoding_weights(generator, patterns)
    else:
        _, doubtful = module.least_norm_weights(generator, patterns, np.zeros((1, k)))
    full = np.ones(len(patterns), dtype=np.bool_)
    for index in doubtful:
        full[index] = linalg.rank(generator[patterns[index]]) == k
    return full


def positions(masks: int | Sequence[int]) -> npt.NDArray[np.int64]:
    """The numbers of the bits that are set in a mask of any width, increasing: a pattern for the functions above.

    Parameters
    ----------
    masks : int, or sequence of B ints
        None negative, all with q bits set.

    Returns
    -------
    ndarray of int64, shape (q,) or (B, q)
    """
    return _backend(None).positions(masks)


@_direct
def pattern_weights(
    generator: npt.NDArray[np.float64],
    mask: int,
    target: npt.NDArray[np.float64] | None = None,
    table: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float64]:
    """The weights of one pattern by the mask of its rows: for a microsecond's work no detours.

    Parameters
    ----------
    generator : ndarray of float64, shape (n, k)
    mask : int
        With q >= k bits set.
    target : ndarray of float64, shape (m, k), optional
        By default the identity, and the inverse where q = k.
    table : ndarray, optional
        Of `few_missing_table`, for a target that is given.

    Returns
    -------
    ndarray of float64, shape (m, q), read-only
        The bits of `decoding_weights` for an inverse, and of `least_norm_weights` otherwise.

    Raises
    ------
    NotDecodableError
        As these.
    """
    rows, k = positions(mask), generator.shape[1]
    if target is None and len(rows) == k:
        weights = decoding_weights(generator, rows)
    else:
        wanted, by = (np.eye(k), None) if target is None else (target, table)
        weights = least_norm_weights(generator, rows, wanted, by)
    weights.setflags(write=False)
    return weights


def _look_at_ranks(
    generator: npt.ArrayLike, patterns: npt.ArrayLike, weights: npt.NDArray[np.float64], doubtful: list[int]
) -> None:
    """Raise for the first pattern of `doubtful` that is singular by the project's one rank function."""
    from fastgc import linalg

    matrix = np.asarray(generator, dtype=np.float64)
    n, k = matrix.shape
    batch = np.atleast_2d(patterns)
    broken = -1
    for index in doubtful:  # one by one: a million of them do not fit the memory as matrices
        if linalg.rank(matrix[batch[index]]) < k:
            rows = tuple(int(row) for row in batch[index])
            missing = tuple(sorted(set(range(n)) - set(rows)))
            raise NotDecodableError(
                f"patterns[{index}]: rows {rows} of the generator have rank below {k}, so they decode nothing",
                rows,
                missing,
            )
        if broken < 0 and not np.isfinite(weights if weights.ndim == 2 else weights[index]).all():
            broken = index
    if broken >= 0:
        rows = tuple(int(row) for row in batch[broken])
        raise ValueError(f"generator: entries too large or too small to invert rows {rows} (patterns[{broken}])")
