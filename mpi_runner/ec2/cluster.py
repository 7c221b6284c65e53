"""What a cluster on EC2 is asked to be: checked, and put into ParallelCluster's configuration and a policy."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

from mpi_runner.config import UsageError

HERE = Path(__file__).parent
BOOTSTRAP = HERE / "bootstrap.sh"
WIDEST_OPEN = 16
"""Addresses that may use ssh have at least so many leading bits in common."""
PYTHON = "cp312"
"""Of the nodes' image, Ubuntu 24.04."""
ROOT_GIB = 40
"""Of the nodes' own volumes; ParallelCluster's images take 35."""

NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,59}", re.ASCII)
REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d", re.ASCII)
SUBNET = re.compile(r"subnet-([0-9a-f]{8}|[0-9a-f]{17})")
KEY = re.compile(r"[\w.@+-]([\w .@+-]{0,253}[\w.@+-])?", re.ASCII)
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
TYPE = re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")
ARM = re.compile(r"(a1|[a-z]+\d+[a-z]*g[a-z]*|p6e-gb\d+)\..*")
BURSTABLE = re.compile(r"t\d[a-z]*\..*")
ACCOUNT = re.compile(r"\d{12}", re.ASCII)
ARCHIVE = re.compile(r"fast_gradient_coding-[\w.+-]+(\.whl|\.tar\.gz)", re.ASCII)
REPOSITORY = re.compile(r"git\+https://[\w.-]+(:\d+)?(/[\w.~-]+)+@[\w./-]+", re.ASCII)


class _Text(Template):
    delimiter = "@"  # the dollars are the shell's


@dataclass(frozen=True)
class Package:
    """Where the head node gets the runner from.

    Attributes
    ----------
    source : str
        A file's name in the bucket, or ``git+https://…@REVISION``.
    sha256 : str
        Of the file; empty for a repository.
    file : Path, optional
        The file here, which is to be put into the bucket.
    """

    source: str
    sha256: str
    file: Path | None


@dataclass(frozen=True)
class Cluster:
    """A cluster of one head node and up to so many worker nodes, in two subnets that exist already.

    Attributes
    ----------
    region, head_subnet, worker_subnet, key, bucket : str
        Of the user's account: AWS's names for them.
    ssh_from : str
        An IPv4 address or range; nobody else reaches the head node.
    package : Package
    name : str
        Of the cluster; what it has in the bucket is under it as well.
    head_type, worker_type : str
        Instance types, of one architecture.
    nodes : int
        At most so many worker nodes run at a time. A training run takes one more than it has workers: the master's.
    spot : bool
        Worker nodes at spot prices, which may be taken away.
    placement_group : bool
        Worker nodes close to each other.
    idle_minutes : int
        A worker node without a job ends after so long.
    shared_gib : int
        Of the volume that all nodes see.
    """

    region: str
    head_subnet: str
    worker_subnet: str
    key: str
    ssh_from: str
    bucket: str
    package: Package
    name: str = "fastgc"
    head_type: str = "c6i.large"
    worker_type: str = "c6i.large"
    nodes: int = 9
    spot: bool = False
    placement_group: bool = True
    idle_minutes: int = 10
    shared_gib: int = 40

    def __post_init__(self) -> None:
        check_names(self.region, self.bucket, self.name)
        _check("head-subnet", self.head_subnet, SUBNET, "such as subnet-0123456789abcdef0")
        _check("worker-subnet", self.worker_subnet, SUBNET, "such as subnet-0123456789abcdef0")
        if self.worker_subnet == self.head_subnet:
            raise UsageError(
                f"--worker-subnet must be a private subnet, not {self.worker_subnet!r}, which is the head node's"
            )
        _check("key", self.key, KEY, "the name of a key pair of EC2: letters, digits, blanks and _.@+-")
        _check("head-type", self.head_type, TYPE, "an instance type, such as c6i.large")
        _check("worker-type", self.worker_type, TYPE, "an instance type, such as c6i.large")
        if _is_arm(self.worker_type) != _is_arm(self.head_type):
            raise UsageError(
                f"--worker-type must be of the head node's architecture, which is that of {self.head_type}, "
                f"not {self.worker_type!r}"
            )
        if self.package.source.endswith(".whl"):
            _check_wheel(self.package.source, "aarch64" if _is_arm(self.head_type) else "x86_64")
        for option, value, least, most in (
            ("nodes", self.nodes, 1, 1000),
            ("idle-minutes", self.idle_minutes, 1, 1440),
            ("shared-gib", self.shared_gib, 1, 16384),
        ):
            if not least <= value <= most:
                raise UsageError(f"--{option} must be from {least} to {most}, not {value}")
        allowed_addresses(self.ssh_from)

    def in_bucket(self, file: str) -> str:
        """The address of one of the cluster's files in the bucket."""
        return f"s3://{self.bucket}/{self.name}/{file}"

    def configuration(self) -> str:
        """What ``pcluster create-cluster`` takes."""
        package = self.package
        return _filled(
            "cluster.yaml",
            region=self.region,
            head_type=self.head_type,
            head_subnet=self.head_subnet,
            key=self.key,
            ssh_from=allowed_addresses(self.ssh_from),
            bucket=self.bucket,
            prefix=self.name,
            bootstrap_arguments=json.dumps(
                [package.source] if package.file is None else [self.in_bucket(package.source), package.sha256]
            ),
            root_gib=ROOT_GIB,
            idle_minutes=self.idle_minutes,
            capacity="SPOT" if self.spot else "ONDEMAND",
            worker_type=self.worker_type,
            nodes=self.nodes,
            one_thread_a_core=_yes(not _is_arm(self.worker_type)),
            # EC2 has none for these types.
            placement_group=_yes(self.placement_group and not BURSTABLE.fullmatch(self.worker_type)),
            worker_subnet=self.worker_subnet,
            shared_gib=self.shared_gib,
        )


