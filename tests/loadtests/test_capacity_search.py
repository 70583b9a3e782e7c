"""The search finds the rate that queueing theory says, with intervals that hold it as often as they promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from loadtests.capacity_search import CapacitySearch, Probe, TooBusyError
from loadtests.observation import Criterion, Observation, criteria_of, share_of
from loadtests.reference_queue import late_share, likeliest_servers, sojourns_s
from loadtests.slo import Slo
from split_inference.errors import UsageError
from tests.loadtests.mdc import largest_rate, number_in_system, simulate, waits_at_most

SERVICE_S = 0.010
P99 = Criterion(name="latency.p99_ms", limit=0.01, bound_s=3 * SERVICE_S)


def observation(arrivals_s, latencies_s, rate_per_s, **changes):
    nobody = np.zeros(len(arrivals_s), np.bool_)
    facts = {"delays_s": np.zeros(len(arrivals_s)), "wrong": nobody, "refused": nobody, "failed": nobody}
    return Observation(rate_per_s=rate_per_s, arrivals_s=arrivals_s, latencies_s=latencies_s, **(facts | changes))


def queue(servers, *, seed=0, overhead_s=0.0001, service_s=SERVICE_S):
    """A server that is measured: M/D/c, and a little that the way to it adds."""

    def measure(rate_per_s, seconds, probe_seed):
        rng = np.random.default_rng([seed, probe_seed])
        arrivals_s, sojourns = simulate(
            rng, rate_per_s=rate_per_s, seconds=seconds, service_s=service_s, servers=servers
        )
        return observation(arrivals_s, sojourns + rng.exponential(overhead_s, len(sojourns)), rate_per_s)

    return measure


def test_the_exact_distribution_is_that_of_one_server_where_that_is_known():
    # M/D/1: P(no wait) = 1 - rho, and (1 - rho) e^(rate x) up to one service time (Erlang, 1909).
    for rho in (0.2, 0.6, 0.9):
        rate = rho / SERVICE_S
        for x_s in (0.0, 0.3 * SERVICE_S, 0.9 * SERVICE_S):
            found = waits_at_most(x_s, rate_per_s=rate, service_s=SERVICE_S, servers=1)
            assert found == pytest.approx((1 - rho) * np.exp(rate * x_s), rel=1e-9)


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_the_exact_distribution_is_that_of_a_simulation(servers):
    rate = 0.8 * servers / SERVICE_S
    rng = np.random.default_rng(servers)
    _, sojourns = simulate(rng, rate_per_s=rate, seconds=200_000 / rate, service_s=SERVICE_S, servers=servers)
    for x_s in (0.5 * SERVICE_S, 1.5 * SERVICE_S, 2.5 * SERVICE_S):
        exact = waits_at_most(x_s, rate_per_s=rate, service_s=SERVICE_S, servers=servers)
        assert np.mean(sojourns - SERVICE_S <= x_s) == pytest.approx(exact, abs=0.01)
    assert number_in_system(rate_per_s=rate, service_s=SERVICE_S, servers=servers).sum() == pytest.approx(1)


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_the_reference_queue_is_the_queue_that_an_event_simulation_gives(servers):
    rng = np.random.default_rng(3)
    arrivals_s, expected_s = simulate(rng, rate_per_s=300, seconds=5, service_s=SERVICE_S, servers=servers)
    found_s = sojourns_s(arrivals_s, service_s=SERVICE_S, servers=servers)
    assert found_s == pytest.approx(expected_s, abs=1e-9)
    assert likeliest_servers([(arrivals_s, expected_s)], service_s=SERVICE_S) == servers
    # Latencies that have nothing to do with the arrivals are like no queue.
    assert likeliest_servers([(arrivals_s, rng.exponential(1, len(arrivals_s)))], service_s=SERVICE_S) is None


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_the_long_run_of_the_reference_queue_is_the_exact_one(servers):
    rate = largest_rate(bound_s=3 * SERVICE_S, share=0.99, service_s=SERVICE_S, servers=servers)
    found = late_share(rate_per_s=rate, service_s=SERVICE_S, servers=servers, bound_s=3 * SERVICE_S)
    assert found == pytest.approx(0.01, rel=0.1)


def test_the_luck_of_the_arrivals_is_taken_out_and_nothing_else():
    # Three servers of an unknown kind and one reference of two: still right on average, and less noisy.
    plain, corrected = [], []
    for seed in range(40):
        seen = queue(2, seed=seed)(120.0, 20.0, 1)
        plain.append(share_of(P99, seen)[0])
        corrected.append(share_of(P99, seen, (SERVICE_S, 2))[0])
    exact = 1 - waits_at_most(2 * SERVICE_S, rate_per_s=120.0, service_s=SERVICE_S, servers=2)
    assert np.mean(corrected) == pytest.approx(exact, rel=0.25)
    assert np.std(corrected) < 0.5 * np.std(plain)


@pytest.mark.slow
@pytest.mark.parametrize("servers", [1, 2, 4])
def test_the_largest_rate_is_found_within_five_percent_three_times_of_three(servers):
    exact = largest_rate(bound_s=3 * SERVICE_S, share=0.99, service_s=SERVICE_S, servers=servers)
    assert exact < 0.95 * servers / SERVICE_S  # not the rate at which the server is saturated
    for seed in range(3):
        found = CapacitySearch(measure=queue(servers, seed=seed), criteria=[P99], start_per_s=5, budget_s=240).run()
        assert found.rate_per_s == pytest.approx(exact, rel=0.05)
        assert found.is_precise
        assert found.low_per_s < found.rate_per_s < found.high_per_s
        assert found.reference_servers == servers


@pytest.mark.slow
@pytest.mark.parametrize(("servers", "budget_s"), [(1, 600), (2, 240), (4, 240)])
def test_few_requests_a_second_do_not_lead_it_astray(servers, budget_s):
    """A slow server's short probes have a bad request or none by luck, on the wrong side of the root as well."""
    slow_s = 0.04
    bound_s = 3 * slow_s
    exact = largest_rate(bound_s=bound_s, share=0.99, service_s=slow_s, servers=servers)
    p99 = Criterion(name="latency.p99_ms", limit=0.01, bound_s=bound_s)
    for seed in range(20, 40):
        measure = queue(servers, seed=seed, overhead_s=0.001, service_s=slow_s)
        search = CapacitySearch(measure=measure, criteria=[p99], start_per_s=exact / 5, budget_s=budget_s)
        assert search.run().rate_per_s == pytest.approx(exact, rel=0.05)


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_promise():
    exact = largest_rate(bound_s=3 * SERVICE_S, share=0.99, service_s=SERVICE_S, servers=2)
    searches = 15
    held = 0
    for seed in range(searches):
        measure = queue(2, seed=100 + seed, overhead_s=1e-6)
        found = CapacitySearch(measure=measure, criteria=[P99], start_per_s=40, budget_s=60, precision=0.02).run()
        held += found.low_per_s <= exact <= found.high_per_s
    # 14 of 15 promised; 11 or fewer would come once in 180 times.
    assert held >= 12


