"""What load tests import, seen from a fresh interpreter: no torch, no half of the product, Locust only at the rim."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import loadtests
from tests.architecture.test_import_direction import imported_by

# Locustfiles and what they inherit from: importing Locust patches the process.
RIM = {"experiment", "conductor"} | {
    file.stem for file in Path(loadtests.__path__[0]).glob("*.py") if "loadtests.experiment" in file.read_text()
}
MODULES = {module.name for module in pkgutil.iter_modules(loadtests.__path__)}


def test_all_but_the_rim_import_neither_locust_nor_torch_nor_the_product():
    loaded = imported_by("\n".join(f"import loadtests.{module}" for module in sorted(MODULES - RIM)))
    assert not loaded & {"locust", "torch", "ray", "edge_sim", "serve_app", "aiohttp"}


def test_a_locustfile_needs_no_torch():
    loaded = imported_by("import loadtests.poisson")
    assert "locust" in loaded
    assert not loaded & {"torch", "ray", "edge_sim", "serve_app"}


def test_experiments_have_names_of_their_own():
    """Locust puts their folder in front of sys.path, where a module called `trace` would hide the standard one."""
    import sys

    assert not MODULES & set(sys.stdlib_module_names)
