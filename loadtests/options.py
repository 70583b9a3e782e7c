"""What an experiment is asked for: command-line arguments, also shown in Locust's web page, and their meaning checked.

Knows argparse's groups and no Locust. Arguments have defaults of the right type and never None, because the web page
turns what somebody types into the type of the default. Errors are one line each.
"""

from __future__ import annotations

import math
import os
import ssl
from argparse import Namespace
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from loadtests.generator_health import HealthBounds
from loadtests.open_loop import DROP_AFTER_S
from loadtests.payload_traffic import Mode
from split_inference.errors import UsageError

# Beside its connections a process has files, pipes and Locust's own sockets.
SPARE_FILES = 256
# No answer is waited for longer, so that a longer deadline or delay says nothing; and JSON has no infinity.
MAX_WAIT_S = 3600.0


class ArgumentGroup(Protocol):
    """The part of argparse that is used; `include_in_web_ui=False` hides an argument from Locust's page."""

    def add_argument(self, *names: str, **facts: Any) -> Any:
        """As argparse."""


def add_common_arguments(group: ArgumentGroup) -> None:
    """Arguments of every experiment."""
    add = group.add_argument
    add("--payloads", default="", metavar="FILE[,FILE]", help="payload files; `python -m edge_sim payloads` makes one")
    add("--models", default="", metavar="NAME[,NAME]", help="names on the server, one a file (the files' own names)")
    add(
        "--option",
        default="",
        help='options to send, by title or number: "0=3; server_only=1" (the files\' traffic, or equal parts)',
    )
    add("--weights", default="", metavar="W[,W]", help="proportions of several payload files (their rates, or equal)")
    add("--warmup", type=float, default=2.0, metavar="S", help="seconds at the start that are sent and not counted")
    add(
        "--deadline-ms",
        type=float,
        default=0.0,
        help="an answer after this is not good; from the intended start (0: none)",
    )
    add("--announce-deadline", action="store_true", help="tell the server what is left of the deadline, as devices do")
    add("--timeout", type=float, default=10.0, metavar="S", help="give up on a request after so many seconds")
    add("--max-in-flight", type=int, default=4096, help="requests under way at once, for each worker; more are dropped")
    add(
        "--connections",
        type=int,
        default=0,
        help="keep-alive connections that each worker opens first and keeps in use",
    )
    add(
        "--max-late-ms",
        type=float,
        default=1000 * HealthBounds().schedule_delay_p99_s,
        help="a run that sent later than this at p99 is INVALID (%(default)s)",
    )
    add("--drop-after-ms", type=float, default=1000 * DROP_AFTER_S, help="never send an arrival later than this")
    add("--seed", type=int, default=0, help="of the arrivals and of what is sent")
    add("--slo", default="", metavar="FILE", help="judge the run by this SLO file; exit code 99 where it is missed")
    add("--records", action="store_true", help="write every request's times into requests.csv")
    add("--folder", default="", help="write the run here (runs/<UTC time>-<experiment>)")
    add("--ca", default="", metavar="FILE", help="trust these certificates (PEM) for https", include_in_web_ui=False)
    add("--token-file", default="", metavar="FILE", help="file with the bearer token", include_in_web_ui=False)
    add(
        "--insecure-token", action="store_true", help="send the token to another host without https",
        include_in_web_ui=False,
    )  # fmt: skip
    add(
        "--yes", action="store_true", help="yes, put this load on a host that is not this machine",
        include_in_web_ui=False,
    )  # fmt: skip


def add_rate(group: ArgumentGroup, *, default: float = 50.0, what: str = "requests a second") -> None:
    """`--rate`."""
    group.add_argument("--rate", type=float, default=default, help=f"{what}, over all workers (%(default)s)")


