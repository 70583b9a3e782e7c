"""An SLO file says what it means, or is refused in one line with file, line and field."""

from __future__ import annotations

import pytest

from loadtests.slo import Slo, read_slo
from split_inference.errors import ConfigError
from tests.conftest import ROOT


@pytest.mark.parametrize("file", sorted((ROOT / "loadtests/slo_files").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_files_that_ship_are_read(file):
    assert read_slo(file).name == file.stem


def test_what_the_file_says_is_kept(tmp_path):
    file = tmp_path / "slo.yaml"
    file.write_text("version: 1\nlatency: {p99_ms: 250, p50_ms: 40}\nmax_errors: 0.01\n")
    slo = read_slo(file)
    assert slo.latency.said() == {"p50_ms": 40, "p99_ms": 250}
    assert slo.max_errors == 0.01
    assert slo.min_goodput is None


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("version: 1\nlatency: {p99: 250}\n", 2, "latency.p99: unknown key; did you mean p99_ms?"),
        ("version: 1\nlatency:\n  p99_ms: -3\n", 3, "latency.p99_ms"),
        ("version: 1\nlatency: {p50_ms: 90, p99_ms: 50}\n", 2, "p50_ms of 90 is above p99_ms of 50"),
        ("version: 1\nname: nothing\n", 1, "says nothing to hold"),
        ("version: 2\nmax_errors: 0\n", 1, "version"),
        ("max_errors: 0\n", 1, "version: has to be set"),
        ("version: 1\nmax_errors: 1.5\n", 2, "max_errors"),
        ("version: 1\nmin_goodput: .nan\n", 2, "min_goodput"),
        ("version: 1\nmax_error: 0\n", 2, "did you mean max_errors?"),
        ("- 1\n", None, "expected a mapping"),
        ("version: 1\nversion: 1\nmax_errors: 0\n", 2, "stands twice"),
        ("version: [1\n", None, "not YAML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, line, said):
    file = tmp_path / "slo.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_slo(file)
    message = str(caught.value)
    assert "\n" not in message
    assert said in message
    assert message.startswith(f"{file}:{line}:" if line else str(file))


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_slo(tmp_path / "none.yaml")


def test_an_objective_without_anything_is_none():
    with pytest.raises(ValueError, match="says nothing"):
        Slo(version=1)
