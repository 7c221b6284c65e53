"""Work in parts: a worker sends a message after each, and those of workers that never finish count too.

Every partition is cut into slices, and slice t of all partitions is part t of the work. The parts are coded apart,
under the same scheme over other data, so that a scheme in parts is a gradient code again: its messages are those of a
pair of worker and part, and each part is decoded from its own survivors. What to send after how much of the work is the
question of multi-message communication (Ozfatura, Gündüz and Ulukus 2019, arXiv 1903.01974) and of hierarchical coded
computation (Ferdinand and Draper 2018).
"""

from __future__ import annotations

from dataclasses import replace

from fastgc.storage import Group, SchemeData


def split(data: SchemeData, parts: int) -> SchemeData:
    """A scheme of ``workers * parts`` messages: number ``worker * parts + t`` is the worker's on part t."""
    return replace(
        data,
        name=f"{data.name} in {parts} parts",
        assignment=tuple(tuple(j * parts + t for j in held) for held in data.assignment for t in range(parts)),
        coefficients=tuple(own for own in data.coefficients for _ in range(parts)),
        groups=tuple(
            Group(tuple(worker * parts + t for worker in group.workers), group.decoder)
            for t in range(parts)
            for group in data.groups
        ),
        # All that are missing may be missing from one part; what may be ignored of each adds up.
        stragglers=data.stragglers if data.exact else data.stragglers * parts,
        others=tuple(split(other, parts) for other in data.others),
    )


def order(position: int, workers: int, parts: int) -> tuple[int, ...]:
    """The parts in the order in which the worker at a position of its group of `workers` does them.

    Starts are spread evenly over the parts. In a group of even size neighbours go in opposite directions, and meet
    where the slower one has come to (the staircase of Amiri and Gündüz 2018, arXiv 1810.09992, from spread starts); one
    without a partner would only do again what others have done, so that in a group of odd size all go the same way.
    Both ways the workers' first k parts have every part at least ``floor(k * workers / parts)`` times.
    """
    if position % 2 and workers % 2 == 0:
        last = (position + 1) * parts // workers - 1
        return tuple((last - step) % parts for step in range(parts))
    first = position * parts // workers
    return tuple((first + step) % parts for step in range(parts))
