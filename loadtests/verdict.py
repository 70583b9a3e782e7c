"""What a run's end brings: its record on disk, the report, the verdict of an SLO file, and the exit code.

Knows the files and the pieces that make them; judges nothing itself.
"""

from __future__ import annotations

from pathlib import Path

from loadtests.gate import EXIT_CODES, Verdict, judge
from loadtests.gate_output import write_outputs
from loadtests.report import write_report
from loadtests.run_result import RunResult, write_result
from loadtests.slo import Slo, read_slo


def read_slo_file(path: Path | None) -> Slo | None:
    """The SLO file; ConfigError with file and line where it is malformed."""
    return None if path is None else read_slo(path)


def conclude(folder: Path, result: RunResult, slo: Slo | None) -> tuple[Verdict | None, int | None]:
    """Write everything that the folder is to hold; the verdict, and the exit code where something speaks for one."""
    write_result(folder, result)
    verdict = None if slo is None else judge(result, slo)
    if verdict is not None:
        write_outputs(folder, verdict)
    write_report(folder, result, verdict)
    if verdict is not None:
        return verdict, verdict.exit_code
    # A run that is no result must not look like one, also where nobody asked for a verdict.
    return None, None if result.is_valid else EXIT_CODES["invalid"]
