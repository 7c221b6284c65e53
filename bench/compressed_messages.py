"""What compressing messages does: ``python -m bench.compressed_messages``.

To the decoded gradient, over the survivor sets of several codes; to the sum of many decoded gradients, with and without
error feedback, where the same workers survive and where others do in each; and to training on the flights data. All in
one process, by the codecs of `fastgc.compression`; and the same training over MPI. Writes JSON, tables and plots.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bench import environment
from bench.compressed_training import Channel, train
from bench.compression_report import draw, markdown
from bench.timing import Effort, Repeated, measure
from fastgc import GradientCode, codes, schemes
from fastgc.compression import BLOCK, codec
from mpi_runner import flights
from mpi_runner.models import LogisticRegression, Partition
from mpi_runner.optimizers import Nesterov

Array = npt.NDArray[Any]

SEED, ITERATIONS, SEEDS = 1, 50, 200
DRAWN = 30_000  # numbers of a random gradient
L2 = 10.0  # over the rows, as the runner has it
SIZES = ((8, 4, 2), (8, 8, 4), (12, 12, 6))
"""Workers, load and reduction of the grouped schemes."""
FAMILIES = ("optimized", "gaussian", "vandermonde")
MESSAGES = ("float32", "float16", "bfloat16", "int8")
MODES = (*((name, False) for name in MESSAGES), *((name, True) for name in MESSAGES[1:]))
"""Codec, and whether with feedback."""
TRAINED = tuple(mode for mode in MODES if mode[0] != "float16")
SUITES = ("training", "worst", "decode", "bias", "formats", "speed", "runs")
RUN = "--scheme grouped --load 4 --reduction 2 --workers 8 --iterations 50 --delay fixed:0.5:2 --seed 1 --quiet"
Followed: TypeAlias = tuple["Subject", str, list[tuple[int, ...]], str, bool, Channel, Array, list[float], list[float]]


class Subject(NamedTuple):
    """A scheme under a name of its code."""

    family: str
    size: str
    scheme: GradientCode


def median_gaussian(n: int, k: int) -> codes.LinearCode:
    """The Gaussian code whose worst condition number is the median of those of the first `SEEDS` seeds."""
    made = sorted((codes.gaussian(n, k, seed=seed).worst_condition_number(), seed) for seed in range(SEEDS))
    return codes.gaussian(n, k, seed=made[SEEDS // 2][1])


def subjects(workers: int, load: int, reduction: int) -> list[Subject]:
    """The grouped schemes of a size, and beside those of 8 workers the schemes of repeated gradients."""
    makers: dict[str, Callable[[], codes.LinearCode]] = {
        "optimized": lambda: codes.optimized(load, reduction),
        "gaussian": lambda: median_gaussian(load, reduction),
        "vandermonde": lambda: codes.vandermonde(load, reduction),
    }
    size = f"[{load}, {reduction}]"
    made = [Subject(name, size, schemes.grouped(workers, code=make())) for name, make in makers.items()]
    if (workers, load) == (8, 4):
        made.append(Subject("repetition", "[4, 1]", schemes.fractional_repetition(8, 3)))
    if (workers, load) == (8, 8):
        made.append(Subject("cyclic repetition", "s = 4", schemes.cyclic_repetition(8, 4)))
    return made


def survivor_sets(scheme: GradientCode) -> list[tuple[int, ...]]:
    """All sets of as few workers as decode, the same of every group where there are groups."""
    groups = [group.workers for group in scheme.groups]
    size = len(groups[0]) - scheme.stragglers
    return [
        tuple(sorted(group[position] for group in groups for position in chosen))
        for chosen in combinations(range(len(groups[0])), size)
    ]


def random_sets(scheme: GradientCode, count: int, seed: int) -> list[tuple[int, ...]]:
    """Sets of as few workers as decode, drawn for every group apart."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    groups = [group.workers for group in scheme.groups]
    size = len(groups[0]) - scheme.stragglers
    return [
        tuple(sorted(int(w) for group in groups for w in rng.permutation(np.array(group))[:size])) for _ in range(count)
    ]


