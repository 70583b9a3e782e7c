"""Everything that can be wrong is found before anything is sent; what is right is announced and recorded."""

from __future__ import annotations

import json
import math
import threading
import time
from argparse import ArgumentParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loadtests.arrivals import RatedArrivals, share_of
from loadtests.generator_health import Sighting
from loadtests.options import RunOptions, add_common_arguments, check_file_limit, read_token
from loadtests.preflight import checked_host
from loadtests.rate_curve import constant
from loadtests.run_folder import new_run_folder
from loadtests.run_plan import RunPlan
from loadtests.run_recorder import RunRecorder, Tally
from loadtests.run_result import GeneratorProcess, read_result, write_result
from loadtests.run_summary import summary
from loadtests.stub_payloads import write_stub_payloads
from split_inference.errors import DataError, DigestMismatchError, SplitInferenceError, UsageError
from split_inference.payload_file import PayloadFile
from tests.loadtests.helpers import RIGHT


class Parser(ArgumentParser):
    """As Locust's: an argument may say that a web page does not show it."""

    def add_argument(self, *names, include_in_web_ui=True, **facts):
        return super().add_argument(*names, **facts)


def options(host, payloads, *arguments):
    parser = Parser()
    add_common_arguments(parser)
    return RunOptions.of(parser.parse_args(["--payloads", str(payloads), *arguments]), host=host)


def plan(host, payloads, *arguments, rate=100.0, duration=10.0):
    return RunPlan.open(
        "poisson",
        options(host, payloads, *arguments),
        lambda traffic: RatedArrivals("poisson", constant(rate, duration)),
    )


@pytest.fixture(scope="module")
def payloads(tmp_path_factory):
    path = tmp_path_factory.mktemp("payloads") / "stub.payloads"
    write_stub_payloads(path, inputs=4)
    return path


@pytest.fixture(scope="module")
def server(payloads):
    """Catalogue and card of the payload file's model, and every request that came."""
    with PayloadFile.open(payloads) as file:
        card = {
            "name": "stub",
            "digest": file.header.model.digest,
            "split_points": [{"name": "cut0"}, None, {"name": "cut1", "aliases": ["other"]}],
        }
    routes = {
        "/v1/models": (200, {"models": [{"name": "stub"}, "nonsense"]}),
        "/v1/models/stub": (200, card),
        "/v1/models/bare": (200, {**card, "split_points": []}),
        "/v1/models/text": (200, None),
        "/v1/models/closed": (401, {"error": "UnauthorizedError", "reason": "no token"}),
    }
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.command, self.path))
            status, content = routes.get(self.path, (404, {"error": "UnknownModelError"}))
            body = b"<html>" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", seen
        http.shutdown()
        thread.join()


