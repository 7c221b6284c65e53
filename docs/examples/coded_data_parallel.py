"""Data parallel training that does not wait for a slow worker, over torch.distributed, compared with DDP.

    torchrun --nproc-per-node 7 docs/examples/coded_data_parallel.py     # one process is the master, six are workers
    python docs/examples/coded_data_parallel.py                          # starts the seven by itself

A small network is trained three times from the same start: by DistributedDataParallel, and by gradient codes with
reduction m = 1 and m = 2, any one worker of a group of m + 1 being dispensable. One worker sleeps in every step. DDP
waits for it; the master of a coded run decodes from those who have answered. It receives from whoever comes first,
which gloo can and NCCL cannot, so messages go over gloo from the host's memory.

Each worker has at most one message under way. Whoever answers late is given the newest parameters and joins the step
that is running.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgc import GradientCode, schemes
from fastgc.torch import GradientDecoder, GradientEncoder

EXAMPLES, FEATURES, CLASSES = 64, 64, 10  # examples of a partition
STOP = -1  # in place of a step's number
STEP, VALUES = 1, 2  # tags: each transfer is a step's number, then its numbers


@dataclass
class Options:
    """What to train and who sleeps."""

    workers: int = 6
    steps: int = 50
    slow: int = 1  # the worker that sleeps in each step
    delay: float = 0.1  # seconds
    width: int = 256
    dtype: str = "float32"


@dataclass
class Run:
    """What the master saw."""

    name: str
    seconds: list[float] = field(default_factory=list)  # of each step
    without_slow: int = 0  # steps that were decoded without the slow worker
    messages: int = 0  # that came, in time or late
    message_bytes: int = 0
    parameters: Tensor | None = None


# The problem ----------------------------------------------------------------------------------------------------------


def build(options: Options) -> nn.Module:
    """The network, with the same first parameters in every process."""
    torch.manual_seed(0)
    width = options.width
    layers = (nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))
    return nn.Sequential(*layers).to(getattr(torch, options.dtype))


def data(options: Options) -> Callable[[int], tuple[Tensor, Tensor]]:
    """The examples of each partition; every worker could read those that it holds."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(options.workers, EXAMPLES, FEATURES, generator=generator).to(getattr(torch, options.dtype))
    labels = (inputs[..., :CLASSES] ** 2).argmax(dim=-1)
    return lambda partition: (inputs[partition], labels[partition])