def ordered_by_amplification(scheme: GradientCode) -> list[tuple[int, ...]]:
    """The sets, the best first."""
    return sorted(survivor_sets(scheme), key=scheme.amplification)


# The gradients ------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """The flights data, cut for so many workers."""

    model: LogisticRegression
    parts: list[Partition]
    test: Partition
    step: float
    l2: float


def problem(partitions: int, rows: int | None) -> Problem:
    """The logistic regression of the README."""
    data = flights.prepare(rows, SEED)
    l2 = L2 / data.train_rows
    model = LogisticRegression(data.features)
    parts = [data.load_train(part, partitions) for part in range(partitions)]
    return Problem(model, parts, data.load_test(), 1.0 / (data.smoothness + l2), l2)


def trajectory(given: Problem, iterations: int) -> Iterator[Array]:
    """The partitions' gradients of an undisturbed training, iteration by iteration."""
    optimizer = Nesterov(given.model.initial(), given.step)
    rows = sum(part.count for part in given.parts)
    for _ in range(iterations):
        gradients = np.stack([given.model.partial_gradient(optimizer.parameters, part) for part in given.parts])
        yield gradients
        mean = gradients.sum(axis=0, dtype=np.float64) / rows
        optimizer.update((mean + given.l2 * optimizer.parameters).astype(np.float32))


def drawn(partitions: int, length: int, iterations: int) -> Iterator[Array]:
    """Standard normal gradients, others in each iteration."""
    rng = np.random.default_rng(SEED)
    for _ in range(iterations):
        yield rng.standard_normal((partitions, length), np.float32)


def distance(found: Array, true: Array) -> float:
    """‖found − true‖₂ / ‖true‖₂."""
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


# The suites ---------------------------------------------------------------------------------------------------------


def formats(rows: int | None) -> Iterator[dict[str, Any]]:
    """int8 with blocks and scales of other kinds: the error of one message, real and random."""
    gradients = list(trajectory(problem(8, rows), 11))[-1]
    real = schemes.grouped(8, 4, 2).encode(0, gradients[:4])
    messages = {"flights": real, "normal": next(drawn(1, len(real), 1))[0]}
    found: list[dict[str, Any]] = []
    for block in (16, 32, 64, 128, 256, 1024):
        for scale, bits in (("power of two", 8), ("float32", 32)):
            for stochastic in (False, True):
                errors = {
                    name: distance(_quantized(m, block, scale == "float32", stochastic), m)
                    for name, m in messages.items()
                }
                found.append(
                    {"block": block, "scale": scale, "stochastic": stochastic, "bits": 8 + bits / block} | errors
                )
    ours = codec("int8")
    for name, message in messages.items():
        kind = (BLOCK, "power of two", False)
        expected = next(f[name] for f in found if (f["block"], f["scale"], f["stochastic"]) == kind)
        error = distance(ours.decompress(ours.compress(message), len(message)), message)
        if not math.isclose(error, expected, rel_tol=1e-6):
            raise RuntimeError(f"the codec's error on {name} is {error}, not {expected}")
    yield from found


