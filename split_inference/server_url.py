"""Where a server is and where things are on it: its URL checked, its routes, and whether it is this machine.

What a simulated device and a load test both have to know before they send anything. Knows no HTTP client.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import quote, urlsplit

from split_inference.errors import UsageError

CATALOG_PATH = "/v1/models"


def model_path(served_name: str) -> str:
    """Route of a model."""
    return f"{CATALOG_PATH}/{quote(served_name, safe='')}"


def checked_base_url(url: str, *, called: str = "the server's URL") -> str:
    """The URL without a trailing slash; UsageError when it is not plain http(s)://host[:port][/path].

    `called` is what the sender calls it.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{url!r} is not a server's URL: expected http://HOST:PORT or https://HOST[:PORT]")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(f"{called} may not carry a user name, a query or a fragment: {parts.hostname}")
    return url.rstrip("/")


def is_this_machine(url: str) -> bool:
    """Whether what is sent to this URL never leaves the machine; names other than localhost are not looked up."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_exposed_token(url: str, *, has_token: bool, allowed: bool) -> None:
    """Raise UsageError when a token would cross a network in the clear and nobody said that it may."""
    parts = urlsplit(url)
    if not has_token or allowed or parts.scheme == "https" or is_this_machine(url):
        return
    raise UsageError(
        f"a token would travel to {parts.hostname} in the clear: use https://, or --insecure-token in a trusted network"
    )
