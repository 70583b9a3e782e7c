"""A verdict as files that machines and people read: gate.json, junit.xml for CI servers, summary.md for a CI page.

Knows the formats; judges nothing. JUnit has no INVALID: such a run is an <error>, a missed bound a <failure>.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

from loadtests.gate import Check, Verdict
from split_inference.errors import DataError


def write_outputs(folder: Path, verdict: Verdict) -> None:
    """gate.json, junit.xml and summary.md in the run's folder; DataError where they cannot be written."""
    for name, text in (
        ("gate.json", gate_json(verdict)),
        ("junit.xml", junit_xml(verdict)),
        ("summary.md", summary_markdown(verdict)),
    ):
        partial = folder / f".{name}.partial"
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(folder / name)
        except OSError as error:
            raise DataError(f"cannot write {folder / name}: {error.strerror}; choose another place") from None


def gate_json(verdict: Verdict) -> str:
    """One JSON object; a figure that was not measured is null."""
    content = {
        "slo": verdict.slo,
        "run": verdict.run,
        "outcome": verdict.outcome,
        "exit_code": verdict.exit_code,
        "checks": [
            {
                "name": check.name,
                "figure": None if math.isnan(check.figure) else check.figure,
                "comparison": check.comparison,
                "bound": check.bound,
                "met": check.is_met,
            }
            for check in verdict.checks
        ],
        "invalid": list(verdict.invalid),
        "notes": list(verdict.notes),
    }
    return json.dumps(content, indent=2) + "\n"


def junit_xml(verdict: Verdict) -> str:
    """One test suite with a case for each check, and one for the generator."""
    missed = sum(not check.is_met for check in verdict.checks)
    suite = ElementTree.Element(
        "testsuite",
        name=_clean(verdict.slo),
        tests=str(len(verdict.checks) + 1),
        failures=str(0 if verdict.invalid else missed),
        errors=str(int(bool(verdict.invalid))),
        skipped=str(len(verdict.checks) if verdict.invalid else 0),
    )
    generator = ElementTree.SubElement(suite, "testcase", classname=_clean(verdict.run), name="the generator kept up")
    if verdict.invalid:
        text = _clean("; ".join(verdict.invalid))
        ElementTree.SubElement(generator, "error", message=text).text = text
    for check in verdict.checks:
        case = ElementTree.SubElement(suite, "testcase", classname=_clean(verdict.run), name=check.name)
        if verdict.invalid:
            ElementTree.SubElement(case, "skipped", message="the run is INVALID")
        elif not check.is_met:
            ElementTree.SubElement(case, "failure", message=str(check)).text = str(check)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def summary_markdown(verdict: Verdict) -> str:
    """A heading with the outcome, a table of the checks, and what to know beside it."""
    lines = [f"## {_cell(verdict.slo)}: {verdict.outcome.upper()}", "", f"{_cell(verdict.run)}", ""]
    lines += [f"- INVALID: {_cell(reason)}" for reason in verdict.invalid]
    if verdict.invalid:
        lines.append("")
    lines += ["| | found | bound | |", "|---|---:|---:|---|"]
    lines += [_row(check) for check in verdict.checks]
    if verdict.notes:
        lines += ["", *(f"- {_cell(note)}" for note in verdict.notes)]
    return "\n".join(lines) + "\n"


def _row(check: Check) -> str:
    shown = "not measured" if math.isnan(check.figure) else f"{check.figure:.4g}"
    return (
        f"| {check.name} | {shown} | {check.comparison} {check.bound:g} | {'met' if check.is_met else '**missed**'} |"
    )


def _cell(text: str) -> str:
    # Names come from files and command lines: nothing of them may become a table or HTML.
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _clean(text: str) -> str:
    # XML 1.0 has no way to say most control characters.
    return "".join(each if each.isprintable() else " " for each in text)
