"""A run's page in a real browser: its plots have shapes, and the console is silent."""

from __future__ import annotations

import re
import subprocess

from edge_sim.report import write_report
from edge_sim.run_reader import read_run
from tests.edge_sim.fleets import scenario, simulate
from tests.edge_sim.test_fleet import ALL
from tests.patience import PATIENCE_S


def test_the_page_shows_every_plot(chromium, tmp_path):
    folder = tmp_path / "run"
    simulate(scenario(*ALL, faults=[{"kind": "server_down", "at_s": 10, "for_s": 5}]), folder)
    page = write_report(read_run(folder))
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
        page.as_uri(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    document = result.stdout
    figures = re.findall(r"<figure>.*?</figure>", document, flags=re.DOTALL)
    assert len(figures) == 7
    for figure in figures:
        assert re.search(r'<polyline[^>]*points="[^"]{20,}"|<rect[^>]*height="[1-9]', figure)
    assert "CONSOLE" not in result.stderr
    assert document.count("<tr>") == 1 + len(ALL)
