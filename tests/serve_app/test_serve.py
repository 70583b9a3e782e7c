from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.serve import FLAGS, HAPROXY_FLAGS, connections_within, environment_of, private_folder
from split_inference.errors import ConfigError

FOLDER = Path("/somewhere")


def test_behind_haproxy_both_of_its_flags_are_set():
    environment = environment_of({}, haproxy_folder=FOLDER, cores=4, open_files=2**20)
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert environment["RAY_SERVE_HAPROXY_NBTHREAD"] == "4"
    assert environment["RAY_SERVE_HAPROXY_SOCKET_PATH"] == "/somewhere/admin.sock"
    assert set(environment) > set(FLAGS) | set(HAPROXY_FLAGS)


def test_without_haproxy_none_of_its_flags_is_set():
    assert environment_of({}, haproxy_folder=None, cores=4, open_files=1024) == dict(FLAGS)


def test_what_is_already_set_stays():
    base = {"RAY_AUTH_MODE": "disabled", "RAY_SERVE_HAPROXY_MAXCONN": "7", "PATH": "/bin"}
    environment = environment_of(base, haproxy_folder=FOLDER, cores=1, open_files=2**20)
    assert {name: environment[name] for name in base} == base


@pytest.mark.parametrize(("open_files", "connections"), [(2**20, 8192), (20_000, 7897), (4096, 1536), (256, 64)])
def test_haproxy_takes_no_more_connections_than_files_may_be_open(open_files, connections):
    assert connections_within(open_files) == connections


def test_the_folder_of_the_admin_socket_is_ours_alone(tmp_path):
    folder = private_folder(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert private_folder(tmp_path) == folder


def test_a_folder_that_others_can_enter_is_refused(tmp_path):
    private_folder(tmp_path).chmod(0o755)
    with pytest.raises(ConfigError, match="nobody else can enter"):
        private_folder(tmp_path)


def test_a_link_in_place_of_the_folder_is_refused(tmp_path):
    folder = private_folder(tmp_path)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="nobody else can enter"):
        private_folder(tmp_path)