def policy(region: str, account: str, bucket: str, name: str) -> str:
    """The rights that creating, using and deleting a cluster takes, as a policy of IAM.

    Parameters
    ----------
    region, bucket, name : str
        As `Cluster` has them.
    account : str
        Its twelve digits.

    Returns
    -------
    str
        JSON.
    """
    check_names(region, bucket, name)
    _check("account", account, ACCOUNT, "12 digits")
    partition = {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(region.rsplit("-", 2)[0], "aws")
    suffix = "amazonaws.com.cn" if partition == "aws-cn" else "amazonaws.com"
    return _filled(
        "policy.json", region=region, account=account, bucket=bucket, name=name, prefix=name, partition=partition,
        suffix=suffix,
    )  # fmt: skip


def allowed_addresses(text: str) -> str:
    """An address or a range of addresses as a range; UsageError for what is none, or too wide."""
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError:
        raise UsageError(
            f"--ssh-from must be an IPv4 address or a range, such as 203.0.113.4 or 203.0.113.0/24, not {text!r}"
        ) from None
    if network.prefixlen < WIDEST_OPEN:
        raise UsageError(f"--ssh-from must be a range of /{WIDEST_OPEN} or narrower, and not the world, not {text!r}")
    return str(network)


def find_package(source: str) -> Package:
    """A wheel or a source archive of this package as a file, or a repository at a revision; UsageError else."""
    if source.startswith("git+"):
        # No place for a user and a password: they would stand in the configuration.
        _check("package", source, REPOSITORY, "git+https://HOST/PATH@REVISION, without user or password")
        return Package(source, "", None)
    file = Path(source)
    if not ARCHIVE.fullmatch(file.name):
        raise UsageError(
            "--package must be fast_gradient_coding-*.tar.gz or .whl, or git+https://HOST/PATH@REVISION, "
            f"not {source!r}"
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"--package: cannot read {source}: {error.strerror or error}") from None
    return Package(file.name, hashlib.sha256(content).hexdigest(), file)


def check_names(region: str, bucket: str, name: str) -> None:
    """UsageError for what cannot be a region, a bucket or a cluster's name."""
    _check("region", region, REGION, "such as eu-central-1")
    _check("bucket", bucket, BUCKET, "the name of a bucket: 3 to 63 small letters, digits, dots and hyphens")
    _check("name", name, NAME, "at most 60 letters, digits and hyphens, a letter first")


def _check(option: str, text: str, form: re.Pattern[str], allowed: str) -> None:
    if not form.fullmatch(text):
        raise UsageError(f"--{option} must be {allowed}, not {text!r}")


def _check_wheel(name: str, machine: str) -> None:
    if PYTHON not in name or not name.endswith(f"{machine}.whl"):
        raise UsageError(
            f"--package must be a wheel for {PYTHON} and {machine}, as the nodes are, or a source archive, not {name!r}"
        )


def _is_arm(instance_type: str) -> bool:
    return ARM.fullmatch(instance_type) is not None


def _yes(value: bool) -> str:
    return "true" if value else "false"


def _filled(template: str, **values: object) -> str:
    return _Text((HERE / template).read_text()).substitute(values)
