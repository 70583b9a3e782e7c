"""The load tests' commands: `capacity`, `compare` of two runs, `load-report` of one. Load itself is sent by Locust.

Knows the terminal. Never imports Locust, which would patch this process.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from loadtests.capacity_command import capacity
from split_inference.cli import JsonOption, err, out, print_json

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its result.json.")]


def register(app: typer.Typer) -> None:
    """Add this package's commands to the command line."""
    app.command()(capacity)
    app.command()(compare)
    app.command("load-report")(load_report)


def compare(
    before: RunArgument,
    after: RunArgument,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show two load tests beside each other: what changed, and where the change lies with 95 % confidence.

    Example:

    `split-inference compare runs/20261127T200000Z-poisson runs/20261127T210000Z-poisson`
    """
    from loadtests.compare import compare as compare_runs
    from loadtests.run_result import read_result

    found = compare_runs(read_result(before), read_result(after), seed=seed)
    for warning in found.warnings:
        err.print(warning, style="yellow", markup=False, highlight=False)
    if as_json:
        print_json(
            {
                "warnings": list(found.warnings),
                "changes": [
                    {
                        "name": each.name,
                        "before": _number(each.before),
                        "after": _number(each.after),
                        "change": _number(each.change),
                        "low": _number(each.low),
                        "high": _number(each.high),
                        "verdict": each.verdict,
                    }
                    for each in found.changes
                ],
            }
        )
        return
    table = Table("", "before", "after", "change", "95 % of it", "")
    for each in found.changes:
        table.add_row(
            each.name,
            f"{each.before:.4g}",
            f"{each.after:.4g}",
            f"{each.change:+.4g}",
            f"{each.low:+.3g} to {each.high:+.3g}",
            each.verdict,
        )
    out.print(table)


def load_report(
    run: RunArgument,
    slo: Annotated[Path | None, typer.Option(help="Judge the run by this objective too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write report.html and seconds.csv of a load test again, and judge it by another objective.

    Ends with 0, with 99 where the objective is missed, with 3 where the run is INVALID, also without an objective.

    Example:

    `split-inference load-report runs/20261127T200000Z-poisson --slo loadtests/slo_files/interactive.yaml`
    """
    from loadtests.gate import EXIT_CODES, judge
    from loadtests.gate_output import write_outputs
    from loadtests.report import write_report
    from loadtests.run_result import read_result
    from loadtests.run_summary import summary
    from loadtests.slo import read_slo

    result = read_result(run)
    folder = run if run.is_dir() else run.parent
    verdict = None if slo is None else judge(result, read_slo(slo))
    invalid, code = result.generator.invalid, 0 if result.is_valid else EXIT_CODES["invalid"]
    if verdict is not None:
        invalid, code = verdict.invalid, verdict.exit_code
        write_outputs(folder, verdict)
    page = write_report(folder, result, verdict)
    if as_json:
        print_json(
            {
                "report": str(page),
                "outcome": None if verdict is None else verdict.outcome,
                "invalid": list(invalid),
                "checks": [] if verdict is None else [str(check) for check in verdict.checks],
            }
        )
    else:
        out.print(summary(result), markup=False, highlight=False)
        for check in verdict.checks if verdict else ():
            out.print(str(check), markup=False, highlight=False)
        out.print(f"written: {page}", markup=False, highlight=False)
    if code:
        raise typer.Exit(code)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