def test_a_plan_says_what_will_be_sent_and_asks_only_for_the_card(server, payloads):
    url, seen = server
    seen.clear()
    made = plan(url, payloads)
    made.close()
    assert seen == [("GET", "/v1/models/stub")]
    assert made.planned.rate_per_s == 100
    assert made.planned.duration_s == 10
    assert made.planned.requests == pytest.approx(1000, rel=0.2)
    assert made.planned.bytes_per_s == pytest.approx(100 * made.traffic.mean_body_bytes)
    text = made.announcement(workers=2)
    for part in ("100 requests/s", "10 s", url, "2 workers", "cut0"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "facts", "why"),
    [
        (("--models", "unknown"), {}, "it has stub"),
        (("--models", "stub,stub"), {}, "2 models for 1"),
        (("--models", "bare"), {}, "split point cut0"),
        (("--models", "closed"), {}, "401"),
        (("--models", "text"), {}, "JSON object"),
        (("--option", "9"), {}, "no option"),
        (("--weights", "1,2"), {}, "--weights"),
        (("--weights", "x"), {}, "--weights"),
        (("--timeout", "0"), {}, "--timeout"),
        (("--max-in-flight", "0"), {}, "--max-in-flight"),
        (("--connections", "-1"), {}, "--connections"),
        (("--deadline-ms", "-1"), {}, "--deadline-ms"),
        (("--announce-deadline",), {}, "--deadline-ms"),
        (("--seed", "-1"), {}, "--seed"),
        (("--drop-after-ms", "0"), {}, "--drop-after-ms"),
        (("--warmup", "-1"), {}, "--warmup"),
        (("--warmup", "inf"), {}, "--warmup"),
        (("--warmup", "nan"), {}, "--warmup"),
        (("--deadline-ms", "inf"), {}, "--deadline-ms"),
        (("--deadline-ms", "nan"), {}, "--deadline-ms"),
        (("--deadline-ms", "1e300", "--announce-deadline"), {}, "--deadline-ms"),
        (("--drop-after-ms", "inf"), {}, "--drop-after-ms"),
        (("--drop-after-ms", "nan"), {}, "--drop-after-ms"),
        (("--timeout", "inf"), {}, "--timeout"),
        (("--warmup", "10"), {}, "nothing of a run"),
        (("--token-file", "missing"), {}, "--token-file"),
        (("--ca", "missing"), {}, "https"),
        (("--slo", "missing.yaml"), {}, "missing.yaml"),
        ((), {"rate": -1.0}, "rate"),
        ((), {"duration": 0.0}, "duration"),
        ((), {"rate": math.inf}, "rate"),
        ((), {"duration": math.inf}, "duration"),
        ((), {"rate": 1e6, "duration": 604_800.0}, "at most 1,000,000,000 arrivals"),
    ],
)
def test_what_is_wrong_is_one_line(server, payloads, tmp_path, monkeypatch, arguments, facts, why):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SplitInferenceError) as caught:
        plan(server[0], payloads, *arguments, **facts)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_plan_is_announced_at_once(server, payloads):
    began_s = time.perf_counter()
    made = plan(server[0], payloads, rate=1000.0, duration=604_800.0)
    made.close()
    assert "about 604,800,000 requests" in made.announcement(workers=1)
    # To draw them would take a minute.
    assert time.perf_counter() - began_s < 30


def test_other_weights_are_refused_before_anything_is_sent(server, tmp_path):
    write_stub_payloads(tmp_path / "other", name="other")
    server[1].clear()
    with pytest.raises(DigestMismatchError):
        plan(server[0], tmp_path / "other", "--models", "stub")
    assert {method for method, _ in server[1]} == {"GET"}


