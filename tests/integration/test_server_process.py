"""ServerProcess with servers that are hard to stop: nothing survives the block, and nobody else is touched."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from edge_sim.server_process import Patience, ServerProcess, read_serve_config, refuse_port_in_use, serve_environment
from split_inference.errors import ConfigError, ServerError, UsageError
from tests.integration.processes import below, wait_for
from tests.patience import PATIENCE_S

STUBBORN = Path(__file__).with_name("stubborn_server.py")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("http_options: {port: 8000}\napplications: [{name: a, args: {model: m}}]\n")
    return path


# The same steps with short waits: what ignores a signal does so for ever.
QUICK = Patience(interrupted_s=0.3, orphaned_s=0.3, terminated_s=0.3)


def stubborn(config: Path, mode: str, patience: Patience = QUICK) -> ServerProcess:
    return ServerProcess(config, command=[sys.executable, str(STUBBORN), mode], patience=patience)


@pytest.mark.parametrize("mode", ["polite", "deaf"])
def test_nothing_survives_the_block(config, tmp_path, mode):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        before = set(below(os.getpid()))
        server = stubborn(config, mode)
        with server.started(log=tmp_path / "log"):
            server.wait_until_ready("/")
            started = set(server.leftover())
            assert len(started) == 4
            assert started <= set(below(os.getpid())) - before
            assert urllib.request.urlopen(server.url, timeout=PATIENCE_S).status == 200
        assert server.leftover() == []
        assert not started & set(below(1))
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_an_exception_in_the_block_stops_the_server_too(config, tmp_path):
    server = stubborn(config, "polite")
    with pytest.raises(LookupError), server.started(log=tmp_path / "log"):
        raise LookupError
    assert server.leftover() == []


def test_a_server_that_ends_before_it_is_ready_is_one_line_with_its_last_words(config, tmp_path):
    server = stubborn(config, "broken")
    with pytest.raises(ServerError, match="the weights are missing") as caught, server.started(log=tmp_path / "log"):
        server.wait_until_ready("/")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "log") in str(caught.value)
    assert server.leftover() == []


def test_a_server_that_does_not_come_is_given_up_in_time(config, tmp_path):
    server = stubborn(config, "polite")
    with pytest.raises(ServerError, match=r"within 0 s"), server.started(log=tmp_path / "log"):
        server.wait_until_ready("/", timeout_s=0.0)
    assert server.leftover() == []


def test_a_signal_while_it_stops_skips_the_polite_waits(config, tmp_path):
    server = stubborn(config, "deaf", Patience(interrupted_s=60.0, orphaned_s=60.0, terminated_s=60.0))
    with server.started(log=tmp_path / "log"):
        server.wait_until_ready("/")
        impatient = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
        impatient.start()
        started_s = time.monotonic()
        server.stop()
        impatient.join()
        assert time.monotonic() - started_s < 50
    assert server.leftover() == []


def test_only_the_port_and_the_host_of_the_config_are_changed(config, tmp_path):
    server = stubborn(config, "polite")
    assert server.config["applications"] == [{"name": "a", "args": {"model": "m"}}]
    assert server.config["http_options"] == {"port": server.port, "host": "127.0.0.1"}
    assert "8000" in config.read_text()


def test_a_port_in_use_is_one_line(config):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} on 127\.0\.0\.1"):
            ServerProcess(config, port=port)
    assert refuse_port_in_use(port) == port


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_does_not_exist_is_refused(port):
    with pytest.raises(UsageError, match="does not exist"):
        refuse_port_in_use(port)


@pytest.mark.parametrize("text", ["- a list", "http_options: 7", "{", "\x00"])
def test_a_config_that_is_none_is_one_line(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_serve_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_config_says_where_to_stand(tmp_path):
    with pytest.raises(ConfigError, match="--config"):
        read_serve_config(tmp_path / "none.yaml")


def test_ray_is_told_not_to_write_into_the_users_home(tmp_path):
    environment = serve_environment(tmp_path)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN"] != serve_environment(tmp_path)["RAY_AUTH_TOKEN"]
    assert environment["RAY_TMPDIR"] == str(tmp_path)


def test_temporary_files_are_gone_with_the_server(config, tmp_path):
    server = stubborn(config, "polite")
    with server.started(log=tmp_path / "log"):
        server.wait_until_ready("/")
        folder = Path(below(os.getpid())[server.leftover()[0]].command.split()[-1]).parent
        wait_for(folder.is_dir, why="the server's folder never appeared")
    assert not folder.exists()
