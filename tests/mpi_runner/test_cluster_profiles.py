"""Profiles of an emulated cluster's machines: what is there, and what a file of one's own may not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpi_runner.cluster import profiles
from mpi_runner.config import UsageError

OWN = """
[mine]
bandwidth = "1.5gbit"
cores = 0.5
speed = 2
straggling = "pareto:0.01:1.5"
[mine.source]
bandwidth = "assumed"
cores = "assumed"
speed = "measured"
straggling = "assumed"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text)
    return path


def test_every_number_has_its_source() -> None:
    known = profiles.load()
    assert {"thin", "thin-slow", "even", "wide", "t3.micro", "m5.large"} <= set(known)
    for profile in known.values():
        numbers = [field for field in profiles.NUMBERS if getattr(profile, field) is not None]
        assert sorted(profile.source) == sorted(numbers)
        assert all(profile.source.values())


def test_own_profiles_add_and_replace(tmp_path: Path) -> None:
    known = profiles.load(write(tmp_path, OWN + OWN.replace("mine", "thin")))
    assert known["mine"] == profiles.Profile(
        "mine", "1.5gbit", 2.0, "pareto:0.01:1.5", 0.5,
        {"bandwidth": "assumed", "cores": "assumed", "speed": "measured", "straggling": "assumed"},
    )  # fmt: skip
    assert known["thin"].bandwidth == "1.5gbit"
    assert known["wide"] == profiles.load()["wide"]
    assert profiles.choose(known, "mine", "--worker") is known["mine"]
    with pytest.raises(UsageError, match=r"--worker must be one of .*mine.*, not 'other'"):
        profiles.choose(known, "other", "--worker")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[mine]", "[mine", "is not TOML"),
        ('bandwidth = "1.5gbit"\n', "", "lacks bandwidth"),
        ('"1.5gbit"', '"1.5 Gbit/s"', "from 8kbit to 100gbit, not '1.5 Gbit/s'"),
        ('"1.5gbit"', '"1kbit"', "from 8kbit to 100gbit"),
        ('"1.5gbit"', "100", "from 8kbit to 100gbit, not 100"),
        ("speed = 2", "speed = 0", "speed must be a positive number, not 0"),
        ("speed = 2", "speed = nan", "speed must be a positive number, not nan"),
        ("cores = 0.5", "cores = true", "cores must be a positive number, not True"),
        ("cores = 0.5", 'cores = "1"', "cores must be a positive number, not '1'"),
        ("pareto:0.01:1.5", "pareto", "delay 'pareto' is not one of"),
        ("speed = 2", "speed = 2\nram = 1", r"has ram; it may have bandwidth, cores"),
        ('speed = "measured"', "", r"\[mine.source\] must say where speed is from"),
        ('speed = "measured"', 'speed = ""', r"\[mine.source\] must say where speed is from"),
        ("[mine.source]", "[mine.sources]", "has sources"),
    ],
)
def test_a_bad_profile_says_what_is_wrong(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in OWN
    with pytest.raises(UsageError, match=message) as caught:
        profiles.load(write(tmp_path, OWN.replace(old, new)))
    assert "\n" not in str(caught.value)
    assert "own.toml" in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--profiles: cannot read .*No such file"):
        profiles.load(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(("text", "bits"), [("8kbit", 8e3), ("100mbit", 1e8), ("2.5gbit", 2.5e9)])
def test_rates(text: str, bits: float) -> None:
    assert profiles.rate(text) == bits
