"""Measures what a run of gradient coding does in an iteration: a worker's encode, a master's decode.

The peers do the same in NumPy and in PyTorch, written as well as they allow: rows in one array, views instead of
copies, one matrix product. Earlier implementations solve a least-squares problem over the survivors in every
iteration; they are there too.
"""

from __future__ import annotations

import importlib
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.cases import Arena, Array, ElementType, element_type
from bench.environment import cpus, set_threads
from bench.limits import TRY_SECONDS, Mix, passes_for
from bench.lincomb import LIMIT, compare
from bench.records import OURS, Record, Timing
from bench.timing import Effort, Repeated, SelfTimed, measure
from fastgc import schemes
from fastgc.gradient_code import GradientCode

SCHEMES: dict[str, Callable[[], GradientCode]] = {
    "grouped [4,2], 12 workers": lambda: schemes.grouped(12, 4, 2),
    "grouped [6,3], 12 workers": lambda: schemes.grouped(12, 6, 3),
    "fractional repetition (12, 2)": lambda: schemes.fractional_repetition(12, 2),
    "cyclic repetition (12, 2)": lambda: schemes.cyclic_repetition(12, 2),
    "polynomial (8, 2, 2)": lambda: schemes.polynomial(8, 2, 2),
}
LENGTHS = (10**4, 10**6, 10**7, 10**8)


@dataclass(frozen=True)
class Task:
    """One operation on given data: rows that are read, a function for each contestant that gives back the result.

    `blocks` are the pieces that are combined, by `weights` of shape (outputs, len(blocks)).
    """

    weights: Array
    blocks: list[Array]
    outputs: list[Array]
    calls: dict[str, Callable[[], Array]]
    skipped: dict[str, str]
    bytes: int


def run(types: Sequence[str], lengths: Sequence[int], memory: float, effort: Effort) -> Iterator[Record]:
    """Encode and decode under every scheme, with outputs used again and with fresh ones."""
    threads = cpus()
    for type_name in types:
        arena = Arena(element_type(type_name))
        for scheme, make in SCHEMES.items():
            code = make()
            for length in lengths:
                for suite, build, rows in (
                    ("encode", _encode, code.load + 1 / code.reduction),
                    ("decode", _decode, (code.workers - code.stragglers) / code.reduction + 1),
                ):
                    # The peers' fresh outputs are a copy more.
                    if (rows + 1) * length * arena.element.dtype.itemsize > memory:
                        continue
                    for fresh in (False, True):
                        task = build(code, arena, length, fresh)
                        set_threads(threads)  # only now is every library loaded
                        case = {"scheme": scheme, "type": type_name, "length": length, "threads": threads}
                        record = Record(suite, {**case, "outputs": "fresh" if fresh else "reused"}, bytes=task.bytes)
                        yield _measured(task, record, arena.element, effort, threads)


def _measured(task: Task, record: Record, element: ElementType, effort: Effort, threads: int) -> Record:
    record.skipped.update(task.skipped)
    errors, faults, calls = {}, {}, {}
    for name, call in task.calls.items():
        try:
            errors[name] = _error(task, call())
        except TypeError as error:
            record.skipped[name] = str(error).splitlines()[0]
            continue
        # The weights of another solver differ by its rounding times the condition of these schemes, at most 10³.
        allowed = element.tolerance(len(task.blocks)) + 1e-12
        if not errors[name] <= allowed:
            record.skipped[name] = f"wrong: error {errors[name]:.2g} where {allowed:.2g} is allowed"
            continue
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call()
        faults[name] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        calls[name] = call
    mix = Mix(task.blocks, task.outputs, threads)
    ways = []
    for access in mix.accesses():
        passes = passes_for(mix.seconds(access), TRY_SECONDS)
        ways.append((min(mix.seconds(access, passes) for _ in range(2)), passes, access))
    _, passes, access = min(ways, key=lambda tried: tried[0])
    record.limit_access = access.name
    limit = SelfTimed(lambda _: mix.seconds(access, passes) * task.bytes / mix.bytes)
    entrants: dict[str, Repeated | SelfTimed] = {name: Repeated(call) for name, call in calls.items()}
    peers = [name for name in calls if name != OURS]
    samples = measure({**entrants, LIMIT: limit}, effort, threads=threads, rivals=peers, keep=(OURS, LIMIT))
    record.limit = samples.summary(LIMIT)["seconds"]
    record.timings = [
        Timing(name, name == OURS, **samples.summary(name), error=errors[name], faults=faults[name]) for name in calls
    ]
    compare(record, samples)
    return record


def _error(task: Task, result: Array) -> float:
    """Largest error on a sample of the columns, relative to the sum of the sizes of the terms."""
    size = len(task.blocks[0])
    columns = np.unique(np.random.default_rng(size).integers(0, size, 256))
    rows = np.zeros((len(task.blocks), len(columns)), np.longdouble)
    for row, block in zip(rows, task.blocks, strict=True):
        exists = columns < len(block)
        row[exists] = block[columns[exists]]
    found = np.zeros((len(task.weights), len(columns)), np.longdouble)
    for u, target in enumerate(found):
        block = result[u * size : (u + 1) * size]
        exists = columns < len(block)
        target[exists] = block[columns[exists]]
        target[~exists] = np.nan
    weights = task.weights.astype(np.longdouble)
    expected, scale = weights @ rows, np.abs(weights) @ np.abs(rows)
    return float(np.nanmax(np.abs(found - expected) / np.where(scale > 0, scale, 1)))


def _blocks(row: Array, size: int) -> list[Array]:
    return [row[begin : begin + size] for begin in range(0, len(row), size)]


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


# A worker -------------------------------------------------------------------------------------------------------------


