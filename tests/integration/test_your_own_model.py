"""docs/your-own-model.md, run as it stands: own code and checkpoint to answers from a served split model."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edge_sim.server_process import ServerProcess
from split_inference.model_catalog import EMBEDDED_FOLDER
from tests.patience import RUN_PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "your-own-model.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(PAGE.read_text()) if kind == language]


def run(command: str, folder: Path) -> str:
    """A command line of the page, in a user's folder; its console script as this environment has it."""
    name, *arguments = shlex.split(command)
    assert name == "split-inference"
    done = subprocess.run(
        [sys.executable, "-m", "split_inference.cli", *arguments, "--json"],
        cwd=folder, capture_output=True, text=True, timeout=RUN_PATIENCE_S, check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the page asks for: the three files, a checkpoint and photographs."""
    files = [*blocks("python"), *blocks("json"), *blocks("yaml")]
    for text in files:
        first, _, rest = text.partition("\n")
        name = first.removeprefix("#").removeprefix("//").strip()
        (tmp_path / name).write_text(rest if name.endswith(".json") else text)
    assert {"my_model.py", "card.json", "my_config.yaml"} <= {path.name for path in tmp_path.iterdir()}
    (tmp_path / "photos").symlink_to(EMBEDDED_FOLDER / "samples")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    import my_model  # type: ignore[import-not-found]  # the page's own file

    torch.manual_seed(0)
    torch.save(my_model.build().state_dict(), tmp_path / "checkpoint.pt")
    return tmp_path


def test_the_page_takes_a_checkpoint_to_a_served_split_model(folder):
    verify, calibrate, serve, infer = (text.strip() for text in blocks("bash"))
    assert json.loads(run(verify, folder))["exact"] is True
    found = json.loads(run(calibrate, folder))
    assert (folder / "mine.calibration.json").is_file()
    assert serve == "serve run my_config.yaml"
    server = ServerProcess(folder / "my_config.yaml")
    with server.started(log=folder / "server.log"):
        server.wait_until_ready("/v1/models/mine")
        answers = json.loads(run(infer.replace("http://127.0.0.1:8000", server.url), folder))
    assert server.leftover() == []
    text = json.dumps(answers)
    assert found["split_point"] in text
    assert "airplane" in text or "truck" in text
