"""Options that several of the simulator's commands have. Knows the terminal only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

INVALID = 3
"""Exit code of a command whose run is invalid, which is no failure of the server, and no success either."""
ScenarioArgument = Annotated[Path, typer.Argument(metavar="SCENARIO.yaml", help="The scenario's file.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder in which the run's own folder is made.")]
TracesOption = Annotated[
    Path | None, typer.Option("--traces", help="Folder with the traces that link profiles name; they are not ours.")
]
TokenOption = Annotated[Path | None, typer.Option("--token-file", help="File with the bearer token for the server.")]
InsecureTokenOption = Annotated[
    bool, typer.Option("--insecure-token", help="Send the token over plain http:// beyond this machine.")
]
CaOption = Annotated[
    Path | None, typer.Option("--ca", help="PEM file with the certificates to trust instead of the system's.")
]