def test_one_seed_one_search():
    found = [CapacitySearch(measure=queue(1), criteria=[P99], budget_s=60).run() for _ in range(2)]
    assert found[0] == found[1]


def test_a_server_that_refuses_is_bound_by_its_refusals():
    def measure(rate_per_s, seconds, seed):
        rng = np.random.default_rng(seed)
        arrivals_s = np.sort(rng.uniform(0, seconds, rng.poisson(rate_per_s * seconds)))
        # What is above 50 a second is refused.
        refused = rng.random(len(arrivals_s)) < max(0.002, 1 - 50 / rate_per_s)
        latencies_s = np.where(refused, np.inf, 0.005)
        return observation(arrivals_s, latencies_s, rate_per_s, refused=refused)

    criteria = [P99, Criterion(name="max_rejects", limit=0.05)]
    found = CapacitySearch(measure=measure, criteria=criteria, budget_s=300).run()
    # Refused is later than any bound: p99 is missed as soon as one in a hundred is refused.
    assert found.criterion == "latency.p99_ms"
    assert found.rate_per_s == pytest.approx(50 / 0.99, rel=0.05)


@pytest.mark.parametrize(("answered", "grows"), [(1.0, True), (0.7, True), (0.35, True), (0.0, False)])
def test_a_queue_grows_also_where_most_of_it_is_never_answered(answered, grows):
    arrivals_s = np.arange(1000) / 100
    latencies_s = np.where(np.arange(1000) < 1000 * answered, 0.01 + arrivals_s, np.inf)
    assert observation(arrivals_s, latencies_s, 100).is_growing is grows


def late_generator(arrivals_s, latencies_s, rate_per_s, *, most_s=0.1, reads_late=0.5):
    """The same server, asked by a generator that falls further and further behind: it reads answers late as well."""
    delays_s = np.linspace(0, most_s, len(arrivals_s))
    seen_s = latencies_s + (1 + reads_late) * delays_s
    return observation(arrivals_s, seen_s, rate_per_s, delays_s=delays_s, invalid=("it was late",))


@pytest.mark.parametrize("reads_late", [0.0, 1.0, 2.0])
def test_a_generator_that_falls_behind_is_no_queue_that_grows(reads_late):
    for seed in range(10):
        seen = queue(1, seed=seed)(30.0, 20.0, 1)
        late = late_generator(seen.arrivals_s, seen.latencies_s, 30.0, reads_late=reads_late)
        assert np.median(late.latencies_s[-100:]) > 3 * np.median(late.latencies_s[:100])
        assert not late.is_growing


def test_a_server_that_falls_behind_is_seen_behind_a_late_generator_too():
    for seed in range(10):
        seen = queue(1, seed=seed)(200.0, 5.0, 1)
        assert late_generator(seen.arrivals_s, seen.latencies_s, 200.0).is_growing


