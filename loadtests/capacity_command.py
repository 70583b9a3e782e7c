"""`split-inference capacity`: what a deployment carries, searched with real load and verified with it.

Knows the terminal, the folder of a search and Locust runs as processes; how to search is capacity_search.py's business.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from split_inference.cli import JsonOption, err, out, print_json, progress_bar
from split_inference.errors import UsageError
from split_inference.interruption import terminated_like_interrupted

if TYPE_CHECKING:
    from loadtests.capacity_search import Capacity, Probe
    from loadtests.gate import Verdict
    from loadtests.locust_process import LocustTarget
    from loadtests.observation import Criterion, Observation
    from loadtests.run_result import RunResult
    from loadtests.slo import Slo

FAILED, INVALID, INTERRUPTED = 1, 3, 130
# A probe that the machine disturbed is no result; so often it is tried again.
_TRIES = 3
_WARMUP_S = 1.0
# Steps down from the estimate until a run under the objective holds.
_STEPS = (1.0, 0.97, 0.94, 0.9)


class Preset(StrEnum):
    """How much at once, after the scenarios of MLPerf Inference's LoadGen (Reddi et al., ISCA 2020)."""

    server = "server"
    single_stream = "single-stream"
    multi_stream = "multi-stream"
    offline = "offline"


def capacity(
    host: Annotated[str, typer.Option(help="The server, as in http://127.0.0.1:8000.")],
    payloads: Annotated[list[Path], typer.Option(help="Prepared requests; several times for several models.")],
    slo: Annotated[Path | None, typer.Option(help="The objective, as YAML; see loadtests/slo_files.")] = None,
    preset: Annotated[
        Preset,
        typer.Option(
            help="server: largest Poisson rate under the objective. single-stream: p90 of one request after another. "
            "multi-stream: p99 of queries of 8. offline: most requests a second."
        ),
    ] = Preset.server,
    deadline_ms: Annotated[float, typer.Option(min=0, help="An answer after it is not good; 0: none.")] = 0.0,
    start: Annotated[float, typer.Option("--start-rate", min=0.01, help="First rate tried, requests a second.")] = 10.0,
    most: Annotated[float, typer.Option("--max-rate", min=0.1, help="No higher rate is tried.")] = 5000.0,
    precision: Annotated[float, typer.Option(min=0.005, max=0.5, help="Half of the interval over the rate.")] = 0.03,
    budget: Annotated[float, typer.Option(min=10, help="Seconds of probing at most.")] = 600.0,
    probe: Annotated[float, typer.Option(min=2, help="Seconds of a precise probe, at least.")] = 20.0,
    verify: Annotated[float, typer.Option(min=0, help="Seconds of the run that verifies; 0: none.")] = 30.0,
    seconds: Annotated[float, typer.Option(min=2, help="Of the other presets' one run.")] = 20.0,
    devices: Annotated[int | None, typer.Option(min=1, help="How many devices the payloads' rates stand for.")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Of the deployment; to say devices per replica.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="Where everything is written (runs/<UTC time>-capacity).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals and of what is sent.")] = 0,
    ca: Annotated[Path | None, typer.Option(help="Trust these certificates (PEM) for https.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the bearer token.")] = None,
    insecure_token: Annotated[
        bool, typer.Option("--insecure-token", help="Send the token to another host without https.")
    ] = False,
    yes: Annotated[bool, typer.Option(help="Yes, put this load on a host that is not this machine.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find the largest rate that a server carries under an objective, and verify it with a run of its own.

    Ends with 0 where the verifying run meets the objective, 99 where none did, 3 where this machine was too busy.

    Examples:

    `split-inference capacity --slo loadtests/slo_files/interactive.yaml --host http://127.0.0.1:8000
    --payloads r20.payloads --deadline-ms 250`

    `split-inference capacity --preset offline --host http://127.0.0.1:8000 --payloads r20.payloads`
    """
    from loadtests.locust_process import LocustTarget
    from loadtests.observation import criteria_of
    from loadtests.run_folder import new_run_folder, write_header
    from loadtests.slo import read_slo

    objective = None if slo is None else read_slo(slo)
    if preset is Preset.server and objective is None:
        raise UsageError("--slo FILE is missing: without an objective every rate is carried")
    options = {"seed": str(seed), "warmup": f"{_WARMUP_S:g}"}
    for name, value in (("deadline-ms", deadline_ms or None), ("ca", ca), ("token-file", token_file)):
        if value is not None:
            options[name] = str(value)
    for name, given in (("insecure-token", insecure_token), ("yes", yes)):
        if given:
            options[name] = ""
    target = LocustTarget(host=host, payloads=tuple(payloads), options=options)
    if objective is not None and preset is Preset.server:
        # Before anything is sent.
        criteria_of(objective)
        _devices(1.0, target, devices=devices, replicas=replicas)
    base = new_run_folder("capacity", folder=folder)
    command = shlex.join(["split-inference", *sys.argv[1:]])
    write_header(base, command=command, facts={"preset": preset.value, "seed": seed})
    with terminated_like_interrupted():
        report = _measured(
            preset, target, slo, base, start=start, most=most, precision=precision, budget=budget, probe=probe,
            verify=verify, seconds=seconds, seed=seed,
        )  # fmt: skip
    if report.get("rate_per_s") is not None:
        report |= _devices(report["rate_per_s"], target, devices=devices, replicas=replicas)
    report = {"preset": preset.value, **report, "folder": str(base)}
    (base / "capacity.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(report)
    else:
        _print(preset, report)
    if report["exit_code"]:
        raise typer.Exit(report["exit_code"])


def _measured(
    preset: Preset, target: LocustTarget, slo: Path | None, base: Path, *, seconds: float, seed: int, **search: float
) -> dict[str, Any]:
    """What the preset found. What was measured stays where it is stopped; what was refused leaves nothing."""
    try:
        if preset is Preset.server:
            assert slo is not None
            return search_capacity(target, slo, base, seed=seed, **search)
        return _other_preset(preset, target, base, seconds=seconds, slo=slo)
    except KeyboardInterrupt:
        err.print(f"stopped; what was measured is in {base}", markup=False, highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    except UsageError:
        if not list(base.glob("*/result.json")):
            shutil.rmtree(base)
        raise


def search_capacity(
    target: LocustTarget,
    slo: Path,
    base: Path,
    *,
    start: float = 10.0,
    most: float = 5000.0,
    precision: float = 0.03,
    budget: float = 600.0,
    probe: float = 20.0,
    verify: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Search with real load, its runs below `base`, and verify for so many seconds where that is not 0; the arguments
    are the command's. Gives what capacity.json holds. Raises UsageError in one line for what cannot be searched."""
    from loadtests.slo import read_slo

    search = _Search(target, read_slo(slo), slo, base)
    return search.run(start=start, most=most, precision=precision, budget=budget, probe=probe, verify=verify, seed=seed)


class _Search:
    """One search with real load."""

    def __init__(self, target: LocustTarget, objective: Slo, slo: Path | None, base: Path) -> None:
        from loadtests.generator_health import HealthBounds

        self._objective, self._slo, self._base = objective, slo, base
        # Latency counts from the intended start, so that a late generator makes the answer smaller and never larger;
        # a tenth of the tightest bound changes it by less than the search's own precision.
        least_ms = min(objective.latency.said().values(), default=0.0)
        late_ms = max(1000 * HealthBounds().schedule_delay_p99_s, least_ms / 10)
        self._target = replace(target, options={**target.options, "max-late-ms": f"{late_ms:g}"})
        self._number = 0

    def run(
        self, *, start: float, most: float, precision: float, budget: float, probe: float, verify: float, seed: int
    ) -> dict[str, Any]:
        """Search, then verify; what is to be told."""
        from loadtests.capacity_search import CapacitySearch, TooBusyError
        from loadtests.observation import criteria_of

        criteria = criteria_of(self._objective)
        with _progress(budget) as note:
            search = CapacitySearch(
                measure=self._measure,
                criteria=criteria,
                start_per_s=start,
                most_per_s=most,
                precision=precision,
                budget_s=budget,
                probe_s=probe,
                seed=seed,
                on_probe=note,
            )
            try:
                found = search.run()
            except TooBusyError as error:
                return {
                    "rate_per_s": None,
                    "invalid": [str(error)],
                    "probes": _probe_facts(search.probes),
                    "verified_per_s": None,
                    "verdict": None,
                    "exit_code": INVALID,
                }
        report = {**_facts(found), "verified_per_s": None, "verdict": None}
        if found.invalid:
            return {**report, "exit_code": INVALID}
        return {**report, "exit_code": 0} if verify == 0 else report | self._verified(found, criteria, verify)

    def _measure(self, rate_per_s: float, seconds: float, seed: int) -> Observation:
        from loadtests.locust_process import observed, run_locust

        seen = None
        for _ in range(_TRIES):
            self._number += 1
            folder = self._base / f"probe-{self._number:03d}"
            result = run_locust(
                self._target, "poisson", folder, duration_s=seconds + _WARMUP_S, rate=f"{rate_per_s:.9g}", records=True,
                seed=seed,
            )  # fmt: skip
            seen = observed(folder, result, rate_per_s=rate_per_s)
            if not seen.invalid or seen.is_growing:
                break
        assert seen is not None
        return seen

    def _verified(self, found: Capacity, criteria: Sequence[Criterion], seconds: float) -> dict[str, Any]:
        from loadtests.gate import Check, judge
        from loadtests.locust_process import observed, run_locust

        verdict: Verdict | None = None
        rate = found.rate_per_s
        for number, step in enumerate(_STEPS, start=1):
            rate = found.rate_per_s * step
            folder = self._base / f"verify-{number}"
            result = run_locust(
                self._target, "poisson", folder, duration_s=seconds + _WARMUP_S, rate=f"{rate:.9g}", slo=self._slo,
                records=True,
            )  # fmt: skip
            # As the search counts, too: what was not answered is later than any bound.
            seen = observed(folder, result, rate_per_s=rate)
            counted = [
                Check(
                    name=f"share bad by {each.name}",
                    figure=float(each.bad(seen).mean()) if len(seen.arrivals_s) else math.nan,
                    comparison="<=",
                    bound=each.limit,
                )
                for each in criteria
            ]
            judged = judge(result, self._objective)
            verdict = replace(judged, checks=(*judged.checks, *counted))
            err.print(f"verifying {rate:.4g} requests/s for {seconds:g} s: {verdict.outcome}")
            if verdict.outcome == "met":
                break
        assert verdict is not None
        is_met = verdict.outcome == "met"
        return {
            "verified_per_s": rate if is_met else None,
            "verdict": {
                "outcome": verdict.outcome,
                "checks": [str(check) for check in verdict.checks],
                "invalid": list(verdict.invalid),
            },
            "exit_code": verdict.exit_code,
        }


@contextmanager
def _progress(budget_s: float) -> Iterator[Any]:
    spent = 0.0
    with progress_bar() as bar:
        task = bar.add_task("probing", total=round(budget_s))

        def note(probe: Probe) -> None:
            nonlocal spent
            spent += probe.seconds
            word = "grows" if probe.is_growing else "over" if probe.is_over else "holds"
            shares = ", ".join(f"{name} {share:.2%}" for name, share in probe.shares.items())
            bar.console.print(
                f"{probe.rate_per_s:8.4g}/s for {probe.seconds:3.0f} s: {word}; bad by {shares} of {probe.requests}"
            )
            bar.update(task, completed=round(min(spent, budget_s)))

        yield note


def _facts(found: Capacity) -> dict[str, Any]:
    return {
        "rate_per_s": found.rate_per_s,
        "low_per_s": found.low_per_s,
        "high_per_s": found.high_per_s,
        "is_precise": found.is_precise,
        "criterion": found.criterion,
        "reference_servers": found.reference_servers,
        "invalid": list(found.invalid),
        "probes": _probe_facts(found.probes),
    }


def _probe_facts(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    return [
        {
            "rate_per_s": each.rate_per_s,
            "seconds": each.seconds,
            "requests": each.requests,
            "bad": each.shares,
            "is_over": each.is_over,
            "is_growing": each.is_growing,
            "stage": each.stage,
        }
        for each in probes
    ]


def _devices(rate_per_s: float, target: LocustTarget, *, devices: int | None, replicas: int) -> dict[str, Any]:
    """How many devices like those of the payloads' scenario one replica carries; nothing where no rate is known."""
    from split_inference.payload_file import PayloadFile

    rates: list[float | None] = []
    for path in target.payloads:
        with PayloadFile.open(path) as file:
            rates += [each.rate_per_s for each in file.header.traffic] or [None]
    if not rates or None in rates:
        if devices is not None:
            raise UsageError("--devices: the payloads say no rates; make them with `payloads --traffic-of`")
        return {}
    scenario_per_s = sum(rate for rate in rates if rate is not None)
    found: dict[str, Any] = {"scenario_per_s": scenario_per_s, "scenarios": rate_per_s / scenario_per_s}
    if devices is not None:
        found["devices_per_replica"] = devices * rate_per_s / scenario_per_s / replicas
    return found


def _other_preset(
    preset: Preset, target: LocustTarget, base: Path, *, seconds: float, slo: Path | None
) -> dict[str, Any]:
    from loadtests.gate import judge
    from loadtests.locust_process import observed, run_locust
    from loadtests.slo import read_slo

    # LoadGen's multi-stream asks 8 samples at a time; offline asks for all at once, here as many as a replica's batches
    # and queue take.
    callers = {Preset.single_stream: 1, Preset.multi_stream: 1, Preset.offline: 64}[preset]
    streams = {"streams": 8} if preset is Preset.multi_stream else {}
    folder = base / "run"
    result = run_locust(
        target, "closed_loop", folder, duration_s=seconds + _WARMUP_S, callers=callers, records=True, **streams
    )
    figures = _preset_figures(preset, result, observed(folder, result, rate_per_s=0.0))
    code = INVALID if result.generator.invalid else 0 if result.counts.answered else FAILED
    report: dict[str, Any] = {**figures, "requests": result.counts.answered, "invalid": list(result.generator.invalid)}
    if slo is not None:
        verdict = judge(result, read_slo(slo))
        report["verdict"] = {"outcome": verdict.outcome, "checks": [str(check) for check in verdict.checks]}
        code = verdict.exit_code
    return {**report, "exit_code": code}


def _preset_figures(preset: Preset, result: RunResult, seen: Observation) -> dict[str, float | None]:
    import numpy as np

    if preset is Preset.offline:
        return {"per_s": result.counts.answered / result.measured_s if result.measured_s else None}
    # Samples of one query have the same intended start; the query ends with its last one.
    queries: dict[float, float] = {}
    for start_s, took_s in zip(seen.arrivals_s.tolist(), seen.latencies_s.tolist(), strict=True):
        queries[start_s] = max(took_s, queries.get(start_s, 0.0))
    share, name = (0.9, "p90_ms") if preset is Preset.single_stream else (0.99, "p99_ms")
    value_s = float(np.quantile(list(queries.values()), share, method="inverted_cdf")) if queries else math.inf
    return {name: 1000 * value_s if math.isfinite(value_s) else None}


def _print(preset: Preset, report: dict[str, Any]) -> None:
    if preset is not Preset.server:
        name, value = next(iter((key, report[key]) for key in ("p90_ms", "p99_ms", "per_s") if key in report))
        shown = "nothing was answered" if value is None else f"{value:.4g}"
        out.print(f"{preset.value}: {name} {shown}, of {report['requests']} requests")
    elif report["rate_per_s"] is not None:
        table = Table("requests a second", "from", "to", "bound by", "verified")
        verified = report["verified_per_s"]
        table.add_row(
            f"{report['rate_per_s']:.4g}",
            f"{report['low_per_s']:.4g}",
            f"{report['high_per_s']:.4g}",
            report["criterion"],
            "-" if verified is None else f"{verified:.4g}",
        )
        out.print(table)
        if not report["is_precise"]:
            out.print("the interval is wider than asked: raise --budget")
        if "devices_per_replica" in report:
            out.print(f"{report['devices_per_replica']:.0f} devices per replica")
        elif "scenarios" in report:
            out.print(f"{report['scenarios']:.2f} times the traffic of the payloads' scenario")
    for reason in report.get("invalid", ()):
        err.print(f"INVALID: {reason}", markup=False, highlight=False)
    if report.get("verdict"):
        out.print("\n".join(report["verdict"]["checks"]), markup=False, highlight=False)
    out.print(f"written: {report['folder']}", markup=False, highlight=False)
