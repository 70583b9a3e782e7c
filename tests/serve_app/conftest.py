"""Imports Ray before the tests do: it warns of its own pydantic models then, and in tests warnings are errors."""

from __future__ import annotations

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    from tests.serve_app.weights import Weights, package

    folder = tmp_path_factory.mktemp("weights")
    return [Weights(package(folder, seed)) for seed in (1, 2)]


@pytest.fixture
def settings(weights, tmp_path):
    from serve_app.settings import AppSettings

    return AppSettings.model_validate({"model": weights[0].uri, "execution": {"cache": tmp_path / "cache"}})
