"""Schedules are the process asked for, the same for any number of workers, and never in memory as a whole."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edge_sim.request_record import Request, how_text, line_of, who_text
from loadtests.arrivals import CHUNK, RatedArrivals, RecordedArrivals, count_of, read_recording, share_of
from loadtests.rate_curve import bursts, constant, diurnal, ramp, steps
from split_inference.errors import DataError, UsageError


def times(arrivals):
    return np.concatenate(list(arrivals.chunks()))


def kolmogorov_smirnov(sample, cdf):
    """Largest distance between the empirical distribution and `cdf`, times the root of the sample's size."""
    values = cdf(np.sort(sample))
    n = len(values)
    steps_up = np.arange(1, n + 1) / n
    distance = max((steps_up - values).max(), (values - (steps_up - 1 / n)).max())
    return distance * math.sqrt(n)


# Asymptotic critical value of the Kolmogorov-Smirnov statistic at 1 %: exp(-2 x^2) * 2 = 0.01.
KS_1_PERCENT = 1.628


@pytest.mark.parametrize("seed", range(5))
def test_gaps_of_a_poisson_process_are_exponential(seed):
    gaps = np.diff(times(RatedArrivals("poisson", constant(1000, 20), seed=seed)), prepend=0.0)
    assert kolmogorov_smirnov(gaps, lambda x: 1 - np.exp(-1000 * x)) < KS_1_PERCENT


@pytest.mark.parametrize(
    "curve",
    [ramp(0, 400, 50), steps(50, 400, count=4, step_s=10), bursts(20, 500, on_s=2, off_s=3, duration_s=40),
     diurnal(200, swing=0.9, day_s=40, duration_s=60)],
)  # fmt: skip
def test_a_changing_rate_is_a_poisson_process_of_rate_one_in_its_own_time(curve):
    rescaled = curve.expected(times(RatedArrivals("any", curve, seed=3)))
    gaps = np.diff(rescaled, prepend=0.0)
    assert kolmogorov_smirnov(gaps, lambda x: 1 - np.exp(-x)) < KS_1_PERCENT
    # The number of arrivals is Poisson too: within five standard deviations.
    assert abs(len(rescaled) - curve.total) < 5 * math.sqrt(curve.total)


