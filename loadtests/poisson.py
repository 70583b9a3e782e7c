"""Poisson arrivals at one rate: many independent devices, each of which asks seldom.

locust -f loadtests/poisson.py --host http://127.0.0.1:8000 --payloads resnet20.payloads --rate 100 --headless
"""

from argparse import Namespace

from loadtests.arrivals import Arrivals, RatedArrivals
from loadtests.experiment import OpenLoopUser
from loadtests.options import ArgumentGroup, add_duration, add_rate
from loadtests.payload_traffic import PayloadTraffic
from loadtests.rate_curve import constant


class Poisson(OpenLoopUser):
    """Independent gaps between requests, exponentially distributed."""

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None:
        """Rate and duration."""
        add_rate(group)
        add_duration(group)

    @classmethod
    def arrivals(cls, given: Namespace, traffic: PayloadTraffic) -> Arrivals:
        """A Poisson process."""
        return RatedArrivals("poisson", constant(given.rate, given.duration), seed=given.seed)
