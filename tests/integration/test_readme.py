"""README, run as it stands: its commands, its Python, and the pages that it points to."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sim.server_process import ServerProcess
from tests.patience import RUN_PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DEFAULT_URL = "http://127.0.0.1:8000"


def commands(block: str) -> list[str]:
    """Commands of a block, without comments, lines that go on joined."""
    joined = block.replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in joined.splitlines() if line.strip()]


def bash_blocks() -> list[list[str]]:
    return [commands(text) for kind, text in BLOCK.findall(README) if kind == "bash"]


def shell(command: str) -> str:
    """Run one line from the repository root, with this environment's console scripts first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=RUN_PATIENCE_S, check=False,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", [*bash_blocks()[0], *bash_blocks()[3]])
def test_a_command_that_needs_no_server_runs(command):
    assert shell(command).strip()


def test_what_readme_does_with_a_server_works(tmp_path):
    serve, client = bash_blocks()[1:3]
    assert [line.split()[0] for line in serve] == ["make", "serve"]
    (python,) = (text for kind, text in BLOCK.findall(README) if kind == "python")
    server = ServerProcess(ROOT / "config.yaml")
    with server.started(log=tmp_path / "server.log"):
        server.wait_until_ready("/v1/models/resnet20-cifar10")
        infer, as_json, catalogue, image = (line.replace(DEFAULT_URL, server.url) for line in client)
        assert "test-" in shell(infer)
        assert json.loads(shell(as_json))
        assert json.loads(shell(catalogue))["models"][0]["name"] == "resnet20-cifar10"
        assert json.loads(shell(image))["predictions"][0][0]["label"] in ("cat", "dog")
        prepare, load = (line.replace(DEFAULT_URL, server.url) for line in bash_blocks()[4])
        assert "20 inputs" in shell(prepare)
        # On a busy machine the generator is late and says so; the figures are there all the same.
        said = shell(f"{load} --folder {tmp_path / 'load'} || test $? -eq 3 -o $? -eq 99")
        assert "wrong 0" in said
        assert (tmp_path / "load" / "report.html").is_file()
        script = tmp_path / "readme.py"
        script.write_text(python.replace(DEFAULT_URL, server.url))
        said = shell(f"{sys.executable} {script}")
        assert said.split()[0].isalpha()
    assert server.leftover() == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/your-own-model.md", "docs/wire-format.md"])
def test_every_file_that_a_page_names_exists(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"\]\(([\w./-]+)\)", text)) | set(re.findall(r"\b(docs/[\w/-]+\.md)\b", text))
    missing = [name for name in named if not ((ROOT / page).parent / name).exists() and not (ROOT / name).exists()]
    assert missing == []


def test_every_make_target_that_readme_names_exists():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z][a-z0-9-]+)`", README))
    assert named <= targets


def test_the_changelog_ends_at_the_packages_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version is not None
    assert newest is not None
    assert version[1] == newest[1]
