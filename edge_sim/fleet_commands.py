"""The simulator's commands: run, validate, schema, devices, links, replay, payloads, calibrate-server, worker.

Knows the terminal: tables, live progress, exit codes. What is done is in other files, imported when a command runs.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group as Lines
from rich.live import Live
from rich.table import Table

from edge_sim.calibrate_server_command import calibrate_server
from edge_sim.fleet_options import (
    INVALID,
    CaOption,
    InsecureTokenOption,
    RunsOption,
    ScenarioArgument,
    TokenOption,
    TracesOption,
)
from edge_sim.payloads_command import payloads
from edge_sim.profile_commands import devices, links
from edge_sim.sharding import refuse_what_would_be_shared, shard_of
from edge_sim.worker_command import worker
from split_inference.cli import JsonOption, err, out, print_json, run
from split_inference.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from edge_sim.fleet import Shard
    from edge_sim.fleet_run import Progress, RunnableHeads, RunResult
    from edge_sim.scenario import Scenario
    from edge_sim.transport import Access
    from split_inference.payload_file import PayloadHeader

INTERRUPTED = 130
# Reading more than this takes seconds: `report` does it when asked.
SUMMARIZED_AT_ONCE = 200_000

app = typer.Typer(
    name="python -m edge_sim",
    help="A fleet of simulated edge devices: scenarios in virtual time or against a real server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main() -> None:
    """Run the command line."""
    run(app, "edge_sim")


app.command()(payloads)
app.command()(devices)
app.command()(links)
app.command()(worker)
app.command("calibrate-server")(calibrate_server)


@app.command("run")
def run_command(
    scenario: ScenarioArgument,
    runs: RunsOption = Path("runs"),
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only every N-th device, from the I-th on (from 0).")
    ] = None,
    traces: TracesOption = None,
    url: Annotated[str | None, typer.Option(help="The server, instead of the scenario's.")] = None,
    token_file: TokenOption = None,
    insecure_token: InsecureTokenOption = False,
    ca: CaOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send load to a host that is not this machine.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a scenario, and write header.json and requests.jsonl into a folder of its own.

    Exit code 3 where the run is INVALID: its own lateness says that it measured something else.

    Examples:

    `python -m edge_sim run edge_sim/scenarios/mixed.yaml`

    `python -m edge_sim run wall.yaml --url http://127.0.0.1:8000 --shard 0/4 --json`

    `python -m edge_sim run wall.yaml --url https://edge.example --token-file phones.token --yes`
    """
    from edge_sim.scenario import read_scenario
    from edge_sim.transport import Access, read_token

    found = read_scenario(scenario)
    if url is not None:
        if found.clock == "virtual":
            raise UsageError(f"{scenario} is in virtual time and asks no server: leave out --url, or say `clock: wall`")
        found = found.model_copy(update={"server": found.server.model_copy(update={"url": url})})
    result = _run(
        found,
        base=scenario.parent,
        runs=runs,
        shard=shard_of(shard),
        traces=traces,
        yes=yes,
        quiet=as_json,
        access=Access(token=read_token(token_file), ca=ca, allow_insecure_token=insecure_token),
    )
    _finish(result, as_json=as_json)


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(metavar="runs/TIME", help="The run to repeat.")],
    runs: RunsOption = Path("runs"),
    traces: TracesOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send load to a host that is not this machine.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the scenario of an earlier run once more. In virtual time its records have to be the same, byte for byte.

    Example:

    `python -m edge_sim replay runs/20261121T101500Z`
    """
    from edge_sim.fleet import Shard
    from edge_sim.scenario import Scenario

    header = _header(folder)
    if header.get("merged"):
        raise UsageError(
            f"{folder} is shards joined, each of which was a run: replay them ({header['merged'][0]}, ...)"
        )
    try:
        scenario = Scenario.model_validate(header["scenario"])
        index, count = header["shard"]
        base = Path(header["scenario_folder"])
    except (KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{folder}/header.json is of no run of a scenario: {reason}") from None
    result = _run(scenario, base=base, runs=runs, shard=Shard(index, count), traces=traces, yes=yes, quiet=as_json)
    same = None
    if scenario.clock == "virtual":
        same = (folder / "requests.jsonl").read_bytes() == (result.folder / "requests.jsonl").read_bytes()
    _finish(result, as_json=as_json, facts={"same_records": same})
    if same is False:
        err.print(f"edge_sim: {result.folder} differs from {folder}: made by another version, profile or trace")
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="runs/TIME", help="The run.")], as_json: JsonOption = False
) -> None:
    """Print a run's summary, and write its report.html.

    Example:

    `python -m edge_sim report runs/20261121T101500Z`
    """
    from edge_sim.report import write_report
    from edge_sim.run_reader import read_run
    from edge_sim.run_summary import render_summary, summarize, summary_facts

    found = read_run(folder)
    rows = summarize(found)
    file = write_report(found)
    if as_json:
        print_json({"report": str(file), "invalid": found.header.get("invalid"), "groups": summary_facts(rows)})
    else:
        render_summary(out, rows, assumed=list(found.header.get("assumed") or []))
        out.print(f"look at {file}")
        if found.header.get("invalid"):
            err.print(f"edge_sim: INVALID: {found.header['invalid']}")


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="runs/SHARD...", help="Folders of all shards of one run.")],
    into: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.")],
) -> None:
    """Join the shards of one run into one run.

    Example:

    `python -m edge_sim merge runs/20261121T101500Z runs/20261121T101501Z --out runs/whole`
    """
    from edge_sim.merge import merge_runs
    from edge_sim.report import write_report
    from edge_sim.run_reader import read_run

    if into.exists():
        raise UsageError(f"{into} exists already; --out makes a new folder")
    merge_runs(folders, into, command=shlex.join(["python", "-m", "edge_sim", *sys.argv[1:]]))
    out.print(f"written to {into}; look at {write_report(read_run(into))}")


@app.command()
def validate(scenario: ScenarioArgument, traces: TracesOption = None, as_json: JsonOption = False) -> None:
    """Check a scenario without running it: keys, values, files, names of devices, links and split points.

    Example:

    `python -m edge_sim validate edge_sim/scenarios/mixed.yaml`
    """
    from edge_sim.scenario import read_scenario

    found = read_scenario(scenario)
    check_names(found, base=scenario.parent, traces=traces)
    devices = sum(group.count for group in found.groups)
    rate = sum(group.count * group.arrivals.rate_per_s for group in found.groups)
    facts = {"scenario": found.name, "devices": devices, "requests_per_s": rate, "duration_s": found.duration_s}
    if as_json:
        print_json(facts)
    else:
        out.print(
            f"{scenario}: fine; {devices} devices, {rate:g} requests/s for {found.duration_s:g} s "
            f"on the {found.clock} clock"
        )


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors.

    Example:

    `python -m edge_sim schema > scenario.schema.json`
    """
    from edge_sim.scenario import Scenario

    print_json(Scenario.model_json_schema())


