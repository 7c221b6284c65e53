"""The cluster on EC2: ParallelCluster's own schema, what is open and what is encrypted, rights, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpi_runner.cli import main
from mpi_runner.ec2.cluster import BOOTSTRAP, HERE

ROOT = Path(__file__).resolve().parents[2]
PCLUSTER = Path(os.environ.get("FASTGC_PCLUSTER", ROOT / ".venv-pcluster"))
"""A Python environment with aws-parallelcluster."""
REVISION = "git+https://git.example.org/lab/fastgc.git@v0.1.0"
CONFIG = {
    "region": "eu-central-1",
    "head-subnet": "subnet-0123456789abcdef0",
    "worker-subnet": "subnet-0123456789abcdef1",
    "key": "my key",
    "ssh-from": "203.0.113.4",
    "bucket": "my-bucket",
    "package": REVISION,
}
POLICY = {"region": "eu-central-1", "bucket": "my-bucket", "account": "123456789012"}
VARIANTS: dict[str, dict[str, Any]] = {
    "on demand": {},
    "spot": {"spot": True},
    "apart": {"no-placement-group": True},
    "burstable": {"worker-type": "t3.small", "head-type": "t3.medium"},
    "arm": {"worker-type": "c7g.large", "head-type": "m7gd.medium"},
    "a range": {"ssh-from": "198.51.100.0/24", "nodes": 33, "idle-minutes": 5, "shared-gib": 100, "name": "second"},
}


def arguments(action: str, options: dict[str, Any]) -> list[str]:
    words = ["ec2", action]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}={value}"]
    return words


def configuration(folder: Path, **changes: Any) -> str:
    """The text that is written under some options."""
    assert main(arguments("config", {**CONFIG, "out": folder, **changes})) == 0
    return (folder / "cluster.yaml").read_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: configuration(tmp_path_factory.mktemp("ec2"), **changes) for name, changes in VARIANTS.items()}


# The schema ----------------------------------------------------------------------------------------------------------

WRONG = {
    "a misspelt name": ("MaxCount:", "MaxCuont:"),
    "a storage that there is not": ("StorageType: Ebs", "StorageType: Floppy"),
    "addresses that are none": ("'203.0.113.4/32'", "everyone"),
    "another scheduler": ("Scheduler: slurm", "Scheduler: cron"),
    "no key": ("KeyName: 'my key'", "KeyNames: 'my key'"),
    "an image that there is not": ("Os: ubuntu2404", "Os: plan9"),
    "a capacity that there is not": ("CapacityType: ONDEMAND", "CapacityType: FREE"),
    "text for a number": ("MinCount: 0", "MinCount: few"),
    "no region's subnet": ("'subnet-0123456789abcdef0'", "'subnet 1'"),
}


def asked(texts: list[str]) -> list[str | None]:
    """What ParallelCluster's schema says to configurations: None to what it accepts."""
    if not (PCLUSTER / "bin" / "pcluster").exists():
        pytest.skip(f"AWS ParallelCluster is not in {PCLUSTER}: make pcluster puts it there")
    done = subprocess.run(
        [PCLUSTER / "bin" / "python", ROOT / "tests" / "mpi_runner" / "pcluster_schema.py"],
        input=json.dumps(texts),
        env={**os.environ, "AWS_DEFAULT_REGION": CONFIG["region"]},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[str | None] = json.loads(done.stdout)
    return answers


def test_parallelcluster_accepts_what_is_written_and_refuses_what_is_wrong(written: dict[str, str]) -> None:
    good = written["on demand"]
    bad = {name: good.replace(*change) for name, change in WRONG.items()}
    assert good not in bad.values()  # each change changed something
    answers = dict(zip([*written, *bad], asked([*written.values(), *bad.values()]), strict=True))
    assert {name: answers[name] for name in written} == dict.fromkeys(written)
    assert [name for name in bad if answers[name] is None] == []


# What is open, encrypted and secret ----------------------------------------------------------------------------------


def settings(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a configuration with their places."""
    if isinstance(tree, (dict, list)):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from settings(value, f"{path}/{name}")
    else:
        yield path, tree


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_is_open_but_ssh_from_the_given_addresses(written: dict[str, str], name: str) -> None:
    tree = yaml.safe_load(written[name])
    given = VARIANTS[name].get("ssh-from", "203.0.113.4/32")
    places = dict(settings(tree))
    assert [path for path, value in places.items() if re.search(r"\d+\.\d+\.\d+\.\d+|::", str(value))] == [
        "/HeadNode/Ssh/AllowedIps"
    ]
    assert places["/HeadNode/Ssh/AllowedIps"] == given
    assert [path for path in places if re.search("SecurityGroup|Dcv|LoginNodes", path)] == []
    (queue,) = tree["Scheduling"]["SlurmQueues"]
    assert queue["Networking"] == {"SubnetIds": [CONFIG["worker-subnet"]], "AssignPublicIp": False}
    assert tree["HeadNode"]["Networking"]["SubnetId"] == CONFIG["head-subnet"]
    assert (tree["Imds"]["ImdsSupport"], tree["HeadNode"]["Imds"]["Secured"]) == ("v2.0", True)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_volume_is_encrypted_and_none_outlives_the_cluster(written: dict[str, str], name: str) -> None:
    places = dict(settings(yaml.safe_load(written[name])))
    volumes = [path.rpartition("/")[0] for path in places if path.endswith("/VolumeType")]
    assert len(volumes) == 3
    assert all(places[f"{volume}/Encrypted"] is True for volume in volumes)
    assert places["/SharedStorage/0/EbsSettings/DeletionPolicy"] == "Delete"


def test_no_credential_is_in_any_file(written: dict[str, str]) -> None:
    texts = [*written.values(), *(path.read_text() for path in HERE.iterdir() if path.is_file())]
    key = re.compile(
        r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|aws_secret|secret_access_key|BEGIN [A-Z ]*PRIVATE KEY|://[^/\s]*:[^/\s]*@", re.I
    )
    assert key.search("https://me:word@host/x")
    assert key.search("AKIAIOSFODNN7EXAMPLE")
    assert [match.group() for text in texts if (match := key.search(text))] == []


def test_the_head_node_reads_its_part_of_the_bucket_alone(written: dict[str, str]) -> None:
    tree = yaml.safe_load(written["a range"])
    read = {"BucketName": "my-bucket", "KeyName": "second/*", "EnableWriteAccess": False}
    assert tree["HeadNode"]["Iam"] == {"S3Access": [read]}
    assert "Iam" not in tree["Scheduling"]["SlurmQueues"][0]


def resource(text: str) -> Any:
    return yaml.safe_load(text)["Scheduling"]["SlurmQueues"][0]["ComputeResources"][0]


def test_what_is_asked_for_is_written(written: dict[str, str]) -> None:
    capacity = {
        name: yaml.safe_load(text)["Scheduling"]["SlurmQueues"][0]["CapacityType"] for name, text in written.items()
    }
    assert capacity == {name: "SPOT" if name == "spot" else "ONDEMAND" for name in VARIANTS}
    together = {name: resource(text)["Networking"]["PlacementGroup"]["Enabled"] for name, text in written.items()}
    assert together == {name: name not in ("apart", "burstable") for name in VARIANTS}
    threads = {name: resource(text)["DisableSimultaneousMultithreading"] for name, text in written.items()}
    assert threads == {name: name != "arm" for name in VARIANTS}
    tree = yaml.safe_load(written["a range"])
    assert (resource(written["a range"])["MinCount"], resource(written["a range"])["MaxCount"]) == (0, 33)
    assert tree["Scheduling"]["SlurmSettings"]["ScaledownIdletime"] == 5
    assert tree["SharedStorage"][0]["EbsSettings"]["Size"] == 100
    assert yaml.safe_load(written["on demand"])["HeadNode"]["Ssh"]["KeyName"] == "my key"


# The package ---------------------------------------------------------------------------------------------------------


def actions_of(text: str) -> Any:
    return yaml.safe_load(text)["HeadNode"]["CustomActions"]["OnNodeConfigured"]


def test_a_file_is_named_in_the_bucket_with_its_checksum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "a folder" / "fast_gradient_coding-0.1.0.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(b"content")
    out = tmp_path / "out"
    action = actions_of(configuration(out, package=archive))
    assert action["Script"] == "s3://my-bucket/fastgc/bootstrap.sh"
    assert action["Args"] == [f"s3://my-bucket/fastgc/{archive.name}", hashlib.sha256(b"content").hexdigest()]
    assert (out / "bootstrap.sh").read_text() == BOOTSTRAP.read_text()
    create = "pcluster create-cluster --cluster-name fastgc --cluster-configuration"
    assert [shlex.split(line) for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["aws", "s3", "cp", str(out / "bootstrap.sh"), action["Script"]],
        ["aws", "s3", "cp", str(archive), action["Args"][0]],
        [*create.split(), str(out / "cluster.yaml")],
    ]


def test_a_repository_is_taken_at_its_revision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert actions_of(configuration(tmp_path))["Args"] == [REVISION]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["aws", "pcluster"]


@pytest.mark.parametrize(("head", "wheel"), [("c6i.large", "linux_x86_64"), ("c7g.large", "manylinux_2_28_aarch64")])
def test_a_wheel_for_the_nodes_is_taken(head: str, wheel: str, tmp_path: Path) -> None:
    path = tmp_path / f"fast_gradient_coding-0.1.0-cp312-cp312-{wheel}.whl"
    path.touch()
    text = configuration(tmp_path, **{"package": path, "head-type": head, "worker-type": head})
    assert actions_of(text)["Args"][0].endswith(path.name)


def run_bootstrap(folder: Path, *given: str) -> tuple[int, list[str]]:
    """Run the script with stand-ins for what it calls; its status, and the calls."""
    tools, calls = folder / "bin", folder / "calls"
    tools.mkdir()
    (folder / "profile.d").mkdir()
    calls.touch()
    stand_ins = {
        "apt-get": "",
        "chown": "",
        "aws": 'printf content >"${!#}"',
        "python3": 'mkdir -p "$3/bin"; cp "$0" "$3/bin/pip"',
    }
    for name, does in stand_ins.items():
        tool = tools / name
        tool.write_text(f'#!/bin/bash\necho "${{0##*/}} $*" >>{calls}\n[[ $0 != */pip ]] || exit 0\n{does}\n')
        tool.chmod(0o755)
    script = folder / "bootstrap.sh"
    text = BOOTSTRAP.read_text()
    script.write_text(text.replace("=/shared", f"={folder}/shared").replace("/etc/profile.d", f"{folder}/profile.d"))
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "TMPDIR": str(folder)}
    done = subprocess.run(["bash", script, *given], env=environment, capture_output=True, timeout=60, check=False)
    return done.returncode, calls.read_text().splitlines()


def test_bootstrap_installs_a_file_that_has_its_checksum(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"content").hexdigest()
    status, calls = run_bootstrap(tmp_path, "s3://b/fastgc/fast_gradient_coding-0.1.0.tar.gz", digest)
    assert status == 0
    (installed,) = [call for call in calls if call.startswith("pip ")]
    assert re.search(r"fast-gradient-coding\[train\] @ file:///.*/fast_gradient_coding-0\.1\.0\.tar\.gz$", installed)
    profile = (tmp_path / "profile.d" / "fastgc.sh").read_text()
    assert f"export FASTGC_CACHE={tmp_path}/shared/cache" in profile
    assert f"export PATH={tmp_path}/shared/fastgc/bin:$PATH" in profile


def test_bootstrap_installs_nothing_that_has_another_checksum(tmp_path: Path) -> None:
    status, calls = run_bootstrap(tmp_path, "s3://b/fastgc/fast_gradient_coding-0.1.0.tar.gz", "0" * 64)
    assert status != 0
    assert any(call.startswith("aws ") for call in calls)
    assert not any(call.startswith(("pip ", "python3 ")) for call in calls)


def test_bootstrap_installs_from_a_repository(tmp_path: Path) -> None:
    status, calls = run_bootstrap(tmp_path, REVISION)
    assert status == 0
    assert f"pip install --quiet fast-gradient-coding[train] @ {REVISION}" in calls
    assert not any(call.startswith("aws ") for call in calls)


# The policy ----------------------------------------------------------------------------------------------------------


def rights(capsys: pytest.CaptureFixture[str], **changes: str) -> Any:
    assert main(arguments("policy", {**POLICY, **changes})) == 0
    return json.loads(capsys.readouterr().out)


def listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def test_the_policy_grants_no_more_than_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    document = rights(capsys, name="second")
    assert len(re.sub(r"\s", "", json.dumps(document))) <= 6144  # what IAM takes as a managed policy
    everywhere = set()
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        # No wildcards but to describe.
        assert [a for a in listed(statement["Action"]) if "*" in a and a != "ec2:Describe*"] == []
        everywhere |= {statement["Sid"] for name in listed(statement["Resource"]) if name == "*"}
        for name in listed(statement["Resource"]):
            if name.startswith("arn:aws:iam::123456789012:"):
                assert re.search("/parallelcluster/second[/-]|/aws-service-role/spot[.]", name)
            elif name != "*" and "s3:::" not in name and not name.startswith("arn:aws:iam::aws:policy/"):
                assert ":eu-central-1:123456789012:" in name
    # EC2's within the region; route53 has no regions, and gives a zone its name when it makes it.
    assert everywhere == {"MachinesAndNetwork", "ItsNames"}
    by_name = {statement["Sid"]: statement for statement in document["Statement"]}
    condition = {"StringEquals": {"aws:RequestedRegion": "eu-central-1"}}
    assert by_name["MachinesAndNetwork"]["Condition"] == condition
    assert by_name["EndItsMachines"]["Condition"]["StringEquals"] == {
        "aws:ResourceTag/parallelcluster:cluster-name": "second"
    }
    passed = [s for s in document["Statement"] if "iam:PassRole" in listed(s["Action"])]
    assert [s["Condition"]["StringEquals"]["iam:PassedToService"] for s in passed] == [
        ["ec2.amazonaws.com", "lambda.amazonaws.com"]
    ]
    # The names that ParallelCluster gives: nested stacks and functions' roles have the cluster's as a prefix.
    assert [name.rpartition("/")[2] for name in by_name["ItsTables"]["Resource"]] == [
        "parallelcluster-second",
        "parallelcluster-slurm-second",
    ]
    assert [name.partition("stack/")[2] for name in by_name["ItsStack"]["Resource"]] == ["second/*", "second-*"]
    assert by_name["RunnersFiles"]["Resource"] == "arn:aws:s3:::my-bucket/second/*"


@pytest.mark.parametrize(
    ("region", "partition"), [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov"), ("us-east-1", "aws")]
)
def test_the_policy_is_in_the_regions_partition(
    region: str, partition: str, capsys: pytest.CaptureFixture[str]
) -> None:
    document = rights(capsys, region=region)
    names = {name for s in document["Statement"] for name in listed(s["Resource"]) if name != "*"}
    assert {name.split(":")[1] for name in names} == {partition}
    assert ("ec2.amazonaws.com.cn" in json.dumps(document)) == (partition == "aws-cn")


# What is refused -----------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"region": "Frankfurt"}, "--region must be such as eu-central-1, not 'Frankfurt'"),
    ({"region": "eu-central-1\nX: y"}, "--region must be"),
    ({"head-subnet": "vpc-0123456789abcdef0"}, "--head-subnet must be such as subnet-"),
    ({"worker-subnet": "subnet-1"}, "--worker-subnet must be such as subnet-"),
    ({"worker-subnet": CONFIG["head-subnet"]}, "--worker-subnet must be a private subnet, not 'subnet-0123"),
    ({"key": "me'"}, "--key must be the name of a key pair"),
    ({"ssh-from": "0.0.0.0/0"}, "--ssh-from must be a range of /16 or narrower, and not the world, not '0.0.0.0/0'"),
    ({"ssh-from": "128.0.0.0/1"}, "--ssh-from must be a range of /16 or narrower"),
    ({"ssh-from": "everyone"}, "--ssh-from must be an IPv4 address or a range"),
    ({"ssh-from": "203.0.113.4/24"}, "--ssh-from must be an IPv4 address or a range"),
    ({"ssh-from": "::/0"}, "--ssh-from must be an IPv4 address or a range"),
    ({"bucket": "s3://mine"}, "--bucket must be the name of a bucket"),
    ({"name": "1st"}, "--name must be at most 60 letters"),
    ({"name": "a/b"}, "--name must be at most 60 letters"),
    ({"head-type": "large"}, "--head-type must be an instance type, such as c6i.large, not 'large'"),
    ({"worker-type": "c6i large"}, "--worker-type must be an instance type"),
    ({"worker-type": "c7g.large"}, "--worker-type must be of the head node's architecture"),
    ({"nodes": 0}, "--nodes must be from 1 to 1000, not 0"),
    ({"nodes": 1001}, "--nodes must be from 1 to 1000, not 1001"),
    ({"idle-minutes": 0}, "--idle-minutes must be from 1 to 1440, not 0"),
    ({"shared-gib": 0}, "--shared-gib must be from 1 to 16384, not 0"),
    ({"package": "other-1.0.tar.gz"}, "--package must be fast_gradient_coding-*.tar.gz or .whl, or git+https://"),
    ({"package": "nowhere/fast_gradient_coding-1.tar.gz"}, "--package: cannot read nowhere/fast_gradient_coding-1"),
    (
        {"package": "git+https://me:word@host/lab/fastgc@v1"},
        "--package must be git+https://HOST/PATH@REVISION, without",
    ),
    ({"package": "git+https://host/lab/fastgc"}, "--package must be git+https://HOST/PATH@REVISION"),
    ({"package": "git+ssh://host/lab/fastgc@v1"}, "--package must be git+https://HOST/PATH@REVISION"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_what_cannot_be_is_refused_in_one_line(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments("config", {**CONFIG, "out": out, **change})) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mpi_runner: error: {message}")
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("tags", ["cp311-cp311-linux_x86_64", "cp312-cp312-linux_aarch64", "py3-none-any"])
def test_a_wheel_for_another_machine_is_refused(tags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"fast_gradient_coding-0.1.0-{tags}.whl"
    path.touch()
    assert main(arguments("config", {**CONFIG, "package": path, "out": tmp_path / "out"})) == 2
    assert "--package must be a wheel for cp312 and x86_64" in capsys.readouterr().err


def test_a_bad_account_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments("policy", {**POLICY, "account": "1234"})) == 2
    assert capsys.readouterr().err == "mpi_runner: error: --account must be 12 digits, not '1234'\n"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(arguments("config", {**CONFIG, "out": tmp_path / "file"})) == 2
    assert capsys.readouterr().err.startswith(f"mpi_runner: error: --out: cannot write to {tmp_path / 'file'}: ")


def test_what_is_not_given_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mpi_runner", "ec2", "config", "--region", "eu-central-1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "--ssh-from" in done.stderr
    assert done.stderr.count("\n") == 1
