"""Imports Ray before the tests do: it warns of its own pydantic models then, and in tests warnings are errors."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401