def _run(
    scenario: Scenario,
    *,
    base: Path,
    runs: Path,
    shard: Shard | None,
    traces: Path | None,
    yes: bool,
    quiet: bool,
    access: Access | None = None,
) -> RunResult:
    from edge_sim.fleet_run import NO_TOKEN, model_profiles, run_scenario
    from edge_sim.hardware import ProfileHardware
    from edge_sim.recorder import new_run_folder
    from split_inference.server_url import checked_base_url, is_this_machine, refuse_exposed_token

    access = access or NO_TOKEN
    # Before a folder is made.
    if scenario.server.url:
        url = checked_base_url(scenario.server.url, called="server.url")
        if scenario.clock == "wall" and not yes and not is_this_machine(url):
            raise UsageError(f"{url} is not this machine: say --yes if load may go there")
        refuse_exposed_token(url, has_token=access.token is not None, allowed=access.allow_insecure_token)
    if shard is not None and shard.count > 1:
        refuse_what_would_be_shared(scenario)
    check_names(scenario, base=base, traces=traces)
    hardware = ProfileHardware(folder=base, traces=traces)
    models = model_profiles(scenario, base)
    devices = sum(group.count for group in scenario.groups)
    if not quiet:
        rate = sum(group.count * group.arrivals.rate_per_s for group in scenario.groups)
        err.print(f"{devices} devices, {rate:g} requests/s for {scenario.duration_s:g} s on the {scenario.clock} clock")
    with Live(console=err, refresh_per_second=4, transient=True) as live:
        result = run_scenario(
            scenario,
            new_run_folder(runs),
            hardware=hardware,
            models=models,
            command=shlex.join(["python", "-m", "edge_sim", *sys.argv[1:]]),
            facts={"scenario_folder": str(base.resolve())},
            base=base,
            shard=shard,
            make_heads=_make_heads if scenario.compute == "real" else None,
            access=access,
            watch=(lambda progress: None) if quiet else (lambda progress: live.update(_live(progress, scenario))),
        )
    return result


