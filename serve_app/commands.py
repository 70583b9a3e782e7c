"""The server's commands of `split-inference`: `check-config`, `compile`, `make-token`.

Knows Typer and rich. Imports Ray only when the command runs, because every command of the program passes here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


def register(app: typer.Typer) -> None:
    """Add the server's commands to the program."""
    app.command("check-config")(check_config_command)
    app.command("compile")(compile_command)
    app.command("make-token")(make_token_command)


def check_config_command(
    config: Annotated[Path, typer.Argument(help="Serve config file, such as config.yaml.")],
    port_free: Annotated[
        bool, typer.Option("--port-free", help="Also require that the port can be bound now.")
    ] = False,
    load: Annotated[bool, typer.Option("--load", help="Also load every model, as a replica would.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Say in one line what is wrong with a Serve config file, before Serve starts."""
    from serve_app.config_check import check_config

    checked = check_config(config, port_free=port_free, load=load)
    if as_json:
        typer.echo(json.dumps(_as_json(checked)))
        return
    table = Table(title=f"{config}: http://{checked.host}:{checked.port}")
    for heading in ("application", "route", "serves", *(["digest"] if load else [])):
        table.add_column(heading, overflow="fold")
    for each in checked.applications:
        serves = getattr(each.settings, "model", "") or ", ".join(each.deployments)
        digest = [checked.loaded.get(each.name, "")[:12]] if load else []
        table.add_row(each.name, each.route_prefix or "none", serves, *digest)
    Console().print(table)


def compile_command(
    config: Annotated[Path, typer.Argument(help="Serve config file, such as config.yaml.")],
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", help="Images or sounds to measure the agreement with float32 on."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Compile the tails that a config asks for, so that no replica has to, and measure what a faster way costs.

    What is compiled already is left alone. Example: split-inference compile config.yaml --inputs photos/
    """
    from serve_app.compile_command import compile_for, measure_agreement
    from serve_app.config_check import check_config
    from serve_app.settings import AppSettings
    from split_inference.inputs import read_inputs

    err = Console(stderr=True)
    found: dict[str, Any] = {}
    for each in check_config(config).applications:
        settings = each.settings
        if not isinstance(settings, AppSettings):
            continue
        with err.status(f"{each.name} ...") as status:
            done = compile_for(
                settings,
                on_start=lambda key, index, count: status.update(
                    f"compiling {index + 1} of {count}: {key.split_point}, {key.precision}, {key.bucket} rows ..."
                ),
                on_done=lambda compiled: err.print(
                    f"{compiled.key.split_point} {compiled.key.precision} {compiled.key.bucket} rows: "
                    f"{compiled.seconds:.1f} s, {compiled.library_bytes / 1e6:.0f} MB"
                ),
            )
            agreement = {}
            if settings.execution.precision != "float32" or settings.execution.compile not in ("auto", "none"):
                status.update("measuring the agreement with float32 ...")
                samples = read_inputs(inputs, limit=256) if inputs else None
                agreement = measure_agreement(settings, inputs=samples, what=str(inputs or ""))
        found[each.name] = {
            "compiled": len(done),
            "seconds": round(sum(compiled.seconds for compiled in done), 1),
            "agreement": {name: value.model_dump() for name, value in agreement.items()},
        }
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, what in found.items():
        typer.echo(f"{name}: {what['compiled']} tails compiled in {what['seconds']} s")
        for at, value in what["agreement"].items():
            share, count = 100 * value["top1"], value["samples"]
            typer.echo(f"  {at}: same top-1 as float32 for {share:.1f} % of {count} ({value['inputs']})")


def make_token_command(
    name: Annotated[str, typer.Argument(help="Name of the client, as logs and metrics show it.")],
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, help="Requests a second that each replica takes of it.")
    ] = None,
    share: Annotated[
        float, typer.Option("--share", min=0.001, max=1.0, help="Share of each replica's places that it may hold.")
    ] = 1.0,
    out: Annotated[Path | None, typer.Option("--out", help="File of tokens to append the hashed entry to.")] = None,
) -> None:
    """Make a token: it is shown once, and the server keeps its hash only.

    Example: split-inference make-token phones --rate 200 --share 0.5 --out tokens.yaml
    """
    from serve_app.tokens import append_entry, entry_line, new_token, parse_entries

    token = new_token()
    line = entry_line(name, token, rate_per_s=rate, share=share)
    parse_entries(line, where="the new entry")
    if out is not None:
        append_entry(out, line)
        typer.echo(f"added {name} to {out}; its token, shown only now:", err=True)
    else:
        typer.echo("the entry for the file of tokens:", err=True)
        typer.echo(line.rstrip(), err=True)
        typer.echo("the token, shown only now:", err=True)
    typer.echo(token)


def _as_json(checked: Any) -> dict[str, object]:
    return {
        "config": str(checked.path),
        "host": checked.host,
        "port": checked.port,
        "applications": [
            {
                "name": each.name,
                "route_prefix": each.route_prefix,
                "import_path": each.import_path,
                "deployments": list(each.deployments),
                "args": None if each.settings is None else each.settings.model_dump(mode="json"),
                "digest": checked.loaded.get(each.name),
            }
            for each in checked.applications
        ],
    }
