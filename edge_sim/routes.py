"""Where things are on a server, below its URL."""

from __future__ import annotations

from urllib.parse import quote

CATALOG_PATH = "/v1/models"


def model_path(served_name: str) -> str:
    """Route of a model."""
    return f"{CATALOG_PATH}/{quote(served_name, safe='')}"