def test_even_arrivals_are_a_metronome():
    at = times(RatedArrivals("constant", constant(50, 10), spacing="even"))
    assert len(at) == 500
    np.testing.assert_allclose(np.diff(at), 0.02)
    assert at[0] == pytest.approx(0.01)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_workers_shares_are_the_whole_schedule_whatever_their_number(workers):
    arrivals = RatedArrivals("poisson", constant(2000, 10), seed=1)
    whole = times(arrivals)
    assert len(whole) > 4 * CHUNK
    merged = sorted(itertools.chain(*(share_of(arrivals, worker=worker, workers=workers) for worker in range(workers))))
    assert [number for number, _ in merged] == list(range(len(whole)))
    np.testing.assert_array_equal([at for _, at in merged], whole)


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another():
    first, again, other = (RatedArrivals("poisson", constant(100, 10), seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(times(first), times(again))
    assert not np.array_equal(times(first)[:50], times(other)[:50])


def test_arrivals_are_in_order_within_the_run_and_counted():
    arrivals = RatedArrivals("ramp", ramp(0, 1000, 30), seed=4)
    at = times(arrivals)
    assert (np.diff(at) >= 0).all()
    assert 0 <= at[0] <= at[-1] <= arrivals.duration_s
    assert count_of(arrivals) == len(at)
    assert count_of(arrivals, after_s=10) == (at >= 10).sum()


@pytest.mark.parametrize("total", [0.3, 0.5, 0.6, 1.5, 7.2, 2 * CHUNK + 0.4, 2 * CHUNK + 0.5, 2 * CHUNK + 0.6])
@pytest.mark.parametrize("spacing", ["even", "poisson"])
def test_the_planned_number_is_that_of_the_schedule(total, spacing):
    arrivals = RatedArrivals("any", constant(total, 1.0), spacing=spacing, seed=2)
    assert arrivals.planned() == count_of(arrivals)
    recorded = RecordedArrivals(np.arange(1.0, 2.0 + total), repeat=3)
    assert recorded.planned() == count_of(recorded)


def test_many_random_arrivals_are_expected_and_not_counted():
    curve = constant(1000, 604_800)
    assert RatedArrivals("poisson", curve).planned() == 604_800_000
    assert RatedArrivals("constant", curve, spacing="even").planned() == 604_800_000


@pytest.mark.parametrize("spacing", ["even", "poisson"])
def test_the_number_after_the_warm_up_is_that_of_the_schedule(spacing):
    for start_s in (0.0, 0.5, 3.0, 10.0):
        for arrivals in (
            RatedArrivals("any", ramp(10, 200, 10.0), spacing=spacing, seed=4),
            RecordedArrivals(np.linspace(0, 3, 40), repeat=3),
        ):
            number = (times(arrivals) >= start_s).sum()
            assert arrivals.number_after(start_s) == (number, number)


@pytest.mark.parametrize("spacing", ["even", "poisson"])
def test_of_many_arrivals_the_number_after_the_warm_up_has_bounds(spacing, monkeypatch):
    monkeypatch.setattr("loadtests.arrivals.COUNTED_EXACTLY", 1000)
    for seed in range(20):
        arrivals = RatedArrivals("any", ramp(10, 2000, 10.0), spacing=spacing, seed=seed)
        for start_s in (0.0, 5.0, 9.99, 10.0, 20.0):
            least, most = arrivals.number_after(start_s)
            assert least <= (times(arrivals) >= start_s).sum() <= most
        least, most = arrivals.number_after(0.0)
        assert most - least < 0.15 * least


def test_an_hour_of_a_thousand_a_second_comes_in_small_chunks():
    chunks = RatedArrivals("poisson", constant(1000, 3600)).chunks()
    assert all(len(chunk) <= CHUNK for chunk in itertools.islice(chunks, 20))


def test_a_recording_is_replayed_from_its_first_arrival_at_any_speed_and_again():
    recorded = RecordedArrivals(np.array([105.0, 100.0, 102.0]), speed=2.0, repeat=2)
    np.testing.assert_allclose(times(recorded), [0, 1, 2.5, 3.75, 4.75, 6.25])
    assert recorded.duration_s == pytest.approx(7.5)
    assert recorded.mean_per_s == pytest.approx(6 / 7.5)


@pytest.mark.parametrize(
    "text",
    [
        "1.5\n2.5\n\n4\n",
        "1.5,a\n2.5,b\n4,c\n",
        "number,intended_s\n0,1.5\n1,2.5\n2,4\n",
        '{"intended_s": 1.5}\n{"intended_s": 2.5}\n{"intended_s": 4}\n',
        '{"intended_s":1,"attempts":0}\n{"intended_s":1.5,"attempts":1}\n{"intended_s":2.5,"attempts":4}\n'
        '{"intended_s":3,"attempts":0}\n{"intended_s":4}\n',
    ],
)
def test_recordings_are_read_as_lines_csv_and_json_lines(tmp_path, text):
    file = tmp_path / "recording"
    file.write_text(text)
    np.testing.assert_array_equal(read_recording(file), [1.5, 2.5, 4.0])


def test_a_column_can_be_named(tmp_path):
    file = tmp_path / "recording"
    file.write_text("when,intended_s\n7,1\n9,2\n")
    np.testing.assert_array_equal(read_recording(file, column="when"), [7.0, 9.0])


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "no arrivals"),
        ("1\nx\n", ":2:"),
        ("1\nnan\n", ":2:"),
        ("a,b\n1,2\n", ":1:"),
        ("number,intended_s\n0\n", ":2:"),
        ('{"other": 1}\n', ":1:"),
        ('{"intended_s": 1}\nnonsense\n', ":2:"),
        ('{"intended_s": null}\n', ":1:"),
        ('{"intended_s": 1}\n"intended_s"\n', ":2:"),
        ('{"intended_s": 1}\n' + "[" * 100_000 + "\n", ":2:"),
        ('{"intended_s": 1, "attempts": 0}\n' * 2, "none of its 2 requests"),
    ],
)
def test_a_recording_that_is_none_is_refused_with_its_line(tmp_path, text, where):
    file = tmp_path / "recording"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_recording(file)
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_recordings_are_one_line(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00" * 10)
    for name in ("missing", "binary"):
        with pytest.raises(DataError):
            read_recording(tmp_path / name)


def test_impossible_replays_are_refused():
    for wrong in ({"speed": 0.0}, {"speed": math.nan}, {"repeat": 0}):
        with pytest.raises(UsageError):
            RecordedArrivals(np.array([1.0]), **wrong)
    with pytest.raises(UsageError):
        RatedArrivals("poisson", constant(1, 1), seed=-1)


def test_replays_that_last_for_ever_are_refused():
    for times_s, more in (([0.0, 1e9], {}), ([0.0, 1.0], {"repeat": 1_000_000}), ([0.0, 1.0], {"speed": 1e-320})):
        with pytest.raises(UsageError, match="lasts at most"):
            RecordedArrivals(np.array(times_s), **more)
    with pytest.raises(UsageError, match="arrivals"):
        RecordedArrivals(np.linspace(0.0, 0.1, 1001), repeat=1_000_000)


def test_a_fleets_own_record_of_a_request_says_whether_it_was_sent(tmp_path):
    who, how = (
        who_text(device="d", group="g", policy="p", model="m"),
        how_text(mode="split", split_point="s", codec="c"),
    )
    lines = []
    for number, attempts in enumerate((1, 0, 2)):
        request = Request(number, float(number), 0.0)
        request.attempts = attempts
        lines.append(line_of(who, how, request) + "\n")
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(lines))
    np.testing.assert_array_equal(read_recording(file), [0.0, 2.0])