def loss(model: nn.Module, examples: tuple[Tensor, Tensor], total: int) -> Tensor:
    """The part of the mean loss over all examples that these are."""
    return nn.functional.cross_entropy(model(examples[0]), examples[1], reduction="sum") / total


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """What the master and DDP step with."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def as_vector(model: nn.Module) -> Tensor:
    """Move the parameters into one vector, of which they become views: it is sent and received as it is."""
    vector = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    pieces = vector.split([parameter.numel() for parameter in model.parameters()])
    for parameter, piece in zip(model.parameters(), pieces, strict=True):
        parameter.data = piece.view_as(parameter)
    return vector


# Coded ----------------------------------------------------------------------------------------------------------------


def send(step: int, values: Tensor, to: int) -> list[dist.Work]:
    """Begin to send both; the caller waits."""
    return [dist.isend(torch.tensor([step]), to, tag=STEP), dist.isend(values, to, tag=VALUES)]


def work(worker: int, gc: GradientCode, options: Options) -> None:
    """A worker: compute, encode and answer until told to stop."""
    model, examples = build(options), data(options)
    parameters = as_vector(model)
    encoder = GradientEncoder(gc, worker, model)
    number = torch.empty(1, dtype=torch.int64)
    while True:
        dist.recv(number, 0, tag=STEP)
        if (step := int(number)) == STOP:
            return
        dist.recv(parameters, 0, tag=VALUES)
        if worker == options.slow:
            time.sleep(options.delay)
        encoder.reset()
        for partition in encoder.partitions:
            loss(model, examples(partition), gc.partitions * EXAMPLES).backward()
            encoder.add(partition)
        for under_way in send(step, encoder.message(), 0):
            under_way.wait()


def lead(gc: GradientCode, options: Options) -> Run:
    """The master: hand out parameters, decode from the first messages that are enough, step."""
    model = build(options)
    parameters = as_vector(model)
    optimizer = optimizer_of(model)
    decoder = GradientDecoder(gc, model)
    number = torch.empty(1, dtype=torch.int64)
    size = gc.message_length(decoder.length)
    room = [torch.empty(size, dtype=parameters.dtype) for _ in range(gc.workers)]  # where each one's message goes
    run = Run(f"coded, m = {gc.reduction}", message_bytes=size * parameters.element_size())
    idle, late = set(range(gc.workers)), room[0].clone()

    def hand_out(step: int, workers: list[int]) -> None:
        under_way = [part for worker in workers for part in send(step, parameters, worker + 1)]
        idle.difference_update(workers)
        for part in under_way:  # they wait for nothing else, so this takes no longer than the link does
            part.wait()

    def receive(step: int) -> tuple[int, bool]:
        """Whose message came next, and whether it is of this step."""
        rank = dist.recv(number, None, tag=STEP)
        current = int(number) == step
        dist.recv(room[rank - 1] if current else late, rank, tag=VALUES)
        run.messages += 1
        idle.add(rank - 1)
        return rank - 1, current

    for step in range(options.steps):
        begin = time.perf_counter()
        decoder.reset()
        hand_out(step, sorted(idle))
        while not decoder.ready:
            worker, current = receive(step)
            if current:
                decoder.add(worker, room[worker])
            else:
                hand_out(step, [worker])
        run.without_slow += options.slow not in decoder.decode().survivors
        optimizer.step()
        run.seconds.append(time.perf_counter() - begin)
    while len(idle) < gc.workers:
        receive(STOP)
    for worker in idle:
        dist.send(torch.tensor([STOP]), worker + 1, tag=STEP)
    run.parameters = parameters
    return run


# DDP ------------------------------------------------------------------------------------------------------------------


def train_by_ddp(worker: int, group: dist.ProcessGroup, options: Options) -> tuple[list[float], Tensor]:
    """One worker of DistributedDataParallel, which holds one partition: the seconds of each step, and parameters."""
    model, examples = build(options), data(options)
    optimizer = optimizer_of(model)
    parallel = nn.parallel.DistributedDataParallel(model, process_group=group)
    seconds = []
    for _ in range(options.steps):
        begin = time.perf_counter()
        if worker == options.slow:
            time.sleep(options.delay)
        optimizer.zero_grad()
        # DDP takes the mean over the workers: as many times the part is the sum.
        (options.workers * loss(parallel, examples(worker), options.workers * EXAMPLES)).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    return seconds, torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def baseline(rank: int, options: Options) -> Run | None:
    """DDP over the workers; rank 0, which takes no part, is told the result."""
    group = dist.new_group(list(range(1, options.workers + 1)))
    length = sum(parameter.numel() for parameter in build(options).parameters())
    seconds = torch.empty(options.steps, dtype=torch.float64)
    parameters = torch.empty(length, dtype=getattr(torch, options.dtype))
    if rank == 0:
        dist.recv(seconds, 1, tag=STEP)
        dist.recv(parameters, 1, tag=VALUES)
        return Run("DDP", seconds.tolist(), parameters=parameters)
    own, parameters = train_by_ddp(rank - 1, group, options)
    if rank == 1:
        dist.send(torch.tensor(own, dtype=torch.float64), 0, tag=STEP)
        dist.send(parameters, 0, tag=VALUES)
    return None


# Processes ------------------------------------------------------------------------------------------------------------


def report(runs: list[Run], json_file: str | None) -> None:
    """Print the comparison; times are medians, without the first step."""
    reference = runs[0].parameters
    assert reference is not None
    largest = float(reference.abs().max())
    print(
        f"{'run':<14} {'ms a step':>9} {'without the slow one':>20} {'KB a message':>12} {'MB received':>11}  from DDP"
    )
    for run in runs:
        assert run.parameters is not None
        off = float((run.parameters - reference).abs().max()) / largest
        ms, kb = 1e3 * statistics.median(run.seconds[1:]), run.message_bytes / 1e3
        steps = f"{run.without_slow} of {len(run.seconds)}"
        line = f"{run.name:<14} {ms:>9.1f} "
        print(line + (f"{steps:>20} {kb:>12.1f} {kb * run.messages / 1e3:>11.2f}  {off:.1e}" if run.messages else ""))
    if json_file:
        kept = [{**asdict(run), "parameters": run.parameters.tolist()} for run in runs if run.parameters is not None]
        Path(json_file).write_text(json.dumps(kept), encoding="utf-8")


def main(rank: int, options: Options, rendezvous: str, json_file: str | None) -> None:
    """One process: rank 0 is the master, the others are workers."""
    torch.set_num_threads(1)
    workers = options.workers
    # Nobody waits longer than this for anybody: where a process is lost, the others end with an error.
    dist.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=workers + 1, timeout=timedelta(seconds=120)
    )
    try:
        runs = [baseline(rank, options)]
        for m in (1, 2):
            gc = schemes.grouped(workers, load=m + 1, reduction=m)
            dist.barrier()
            runs.append(lead(gc, options) if rank == 0 else work(rank - 1, gc, options))
        if rank == 0:
            report([run for run in runs if run is not None], json_file)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def parse() -> tuple[Options, str | None]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Options()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--json", help="a file for the runs, with the parameters that they ended with")
    chosen = vars(parser.parse_args())
    json_file = chosen.pop("json")
    if chosen["workers"] % 6:
        parser.error(f"--workers must be a multiple of 6, for groups of 2 and of 3, not {chosen['workers']}")
    return Options(**chosen), json_file


if __name__ == "__main__":
    options, json_file = parse()
    if "RANK" in os.environ:  # torchrun
        main(int(os.environ["RANK"]), options, "env://", json_file)
    else:
        if Path("/sys/class/net/lo").exists():
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        # The server imports once what the processes need, DDP's compiler included, and they are forked from it.
        multiprocessing.set_forkserver_preload(["torch.distributed", "torch._dynamo", "fastgc.torch"])
        with tempfile.TemporaryDirectory() as folder:
            arguments = (options, f"file://{folder}/rendezvous", json_file)
            torch.multiprocessing.start_processes(main, arguments, options.workers + 1, start_method="forkserver")
