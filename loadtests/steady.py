"""Evenly spaced requests at one rate: what a server does without the clumps that chance makes.

locust -f loadtests/steady.py --host http://127.0.0.1:8000 --payloads resnet20.payloads --rate 100 --headless
"""

from argparse import Namespace

from loadtests.arrivals import Arrivals, RatedArrivals
from loadtests.experiment import OpenLoopUser
from loadtests.options import ArgumentGroup, add_duration, add_rate
from loadtests.payload_traffic import PayloadTraffic
from loadtests.rate_curve import constant


class Steady(OpenLoopUser):
    """A metronome."""

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None:
        """Rate and duration."""
        add_rate(group)
        add_duration(group)

    @classmethod
    def arrivals(cls, given: Namespace, traffic: PayloadTraffic) -> Arrivals:
        """Equal gaps."""
        return RatedArrivals("constant", constant(given.rate, given.duration), spacing="even", seed=given.seed)
