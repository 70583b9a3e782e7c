"""What several integration tests need: a browser."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("REQUIRE_DATA") == "1":
            pytest.fail("pages are tested in Chromium: install chromium")
        pytest.skip("pages are tested in Chromium, and there is none here")
    return found
