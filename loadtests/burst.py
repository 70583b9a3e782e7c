"""Quiet, then a burst, again and again: does the queue of one burst drain before the next?

locust -f loadtests/burst.py --host http://127.0.0.1:8000 --payloads resnet20.payloads --peak-rate 400 --headless
"""

from argparse import Namespace

from loadtests.arrivals import Arrivals, RatedArrivals
from loadtests.experiment import OpenLoopUser
from loadtests.options import ArgumentGroup, add_duration, add_rate
from loadtests.payload_traffic import PayloadTraffic
from loadtests.rate_curve import bursts


class Burst(OpenLoopUser):
    """Poisson arrivals that are switched between two rates (on and off)."""

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None:
        """Rates and times of quiet and of burst."""
        add_rate(group, default=20.0, what="requests a second between bursts")
        group.add_argument("--peak-rate", type=float, default=200.0, help="requests a second in a burst (%(default)s)")
        group.add_argument("--on-s", type=float, default=2.0, metavar="S", help="seconds of a burst (%(default)s)")
        group.add_argument("--off-s", type=float, default=8.0, metavar="S", help="seconds between them (%(default)s)")
        add_duration(group)

    @classmethod
    def arrivals(cls, given: Namespace, traffic: PayloadTraffic) -> Arrivals:
        """Quiet first."""
        curve = bursts(given.rate, given.peak_rate, on_s=given.on_s, off_s=given.off_s, duration_s=given.duration)
        return RatedArrivals("burst", curve, seed=given.seed)
