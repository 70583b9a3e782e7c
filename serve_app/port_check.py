"""Whether the ports that a config file asks for can be bound now, and to whom they would be open.

Knows sockets, HAProxy's other ports and the environment. Says what is wrong by a callback, which knows the file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import NoReturn

from split_inference.yaml_lines import Place

GRPC_PORT = 9000
"""Ray Serve's own default, where grpc_options names none."""
Refuse = Callable[[Place, str], NoReturn]
_EVERYWHERE = "0.0.0.0"


def check_ports(refuse: Refuse, host: str, port: int, *, haproxy: bool) -> None:
    """HTTP's, and with HAProxy the ones that it needs beside it."""
    _check_port(refuse, ("http_options", "port"), host, port, "stop what listens there, or write another port")
    if not haproxy:
        return
    # The last is of the proxy that HAProxy passes requests to which no replica can take: it wakes cold models.
    for name, default in (
        ("RAY_SERVE_HAPROXY_METRICS_PORT", "9101"),
        ("RAY_SERVE_HAPROXY_STATS_PORT", "8404"),
        ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "8500"),
    ):
        text = os.environ.get(name, default)
        if not text.isdecimal():
            refuse((), f"environment variable {name} has to be a number, got {text!r}")
        _check_port(refuse, (), _EVERYWHERE, int(text), f"HAProxy needs it too; set {name} to another one")


def check_grpc(refuse: Refuse, host: str, port: int, *, unguarded: Sequence[str], haproxy: bool) -> None:
    """gRPC's; `unguarded` are the applications that let everybody in."""
    if not haproxy and unguarded and (host in ("localhost", "::1") or host.startswith("127.")):
        refuse(
            ("grpc_options",),
            f"Serve's own proxy listens for gRPC on every interface, not only on {host}, and {unguarded[0]} has no "
            "auth: serve through HAProxy, or write auth.mode: token",
        )
    where = host if haproxy else _EVERYWHERE
    _check_port(refuse, ("grpc_options", "port"), where, port, "stop what listens there, or write another port")


def _check_port(refuse: Refuse, place: Place, host: str, port: int, advice: str) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        refuse(("http_options", "host"), f"{host} is no address of this machine: {error}")
    with socket.socket(family, kind, protocol) as probe:
        # Without it, a connection that a former server closed a minute ago would count as in use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            refuse(place, f"port {port} on {host} cannot be used ({error.strerror}): {advice}")
