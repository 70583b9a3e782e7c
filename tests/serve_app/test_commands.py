from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serve_app.commands import register
from split_inference.errors import ConfigError

CONFIG = Path(__file__).resolve().parents[2] / "config.yaml"


def run(*arguments):
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return CliRunner().invoke(app, ["check-config", *map(str, arguments)])


def test_a_good_config_is_shown_as_a_table():
    result = run(CONFIG)
    assert result.exit_code == 0
    assert "/v1/models/resnet20-cifar10" in result.stdout


def test_a_good_config_is_shown_as_json():
    content = json.loads(run(CONFIG, "--json").stdout)
    assert (content["host"], content["port"]) == ("127.0.0.1", 8000)
    assert [each["route_prefix"] for each in content["applications"]] == ["/v1/models", "/v1/models/resnet20-cifar10"]
    assert content["applications"][1]["args"]["model"] == "embedded:resnet20-cifar10"


def test_a_bad_config_raises_one_line_for_the_program_to_print(tmp_path):
    result = run(tmp_path / "none.yaml")
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == f"{tmp_path}/none.yaml: no such file"


@pytest.mark.parametrize("name", ["--port-free", "--load", "--json"])
def test_the_help_names_every_option(name):
    assert name in run("--help").stdout