def _encode(code: GradientCode, arena: Arena, length: int, fresh: bool) -> Task:
    gradients = arena.inputs(code.load, length)
    size = code.message_length(length)
    message = arena.outputs(1, size)[0]
    coefficients = code.coefficients(0)
    weights = coefficients.astype(arena.element.arithmetic)
    blocks = [block for row in gradients for block in _blocks(row, size)]
    exact = length % code.reduction == 0
    out = None if fresh else message

    def ours() -> Array:
        return code.encode(0, gradients, out)

    def numpy_blocks() -> Array:
        """One product over all blocks; or one a block's place where they are not of equal length."""
        target: Array = np.empty_like(message) if out is None else out
        if exact:
            np.matmul(weights.reshape(1, -1), gradients.reshape(-1, size), out=target.reshape(1, -1))
            return target
        np.matmul(weights[:, 0], gradients[:, :size], out=target)
        for u in range(1, code.reduction):
            piece = gradients[:, u * size : (u + 1) * size]
            target[: piece.shape[1]] += weights[:, u] @ piece
        return target

    calls: dict[str, Callable[[], Array]] = {OURS: ours}
    skipped = {}
    if arena.element.half:
        skipped["NumPy"] = skipped["PyTorch"] = "BLAS has no half types"
    else:
        calls["NumPy"] = numpy_blocks
        if torch := _torch():
            calls["PyTorch"] = _torch_encode(torch, weights, gradients, message, size, exact, fresh)
        else:
            skipped["PyTorch"] = "torch is not installed"
    moved = sum(block.nbytes for block in blocks) + message.nbytes
    return Task(coefficients.reshape(1, -1), blocks, [message], calls, skipped, moved)


def _torch_encode(
    torch: Any, weights: Array, gradients: Array, message: Array, size: int, exact: bool, fresh: bool
) -> Callable[[], Array]:
    matrix, rows, reused = torch.from_numpy(weights), torch.from_numpy(gradients), torch.from_numpy(message)

    def call() -> Array:
        target = torch.empty_like(reused) if fresh else reused
        if exact:
            torch.mm(matrix.reshape(1, -1), rows.reshape(-1, size), out=target.reshape(1, -1))
        else:
            torch.mv(rows[:, :size].T, matrix[:, 0], out=target)
            for u in range(1, matrix.shape[1]):
                piece = rows[:, u * size : (u + 1) * size]
                head = target[: piece.shape[1]]
                torch.addmv(head, piece.T, matrix[:, u], out=head)
        result: Array = target.numpy()
        return result

    return call


# The master -----------------------------------------------------------------------------------------------------------


def _decode(code: GradientCode, arena: Arena, length: int, fresh: bool) -> Task:
    survivors = range(code.stragglers, code.workers)
    size = code.message_length(length)
    messages = arena.inputs(len(survivors), size)
    # The peers' product has whole blocks; the gradient is the part of it that exists.
    padded = arena.outputs(code.reduction, size)
    gradient = padded.reshape(-1)[:length]
    by_worker = dict(zip(survivors, messages, strict=True))
    weights = code.decoding_weights(survivors)
    cached = weights.astype(arena.element.arithmetic)
    solve = least_squares(code, survivors)
    out = None if fresh else gradient

    def ours() -> Array:
        return code.decode(by_worker, length, out=out)

    def numpy_product(matrix: Array) -> Array:
        target = np.empty_like(padded) if fresh else padded
        np.matmul(matrix, messages, out=target)
        return target.reshape(-1)[:length]

    def solved() -> Array:
        return numpy_product(solve().astype(messages.dtype))

    calls: dict[str, Callable[[], Array]] = {OURS: ours}
    skipped = {}
    if arena.element.half:
        reason = "BLAS has no half types"
        skipped = dict.fromkeys(("NumPy", "NumPy least squares", "PyTorch"), reason)
    else:
        calls["NumPy"] = lambda: numpy_product(cached)
        calls["NumPy least squares"] = solved
        if torch := _torch():
            calls["PyTorch"] = _torch_decode(torch, cached, messages, padded, length, fresh)
        else:
            skipped["PyTorch"] = "torch is not installed"
    moved = messages.nbytes + gradient.nbytes
    return Task(weights, list(messages), _blocks(gradient, size), calls, skipped, moved)


def _torch_decode(
    torch: Any, weights: Array, messages: Array, padded: Array, length: int, fresh: bool
) -> Callable[[], Array]:
    matrix, rows, reused = torch.from_numpy(weights), torch.from_numpy(messages), torch.from_numpy(padded)

    def call() -> Array:
        target = torch.empty_like(reused) if fresh else reused
        torch.mm(matrix, rows, out=target)
        result: Array = target.reshape(-1)[:length].numpy()
        return result

    return call


def encoding_matrix(code: GradientCode) -> tuple[Array, Array]:
    """B (workers, partitions * reduction), whose row is what a worker sends, and T: decoding weights A have A B_F = T.

    T says of every partition that block u of the sum is block u of its gradient.
    """
    matrix = np.zeros((code.workers, code.partitions, code.reduction))
    for worker, held in enumerate(code.assignment):
        matrix[worker, list(held)] = code.coefficients(worker)
    return matrix.reshape(code.workers, -1), np.tile(np.eye(code.reduction), (1, code.partitions))


def least_squares(code: GradientCode, survivors: Sequence[int]) -> Callable[[], Array]:
    """Decoding weights the way of earlier implementations: over the survivors' rows of the whole encoding matrix."""
    matrix, wanted = encoding_matrix(code)
    rows = list(survivors)

    def solve() -> Array:
        solution: Array = np.linalg.lstsq(matrix[rows].T, wanted.T, rcond=None)[0]
        return solution.T

    return solve
