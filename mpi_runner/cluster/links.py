"""The network of a cluster: a bridge in a namespace of its own, and a pair of interfaces a host.

A host has ``eth0``; the other end, named after the host, is a port of the bridge. Both ends have a token bucket filter,
so that the host's bandwidth is limited both ways. Nothing leads out of these namespaces.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

BRIDGE, INTERFACE = "br0", "eth0"
SUBNET = "10.77.0.0/24"
MOST_HOSTS = 253
BURST_BYTES, QUEUE = 256 * 1024, "100ms"
"""Of the filters. The burst is what passes at once after a pause: the kernel hands down 64 KiB at a time, and may wake
the filter a millisecond late, 250 KB at 2 Gbit/s. A queue of 100 ms drops nothing that TCP has in flight there."""


class NetworkError(Exception):
    """ip or tc refused."""


def address(number: int) -> str:
    """The address of a cluster's host, counted from 0."""
    return f"10.77.0.{number + 1}"


def connect(switch: int, hosts: Mapping[str, int], rates: Mapping[str, str]) -> None:
    """Join hosts, given by name with the process id of their init, by the bridge in the namespace of `switch`."""
    plan = [f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up"]
    for name, init in hosts.items():
        plan.append(f"link add {name} type veth peer name {INTERFACE} netns {init}")
        plan.append(f"link set {name} master {BRIDGE} up")
    _batch(switch, "ip", plan)
    for number, init in enumerate(hosts.values()):
        _batch(
            init, "ip", ["link set lo up", f"addr add {address(number)}/24 dev {INTERFACE}", f"link set {INTERFACE} up"]
        )
    for name, init in hosts.items():
        limit(switch, name, init, rates[name])


def limit(switch: int, name: str, init: int, rate: str) -> None:
    """Limit a host's bandwidth, both ways, in place of an earlier limit."""
    for namespace, device in ((switch, name), (init, INTERFACE)):
        _batch(
            namespace, "tc", [f"qdisc replace dev {device} root tbf rate {rate} burst {BURST_BYTES} latency {QUEUE}"]
        )


def cut(switch: int, name: str, *, down: bool) -> None:
    """Pull a host's cable, or plug it in again."""
    _batch(switch, "ip", [f"link set {name} {'down' if down else 'up'}"])


def _batch(namespace: int, tool: str, lines: list[str]) -> None:
    command = ["nsenter", "--target", str(namespace), "--net", tool, "-batch", "-"]
    done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(f"{tool} failed: {(done.stderr or done.stdout).strip().splitlines()[0]}")
