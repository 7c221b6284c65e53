"""The command line: ``python -m mpi_runner data | train | compare | watch | report | cluster | slurm | ec2``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastgc import codes, schemes
from fastgc.cli import Parser
from mpi_runner import deadlines, delays, experiments, hostfile, launch, problems
from mpi_runner.cache import DataError
from mpi_runner.config import (
    AUTO,
    ELEMENT_TYPES,
    MESSAGE_TYPES,
    MODEL_TYPES,
    POLLS,
    TrainConfig,
    UsageError,
    arguments,
    check_directory,
    scheme_title,
)
from mpi_runner.experiments import Experiment
from mpi_runner.optimizers import OPTIMIZERS
from mpi_runner.problems import DATA, MODELS
from mpi_runner.resuming import Standing, begin, clear, ready, resumed_config, standing

T = TypeVar("T")

EXIT_USAGE, EXIT_INTERRUPTED = 2, 130
SCHEME_OPTIONS = {
    "load": int, "reduction": int, "stragglers": int, "code": str, "uneven": bool, "decoder": str, "blocks": int,
    "within": float, "regularized": bool, "speeds": str, "partitions": int,
}  # fmt: skip
TRAIN_OPTIONS = (*(field.name for field in fields(TrainConfig) if field.name != "options"), *SCHEME_OPTIONS)
NOT_GIVEN = object()


def main(command: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for what cannot be run as asked, 3 for a run that lost too many
    workers, 130 after Ctrl-C, or mpirun's."""
    try:
        words = sys.argv[1:] if command is None else command
        options = _parser(words).parse_args(words)
        status: int = options.run_command(options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except UsageError as error:
        complaint = str(error)
    except ModuleNotFoundError as error:  # of what the runner needs beyond the package itself
        missing = str(error.name).partition(".")[0]
        extra = "torch" if missing == "torch" else "train"
        complaint = f"{missing} is not installed: pip install 'fast-gradient-coding[{extra}]'"
    else:
        return status
    print(f"mpi_runner: error: {complaint}", file=sys.stderr)
    return EXIT_USAGE


def _parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Of the command that `words` begin with, and of others."""
    parser = Parser(prog="python -m mpi_runner", description="Training with coded gradients over MPI.")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="data | train | compare | watch | report | cluster | slurm | ec2"
    )

    data = commands.add_parser("data", help="fetch and encode the data beforehand", description=_data.__doc__)
    _data_options(data)
    data.set_defaults(run_command=_data)

    train = commands.add_parser("train", help="one training run", description=_train.__doc__)
    train.add_argument("--scheme", metavar="NAME", help=", ".join(schemes.SCHEMES))
    train.add_argument("--load", type=int, help="partitions a worker holds (grouped)")
    train.add_argument(
        "--reduction",
        type=_reduction,
        metavar="M|auto",
        help="messages are this many times shorter than the gradient; auto (grouped): as many as is the fastest now",
    )
    train.add_argument("--stragglers", type=int, help="workers that may be missing, where a scheme takes it")
    train.add_argument("--code", help=f"code of the grouped scheme: {', '.join(codes.FAMILIES)}")
    train.add_argument("--uneven", action="store_const", const=True, help="allow a load that does not divide workers")
    train.add_argument(
        "--speeds",
        metavar="X,X,…|measured",
        help="relative speeds of the workers, to share by (heterogeneous, grouped)",
    )
    train.add_argument("--partitions", type=int, help="into how many the data are cut, where speeds are given")
    train.add_argument("--decoder", help="estimate of an approximate scheme: optimal, one_step or unbiased")
    train.add_argument("--blocks", type=int, help="of stochastic_block")
    train.add_argument("--within", type=float, help="share of a load in a worker's own block (stochastic_block)")
    train.add_argument("--regularized", action="store_const", const=True, help="no load above twice that of bernoulli")
    train.add_argument("--run", metavar="DIR", help="run directory (default: runs/ and the time)")
    train.add_argument("--resume", metavar="RUN", help="go on with a run from its newest checkpoint")
    train.add_argument(
        "--resume-if-begun",
        action="store_true",
        help="go on with the run in --run where it has begun, do nothing where it is complete, else begin it",
    )
    train.add_argument(
        "--survivors-from", metavar="RUN", help="use exactly the messages that were used there, and wait for them"
    )
    _launching_options(train)
    _common_options(train)
    # What is not given must be told from what is: a run that goes on has its own values, and not the defaults.
    defaults = {name: train.get_default(name) for name in TRAIN_OPTIONS}
    train.set_defaults(**dict.fromkeys(TRAIN_OPTIONS, NOT_GIVEN), run_command=_train, defaults=defaults)

    compare = commands.add_parser("compare", help="several schemes, same seeds", description=_compare.__doc__)
    compare.add_argument(
        "file", nargs="?", metavar="FILE", help="experiments in TOML: schemes × seeds × delays (docs/runner.md)"
    )
    compare.add_argument(
        "--schemes",
        nargs="+",
        metavar="NAME[:OPTION=VALUE,...]",
        help="such as: uncoded grouped:load=4,reduction=2 cyclic_repetition:stragglers=2",
    )
    compare.add_argument(
        "--run", metavar="DIR", help="directory of the runs (default: runs/ and the time, or FILE's name); what is "
        "complete there is not done again"
    )  # fmt: skip
    _launching_options(compare)
    _common_options(compare)
    # What is given must be told from what is not here, too: a file of experiments says all of it.
    compare.set_defaults(**dict.fromkeys(_defaults("compare"), NOT_GIVEN), run_command=_compare)

    watch = commands.add_parser("watch", help="look at a run, also one that goes on", description=_watch.__doc__)
    watch.add_argument("run", metavar="RUN", help="its directory")
    watch.set_defaults(run_command=_watch)

    if words[:1] == ["train"]:  # so every rank of a run begins; the others take 20 to 30 ms
        return parser
    from mpi_runner.cluster import commands as cluster_commands  # psutil may be absent
    from mpi_runner.ec2 import commands as ec2_commands
    from mpi_runner.report import commands as report_commands
    from mpi_runner.slurm import commands as slurm_commands

    report_commands.add(commands)
    cluster_commands.add(commands)
    slurm_commands.add(commands, lambda words: _train_config(parser.parse_args(["train", *words])))
    ec2_commands.add(commands)
    return parser


def _launching_options(parser: argparse.ArgumentParser) -> None:
    """What is no part of a run: where it is started, and what is shown of it."""
    parser.add_argument(
        "--hostfile", type=Path, metavar="FILE", help="put the ranks on other hosts over ssh: lines of HOST slots=RANKS"
    )
    parser.add_argument("--quiet", action="store_true", help="show nothing but warnings and errors")


def _data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=DATA, help="(default: flights, or what the model is for)")
    parser.add_argument("--rows", type=_rows, metavar="N|all", help="training rows used (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (default: 0)")


def _common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=MODELS, default="logistic", help="(default: logistic)")
    _data_options(parser)
    parser.add_argument("--workers", type=int, default=8, help="number of workers (default: 8)")
    parser.add_argument("--iterations", type=int, default=100, help="number of steps (default: 100)")
    parser.add_argument(
        "--delay",
        default="none",
        metavar="SPEC",
        help=f"injected delays: {delays.FORMS}, or two of these as COMPUTING+send:SENDING; seconds a partition, and a "
        "message of the gradient's length; DELAY@ITERATION:DELAY for another from an iteration on",
    )
    parser.add_argument("--batch", type=_batch, metavar="N|all", help="examples in an iteration (default: the model's)")
    parser.add_argument(
        "--warm-up", type=int, default=5, metavar="N", help="gradients before, where speeds are measured (default: 5)"
    )
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="(default: the model's)")
    parser.add_argument("--step", type=float, help="step size (default: the model's)")
    parser.add_argument("--l2", type=float, help="weight of half the squared norm (default: the model's)")
    parser.add_argument("--dtype", choices=ELEMENT_TYPES, default="float32", help="of model and gradients")
    parser.add_argument("--message-dtype", choices=MESSAGE_TYPES, help="of gradients on their way (default: --dtype)")
    parser.add_argument(
        "--error-feedback",
        action="store_true",
        help="workers add what --message-dtype leaves out of their messages to later ones",
    )
    parser.add_argument("--model-dtype", choices=MODEL_TYPES, help="of the model on its way (default: --dtype)")
    parser.add_argument("--poll", choices=POLLS, default="backoff", help="spin: ranks have cores of their own")
    parser.add_argument(
        "--hang-deadline",
        type=float,
        metavar="SECONDS",
        help="a worker silent for so long is lost (default: 10 times the longest answer so far, at least 10 s)",
    )
    parser.add_argument(
        "--deadline",
        metavar="SPEC",
        help=f"take an estimate from whoever has answered by then: {deadlines.FORMS}, a quantile of the answers so far",
    )
    parser.add_argument(
        "--parts",
        type=int,
        default=1,
        metavar="R",
        help="workers send after each of R parts of their work, so that slow ones count too (default: 1)",
    )
    parser.add_argument("--verify", action="store_true", help="wait for one more a group, and leave wrong messages out")
    parser.add_argument(
        "--checkpoint-every", type=int, default=100, metavar="N", help="checkpoint every N iterations (default: 100)"
    )
    parser.add_argument("--evaluate-every", type=int, default=0, metavar="N", help="test every N iterations")


def _rows(text: str) -> int | None:
    try:
        return None if text == "all" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number of rows or all, not {text!r}") from None


def _reduction(text: str) -> int | str:
    try:
        return AUTO if text == AUTO else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or {AUTO}, not {text!r}") from None


def _batch(text: str) -> int:
    return _rows(text) or 0


def _config(options: argparse.Namespace, scheme: str, scheme_options: dict[str, Any], run: str) -> TrainConfig:
    shared = {
        name: getattr(options, name)
        for name in (
            "workers", "iterations", "model", "rows", "delay", "seed", "dtype", "step", "l2", "poll", "evaluate_every",
            "message_dtype", "model_dtype", "error_feedback", "hang_deadline", "checkpoint_every", "deadline", "parts",
            "verify", "warm_up",
        )
    }  # fmt: skip
    usual = MODELS[options.model]
    return TrainConfig(
        scheme=scheme.replace("-", "_"),
        options=scheme_options,
        run=run,
        data=options.data or usual.data[0],
        optimizer=options.optimizer or usual.optimizer,
        batch=usual.batch if options.batch is None else options.batch,
        survivors_from=getattr(options, "survivors_from", None),
        **shared,
    )


def _default_run(name: str) -> str:
    return str(Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{name}")


def _train_config(options: argparse.Namespace) -> TrainConfig:
    given = {name: value for name in TRAIN_OPTIONS if (value := getattr(options, name)) is not NOT_GIVEN}
    if options.resume is not None:
        return resumed_config(options.resume, given)
    if "scheme" not in given:
        raise UsageError("--scheme or --resume is needed")
    chosen = {name: given[name] for name in SCHEME_OPTIONS if name in given}
    filled = argparse.Namespace(**{**options.defaults, **given})
    return _config(filled, filled.scheme, chosen, filled.run or _default_run(filled.scheme))


def _cleared_config(found: Standing, options: argparse.Namespace) -> TrainConfig:
    config = _train_config(options)
    clear(config, found)
    return config


def _train(options: argparse.Namespace) -> int:
    """Train a logistic regression on the flights data over MPI. Starts its own MPI job of workers + 1 ranks, or takes
    part in the one that it is started in."""
    make_config, resume = partial(_train_config, options), options.resume is not None
    if options.resume_if_begun:
        if resume or options.run is NOT_GIVEN:
            raise UsageError("--resume-if-begun: give --run, and not --resume")
        found = standing(_train_config(options))
        if found is Standing.COMPLETE:
            print(f"mpi_runner: {options.run} is complete")
            return 0
        make_config, resume = partial(_cleared_config, found, options), found is Standing.BEGUN
    if launch.inside_mpi():
        if options.hostfile is not None:
            raise UsageError("--hostfile: the ranks have been started already; give it to mpirun")
        from mpi_runner.session import train

        return train(make_config, resume, options.quiet)
    config = make_config()
    scheme, resumed = ready(config, resume)
    if options.hostfile is not None:
        hostfile.use(options.hostfile, config.workers + 1)
    if resumed is None:
        check_directory(Path(config.run))
    _prepared(lambda: problems.prepare(config))
    from mpi_runner.display import Display, Follower

    begin(config, resumed)
    command = arguments(config) + (["--resume", config.run] if resumed else [])
    with Display(config, scheme_title(config, scheme), options.quiet) as display:
        follower = Follower(config.run, display)
        status = launch.run(config.workers + 1, Path(config.run), command, follower.look)
        figures = follower.figures() if status == 0 else None
        if figures is not None:
            display.summary(figures)
    return status


def _compare(options: argparse.Namespace) -> int:
    """Train with several schemes under the same seeds and delays, those of a FILE or those given here, and end with a
    table and a report. Given the same --run again, it goes on where it stopped."""
    if launch.inside_mpi():
        raise UsageError("compare starts MPI jobs of its own: run it outside of mpirun and srun")
    from mpi_runner.compare import compare, plan

    given = {name: value for name in _defaults("compare") if (value := getattr(options, name)) is not NOT_GIVEN}
    if (options.file is None) == (options.schemes is None):
        raise UsageError("compare needs a FILE of experiments or --schemes, one of them")
    if options.file is not None:
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"compare takes {names} from {options.file}, where it stands under [run]")
        experiment = experiments.read(Path(options.file))
        given = _told(options.file, experiment)
        folder = Path(options.run or Path("runs") / Path(options.file).stem)
    else:
        chosen = [_scheme(text) for text in options.schemes]
        experiment = Experiment(chosen, seeds=[given.get("seed", 0)], delays=[given.get("delay", "none")])
        folder = Path(options.run or _default_run("compare"))
    common = {**_defaults("compare"), **given}

    def make(name: str, chosen: dict[str, Any], delay: str, seed: int, run: str) -> TrainConfig:
        told = argparse.Namespace(**{**common, "delay": delay, "seed": seed})
        return _config(told, name, chosen, run)

    configs, planned = plan(experiment, folder, make)
    if options.hostfile is not None:
        hostfile.use(options.hostfile, configs[0].workers + 1)
    for config in {config.seed: config for config in configs}.values():  # rows are drawn by the seed
        _prepared(partial(problems.prepare, config))
    return compare(experiment, configs, planned, folder, options.quiet)


def _defaults(command: str) -> dict[str, Any]:
    """What the options that all runs take are where they are not given."""
    return vars(_common_parser(command).parse_args([]))


def _common_parser(name: str) -> argparse.ArgumentParser:
    parser = Parser(prog=name, add_help=False, allow_abbrev=False)
    _common_options(parser)
    return parser


def _told(file: str, experiment: Experiment) -> dict[str, Any]:
    """The options of a file of experiments, checked as those of the command line are."""
    words = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in experiment.options.items()
        if value is not False
    ]
    for name, chosen in experiment.schemes:
        for option, value in chosen.items():
            kind = SCHEME_OPTIONS.get(option)
            if kind is None:
                raise UsageError(f"{file}: {name} has no option {option}; there are {', '.join(SCHEME_OPTIONS)}")
            if (option, value) == ("reduction", AUTO):
                continue
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise UsageError(f"{file}: {option} of {name} must be of type {kind.__name__}, not {value!r}")
    return vars(_common_parser(file).parse_args(words))


def _scheme(text: str) -> tuple[str, dict[str, Any]]:
    """``name:option=value,...`` as a name and options."""
    name, _, rest = text.partition(":")
    chosen: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        option, equals, value = part.partition("=")
        kind = SCHEME_OPTIONS.get(option)
        if kind is None or not ((equals and value) or kind is bool):
            raise UsageError(f"--schemes: {text!r} is not NAME[:OPTION=VALUE,...] with {', '.join(SCHEME_OPTIONS)}")
        try:
            chosen[option] = AUTO if (option, value) == ("reduction", AUTO) else kind(value or True)
        except ValueError:
            what = "an integer" if kind is int else "a number"
            raise UsageError(f"--schemes: {option} in {text!r} must be {what}") from None
    return name, chosen


def _watch(options: argparse.Namespace) -> int:
    """Show a run of this or another process until it is over: how far it is, how fast, and what its workers do."""
    from mpi_runner.watch import watch

    return watch(Path(options.run))


def _data(options: argparse.Namespace) -> int:
    """Fetch a data set, check its hash, and encode it into the cache folder."""
    facts = _prepared(lambda: problems.describe(options.data or DATA[0], options.rows, options.seed))
    for name, value in facts.items():
        print(f"{name}: {value}")
    return 0


def _prepared(prepare: Callable[[], T]) -> T:
    try:
        return prepare()
    except (DataError, ValueError) as error:
        raise UsageError(str(error)) from None
