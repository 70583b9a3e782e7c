"""The traffic of a fleet: frames of several models, split points and codecs in the proportions of their payload files.

Proportions and rates are what the files say (`traffic` in their headers), or --weights and --option.

locust -f loadtests/mixed_fleet.py --host http://127.0.0.1:8000 --payloads a.payloads,b.payloads --headless
"""

from argparse import Namespace

from loadtests.arrivals import Arrivals, RatedArrivals
from loadtests.experiment import OpenLoopUser
from loadtests.options import ArgumentGroup, add_duration
from loadtests.payload_traffic import PayloadTraffic
from loadtests.rate_curve import constant
from split_inference.errors import UsageError


class MixedFleet(OpenLoopUser):
    """Poisson arrivals: many devices together are a Poisson process, whatever each of them does."""

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None:
        """Rate and duration."""
        group.add_argument("--rate", type=float, default=0.0, help="requests a second, all together (the files' rates)")
        add_duration(group)

    @classmethod
    def arrivals(cls, given: Namespace, traffic: PayloadTraffic) -> Arrivals:
        """The rate that was given, or that the payload files say."""
        rate_per_s = given.rate or traffic.rate_per_s
        if not rate_per_s:
            raise UsageError("the payload files say no rate: give --rate")
        return RatedArrivals("poisson", constant(rate_per_s, given.duration), seed=given.seed)
