"""A server that is hard to stop, for tests: its children ignore every polite signal and hide whose they are.

Run as `python stubborn_server.py MODE CONFIG`; answers 200 on the port of the config. MODE says how it ends:
polite (SIGINT ends it, but not its child), deaf (ignores SIGINT and SIGTERM itself), broken (ends before it is ready).
"""

from __future__ import annotations

import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import yaml

CHILD = "import signal, time\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: time.sleep(60)"


class Answer(BaseHTTPRequestHandler):
    """200 for everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Say nothing."""


def main(mode: str, config: str) -> None:
    print(f"mode {mode}", flush=True)
    subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=True)
    if mode == "broken":
        raise SystemExit("the weights are missing")
    # As Ray's agents do: nothing of the environment is left.
    subprocess.Popen([sys.executable, "-c", CHILD], env={})
    subprocess.Popen([sys.executable, "-c", CHILD], env={}, start_new_session=True)
    if mode == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    port = yaml.safe_load(Path(config).read_text())["http_options"]["port"]
    HTTPServer(("127.0.0.1", port), Answer).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
