"""What a run's end brings: its record on disk, the report, the verdict of an SLO file, and the exit code.

Knows the files and the pieces that make them; judges nothing itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.run_result import RunResult, write_result

if TYPE_CHECKING:
    from loadtests.gate import Verdict
    from loadtests.slo import Slo

EXIT_INVALID = 3


def read_slo_file(path: Path | None) -> Slo | None:
    """The SLO file; ConfigError with file and line where it is malformed."""
    if path is None:
        return None
    from loadtests.slo import read_slo

    return read_slo(path)


def judge_run(folder: Path, result: RunResult, slo: Slo | None) -> int | None:
    """Write everything that the folder is to hold; the exit code, None where nothing speaks for one."""
    write_result(folder, result)
    verdict = None
    if slo is not None:
        from loadtests.gate import judge
        from loadtests.gate_output import write_outputs

        verdict = judge(result, slo)
        write_outputs(folder, verdict)
    try:
        from loadtests.report import write_report
    except ImportError:
        return _exit_code(result, verdict)
    write_report(folder, result, verdict)
    return _exit_code(result, verdict)


def _exit_code(result: RunResult, verdict: Verdict | None) -> int | None:
    # A run that is no result meets nothing and misses nothing.
    if not result.is_valid:
        return EXIT_INVALID
    return None if verdict is None else verdict.exit_code
