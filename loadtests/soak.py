"""One moderate rate for a long time: what grows, leaks or drifts shows only then.

locust -f loadtests/soak.py --host http://127.0.0.1:8000 --payloads resnet20.payloads --duration 14400 --headless
"""

from argparse import Namespace

from loadtests.arrivals import Arrivals, RatedArrivals
from loadtests.experiment import OpenLoopUser
from loadtests.options import ArgumentGroup, add_duration, add_rate
from loadtests.payload_traffic import PayloadTraffic
from loadtests.rate_curve import constant


class Soak(OpenLoopUser):
    """Poisson arrivals for an hour, unless told otherwise."""

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None:
        """Rate and duration."""
        add_rate(group, default=20.0)
        add_duration(group, default=3600.0)

    @classmethod
    def arrivals(cls, given: Namespace, traffic: PayloadTraffic) -> Arrivals:
        """A Poisson process."""
        return RatedArrivals("poisson", constant(given.rate, given.duration), seed=given.seed)
