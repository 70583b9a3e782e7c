"""The server's commands of `split-inference`: `check-config`.

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
