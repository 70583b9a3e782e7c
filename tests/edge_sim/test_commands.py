"""The commands as a user types them, against a loopback server: output, exit codes, one-line refusals."""

from __future__ import annotations

import json
import socket
import sys
from functools import partial

import pytest

from edge_sim.commands import _resolve
from split_inference import cli
from split_inference.calibration import EMBEDDED_CALIBRATION, Calibration, load_calibration, save_calibration
from split_inference.model_catalog import load_model
from tests.edge_sim.helpers import LABELS, TinyServer, picture
from tests.edge_sim.loopback import handler_of, http_server
from tests.patience import PATIENCE_S


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    card = tmp_path_factory.mktemp("model") / "card.json"
    card.write_text(json.dumps({"labels": LABELS, "preprocessing": {"kind": "image", "height": 8, "width": 8}}))
    return load_model(f"factory:tests.edge_sim.factories:branches?card={card}&name=tiny")


@pytest.fixture(scope="module")
def url(loaded):
    with http_server(handler_of(TinyServer(loaded))) as base:
        yield base


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(picture())
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line as typed; gives exit code, standard output and standard error."""

    def run(*words: object):
        monkeypatch.setattr(sys, "argv", ["split-inference", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def refused(result, *words: str) -> None:
    """Exit code 2, nothing on standard output, and one line that holds the words."""
    code, out, err = result
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.strip()]
    for word in words:
        assert word in line, line


def test_infer_prints_json_and_nothing_else(command, url, loaded, photo):
    code, out, _ = command("infer", photo, "--url", url, "--model", loaded.card.uri, "--at", "stem", "--json")
    result = json.loads(out)
    (answer,) = result["answers"]
    assert (code, result["split_point"], result["codec"]) == (0, "stem", "u4+lz4")
    assert answer["file"] == "photo.png"
    assert answer["file_bytes"] == len(picture())
    assert answer["predictions"][0]["label"] in LABELS
    assert sum(answer["stages_ms"].values()) == pytest.approx(answer["total_ms"])


def test_infer_prints_a_table_of_a_folder(command, url, loaded, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture((number * 80, 9, 9)))
    code, out, _ = command("infer", tmp_path, "--url", url, "--model", loaded.card.uri, "--at", "relu", "--limit", 2)
    assert code == 0
    assert out.count(".png") == 2
    assert "split at relu" in out


def test_infer_at_the_input_sends_the_file_as_it_is(command, url, loaded, photo):
    code, out, _ = command("infer", photo, "--url", url, "--model", loaded.card.uri, "--at", "input", "--json")
    result = json.loads(out)
    assert (code, result["answers"][0]["sent_bytes"]) == (0, len(picture()))
    assert result["codec"] == "the file as it is"


def test_infer_uses_a_calibrations_split_and_codec(command, url, loaded, photo, tmp_path):
    save_calibration(
        Calibration(
            model=loaded.card.uri,
            model_digest=loaded.model.digest,
            split_point="stem",
            codec="u2+lz4",
            clip=(),
            channel_axes=(1,),
        ),
        tmp_path / "c.json",
    )
    code, out, _ = command(
        "infer", photo, "--url", url, "--model", loaded.card.uri, "--calibration", tmp_path / "c.json", "--json"
    )
    result = json.loads(out)
    assert (code, result["split_point"], result["codec"]) == (0, "stem", "u2+lz4")


def test_a_missing_file_is_one_line(command, url, tmp_path):
    refused(command("infer", tmp_path / "none.png", "--url", url), "none.png")


def test_a_file_that_is_no_image_is_one_line_with_its_name(command, url, loaded, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    result = command("infer", tmp_path / "broken.png", "--url", url, "--model", loaded.card.uri, "--at", "stem")
    refused(result, "broken.png")


def test_an_unknown_split_point_is_one_line_with_the_nearest(command, url, loaded, photo):
    refused(command("infer", photo, "--url", url, "--model", loaded.card.uri, "--at", "stam"), "stam", "stem")


def test_an_unknown_codec_is_one_line_with_the_known_forms(command, url, loaded, photo):
    words = ("infer", photo, "--url", url, "--model", loaded.card.uri, "--at", "stem", "--codec", "zip")
    refused(command(*words), "zip", "known")


def test_no_split_point_is_one_line_that_says_how_to_find_one(command, url, loaded, photo):
    refused(command("infer", photo, "--url", url, "--model", loaded.card.uri), "--at", "--calibration")


def test_a_factory_is_not_loaded_on_a_servers_word(command, url, photo):
    refused(command("infer", photo, "--url", url, "--at", "stem"), "--model", "on a server's word")


def test_a_model_that_the_server_lacks_is_one_line(command, url, loaded, photo):
    words = ("infer", photo, "--url", url, "--model", loaded.card.uri, "--at", "stem", "--name", "other")
    refused(command(*words), "other")


def test_a_url_that_is_none_is_one_line(command, photo):
    refused(command("infer", photo, "--url", "localhost:8000"), "http://HOST:PORT")


def test_a_token_beyond_this_machine_is_refused_in_the_clear(command, photo, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    words = ("infer", photo, "--url", "http://edge.example", "--token-file", tmp_path / "token")
    refused(command(*words), "in the clear", "--insecure-token")


def test_a_codec_alone_is_measured_where_the_embedded_calibration_splits():
    embedded = load_model("embedded:resnet20-cifar10")
    calibration = load_calibration(EMBEDDED_CALIBRATION)
    ask = partial(_resolve, embedded, at=None, calibration=None)
    assert ask(codec=None) == (calibration.split_point, calibration, None, False)
    assert ask(codec=calibration.codec) == (calibration.split_point, calibration, calibration.codec, False)
    assert ask(codec="u8") == (calibration.split_point, None, "u8", False)


def test_a_missing_token_file_is_one_line(command, photo, tmp_path):
    words = ("infer", photo, "--url", "https://edge.example", "--token-file", tmp_path / "none")
    refused(command(*words), "token file")


def test_a_server_that_is_away_is_one_line_and_exit_code_1(command, loaded, photo):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{closed.getsockname()[1]}"
    words = ("infer", photo, "--url", away, "--model", loaded.card.uri, "--at", "stem", "--timeout", PATIENCE_S)
    code, out, err = command(*words)
    assert (code, out) == (1, "")
    assert "is the server up?" in err.splitlines()[-1]


def test_a_demo_without_its_config_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command("demo", "--images", 1)
    assert list(tmp_path.glob("runs/*/requests.jsonl")) == []
    refused(result, "config.yaml")


@pytest.mark.parametrize("name", ["infer", "demo"])
def test_help_has_an_example(command, name):
    code, out, _ = command(name, "--help")
    assert code == 0
    assert f"split-inference {name}" in out
