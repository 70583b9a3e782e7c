"""The kernel's own bottleneck against ours: packets through `tc tbf` take the time that Bottleneck says.

One way and UDP, between two network namespaces that exist for this test only. tbf counts a packet with its Ethernet
header, so 1,500 bytes here are 1,458 of payload, 8 of UDP, 20 of IP and 14 of Ethernet; what Bottleneck is told are
the same 1,500. Times are the kernel's stamps on arrival, because a busy machine may wake a reader late.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import statistics
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from edge_sim.link import Bottleneck, Link

pytestmark = pytest.mark.integration

PACKETS = 100
PACKET_BYTES = 1500
PAYLOAD_BYTES = PACKET_BYTES - 14 - 20 - 8
SENDER, RECEIVER = "10.77.0.1", "10.77.0.2"
PORT = 9000
# One packet: with a larger bucket the kernel sends a burst at line speed first (20 % off with 32 kB). A little more,
# because a full bucket overflows while the kernel's timer is late, by 18 us a packet: 1.8 % at 12 Mbit/s.
BUCKET_BYTES = PACKET_BYTES + 150
# A busy machine's timer is late and never early: the fastest of several runs says most of the kernel's pace. Quarter
# by quarter, because a whole run may never be left alone; one that begins with a late packet is too fast by at most
# what the bucket holds beside a packet, which is 0.4 % of it.
RUNS, MOST_RUNS, QUARTERS = 3, 80, (0, 25, 50, 75, PACKETS - 1)
# Linux's numbers; Python 3.11 has no names for them.
CLONE_NEWNET = 0x40000000
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 32, 33, 35


def ip(*words: str) -> None:
    run("ip", *words)


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")


def skip_or_fail(reason: str) -> None:
    if os.environ.get("REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def two_namespaces() -> Iterator[tuple[str, str, str]]:
    """Sender's and receiver's namespace, and the sender's device; all gone afterwards, whatever happened."""
    mark = uuid.uuid4().hex[:8]
    sender, receiver, device = f"link-test-{mark}-a", f"link-test-{mark}-b", f"va{mark}"
    with ExitStack() as cleaning:
        for namespace in (sender, receiver):
            # Before it exists, so that one half made is removed as well; the devices go with their namespace.
            cleaning.callback(subprocess.run, ["ip", "netns", "del", namespace], capture_output=True, timeout=20)
            ip("netns", "add", namespace)
        ip("-n", sender, "link", "add", device, "type", "veth", "peer", "name", f"vb{mark}", "netns", receiver)
        for namespace, name, address in ((sender, device, SENDER), (receiver, f"vb{mark}", RECEIVER)):
            # No IPv6, whose greetings would pass the bottleneck too.
            ip("-n", namespace, "link", "set", name, "addrgenmode", "none")
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", name)
            ip("-n", namespace, "link", "set", name, "up")
        yield sender, receiver, device


@pytest.fixture(scope="module")
def namespaces():
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        skip_or_fail(f"no {' and no '.join(missing)}: install iproute2")
    with ExitStack() as stack:
        try:
            found = stack.enter_context(two_namespaces())
        except OSError as error:
            # Root in a container without the right to make namespaces: nothing that installing would change.
            pytest.skip(f"no network namespaces here: {error}")
        yield found


def udp_socket(namespace: str) -> socket.socket:
    """A socket inside a namespace: it stays there, while the thread that went in to make it ends."""
    made: list[socket.socket] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/run/netns", namespace).open() as file:
            if libc.setns(file.fileno(), CLONE_NEWNET):
                return
        made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert made, f"cannot enter namespace {namespace}"
    made[0].settimeout(10)
    return made[0]


@pytest.fixture(scope="module")
def sockets(namespaces):
    sender, receiver, _ = namespaces
    with udp_socket(sender) as out, udp_socket(receiver) as into:
        into.bind((RECEIVER, PORT))
        into.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        # Room for all packets on both sides: nothing may be dropped, and no writer slowed down.
        out.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 << 20)
        into.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        out.connect((RECEIVER, PORT))
        yield out, into


def arrival_s(into: socket.socket) -> float:
    """When the next packet came in, by the kernel's stamp."""
    _, ancillary, _, _ = into.recvmsg(2048, 64)
    seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
    return float(seconds + nanoseconds / 1e9)


def shape(namespaces, *words: str) -> None:
    sender, _, device = namespaces
    run("tc", "-n", sender, "qdisc", "replace", "dev", device, "root", *words)


@pytest.mark.parametrize("megabits_per_s", [1, 3, 12])
def test_a_burst_of_packets_takes_as_long_as_in_the_kernel(namespaces, sockets, megabits_per_s):
    out, into = sockets
    shape(namespaces, "tbf", "rate", f"{megabits_per_s}mbit", "burst", str(BUCKET_BYTES), "limit", "1000000")
    line = Bottleneck(megabits_per_s)
    ends_s = [line.send(0.0, PACKET_BYTES).end_s for _ in range(PACKETS)]
    # The first leaves at once there, from a full bucket.
    expected_s = ends_s[-1] - ends_s[0]
    runs_s: list[list[float]] = []
    while len(runs_s) < RUNS or (fastest_s(runs_s) > 1.02 * expected_s and len(runs_s) < MOST_RUNS):
        # One packet ahead, so that the neighbour's address is known; then the bucket fills again.
        out.send(bytes(PAYLOAD_BYTES))
        arrival_s(into)
        time.sleep(0.1)
        for _ in range(PACKETS):
            out.send(bytes(PAYLOAD_BYTES))
        arrivals = [arrival_s(into) for _ in range(PACKETS)]
        runs_s.append([arrivals[end] - arrivals[start] for start, end in pairwise(QUARTERS)])
    whole_s = [round(sum(each), 4) for each in runs_s]
    print(f"{megabits_per_s} Mbit/s: expected {expected_s:.4f} s, kernel {fastest_s(runs_s):.4f} s, runs {whole_s}")
    assert fastest_s(runs_s) == pytest.approx(expected_s, rel=0.02)


def fastest_s(runs_s: list[list[float]]) -> float:
    """Of each quarter the fastest."""
    return sum(min(each[quarter] for each in runs_s) for quarter in range(len(QUARTERS) - 1))


def test_a_delay_is_the_kernels_delay(namespaces, sockets):
    out, into = sockets
    try:
        shape(namespaces, "netem", "delay", "40ms")
    except OSError as error:
        pytest.skip(f"this kernel has no netem: {error}")
    expected_s = Link(Bottleneck(1e5), Bottleneck(1e5), propagation_s=0.04, overhead_bytes=0).deliver_up(0.0, 1500)
    delays_s = []
    for _ in range(20):
        sent_s = time.time()
        out.send(bytes(PAYLOAD_BYTES))
        delays_s.append(arrival_s(into) - sent_s)
    # The first may wait for the neighbour's address, the median does not.
    assert statistics.median(delays_s) == pytest.approx(expected_s.arrives_at_s, rel=0.05)


def test_nothing_is_left_behind_when_a_test_fails():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names: list[str] = []
    try:
        with two_namespaces() as (sender, receiver, device):
            names += [sender, receiver, device]
            raise KeyError
    except KeyError:
        pass
    except OSError as error:
        pytest.skip(f"no network namespaces here: {error}")
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=20, check=True).stdout
    assert not any(name in left for name in names)
    assert not Path("/sys/class/net", names[-1]).exists()
