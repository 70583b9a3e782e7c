"""What a recorded fleet asked its server: which options, in which proportions, how often; load tests ask the same.

Counts attempts, not requests: what was sent three times was load three times, and what a device did by itself was none.
Adaptive devices have no other way to say what they will ask. Knows records and the payload file's traffic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_sim.plan import SERVER_ONLY
from edge_sim.run_reader import Run
from split_inference.errors import UsageError
from split_inference.payload_file import PayloadTraffic


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One option as it was asked for."""

    split_point: str | None
    """None: the input as it is, on the server alone."""
    codec: str | None
    share: float
    rate_per_s: float

    @property
    def choice(self) -> str:
        """As `payloads --option` takes it."""
        return SERVER_ONLY if self.split_point is None else f"{self.split_point},{self.codec}"


def asked_of(run: Run, *, model: str | None = None) -> list[Asked]:
    """What was sent for one model of the run, most often first; `model` may be left out where there is only one.

    Raises UsageError where nothing was sent, or several models were and none was named.
    """
    attempts = run.numbers["attempts"]
    models = run.texts["model"]
    sent = attempts > 0
    named = [name for name in models.names if (sent & models.where(name)).any()]
    if not named:
        raise UsageError(f"{run.folder}: no device sent anything; there is no traffic to repeat")
    if model is None:
        if len(named) > 1:
            raise UsageError(f"{run.folder} asked for {', '.join(named)}: say which one with --traffic-model")
        model = named[0]
    elif model not in named:
        raise UsageError(f"{run.folder} sent nothing for {model!r}; it did for {', '.join(named)}")
    seconds = run.seconds
    points, codecs = run.texts["split_point"], run.texts["codec"]
    rows = sent & models.where(model)
    total = float(attempts[rows].sum())
    found = []
    for point in points.names:
        for codec in codecs.names:
            count = float(attempts[rows & points.where(point) & codecs.where(codec)].sum())
            if count:
                found.append(
                    Asked(
                        split_point=point or None,
                        codec=codec or None,
                        share=count / total,
                        rate_per_s=count / seconds,
                    )
                )
    return sorted(found, key=lambda each: -each.share)


def traffic_for(asked: Sequence[Asked], options: Sequence[tuple[str | None, str | None]]) -> list[PayloadTraffic]:
    """The traffic of a payload file whose options are these (split point, codec). UsageError where one is missing."""
    traffic = []
    for each in asked:
        try:
            option = options.index((each.split_point, each.codec))
        except ValueError:
            raise UsageError(f"the fleet asked for {each.choice}, which is not among the --option given") from None
        traffic.append(PayloadTraffic(option=option, share=each.share, rate_per_s=each.rate_per_s))
    return traffic
