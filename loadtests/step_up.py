"""The rate goes up in steps, each long enough to settle: latency and goodput at several rates in one run.

locust -f loadtests/step_up.py --host http://127.0.0.1:8000 --payloads resnet20.payloads --to-rate 300 --headless
"""

from argparse import Namespace

from loadtests.arrivals import Arrivals, RatedArrivals
from loadtests.experiment import OpenLoopUser
from loadtests.options import ArgumentGroup
from loadtests.payload_traffic import PayloadTraffic
from loadtests.rate_curve import steps


class StepUp(OpenLoopUser):
    """Poisson arrivals at one rate after the other."""

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None:
        """First and last step, how many, how long."""
        group.add_argument("--from-rate", type=float, default=20.0, help="requests a second of step 1 (%(default)s)")
        group.add_argument("--to-rate", type=float, default=100.0, help="of the last step (%(default)s)")
        group.add_argument("--steps", type=int, default=5, help="number of steps (%(default)s)")
        group.add_argument("--step-s", type=float, default=15.0, metavar="S", help="seconds of each (%(default)s)")

    @classmethod
    def arrivals(cls, given: Namespace, traffic: PayloadTraffic) -> Arrivals:
        """Evenly spaced rates."""
        curve = steps(given.from_rate, given.to_rate, count=given.steps, step_s=given.step_s)
        return RatedArrivals("step", curve, seed=given.seed)
