"""The capacity search beside queueing theory: real Locust processes against a stub that is an M/D/c queue.

The objective is a p99 of three service times, which a server of constant service reaches well before it is saturated
(at a third of its rate with one server). The rate at which that holds exactly is computed (Crommelin's chain and
Franx's sums, tests/loadtests/mdc.py). Three searches with seeds of their own for 1, 2 and 4 servers; each error is
beside its bound. What a client sees is the queue and the way to the stub and back, and the way takes part of the three
service times: it is measured on the idle stub, and what is exact is computed for the rest of them. How far the answer
is from a stub without a way is printed beside it. Three searches run side by side; a generator that was late for
it calls its search INVALID.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from loadtests.capacity_command import search_capacity
from loadtests.locust_process import LocustTarget, run_locust
from loadtests.run_folder import new_run_folder
from loadtests.stub_payloads import write_stub_payloads
from split_inference.figures import Bound, report
from tests.loadtests.mdc import largest_rate

SHARE = 0.99
TIMES = 3


@contextlib.contextmanager
def stub(payloads: Path, *, service_s: float, servers: int) -> Iterator[str]:
    """A stub server's URL."""
    command = [
        sys.executable, "-m", "loadtests.stub_server", "--payloads", str(payloads),
        "--service-ms", f"{1000 * service_s:g}", "--servers", str(servers),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        finally:
            process.terminate()
            process.wait(10)


def main() -> int:
    """Search, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service-ms", type=float, default=40.0)
    parser.add_argument("--servers", type=int, nargs="+", default=[4, 2, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=600.0, help="seconds of probing for each search, at most")
    parser.add_argument("--at-once", type=int, default=3, help="searches side by side: their stubs mostly sleep")
    options = parser.parse_args()
    service_s = options.service_ms / 1000
    figures: dict[str, float] = {}
    bounds: dict[str, Bound] = {}
    base = new_run_folder("bench-capacity")
    with tempfile.TemporaryDirectory(prefix="bench-capacity-") as scratch:
        payloads = Path(scratch) / "stub.payloads"
        write_stub_payloads(payloads)
        slo = Path(scratch) / "slo.yaml"
        slo.write_text(yaml.safe_dump({"version": 1, "name": "p99", "latency": {"p99_ms": TIMES * options.service_ms}}))
        with stub(payloads, service_s=service_s, servers=64) as url:
            target = LocustTarget(host=url, payloads=(payloads,), options={"warmup": "1"})
            alone = run_locust(target, "steady", base / "alone", duration_s=11, rate=10)
        way_s = alone.latency.percentile(0.5) - service_s
        figures["way_to_the_stub_ms"] = 1000 * way_s

        bound_s = TIMES * service_s
        # Of the queue with the way to it, which is what is searched, and of the queue alone.
        exact, without_way = (
            {
                servers: largest_rate(bound_s=each, share=SHARE, service_s=service_s, servers=servers)
                for servers in options.servers
            }
            for each in (bound_s - way_s, bound_s)
        )

        def search(what: tuple[int, int]) -> dict[str, Any]:
            servers, number = what
            with stub(payloads, service_s=service_s, servers=servers) as url:
                target = LocustTarget(host=url, payloads=(payloads,), options={"warmup": "1"})
                folder = base / f"c{servers}-{number}"
                # From far below the answer, which a user does not know.
                start = exact[servers] / 5
                return search_capacity(target, slo, folder, start=start, budget=options.budget, seed=100 * number)

        # One server takes longest, and is begun first.
        searches = [(servers, n) for servers in sorted(options.servers) for n in range(1, options.rounds + 1)]
        with ThreadPoolExecutor(options.at_once) as pool:
            for (servers, number), found in zip(searches, pool.map(search, searches), strict=True):
                bounds[f"error_c{servers}_{number}"] = ("<=", 0.05)
                if found["rate_per_s"] is None:
                    print(f"{servers} servers, search {number}: INVALID: {found['invalid'][0]}", flush=True)
                    continue
                rate = exact[servers]
                error, plain = (found["rate_per_s"] / each - 1 for each in (rate, without_way[servers]))
                print(
                    f"{servers} servers, search {number}: {found['rate_per_s']:.4g}/s ({found['low_per_s']:.4g} to "
                    f"{found['high_per_s']:.4g}), exact {rate:.4g}/s ({100 * rate * service_s / servers:.0f} % of "
                    f"saturation), {100 * error:+.1f} %; {100 * plain:+.1f} % without the way",
                    flush=True,
                )
                figures[f"error_c{servers}_{number}"] = abs(error)
    return report("bench-capacity", figures, bounds)


if __name__ == "__main__":
    sys.exit(main())
