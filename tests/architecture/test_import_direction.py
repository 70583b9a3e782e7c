"""What the edge imports, seen from a fresh interpreter: import-linter reads the text, this reads sys.modules."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import edge_sim
from tests.patience import PATIENCE_S


def imported_by(code: str) -> set[str]:
    """Top-level packages that are loaded after running the code."""
    script = f"{code}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    return set(done.stdout.split())


def test_the_edge_never_imports_ray_or_the_server():
    modules = [f"edge_sim.{module.name}" for module in pkgutil.iter_modules(edge_sim.__path__)]
    assert "edge_sim.client" in modules
    loaded = imported_by("\n".join(f"import {module}" for module in ["edge_sim", *modules]))
    assert not loaded & {"ray", "serve_app", "locust"}


@pytest.mark.parametrize(
    "module",
    [
        "edge_sim",
        "edge_sim.commands",
        "edge_sim.demo_summary",
        "edge_sim.recorder",
        "edge_sim.bandwidth",
        "edge_sim.energy",
        "edge_sim.link_table",
    ],
)
def test_listing_commands_and_reading_records_needs_no_torch(module):
    assert "torch" not in imported_by(f"import {module}")


def test_the_load_tests_commands_bring_neither_torch_nor_locust_nor_a_half_of_the_product():
    assert not imported_by("import loadtests.commands") & {"torch", "locust", "gevent", "serve_app", "edge_sim", "ray"}


def test_the_client_is_the_packages_public_name():
    assert {"torch", "aiohttp"} <= imported_by("from edge_sim import EdgeClient, Answer")
