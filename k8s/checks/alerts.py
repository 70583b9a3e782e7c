"""J. Alert rules by promtool: they parse, and each fires when its unit test says so, and not otherwise."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from k8s.checks.model import Finding, UnavailableError
from k8s.checks.render import ROOT

RULES = Path("k8s/components/monitoring/alerts.yaml")
TESTS = Path("tests/k8s/alerts.test.yaml")


def promtool() -> str:
    """Its path. Raises UnavailableError."""
    program = shutil.which("promtool")
    if program is None:
        raise UnavailableError("no promtool on the PATH; Debian's package prometheus has it")
    return program


def check_alerts(root: Path = ROOT) -> list[Finding]:
    """Rules and their tests, and no alert without a test of its firing."""
    program = promtool()
    rules = yaml.safe_load((root / RULES).read_text(encoding="utf-8"))["spec"]
    tests = yaml.safe_load((root / TESTS).read_text(encoding="utf-8"))
    found = [
        Finding(where=f"{RULES} {alert}", problem=f"no test in {TESTS} has it fire")
        for alert in sorted(_alerts(rules) - _firing(tests))
    ]
    with tempfile.TemporaryDirectory(prefix="si-alerts-") as folder:
        # promtool knows groups, not the Kubernetes object around them.
        Path(folder, "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
        tests["rule_files"] = ["rules.yaml"]
        Path(folder, "tests.yaml").write_text(yaml.safe_dump(tests), encoding="utf-8")
        for command in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
            run = subprocess.run(
                [program, *command], cwd=folder, capture_output=True, text=True, timeout=120, check=False
            )
            if run.returncode != 0:
                lines = [line.strip() for line in (run.stdout + run.stderr).splitlines() if line.strip()]
                found.append(Finding(where=f"promtool {' '.join(command)}", problem=" / ".join(lines)[:400]))
    return found


def _alerts(rules: dict[str, Any]) -> set[str]:
    return {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}


def _firing(tests: dict[str, Any]) -> set[str]:
    """Alerts that some test expects: by promtool's own form, or as a sample of the series ALERTS."""
    found = set()
    for test in tests["tests"]:
        found |= {case["alertname"] for case in test.get("alert_rule_test", []) if case.get("exp_alerts")}
        for case in test.get("promql_expr_test", []):
            if "ALERTS" not in case["expr"] or 'alertstate="firing"' not in case["expr"]:
                continue
            samples = [sample for sample in case.get("exp_samples", []) if sample["value"]]
            text = " ".join([case["expr"] if samples else "", *(sample["labels"] for sample in samples)])
            found |= set(re.findall(r'alertname="(\w+)"', text))
    return found
