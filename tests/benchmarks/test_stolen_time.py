from __future__ import annotations

import pytest

from benchmarks.serving.stolen_time import StolenTime


def test_it_is_the_share_of_all_ticks_since_it_was_made(tmp_path):
    stat = tmp_path / "stat"
    # user nice system idle iowait irq softirq steal guest guest_nice; guests are counted among users.
    stat.write_text("cpu  100 0 50 800 10 0 5 35 40 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    stolen = StolenTime(stat)
    assert stolen.share() == 0.0
    stat.write_text("cpu  160 0 60 820 10 0 5 45 90 0\n")
    assert stolen.share() == pytest.approx(0.1)


def test_where_nothing_is_known_nothing_was_stolen(tmp_path):
    assert StolenTime(tmp_path / "none").share() == 0.0
