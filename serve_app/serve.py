"""`python -m serve_app.serve config.yaml`: check the config, set Serve's flags, become `serve run`.

Flags are environment variables that Ray reads when it is imported, on every node, so that they have to be there
before it starts; config.yaml cannot hold them. A variable that is already set stays as it is.
"""

from __future__ import annotations

import argparse
import os
import resource
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from split_inference.errors import ConfigError, SplitInferenceError
from split_inference.wire import MAX_FRAME_BYTES

FLAGS: Mapping[str, str] = {
    # Nothing about this machine is sent anywhere.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's own ports (GCS, raylet) listen on every interface, whatever host says.
    "RAY_AUTH_MODE": "token",
    # A Ray that already runs here has read its flags already; a cluster's address can be given instead.
    "RAY_ADDRESS": "local",
    # After a proxy dies: 5 s without service with these two, 24 s with Serve's defaults.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
    # What Serve's own processes do all the time, less often: together a twentieth of a core, and a busier loop is a
    # later answer. Metrics are scraped every ten seconds anyway.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_EVENT_LOOP_MONITORING_INTERVAL_S": "60",
    # Ray gives its raylet jemalloc with four arenas a core and a cache a thread, and each of its thirty threads fills
    # its own little by little: an idle raylet grew by a tenth in ten minutes, and not at all so. No request passes it.
    "RAY_JEMALLOC_PROFILE": "raylet",
    "RAY_JEMALLOC_CONF": "narenas:1,tcache:false",
    # Serve takes messages of 2 GiB over gRPC, and reads each of them whole before anybody asks for a token.
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(MAX_FRAME_BYTES + 2**16),
    # The deadlines of mobile requests lie between these.
    "RAY_SERVE_REQUEST_LATENCY_BUCKETS_MS": "1,2,3,5,7,10,15,20,30,50,75,100,200,500,1000,2000",
}
HAPROXY_FLAGS: Mapping[str, str] = {
    # HAProxy to the replica's own HTTP server, and no Ray RPC in between; the second flag makes the first one fast.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Of a phone that fell silent; Serve's default is an hour.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "30",
    # Every change of replicas reloads HAProxy: old workers leave after a minute, and changes close together are one.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "60",
    "RAY_SERVE_HAPROXY_BROADCAST_COALESCE_S": "0.5",
    # How long a leaving replica still answers. HAProxy on this machine knows of it within two seconds; Serve's
    # default of 30 is for load balancers further away, and Ctrl-C would take as long.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
}
MAX_CONNECTIONS = 8192
_HAPROXY_FILES: Mapping[str, str] = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}


def environment_of(
    base: Mapping[str, str], *, haproxy_folder: Path | None, cores: int, open_files: int
) -> dict[str, str]:
    """The environment of `serve run`: our flags, under whatever `base` already says; without a folder, no HAProxy."""
    flags = dict(FLAGS)
    if haproxy_folder is not None:
        flags |= HAPROXY_FLAGS
        flags |= {name: str(haproxy_folder / file) for name, file in _HAPROXY_FILES.items()}
        flags["RAY_SERVE_HAPROXY_NBTHREAD"] = str(cores)
        flags["RAY_SERVE_HAPROXY_MAXCONN"] = str(connections_within(open_files))
    return {**flags, **base}


def connections_within(open_files: int) -> int:
    """How many connections HAProxy may take, so that it starts: it refuses to where the limit of open files is low."""
    # Two sockets per connection and a pipe for every fourth; the rest are listeners and health checks.
    return max(64, min(MAX_CONNECTIONS, (open_files - 256) * 2 // 5))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and serve; returns only where something was wrong (2)."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.serve", description="Check a config file and serve it.")
    parser.add_argument("config", type=Path, help="Serve config file, such as config.yaml")
    parser.add_argument("--no-haproxy", action="store_true", help="use Serve's own proxy, as plain `serve run` does")
    options = parser.parse_args(arguments)
    haproxy = not options.no_haproxy
    if haproxy and not sys.platform.startswith("linux"):
        print("HAProxy comes with Ray on Linux only; serving through Serve's own proxy", file=sys.stderr)
        haproxy = False
    try:
        folder = private_folder(Path("/tmp")) if haproxy else None
        environment = environment_of(os.environ, haproxy_folder=folder, cores=len(_cores()), open_files=_open_files())
        # The check imports Ray, which reads its flags once: it has to see those that Serve will run with.
        os.environ.update(environment)
        from serve_app.config_check import check_config

        checked = check_config(options.config, port_free=True, haproxy=haproxy)
        for app in checked.applications:
            _compile(app.settings)
    except SplitInferenceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    where = f"http://{checked.host}:{checked.port}"
    print(
        f"serving {', '.join(f'{where}{app.route_prefix}' for app in checked.applications)}",
        file=sys.stderr,
        flush=True,
    )
    _become_serve_run(options.config, environment)


def _compile(settings: object) -> None:
    """Compile what an application asks for and the cache lacks, so that no replica has to."""
    from serve_app.settings import AppSettings

    # Most applications compile nothing, and torch takes seconds to import.
    if not isinstance(settings, AppSettings) or not settings.compiles:
        return
    from serve_app.compile_command import compile_for

    compile_for(settings, say=lambda line: print(line, file=sys.stderr, flush=True))


def private_folder(parent: Path) -> Path:
    """A folder that nobody else can enter. Raises ConfigError where someone else made it first.

    HAProxy's admin socket obeys whoever can open it, and by default it lies where everyone can. Not under TMPDIR,
    which may be long: a socket's path has at most 107 bytes.
    """
    folder = parent / f"si-haproxy-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise ConfigError(f"{folder} has to be a folder of yours that nobody else can enter: remove it, or chmod 700")
    return folder


def _cores() -> Sequence[int]:
    # Not the machine's: a container may have fewer.
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _open_files() -> int:
    # The hard limit: HAProxy raises the soft one itself.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return limit if limit != resource.RLIM_INFINITY else 2**20


def _become_serve_run(config: Path, environment: Mapping[str, str]) -> NoReturn:
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config)]
    os.execve(sys.executable, command, dict(environment))


if __name__ == "__main__":
    sys.exit(main())
