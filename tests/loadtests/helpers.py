"""Payload files of random features, verdicts, and runs that were counted by hand."""

from __future__ import annotations

from loadtests.answer_check import Verdict
from loadtests.stub_payloads import write_stub_payloads
from split_inference.payload_file import PayloadFile

RIGHT = Verdict(
    kind="right", timings_s={"queue": 0.001, "decode": 0.0001, "tail": 0.004, "total": 0.006}, batch_samples=2
)
WRONG = Verdict(kind="wrong")
REFUSED = Verdict(kind="refused", reason="503 OverloadedError")
FAILED = Verdict(kind="failed", reason="timeout")


def payload_file(folder, name="stub", **facts):
    """An open payload file."""
    path = folder / f"{name}.payloads"
    write_stub_payloads(path, name=name, **facts)
    return PayloadFile.open(path)
