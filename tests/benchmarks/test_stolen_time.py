from __future__ import annotations

import pytest

from benchmarks.serving.stolen_time import StolenTime, Undisturbed


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


class Host:
    """Takes so much of each measurement, in turn; what is measured is what it took."""

    def __init__(self, stat, *takes):
        self._stat, self._takes, self._idle, self._stolen = stat, iter(takes), 0, 0
        self._tick(0)

    def _tick(self, takes):
        self._idle, self._stolen = self._idle + 100 - takes, self._stolen + takes
        self._stat.write_text(f"cpu  0 0 0 {self._idle} 0 0 0 {self._stolen} 0 0\n")

    def measured(self):
        took = next(self._takes)
        self._tick(took)
        return took


def test_what_was_disturbed_is_measured_again(tmp_path, capsys):
    host = Host(tmp_path / "stat", 20, 4, 3, 0)
    undisturbed = Undisturbed(stat=tmp_path / "stat")
    assert undisturbed.measure("a figure", host.measured) == 3
    assert undisturbed.most_stolen == pytest.approx(0.03)
    assert capsys.readouterr().out.count("again") == 2


def test_a_machine_that_is_never_left_alone_gives_its_best_and_is_remembered(tmp_path, capsys):
    host = Host(tmp_path / "stat", 20, 7, 9, 1)
    undisturbed = Undisturbed(tries=3, stat=tmp_path / "stat")
    assert undisturbed.measure("a figure", host.measured) == 7
    assert (
        "a figure: the host took 9 % of the machine meanwhile; the try with the least, 7 %" in capsys.readouterr().out
    )
    assert undisturbed.measure("another", host.measured) == 1
    assert undisturbed.most_stolen == pytest.approx(0.07)