def test_a_late_generator_is_not_what_the_server_carries():
    def measure(rate_per_s, seconds, seed):
        seen = queue(4)(rate_per_s, seconds, seed)
        return seen if rate_per_s < 50 else late_generator(seen.arrivals_s, seen.latencies_s, rate_per_s)

    probes: list[Probe] = []
    with pytest.raises(TooBusyError, match="it was late"):
        CapacitySearch(measure=measure, criteria=[P99], start_per_s=20, on_probe=probes.append).run()
    assert [probe.is_over for probe in probes] == [False, False]


def test_a_queue_that_grows_is_over_whatever_else_is_said():
    def measure(rate_per_s, seconds, seed):
        rng = np.random.default_rng(seed)
        arrivals_s, sojourns = simulate(rng, rate_per_s=rate_per_s, seconds=seconds, service_s=0.02, servers=1)
        return observation(arrivals_s, sojourns, rate_per_s)

    probes: list[Probe] = []
    patient = Criterion(name="latency.p99_ms", limit=0.01, bound_s=2.0)
    search = CapacitySearch(measure=measure, criteria=[patient], budget_s=150, on_probe=probes.append)
    found = search.run()
    assert any(probe.is_growing and probe.is_over for probe in probes)
    assert found.rate_per_s == pytest.approx(50, rel=0.08)
    assert found.is_precise


def test_what_cannot_be_found_is_said_in_one_line():
    with pytest.raises(UsageError, match="more than this server does for one request"):
        CapacitySearch(measure=queue(1), criteria=[Criterion(name="p", limit=0.01, bound_s=0.001)]).run()
    with pytest.raises(UsageError, match="raise --max-rate"):
        CapacitySearch(measure=queue(64), criteria=[P99], most_per_s=100).run()

    def late(rate_per_s, seconds, seed):
        seen = queue(1)(rate_per_s, seconds, seed)
        return observation(seen.arrivals_s, seen.latencies_s, rate_per_s, invalid=("it was late",))

    with pytest.raises(TooBusyError, match="could not send 10 requests/s: it was late"):
        CapacitySearch(measure=late, criteria=[P99]).run()
    with pytest.raises(UsageError, match="above --max-rate"):
        CapacitySearch(measure=queue(1), criteria=[P99], start_per_s=20, most_per_s=5).run()


def test_a_machine_that_gets_busy_in_mid_search_leaves_what_was_found_until_then():
    probes: list[Probe] = []

    def measure(rate_per_s, seconds, seed):
        seen = queue(2)(rate_per_s, seconds, seed)
        refined = sum(probe.stage == "refine" for probe in probes)
        return replace(seen, invalid=("it was late",)) if refined == 3 else seen

    search = CapacitySearch(
        measure=measure, criteria=[P99], start_per_s=30, precision=0.001, budget_s=900, on_probe=probes.append
    )
    found = search.run()
    assert found.invalid
    assert not found.is_precise
    assert found.low_per_s < found.rate_per_s < found.high_per_s
    assert search.probes == found.probes == tuple(probes)


def test_probes_that_say_nothing_of_the_root_give_no_estimate():
    # 0 of 400 and 0 of 380 bad, and then all of 440: as a server that was lucky, and then stood still.
    search = CapacitySearch(measure=queue(4), criteria=[P99])
    rng = np.random.default_rng(0)
    for rate_per_s, late in ((86.0, False), (93.0, False), (94.0, False)):
        arrivals_s = np.sort(rng.uniform(0, 5, 400))
        search._seen.append(observation(arrivals_s, np.full(400, 1.0 if late else 0.001), rate_per_s))
    assert search.estimate(near_per_s=94.0) is None


def test_an_estimate_lies_near_where_it_was_looked_for():
    for seed in range(10):
        found = CapacitySearch(measure=queue(4, seed=seed), criteria=[P99], start_per_s=15, budget_s=45).run()
        assert 0.5 < found.low_per_s / found.rate_per_s < 1 < found.high_per_s / found.rate_per_s < 2


def test_no_rate_above_the_largest_allowed_is_tried():
    tried: list[float] = []

    def measure(rate_per_s, seconds, seed):
        tried.append(rate_per_s)
        return queue(4)(rate_per_s, seconds, seed)

    exact = largest_rate(bound_s=3 * SERVICE_S, share=0.99, service_s=SERVICE_S, servers=4)
    CapacitySearch(measure=measure, criteria=[P99], most_per_s=1.05 * exact, start_per_s=50, budget_s=60).run()
    assert max(tried) <= 1.05 * exact


def test_an_objective_becomes_shares_that_may_be_bad():
    slo = Slo.model_validate(
        {"version": 1, "latency": {"p50_ms": 10, "p99_ms": 30}, "min_goodput": 0.95, "max_rejects": 0.0}
    )
    limits = {each.name: each.limit for each in criteria_of(slo)}
    assert limits == pytest.approx(
        {"latency.p50_ms": 0.5, "latency.p99_ms": 0.01, "min_goodput": 0.05, "max_rejects": 0.0}
    )
    with pytest.raises(UsageError, match="p999_ms"):
        criteria_of(Slo.model_validate({"version": 1, "latency": {"max_ms": 10}}))
    with pytest.raises(UsageError, match="nothing that a rate can miss"):
        criteria_of(Slo.model_validate({"version": 1, "min_goodput_per_s": 10}))