def add_duration(group: ArgumentGroup, *, default: float = 60.0) -> None:
    """`--duration`."""
    group.add_argument("--duration", type=float, default=default, metavar="S", help="seconds, warm-up included")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """The common arguments, checked; times in seconds."""

    host: str
    payloads: tuple[Path, ...]
    models: tuple[str, ...]
    option: str
    weights: tuple[float, ...]
    warmup_s: float
    deadline_s: float | None
    announce_deadline: bool
    timeout_s: float
    max_in_flight: int
    connections: int
    drop_after_s: float
    max_late_s: float
    seed: int
    slo: Path | None
    records: bool
    folder: Path | None
    ca: Path | None
    token_file: Path | None
    insecure_token: bool
    yes: bool
    mode: Mode = "any"

    @classmethod
    def of(cls, given: Namespace, *, host: str | None, mode: Mode = "any") -> RunOptions:
        """From what argparse or the web page read; UsageError where a value cannot be."""
        if not host:
            raise UsageError("no server: give --host http://127.0.0.1:8000")
        if not given.payloads.strip():
            raise UsageError("no payloads: give --payloads FILE; `python -m edge_sim payloads` makes one")
        _require(0 <= given.warmup < math.inf, f"--warmup is 0 s or more, got {given.warmup:g}")
        most_ms = 1000 * MAX_WAIT_S
        _require(
            0 <= given.deadline_ms <= most_ms,
            f"--deadline-ms is 0 (none) or at most {most_ms:.0f}, got {given.deadline_ms:g}",
        )
        _require(
            0 < given.timeout <= MAX_WAIT_S, f"--timeout is above 0 and at most {MAX_WAIT_S:g} s, got {given.timeout:g}"
        )
        _require(1 <= given.max_in_flight <= 200_000, f"--max-in-flight is 1..200000, got {given.max_in_flight}")
        _require(0 <= given.connections <= 200_000, f"--connections is 0..200000, got {given.connections}")
        _require(
            0 < given.max_late_ms <= most_ms,
            f"--max-late-ms is above 0 and at most {most_ms:.0f}, got {given.max_late_ms:g}",
        )
        _require(
            0 < given.drop_after_ms <= most_ms,
            f"--drop-after-ms is above 0 and at most {most_ms:.0f}, got {given.drop_after_ms:g}",
        )
        _require(0 <= given.seed < 2**63, f"--seed is 0 or more, got {given.seed}")
        _require(
            not given.announce_deadline or given.deadline_ms > 0,
            "--announce-deadline needs a deadline: --deadline-ms N",
        )
        return cls(
            host=host.rstrip("/"),
            payloads=tuple(Path(each) for each in _listed(given.payloads)),
            models=tuple(_listed(given.models)),
            option=given.option.strip(),
            weights=tuple(_number(each) for each in _listed(given.weights)),
            warmup_s=given.warmup,
            deadline_s=given.deadline_ms / 1000 or None,
            announce_deadline=given.announce_deadline,
            timeout_s=given.timeout,
            max_in_flight=given.max_in_flight,
            connections=given.connections,
            drop_after_s=given.drop_after_ms / 1000,
            max_late_s=given.max_late_ms / 1000,
            seed=given.seed,
            slo=_path(given.slo),
            records=given.records,
            folder=_path(given.folder),
            ca=_path(given.ca),
            token_file=_path(given.token_file),
            insecure_token=given.insecure_token,
            yes=given.yes,
            mode=mode,
        )

    def facts(self) -> dict[str, Any]:
        """For the run's header."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: _plain(value) for name, value in values.items()}


def check_file_limit(wanted: int) -> None:
    """Raise the soft limit of open files to what so many connections need; UsageError where it cannot be."""
    try:
        import resource
    except ImportError:  # not on Windows, where sockets are no files
        return
    needed = wanted + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UsageError(
            f"{wanted} connections need {needed} open files, and this process may have {hard}: raise the limit with "
            f"`ulimit -Hn {needed}`, or lower --connections and --max-in-flight"
        )
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{wanted} connections need {needed} open files; the limit of {soft} cannot be raised ({error}): "
            f"run `ulimit -n {needed}` before"
        ) from None


def read_token(path: Path | None) -> str | None:
    """The bearer token in a file; UsageError, without repeating it, where it is none."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8").strip() if os.stat(path).st_size <= 65_536 else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read --token-file {path}: {getattr(error, 'strerror', None) or 'no text'}") from None
    if not (text and text.isascii() and text.isprintable() and " " not in text):
        raise UsageError(f"--token-file {path} holds no token: expected one ASCII word")
    return text


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Trusts the system's certificates, or those in `ca` (PEM)."""
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--ca {ca} cannot be read as PEM certificates ({error})") from None


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    _require(math.isfinite(value), f"--weights are numbers, separated by commas; got {text[:40]!r}")
    return value


def _path(text: str) -> Path | None:
    return Path(text.strip()) if text.strip() else None


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(otherwise)
