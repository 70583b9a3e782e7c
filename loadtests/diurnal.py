"""A day in a few minutes: the rate follows a sine from its lowest point on, which is what an autoscaler has to follow.

locust -f loadtests/diurnal.py --host http://127.0.0.1:8000 --payloads resnet20.payloads --day-s 600 --headless
"""

from argparse import Namespace

from loadtests import rate_curve
from loadtests.arrivals import Arrivals, RatedArrivals
from loadtests.experiment import OpenLoopUser
from loadtests.options import ArgumentGroup, add_duration, add_rate
from loadtests.payload_traffic import PayloadTraffic


class Diurnal(OpenLoopUser):
    """Poisson arrivals whose rate goes up and down once a day."""

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None:
        """Mean, swing and length of a day."""
        add_rate(group, what="requests a second on average over a day")
        group.add_argument("--swing", type=float, default=0.8, help="share of the mean, 0..1, that the rate varies by")
        group.add_argument("--day-s", type=float, default=300.0, metavar="S", help="seconds of a day (%(default)s)")
        add_duration(group, default=300.0)

    @classmethod
    def arrivals(cls, given: Namespace, traffic: PayloadTraffic) -> Arrivals:
        """From midnight on."""
        curve = rate_curve.diurnal(given.rate, swing=given.swing, day_s=given.day_s, duration_s=given.duration)
        return RatedArrivals("diurnal", curve, seed=given.seed)
