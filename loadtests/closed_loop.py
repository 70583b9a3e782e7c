"""A fixed number of callers that each wait for their answer. Kept to show the difference: see docs/how-to/load-test.md.

A slow server is asked less, so that its latencies leave out what would have waited meanwhile (coordinated omission).
Right for callers that do wait, such as a batch job; wrong for devices, which do not ask each other.

locust -f loadtests/closed_loop.py --host http://127.0.0.1:8000 --payloads resnet20.payloads --callers 8 --headless
"""

from loadtests.experiment import ClosedLoopUser


class ClosedLoop(ClosedLoopUser):
    """`--callers` requests under way at any time."""