def test_missing_and_damaged_payloads_are_refused(server, payloads, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.write_bytes(payloads.read_bytes()[:-1] + b"x")
    for path in (tmp_path / "missing", damaged):
        with pytest.raises(DataError):
            plan(server[0], path)


@pytest.mark.parametrize("host", [None, ""])
def test_no_host_and_no_payloads_are_refused(payloads, host):
    with pytest.raises(UsageError, match="--host"):
        options(host, payloads)
    with pytest.raises(UsageError, match="--payloads"):
        options("http://127.0.0.1:1", "")


@pytest.mark.parametrize(
    ("host", "arguments", "why"),
    [
        ("ftp://127.0.0.1", (), "http"),
        ("127.0.0.1:8000", (), "http"),
        ("http://user@127.0.0.1", (), "user name"),
        ("http://example.com", (), "--yes"),
        ("http://192.0.2.1:8000", (), "--yes"),
        ("http://example.com", ("--yes", "--token-file", "token"), "clear"),
        ("http://127.0.0.1", ("--ca", "ca.pem"), "https"),
    ],
)
def test_hosts_that_may_not_be_loaded_are_refused(payloads, host, arguments, why):
    with pytest.raises(UsageError, match=why):
        checked_host(options(host, payloads, *arguments))


@pytest.mark.parametrize(
    ("host", "arguments"),
    [
        ("http://localhost:8000", ()),
        ("http://[::1]:8000", ()),
        ("https://example.com", ("--yes", "--token-file", "token")),
        ("http://example.com", ("--yes", "--token-file", "token", "--insecure-token")),
        ("http://127.0.0.1", ("--token-file", "token")),
    ],
)
def test_hosts_that_may_be_loaded_are_not(payloads, host, arguments):
    assert checked_host(options(host, payloads, *arguments)) == host


def test_nobody_there_is_one_line(payloads):
    with pytest.raises(UsageError, match="is the server up"):
        plan("http://127.0.0.1:1", payloads)


def test_the_callers_of_a_closed_loop_are_shared_among_workers(server, payloads):
    made = RunPlan.closed("closed_loop", options(server[0], payloads), callers=7, streams=1, think_s=0, duration_s=5)
    made.close()
    assert [made.callers_of(worker, 3) for worker in range(3)] == [3, 2, 2]
    # Workers without callers come last.
    assert [made.is_idle(worker, 9) for worker in range(9)] == 7 * [False] + 2 * [True]
    assert "7 users" in made.announcement(workers=1)
    for wrong in ({"callers": 0}, {"streams": 0}, {"think_s": -1}, {"duration_s": 0}):
        with pytest.raises(UsageError):
            RunPlan.closed(
                "closed_loop",
                options(server[0], payloads),
                **{"callers": 1, "streams": 1, "think_s": 0, "duration_s": 5, **wrong},
            )


def test_a_record_is_written_and_read_back(server, payloads, tmp_path):
    made = plan(server[0], payloads)
    made.close()
    process = GeneratorProcess(name="generator", cpu_share=0.1, rss_mb=80, schedule_delay_p99_s=0.0)
    result = made.result(
        Tally(), Sighting(processes=(process,), expected=1), command="locust", started_at="2026-01-01T00:00:00+00:00"
    )
    assert not result.is_valid
    folder = new_run_folder("poisson", runs=tmp_path)
    write_result(folder, result)
    assert read_result(folder) == read_result(folder / "result.json") == result
    assert "INVALID" in summary(result)
    assert new_run_folder("poisson", runs=tmp_path) != folder


@pytest.mark.parametrize("stopped_at_s", [None, 6.0])
def test_counts_that_never_arrived_make_a_run_invalid_unless_it_was_stopped(server, payloads, stopped_at_s):
    made = plan(server[0], payloads)
    made.close()
    assert made.arrivals is not None
    recorder = RunRecorder(warmup_s=2.0, ends_s=10.0, deadline_s=None)
    times_s = [at_s for _, at_s in share_of(made.arrivals, worker=0, workers=1)]
    process = GeneratorProcess(name="generator", cpu_share=0.1, rss_mb=80, schedule_delay_p99_s=0.0)
    sighting = Sighting(processes=(process,), expected=1, stopped_at_s=stopped_at_s)

    def reasons(tally):
        facts = {"command": "locust", "started_at": "2026-01-01T00:00:00+00:00"}
        return made.result(tally, sighting, **facts).generator.invalid

    def counted(until_s):
        for at_s in times_s:
            if at_s < until_s:
                recorder.ended("a", intended_s=at_s, sent_s=at_s, ended_s=at_s + 0.01, verdict=RIGHT)
        return recorder.take()

    assert reasons(counted(10.0)) == ()
    # As where the last report of a process got lost.
    found = reasons(counted(9.0))
    if stopped_at_s is None:
        assert len(found) == 1
        assert "arrivals were counted where the schedule has" in found[0]
    else:
        assert found == ()


def test_a_folder_in_use_and_a_damaged_record_are_refused(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "result.json").write_text('{"version": 1}')
    with pytest.raises(UsageError, match="--folder"):
        new_run_folder("poisson", folder=tmp_path / "used")
    with pytest.raises(DataError) as caught:
        read_result(tmp_path / "used")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError):
        read_result(tmp_path / "missing")


def test_a_token_is_one_word_and_never_repeated(tmp_path):
    file = tmp_path / "token"
    file.write_text("secret\n")
    assert read_token(file) == "secret"
    assert read_token(None) is None
    for text in ("", "two words secret", "sécret"):
        file.write_text(text)
        with pytest.raises(UsageError) as caught:
            read_token(file)
        assert "cret" not in str(caught.value)


def test_more_files_than_the_system_allows_are_refused_with_what_to_do():
    with pytest.raises(UsageError, match="ulimit"):
        check_file_limit(2**40)
    check_file_limit(1)
