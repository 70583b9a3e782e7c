"""Encoded images instead of features: the whole network runs on the server, which the split is to be compared with.

The payload file needs the option `server_only` (`python -m edge_sim payloads --option server_only`).

locust -f loadtests/server_only.py --host http://127.0.0.1:8000 --payloads resnet20.payloads --rate 50 --headless
"""

from argparse import Namespace

from loadtests.arrivals import Arrivals, RatedArrivals
from loadtests.experiment import OpenLoopUser
from loadtests.options import ArgumentGroup, add_duration, add_rate
from loadtests.payload_traffic import PayloadTraffic
from loadtests.rate_curve import constant


class ServerOnly(OpenLoopUser):
    """Poisson arrivals of the inputs themselves."""

    mode = "server_only"

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None:
        """Rate and duration."""
        add_rate(group)
        add_duration(group)

    @classmethod
    def arrivals(cls, given: Namespace, traffic: PayloadTraffic) -> Arrivals:
        """A Poisson process."""
        return RatedArrivals("poisson", constant(given.rate, given.duration), seed=given.seed)