def _quantized(message: Array, block: int, exact_scale: bool, stochastic: bool) -> Array:
    """Through int8 and back, in float64."""
    padded = np.zeros(-(-len(message) // block) * block)
    padded[: len(message)] = message
    rows = padded.reshape(-1, block)
    scale = np.abs(rows).max(axis=1, keepdims=True) / 127
    scale[scale == 0] = 1
    scale = scale.astype(np.float32).astype(np.float64) if exact_scale else np.exp2(np.ceil(np.log2(scale)))
    scaled = rows / scale
    rounded = np.floor(scaled + np.random.default_rng(SEED).random(scaled.shape)) if stochastic else np.rint(scaled)
    result: Array = (np.clip(rounded, -127, 127) * scale).reshape(-1)[: len(message)]
    return result


def speed(length: int) -> Iterator[dict[str, Any]]:
    """What compressing and decompressing a message takes, beside encoding and decoding the gradient, on one thread."""
    scheme = schemes.grouped(8, 4, 2)
    gradients = next(drawn(8, length, 1))
    messages = scheme.encode_all(gradients)
    received = {worker: messages[worker] for worker in (0, 1, 4, 5)}
    out, total = np.empty_like(messages[0]), np.empty_like(gradients[0])
    contestants = {
        "encode": Repeated(partial(scheme.encode, 0, gradients[:4], out)),
        "decode": Repeated(partial(scheme.decode, received, length, out=total)),
    }
    for name in MESSAGES:
        made = codec(name)
        data, back = made.compress(messages[0]), np.empty_like(out)
        contestants[f"{name}, compress"] = Repeated(partial(made.compress, messages[0], data))
        contestants[f"{name}, decompress"] = Repeated(partial(made.decompress, data, len(out), back))
    samples = measure(contestants, Effort(seconds=2.0), threads=1, keep=contestants)
    for name in contestants:
        yield {"what": name, "length": length, "message_length": len(out), **samples.summary(name)}


def decoding(rows: int | None) -> Iterator[dict[str, Any]]:
    """The error of one decoded gradient over the survivor sets of every code, for real and random gradients."""
    for workers, load, reduction in SIZES:
        given = problem(workers, rows)
        real = list(trajectory(given, 11))[-1]
        for kind, gradients in (("flights", real), ("normal", next(drawn(workers, DRAWN, 1)))):
            true = gradients.sum(axis=0, dtype=np.float64)
            for subject in subjects(workers, load, reduction):
                scheme, sets = subject.scheme, survivor_sets(subject.scheme)
                messages = scheme.encode_all(gradients)
                errors = {}
                for name in MESSAGES:
                    made = codec(name)
                    received = [made.decompress(made.compress(m), len(m)) for m in messages]
                    each = [distance(scheme.decode({w: received[w] for w in s}, len(true)), true) for s in sets]
                    errors[name] = {"worst": max(each), "median": float(np.median(each))}
                yield {
                    "gradients": kind, "family": subject.family, "size": subject.size, "workers": workers,
                    "sets": len(sets), "amplification": max(map(scheme.amplification, sets)), "errors": errors,
                }  # fmt: skip


def bias(rows: int | None, iterations: int) -> Iterator[dict[str, Any]]:
    """The error of the sum of the first t decoded gradients, t = 1, 2, …, of 8 workers."""
    made = [subjects(*size) for size in SIZES[:2]]  # repetition, and all of the second size
    chosen = [subject for subject in made[0] if subject.family not in FAMILIES] * (len(made) > 1) + made[-1]
    given = problem(SIZES[0][0], rows)
    workers = len(given.parts)
    for kind, source, length in (
        ("flights", trajectory(given, iterations), given.model.features),
        ("normal", drawn(workers, DRAWN, iterations), DRAWN),
    ):
        channels: list[Followed] = []
        for subject in chosen:
            sets = ordered_by_amplification(subject.scheme)
            heard = {
                "fixed, median": [sets[len(sets) // 2]] * iterations,
                "fixed, worst": [sets[-1]] * iterations,
                "random": random_sets(subject.scheme, iterations, SEED),
            }
            for survivors, each in heard.items():
                for message, feedback in MODES:
                    channel = Channel(subject.scheme, length, np.float32, message, feedback)
                    channels.append((subject, survivors, each, message, feedback, channel, np.zeros(length), [], []))
        total = np.zeros(length)
        for iteration, gradients in enumerate(source):
            true = gradients.sum(axis=0, dtype=np.float64)
            total += true
            for _, _, each, _, _, channel, missed, sums, single in channels:
                error = channel.decoded(gradients, each[iteration]) - true
                missed += error
                sums.append(float(np.linalg.norm(missed) / np.linalg.norm(total)))
                single.append(float(np.linalg.norm(error) / np.linalg.norm(true)))
        for subject, survivors, _, message, feedback, _, _, sums, single in channels:
            yield {
                "gradients": kind, "family": subject.family, "size": subject.size, "survivors": survivors,
                "message": message, "feedback": feedback, "of_sum": sums, "median_of_one": float(np.median(single)),
            }  # fmt: skip


def training(
    rows: int | None, iterations: int, sizes: Sequence[tuple[int, int, int]], worst: bool
) -> Iterator[dict[str, Any]]:
    """The test AUC after training with as few messages as decode: of random survivors, or always of the worst set."""
    for workers, load, reduction in sizes:
        given = problem(workers, rows)
        for subject in subjects(workers, load, reduction)[: len(FAMILIES)]:
            sets = [ordered_by_amplification(subject.scheme)[-1]] * iterations if worst else None
            survivors = sets or random_sets(subject.scheme, iterations, SEED)
            for message, feedback in TRAINED:
                optimizer = Nesterov(given.model.initial(), given.step)
                trained = (given.model, given.parts, subject.scheme, optimizer, given.l2, survivors)
                model = train(*trained, message, feedback)
                yield {
                    "family": subject.family, "size": subject.size, "workers": workers, "message": message,
                    "feedback": feedback, **given.model.evaluate(model, given.test),
                }  # fmt: skip


def runs() -> Iterator[dict[str, Any]]:
    """The training of the README over MPI, with compressed messages."""
    for family, message, feedback in (
        ("optimized", "float32", False), ("optimized", "bfloat16", False), ("optimized", "bfloat16", True),
        ("optimized", "int8", False), ("optimized", "int8", True), ("vandermonde", "bfloat16", False),
    ):  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "mpi_runner", "train", *RUN.split(), "--code", family]
            command += ["--run", f"{folder}/run", "--message-dtype", message]
            command += ["--error-feedback"] if feedback else []
            subprocess.run(command, check=True)
            summary = json.loads(Path(folder, "run", "summary.json").read_text())
        yield {"options": RUN, "family": family, "message": message, "feedback": feedback} | {
            name: summary[name] for name in ("test_auc", "bytes_received", "mean_seconds", "messages")
        }


def main(command: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.compressed_messages", description=__doc__)
    parser.add_argument(
        "--suites", nargs="*", choices=SUITES, default=list(SUITES), metavar="SUITE",
        help=f"of {', '.join(SUITES)}; the others stay as they were measured (default: all)",
    )  # fmt: skip
    parser.add_argument("--rows", type=int, metavar="N", help="training rows (default: all)")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help=f"(default: {ITERATIONS})")
    parser.add_argument("--out", type=Path, default=Path("bench/results/compression"), metavar="DIR")
    options = parser.parse_args(command)
    if options.iterations < 1 or (options.rows is not None and options.rows < 12):
        parser.error("--iterations must be at least 1, and --rows at least 12")
    environment.set_threads(1)  # times do not matter, and threads that wait for each other take long on a busy machine
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    suites: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "formats": lambda: formats(options.rows),
        "decode": lambda: decoding(options.rows),
        "bias": lambda: bias(options.rows, options.iterations),
        "training": lambda: training(options.rows, options.iterations, SIZES, worst=False),
        "worst": lambda: training(options.rows, options.iterations, SIZES[1:], worst=True),
        "speed": lambda: speed(243_485),
        "runs": runs,
    }
    for suite in options.suites:
        header = environment.machine() | {"rows": options.rows, "iterations": options.iterations}
        results[suite] = {"header": header, "found": (found := [])}
        for cell in suites[suite]():
            found.append(cell)
            path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")  # what is there by now outlives an end
    report = markdown(results)
    (options.out / "report.md").write_text(report, "utf-8")
    draw(results, options.out)
    print(report, end="")
    return 0


if __name__ == "__main__":
    environment.ensure_clean()
    sys.exit(main())
