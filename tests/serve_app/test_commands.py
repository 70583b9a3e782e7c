from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serve_app.commands import register
from serve_app.settings import AuthSettings
from serve_app.tokens import TokenBook, hash_of
from split_inference.errors import ConfigError

CONFIG = Path(__file__).resolve().parents[2] / "config.yaml"


def run(*arguments, command="check-config"):
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return CliRunner().invoke(app, [command, *map(str, arguments)])


def make_token(*arguments):
    return run(*arguments, command="make-token")


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


def test_a_new_token_stands_alone_on_standard_output_and_its_entry_lets_it_in():
    result = make_token("phones", "--rate", "200", "--share", "0.5")
    assert result.exit_code == 0
    [token] = result.stdout.splitlines()
    assert token not in result.stderr
    [entry] = [line for line in result.stderr.splitlines() if line.startswith("- ")]
    book = TokenBook.load(AuthSettings(mode="token", tokens_env="TOKENS"), environ={"TOKENS": entry})
    client = book.client_of(f"Bearer {token}")
    assert (client.name, client.share, client.rate_per_s) == ("phones", 0.5, 200)


def test_out_collects_entries_in_a_private_file_without_the_tokens(tmp_path):
    file = tmp_path / "tokens.yaml"
    tokens = {name: make_token(name, "--out", file).stdout.strip() for name in ("phones", "lab")}
    assert file.stat().st_mode & 0o777 == 0o600
    book = TokenBook.load(AuthSettings(mode="token", tokens_file=file), environ={})
    for name, token in tokens.items():
        assert book.client_of(f"Bearer {token}").name == name
        assert token not in file.read_text()
        assert hash_of(token) in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["pho nes"], "the new entry"), (["phones", "--out", "{folder}/none/tokens.yaml"], "cannot write")],
)
def test_a_token_that_cannot_be_kept_is_not_shown(tmp_path, arguments, reason):
    result = make_token(*(each.format(folder=tmp_path) for each in arguments))
    assert isinstance(result.exception, ConfigError)
    assert reason in str(result.exception)
    assert "si_" not in result.output


@pytest.mark.parametrize("arguments", [["--share", "0"], ["--share", "1.5"], ["--rate", "0"], ["--rate", "-1"]])
def test_a_rate_or_share_out_of_range_makes_no_token(arguments):
    result = make_token("phones", *arguments)
    assert result.exit_code == 2
    assert "si_" not in result.output