def check_names(scenario: Scenario, *, base: Path, traces: Path | None) -> None:
    """Put one device of each group together, and forget it. ConfigError or UsageError for what cannot be."""
    from edge_sim.fleet import Fleet
    from edge_sim.fleet_run import model_profiles, server_profiles
    from edge_sim.hardware import ProfileHardware
    from edge_sim.virtual_clock import VirtualClock

    server_profiles(scenario, base)
    one_each = scenario.model_copy(
        update={"groups": tuple(group.model_copy(update={"count": 1}) for group in scenario.groups)}
    )
    nobody: Any = None
    Fleet(
        one_each,
        models=model_profiles(scenario, base),
        servers=dict.fromkeys(scenario.models, nobody),
        service_s=dict.fromkeys(scenario.models, 0.0),
        hardware=ProfileHardware(folder=base, traces=traces),
        clock=VirtualClock(),
        writer=nobody,
    )


def _make_heads(header: PayloadHeader, inputs: Path, calibration: Path | None) -> RunnableHeads:
    from edge_sim.real_heads import RealHeads

    return RealHeads(header, inputs, calibration=calibration)


def _live(progress: Progress, scenario: Scenario) -> Any:
    table = Table.grid(padding=(0, 2))
    answered = max(1, progress.answered)
    table.add_row(
        f"{progress.now_s:.0f} of {scenario.duration_s:.0f} s",
        f"{progress.requests} requests",
        f"{1000 * progress.latency_s / answered:.0f} ms mean",
        f"{progress.up_bytes / max(1, progress.requests) / 1000:.1f} KB each",
        f"{progress.requests / max(progress.now_s, 1e-9):.0f}/s",
    )
    outcomes = "  ".join(f"{name} {count}" for name, count in progress.outcomes.most_common())
    return Lines(table, _live_stages(progress), outcomes)


def _live_stages(progress: Progress) -> str:
    """Mean stages of the last answers, those that took any time."""
    recent = list(progress.recent)
    if not recent:
        return ""
    means = {
        stage.removesuffix("_s"): 1000 * sum(getattr(each, stage) for each in recent) / len(recent)
        for stage in ("wait_s", "head_s", "up_queue_s", "up_s", "server_queue_s", "server_s", "down_s", "local_s")
    }
    shown = "  ".join(f"{stage} {ms:.1f}" for stage, ms in means.items() if ms >= 0.05)
    return f"ms, last {len(recent)}: {shown}"


def _finish(result: RunResult, *, as_json: bool, facts: Mapping[str, Any] | None = None) -> None:
    from edge_sim.report import write_report
    from edge_sim.run_reader import read_run
    from edge_sim.run_summary import render_summary, summarize, summary_facts

    rows = []
    at_once = 0 < result.requests <= SUMMARIZED_AT_ONCE
    if at_once:
        run = read_run(result.folder)
        rows = summarize(run)
        write_report(run)
    if as_json:
        said = {**asdict(result), "folder": str(result.folder), "groups": summary_facts(rows)}
        print_json({**said, **(facts or {})})
    else:
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(result.outcomes.items()))
        out.print(f"{result.requests} requests: {outcomes}")
        if result.wrong_answers:
            out.print(f"{result.wrong_answers} answers of the server were not those that the payloads expect")
        if result.host_too_slow:
            out.print(f"{result.host_too_slow} heads ended later here than on their devices: this machine was too slow")
        if at_once:
            render_summary(out, rows, assumed=result.assumed)
            out.print(f"written to {result.folder}; look at {result.folder / 'report.html'}")
        else:
            out.print(f"written to {result.folder}; `python -m edge_sim report {result.folder}` sums it up")
    if result.invalid:
        err.print(f"edge_sim: INVALID: {result.invalid}")
        raise typer.Exit(INVALID)


def _header(folder: Path) -> dict[str, Any]:
    try:
        header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} is no run's folder: {' '.join(str(error).split())}") from None
    if not isinstance(header, dict):
        raise UsageError(f"{folder}/header.json is no header")
    return header
