"""What is read back of a run's files."""

from __future__ import annotations

import math

import numpy as np

from loadtests.locust_process import observed
from loadtests.run_folder import RecordFile
from tests.loadtests.helpers import FAILED, REFUSED, RIGHT
from tests.loadtests.results import run_of


def test_a_run_with_records_is_seen_request_by_request(tmp_path):
    # (intended, sent, ended, how, counted), written by two processes.
    rows = [
        (0.5, 0.5, 0.51, RIGHT, False),
        (1.0, 1.001, 1.02, RIGHT, True),
        (1.5, 1.53, 1.55, REFUSED, True),
        (1.2, 1.2, 11.2, FAILED, True),
        (2.0, 2.09, 2.1, RIGHT, True),
    ]
    for worker in range(2):
        file = RecordFile(tmp_path / f"requests-{worker}.csv")
        for number, (intended_s, sent_s, ended_s, verdict, counted) in list(enumerate(rows))[worker::2]:
            file.write(
                number, "a", intended_s=intended_s, sent_s=sent_s, ended_s=ended_s, verdict=verdict, counted=counted
            )
        file.close()
    seen = observed(tmp_path, run_of([], dropped={"full": 1, "late": 2}), rate_per_s=10.0)
    np.testing.assert_allclose(seen.arrivals_s, [1.0, 1.2, 1.5, 2.0, 2.0])
    np.testing.assert_allclose(seen.latencies_s, [0.02, math.inf, math.inf, 0.1, math.inf])
    # The generator's own part of them.
    np.testing.assert_allclose(seen.delays_s, [0.001, 0.0, 0.03, 0.09, 0.0], atol=1e-9)
    assert seen.failed.tolist() == [False, True, False, False, True]
    assert seen.refused.tolist() == [False, False, True, False, False]
