"""Recorded arrivals again: a CSV or JSON lines file of times, such as a run's requests.csv or a fleet's requests.jsonl.

locust -f loadtests/replay.py --host http://127.0.0.1:8000 --payloads resnet20.payloads --recording day.csv --headless
"""

from argparse import Namespace
from pathlib import Path

from loadtests.arrivals import Arrivals, RecordedArrivals, read_recording
from loadtests.experiment import OpenLoopUser
from loadtests.options import ArgumentGroup
from loadtests.payload_traffic import PayloadTraffic
from split_inference.errors import UsageError


class Replay(OpenLoopUser):
    """Arrivals at the times of a recording."""

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None:
        """The recording, and how it is played."""
        group.add_argument(
            "--recording", default="", metavar="FILE", help="times in seconds: one a line, CSV or JSON lines"
        )
        group.add_argument("--column", default="", help="column or key of the times (intended_s, arrival_s, at_s, ...)")
        group.add_argument("--speed", type=float, default=1.0, help="2 plays it in half the time (%(default)s)")
        group.add_argument("--repeat", type=int, default=1, help="so many times, one after the other (%(default)s)")

    @classmethod
    def arrivals(cls, given: Namespace, traffic: PayloadTraffic) -> Arrivals:
        """The file's times, from the first on."""
        if not given.recording:
            raise UsageError("no recording: give --recording FILE")
        times_s = read_recording(Path(given.recording), column=given.column)
        return RecordedArrivals(times_s, speed=given.speed, repeat=given.repeat)
