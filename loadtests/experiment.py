"""The rim to Locust: what a locustfile inherits from.

A locustfile says how requests arrive; `Conductor` does the rest. Locust's users do not send, because an open loop has
none; their number (`-u`) means nothing.

Importing this patches the process (gevent): never import it from tests or from the command line's own process.
"""

# ruff: noqa: I001  Locust patches the standard library and has to come first.
from locust import User, task

from argparse import Namespace
from typing import ClassVar

import gevent

from loadtests.arrivals import Arrivals
from loadtests.conductor import Conductor
from loadtests.options import ArgumentGroup, add_duration
from loadtests.payload_traffic import Mode, PayloadTraffic


class LoadUser(User):  # type: ignore[misc]  # Locust's types are not read
    """What a locustfile's class inherits from, through `OpenLoopUser` or `ClosedLoopUser`."""

    abstract = True
    open_loop: ClassVar[bool] = True
    mode: ClassVar[Mode] = "any"
    """Which options of the payload files are sent."""

    def __init_subclass__(cls) -> None:
        if not cls.abstract:
            Conductor(cls).listen()

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None:
        """Arguments of this experiment beside the common ones."""
        add_duration(group)

    @classmethod
    def arrivals(cls, given: Namespace, traffic: PayloadTraffic) -> Arrivals:
        """The schedule that the arguments ask for; UsageError where they make none."""
        raise NotImplementedError

    @task  # type: ignore[untyped-decorator]
    def wait(self) -> None:
        """Locust counts users; requests come from the schedule."""
        gevent.sleep(3600)


class OpenLoopUser(LoadUser):
    """Requests start when the schedule says so, whatever the server does."""

    abstract = True


class ClosedLoopUser(LoadUser):
    """A number of callers that each wait for their answer: a slow server is asked less."""

    abstract = True
    open_loop = False

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None:
        """Callers, and what they do between two requests."""
        add_duration(group)
        group.add_argument("--callers", type=int, default=10, help="requests under way, over all workers (%(default)s)")
        group.add_argument(
            "--streams", type=int, default=1, help="requests that each caller sends at once (%(default)s)"
        )
        group.add_argument("--think-ms", type=float, default=0.0, help="pause of each caller after an answer")
