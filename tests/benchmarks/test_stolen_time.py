from __future__ import annotations

import pytest

from benchmarks.serving.stolen_time import StolenTime, undisturbed


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


def test_what_was_disturbed_is_measured_again(tmp_path, capsys):
    stat = tmp_path / "stat"
    idle, stolen = 0, 0

    def tick(host_takes: int) -> None:
        nonlocal idle, stolen
        idle, stolen = idle + 100 - host_takes, stolen + host_takes
        stat.write_text(f"cpu  0 0 0 {idle} 0 0 0 {stolen} 0 0\n")

    tick(0)
    takes = iter([20, 4, 3, 0])

    def measured() -> int:
        took = next(takes)
        tick(took)
        return took

    assert undisturbed("a figure", measured, stat=stat) == 3
    assert capsys.readouterr().out.count("again") == 2


def test_nothing_is_measured_on_a_machine_that_is_never_left_alone(tmp_path):
    stat = tmp_path / "stat"
    ticks = iter(range(1, 100))

    def measured() -> None:
        stat.write_text(f"cpu  0 0 0 0 0 0 0 {next(ticks)} 0 0\n")

    measured()
    with pytest.raises(SystemExit, match="a figure: this machine was not left alone"):
        undisturbed("a figure", measured, stat=stat)
