"""What comes of load tests, with real processes and a real browser: the page, the commands, and what they refuse."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from loadtests.gate import judge
from loadtests.histogram import Histogram
from loadtests.report import write_report
from loadtests.run_result import ServerTimes, write_result
from loadtests.slo import Slo
from loadtests.stub_payloads import write_stub_payloads
from tests.conftest import ROOT
from tests.integration.load_processes import stub_server
from tests.integration.processes import below, processes, wait_for
from tests.loadtests.results import run_of
from tests.patience import PATIENCE_S, RUN_PATIENCE_S


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "split_inference.cli", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=RUN_PATIENCE_S, check=False,
    )  # fmt: skip


def a_run(seed, *, scale=1.0):
    rng = np.random.default_rng(seed)
    seconds = [list(scale * rng.lognormal(-4, 0.5, 40)) for _ in range(30)]
    made = run_of([], seconds=seconds, refused=0, failed=4, deadline_s=0.05, batch_sizes={1: 10, 4: 30})
    queue = Histogram.of(rng.exponential(0.002, 100))
    return made.model_copy(update={"server": ServerTimes(queue=queue, tail=queue)})


def test_the_page_shows_every_plot(chromium, tmp_path):
    run = a_run(1)
    slo = Slo.model_validate({"version": 1, "name": "page", "latency": {"p99_ms": 20}})
    page = write_report(tmp_path, run, judge(run, slo))
    result = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    figures = re.findall(r"<figure>.*?</figure>", result.stdout, flags=re.DOTALL)
    assert len(figures) == 9
    for figure in figures[:6]:
        assert re.search(r'<polyline[^>]*points="[^"]{20,}"|<rect[^>]*height="[1-9]', figure)
    assert "CONSOLE" not in result.stderr


def test_two_runs_are_compared_and_one_is_judged_again(tmp_path):
    for name, run in (("a", a_run(1)), ("b", a_run(2, scale=2.0))):
        write_result(tmp_path / name, run)
    compared = command("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert compared.returncode == 0, compared.stderr
    verdicts = {each["name"]: each["verdict"] for each in json.loads(compared.stdout)["changes"]}
    assert verdicts["p50_ms"] == "worse"
    slo = tmp_path / "slo.yaml"
    for bound_ms, code in ((1000, 0), (1, 99)):
        slo.write_text(f"version: 1\nlatency: {{p50_ms: {bound_ms}}}\n")
        judged = command("load-report", tmp_path / "a", "--slo", slo)
        assert judged.returncode == code, judged.stderr
    assert {"report.html", "seconds.csv", "gate.json", "junit.xml", "summary.md"} <= {
        file.name for file in (tmp_path / "a").iterdir()
    }


@pytest.fixture(scope="module")
def payloads(tmp_path_factory):
    file = tmp_path_factory.mktemp("load") / "stub.payloads"
    write_stub_payloads(file)
    return file


def test_a_search_ends_with_a_rate_or_says_why_not(payloads, tmp_path):
    slo = tmp_path / "slo.yaml"
    slo.write_text("version: 1\nlatency: {p95_ms: 400}\n")
    with stub_server(payloads, "--service-ms", "50") as url:
        words = ("--slo", slo, "--host", url, "--payloads", payloads, "--start-rate", 15, "--budget", 10, "--probe", 4)
        found = command("capacity", *words, "--verify", 3, "--folder", tmp_path / "search", "--json")
    # A busy machine may be too late to send, or to verify: that is 3, and what there is is written all the same.
    assert found.returncode in (0, 3, 99), found.stderr
    report = json.loads(found.stdout)
    assert report == json.loads((tmp_path / "search" / "capacity.json").read_text())
    if report["rate_per_s"] is None:
        assert "the generator could not send" in report["invalid"][0]
        return
    assert report["low_per_s"] < report["rate_per_s"] < report["high_per_s"]
    # One server of 50 ms is saturated at 20 a second.
    assert 4 < report["rate_per_s"] < 30
    assert (report["verified_per_s"] is not None) == (found.returncode == 0)


@pytest.mark.parametrize("preset", ["single-stream", "multi-stream", "offline"])
def test_a_preset_gives_its_own_figure(payloads, tmp_path, preset):
    with stub_server(payloads, "--service-ms", "20", "--servers", "4") as url:
        words = ("--preset", preset, "--seconds", 3, "--folder", tmp_path / "run", "--json")
        found = command("capacity", "--host", url, "--payloads", payloads, *words)
    assert found.returncode in (0, 3), found.stderr
    report = json.loads(found.stdout)
    # Eight samples on four servers take two rounds; offline is bound by the four servers.
    if preset == "offline":
        assert 5 < report["per_s"] <= 210
    else:
        assert report["p90_ms" if preset == "single-stream" else "p99_ms"] >= (20 if preset == "single-stream" else 40)


def test_a_server_that_answers_nothing_has_no_figure(payloads, tmp_path):
    with stub_server(payloads, "--service-ms", "1", "--error-share", "1") as url:
        words = ("--preset", "offline", "--seconds", 2, "--folder", tmp_path / "run", "--json")
        found = command("capacity", "--host", url, "--payloads", payloads, *words)
    assert found.returncode in (1, 3), found.stderr
    assert json.loads(found.stdout)["requests"] == 0


def test_a_search_that_is_terminated_leaves_no_load_behind(payloads, tmp_path):
    slo = tmp_path / "slo.yaml"
    slo.write_text("version: 1\nlatency: {p95_ms: 400}\n")
    with stub_server(payloads, "--service-ms", "5") as url:
        words = ("capacity", "--slo", slo, "--host", url, "--payloads", payloads, "--folder", tmp_path / "search")
        child = subprocess.Popen(
            [sys.executable, "-m", "split_inference.cli", *map(str, words)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        probe = tmp_path / "search" / "probe-001" / "header.json"
        wait_for(probe.is_file, why="no probe ever began")
        load = below(child.pid)
        child.terminate()
        _, said = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 130, said
    assert load
    assert not set(load) & set(processes())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("capacity", "--host", "http://127.0.0.1:1", "--payloads", "none"), "--slo FILE is missing"),
        (("compare", "nothing", "nothing"), "cannot read the run"),
        (("load-report", "bad/[/x]"), "cannot read the run"),
        (("load-report", "nothing"), "cannot read the run"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(words, said):
    result = command(*words)
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_search_that_cannot_begin_says_so_before_any_load(payloads, tmp_path):
    slo = tmp_path / "slo.yaml"
    slo.write_text("version: 1\nlatency: {p99_ms: 100}\n")
    common = ("capacity", "--slo", slo, "--folder", tmp_path / "search")
    away = command(*common, "--host", "http://127.0.0.1:1", "--payloads", payloads)
    assert (away.returncode, "127.0.0.1:1" in away.stderr) == (2, True)
    far = command(*common[:-1], tmp_path / "far", "--host", "http://192.0.2.1:8000", "--payloads", payloads)
    assert far.returncode == 2
    assert "--yes" in far.stderr
    token = tmp_path / "token"
    token.write_text("abc")
    safe = ("--yes", "--token-file", token, "--host", "http://192.0.2.1:8000", "--payloads", payloads)
    said = command(*common[:-1], tmp_path / "token-far", *safe).stderr
    assert "in the clear" in said
    assert "--insecure-token" in said
