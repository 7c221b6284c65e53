"""Measures the grid: a small matrix times a few long rows, ours against the peers and against the machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from bench.cases import Arena, Case, Problem, element_type
from bench.contestants import Call, Contestant, NotApplicable, Unavailable
from bench.environment import set_threads
from bench.limits import TRY_SECONDS, Mix, Peak, passes_for
from bench.records import OURS, Record, Timing
from bench.timing import Effort, Repeated, Samples, SelfTimed, measure

LIMIT, PEAK = "(limit)", "(peak)"
TOO_SLOW, NO_OVERHEAD = 4.0, 0.05
"""One that took so many times longer than the best peer at a length is not asked to do a longer one, if it took so many
seconds that waking threads, or waiting for one that lost its core to another process, is no excuse."""


def run(cases: Iterable[Case], contestants: list[Contestant], effort: Effort) -> Iterator[Record]:
    """Measure each case. Verified first: who is wrong is not timed."""
    arena: Arena | None = None
    behind: dict[str, str] = {}
    shape: tuple[object, ...] = ()
    for case in cases:
        if arena is None or arena.element.name != case.type:
            arena = Arena(element_type(case.type))
        if shape != (shape := (case.type, case.threads, case.p, case.q)):
            behind = {}
        record = measure_case(Problem(case, arena), contestants, effort, behind)
        _note_behind(record, behind)
        yield record


def measure_case(
    problem: Problem, contestants: list[Contestant], effort: Effort, skip: dict[str, str] | None = None
) -> Record:
    """One case. `skip` are names of contestants to leave out, with the reason."""
    case = problem.case
    record = Record("lincomb", case.description, bytes=case.bytes, flops=case.flops)
    calls: dict[str, Call] = {}
    errors: dict[str, float] = {}
    for contestant in contestants:
        try:
            if contestant.name in (skip or {}):
                raise Unavailable((skip or {})[contestant.name])
            call = contestant.prepare(problem)
            errors[contestant.name] = verified(problem, call)
            calls[contestant.name] = call
        except NotApplicable:
            continue
        except Unavailable as reason:
            record.skipped[contestant.name] = str(reason)
    set_threads(case.threads)  # only now is every library loaded
    ours = {contestant.name for contestant in contestants if contestant.ours}
    peers = [name for name in calls if name not in ours]
    samples = measure(
        {**{name: Repeated(call) for name, call in calls.items()}, **_limits(problem, record)},
        effort,
        threads=case.threads,
        rivals=peers,
        keep=(OURS, LIMIT, PEAK),
    )
    record.limit = samples.summary(LIMIT)["seconds"]
    record.peak = samples.summary(PEAK)["seconds"]
    record.timings = [Timing(name, name in ours, **samples.summary(name), error=errors[name]) for name in calls]
    compare(record, samples)
    return record


def verified(problem: Problem, call: Call) -> float:
    """Call once on poisoned outputs, and give back the error. Unavailable where it is a mistake."""
    problem.poison()
    try:
        call()
    except TypeError as refused:
        raise Unavailable(str(refused).splitlines()[0]) from None
    error = problem.error()
    if not error <= problem.tolerance:
        raise Unavailable(f"wrong: error {error:.2g} where {problem.tolerance:.2g} is allowed")
    return error


def compare(record: Record, samples: Samples) -> None:
    """Write down who is the best peer, and how ours compares with it in the same rounds."""
    peers = [timing for timing in record.timings if not timing.ours]
    ours = record.our_timing
    record.disturbed = samples.disturbance
    if not peers:
        return
    best = min(peers, key=lambda timing: (not samples.finished(timing.name), timing.seconds))
    record.best_peer = best.name
    if ours:
        record.speedup, low, high = samples.ratio(best.name, to=ours.name)
        record.interval = [low, high] if math.isfinite(low) and math.isfinite(high) else None
        record.processes = [record.speedup]


def _limits(problem: Problem, record: Record) -> dict[str, SelfTimed]:
    """The machine as two contestants: it moves the very same rows, and does as many operations in registers."""
    case, element = problem.case, problem.element
    mix = Mix(problem.inputs, problem.outputs, case.threads)
    scale = case.bytes / mix.bytes
    found = []
    for access in mix.accesses():
        mix.seconds(access)
        passes = passes_for(mix.seconds(access), TRY_SECONDS)
        found.append((min(mix.seconds(access, passes) for _ in range(2)), passes, access))
    _, passes, access = min(found, key=lambda tried: tried[0])
    record.limit_access = access.name
    peak = Peak(double=element.arithmetic.itemsize == 8, threads=case.threads)
    return {
        LIMIT: SelfTimed(lambda _: scale * mix.seconds(access, passes)),
        PEAK: SelfTimed(lambda _: case.flops / peak.rate()),
    }


def _note_behind(record: Record, behind: dict[str, str]) -> None:
    best = min((timing.fastest for timing in record.timings if not timing.ours), default=math.inf)
    for timing in record.timings:
        if timing.name != OURS and timing.fastest > max(TOO_SLOW * best, NO_OVERHEAD):
            behind[timing.name] = (
                f"{timing.fastest / best:.0f} times slower than the best peer at length {record.case['length']:,}"
            )
