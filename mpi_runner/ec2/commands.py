"""``python -m mpi_runner ec2``: the files that a cluster on EC2 is created from."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from mpi_runner.config import UsageError
from mpi_runner.ec2.cluster import BOOTSTRAP, Cluster, find_package, policy

CONFIGURATION = "cluster.yaml"


def add(commands: Any) -> None:
    """Add ``ec2`` to the command line."""
    ec2 = commands.add_parser("ec2", help="a cluster on EC2, by AWS ParallelCluster", description=__doc__)
    actions = ec2.add_subparsers(title="actions", required=True, metavar="config | policy")

    config = actions.add_parser("config", help="write a cluster's configuration", description=_config.__doc__)
    _add_names(config)
    config.add_argument("--head-subnet", required=True, metavar="ID", help="public: the head node has an address in it")
    config.add_argument("--worker-subnet", required=True, metavar="ID", help="private, with a way out by NAT")
    config.add_argument("--key", required=True, metavar="NAME", help="key pair of EC2 for ssh")
    config.add_argument("--ssh-from", required=True, metavar="ADDRESS", help="yours, such as 203.0.113.4, or a range")
    config.add_argument(
        "--package",
        required=True,
        metavar="SOURCE",
        help="source archive or wheel of this package, or git+https://HOST/PATH@REVISION",
    )
    config.add_argument("--head-type", default=Cluster.head_type, metavar="TYPE", help="(default: %(default)s)")
    config.add_argument("--worker-type", default=Cluster.worker_type, metavar="TYPE", help="(default: %(default)s)")
    config.add_argument(
        "--nodes",
        type=int,
        default=Cluster.nodes,
        metavar="N",
        help="at most so many at a time; a run takes one more than it has workers (default: %(default)s)",
    )
    config.add_argument("--spot", action="store_true", help="worker nodes at spot prices: they may be taken away")
    config.add_argument(
        "--no-placement-group", action="store_true", help="worker nodes wherever there is room, not close together"
    )
    config.add_argument(
        "--idle-minutes",
        type=int,
        default=Cluster.idle_minutes,
        metavar="N",
        help="end nodes that have had no job for so long (default: %(default)s)",
    )
    config.add_argument(
        "--shared-gib",
        type=int,
        default=Cluster.shared_gib,
        metavar="N",
        help="size of the volume for data and runs (default: %(default)s)",
    )
    config.add_argument("--out", type=Path, metavar="DIR", help="where the files go (default: the cluster's name)")
    config.set_defaults(run_command=_config)

    rights = actions.add_parser("policy", help="print the rights that it takes", description=_policy.__doc__)
    _add_names(rights)
    rights.add_argument("--account", required=True, metavar="DIGITS", help="the account's 12 digits")
    rights.set_defaults(run_command=_policy)


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--region", required=True, metavar="NAME", help="such as eu-central-1")
    parser.add_argument("--bucket", required=True, metavar="NAME", help="bucket of S3 that the head node reads from")
    parser.add_argument("--name", default=Cluster.name, metavar="NAME", help="the cluster's (default: %(default)s)")


def _config(options: argparse.Namespace) -> int:
    """Write the configuration of a cluster of AWS ParallelCluster 3, and what its head node runs when it starts, and
    say what to do next. Nothing is sent anywhere."""
    cluster = Cluster(
        region=options.region,
        head_subnet=options.head_subnet,
        worker_subnet=options.worker_subnet,
        key=options.key,
        ssh_from=options.ssh_from,
        bucket=options.bucket,
        package=find_package(options.package),
        name=options.name,
        head_type=options.head_type,
        worker_type=options.worker_type,
        nodes=options.nodes,
        spot=options.spot,
        placement_group=not options.no_placement_group,
        idle_minutes=options.idle_minutes,
        shared_gib=options.shared_gib,
    )
    folder = options.out or Path(cluster.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIGURATION).write_text(cluster.configuration())
        (folder / BOOTSTRAP.name).write_text(BOOTSTRAP.read_text())
    except OSError as error:
        raise UsageError(f"--out: cannot write to {folder}: {error.strerror or error}") from None
    print(f"wrote {folder / CONFIGURATION} and {folder / BOOTSTRAP.name}; create the cluster with:")
    for words in _creating(cluster, folder):
        print(f"    {shlex.join(words)}")
    return 0


def _creating(cluster: Cluster, folder: Path) -> list[list[str]]:
    """The commands that create a cluster."""
    files = [folder / BOOTSTRAP.name, *([cluster.package.file] if cluster.package.file else [])]
    configuration = str(folder / CONFIGURATION)
    return [
        *(["aws", "s3", "cp", str(file), cluster.in_bucket(file.name)] for file in files),
        ["pcluster", "create-cluster", "--cluster-name", cluster.name, "--cluster-configuration", configuration],
    ]


def _policy(options: argparse.Namespace) -> int:
    """Print the rights that creating, using and deleting a cluster takes, as a policy of IAM in JSON: one region, one
    cluster's name, one bucket."""
    print(policy(options.region, options.account, options.bucket, options.name), end="")
    return 0
