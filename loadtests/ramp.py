"""The rate rises in a straight line: where does latency leave its floor?

locust -f loadtests/ramp.py --host http://127.0.0.1:8000 --payloads resnet20.payloads --to-rate 300 --headless
"""

from argparse import Namespace

from loadtests import rate_curve
from loadtests.arrivals import Arrivals, RatedArrivals
from loadtests.experiment import OpenLoopUser
from loadtests.options import ArgumentGroup, add_duration
from loadtests.payload_traffic import PayloadTraffic


class Ramp(OpenLoopUser):
    """Poisson arrivals whose rate changes linearly."""

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None:
        """Both ends of the ramp."""
        group.add_argument("--from-rate", type=float, default=10.0, help="requests a second at the start (%(default)s)")
        group.add_argument("--to-rate", type=float, default=100.0, help="requests a second at the end (%(default)s)")
        add_duration(group)

    @classmethod
    def arrivals(cls, given: Namespace, traffic: PayloadTraffic) -> Arrivals:
        """From one rate to the other."""
        curve = rate_curve.ramp(given.from_rate, given.to_rate, given.duration)
        return RatedArrivals("ramp", curve, seed=given.seed)
