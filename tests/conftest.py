"""Fixtures for all tests: where the data lies, a seeded generator, one torch thread."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
# Its bounds of 200 ms an example, and of generating one, judge the machine's speed: no test's business here.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")


def pytest_collection_modifyitems(items):
    """Tests under tests/integration start real processes; `make test-fast` leaves them out by this mark.

    They come first: their files take minutes, and short ones fill what is left of the other processes' time.
    """
    for item in items:
        if "integration" in item.path.relative_to(ROOT / "tests").parts:
            item.add_marker(pytest.mark.integration)
    items.sort(key=lambda item: item.get_closest_marker("integration") is None)


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tests find and leave nothing in the user's own folder of compiled tails and exported models."""
    base = tmp_path_factory.getbasetemp()
    # Processes of one run share it: what one has compiled need not be compiled again.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLIT_INFERENCE_CACHE", str(shared / "cache"))
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def _data_folder() -> Path | None:
    named = os.environ.get("SPLIT_INFERENCE_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real images and a real network; skips where they are absent, fails there with REQUIRE_DATA=1."""
    folder = _data_folder()
    if folder is None:
        reason = "no test data: set SPLIT_INFERENCE_DATA, or put it at ../shared/data"
        if os.environ.get("REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
