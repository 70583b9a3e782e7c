"""Hostile frames against the real ingress and runner: every answer is from the one table."""

import contextlib

from benchmarks.fuzz_ingress import IngressTarget
from benchmarks.fuzz_wire import fuzz


def test_hostile_frames_get_statuses_from_the_table_and_reach_every_check():
    with contextlib.closing(IngressTarget()) as ingress:
        outcome = fuzz(frames=3000, seed=21, targets=[ingress.target()])
    assert outcome.escapes == []
    assert outcome.escaped == 0
    said = {said.partition(": ")[2] for _, said in outcome.counts}
    assert {
        "200",
        "400 MalformedFrameError",
        "404 UnknownSplitPointError",
        "409 DigestMismatchError",
        "415 UnknownCodecError",
        "422 FeatureMismatchError",
    } <= said
