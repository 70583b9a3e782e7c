"""E. What the RayService serves: the very text that was made from config.yaml, with keys that Serve knows, buildable.

Serve's own schema drops unknown keys without a word, so that the project's check is used (serve_app/config_check.py):
strict keys, AutoscalingConfig, import paths, the builders called, names of deployments, the catalogue's routes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml

from k8s.checks.model import Finding, Overlay, title
from k8s.checks.render import ROOT
from scripts.make_serve_config import TOKENS_FILE

_SOURCES = ("k8s/base/serve.yaml", "k8s/components/gpu/serve.yaml")


def check_serve_config(overlay: Overlay) -> list[Finding]:
    """Its text is a generated file's, and Serve would run it."""
    service = overlay.rayservice()
    where = f"{title(service)} serveConfigV2"
    text = service["spec"].get("serveConfigV2") or ""
    found = []
    if text not in {(ROOT / source).read_text(encoding="utf-8") for source in _SOURCES}:
        found.append(Finding(where=where, problem=f"is the text of none of {', '.join(_SOURCES)}"))
    return found + [Finding(where=where, problem=problem) for problem in problems_of(text)]


def problems_of(text: str) -> list[str]:
    """What the project's check says of a Serve config's text; one line, since it stops at the first."""
    from serve_app.config_check import check_config
    from serve_app.tokens import entry_line, new_token
    from split_inference.errors import ConfigError

    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"is no YAML: {' '.join(str(error).split())[:200]}"]
    if not isinstance(config, dict):
        return ["is no mapping"]
    with tempfile.TemporaryDirectory(prefix="si-check-") as folder:
        tokens = Path(folder, "tokens.yaml")
        tokens.touch(mode=0o600)
        tokens.write_text(entry_line("anybody", new_token()), encoding="utf-8")
        file = Path(folder, "serve.yaml")
        # The Secret is not here; a book of tokens with the same form stands in for it, and nothing else is changed.
        file.write_text(text.replace(TOKENS_FILE, str(tokens)), encoding="utf-8")
        try:
            check_config(file)
        except ConfigError as error:
            return [str(error).replace(f"{file}", "line").replace(str(tokens), TOKENS_FILE)]
    return []
