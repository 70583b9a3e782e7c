"""The command `calibrate-server`: a real server becomes a profile for simulations.

Knows the terminal: the progress bar, the table. What is done is in calibrate_server.py, imported when the command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from split_inference.cli import JsonOption, out, print_json
from split_inference.errors import UsageError


def calibrate_server(
    url: Annotated[str, typer.Option(help="The server, as in http://127.0.0.1:8000.")],
    payload_file: Annotated[Path, typer.Option("--payloads", help="Prepared requests; see `payloads`.")],
    file: Annotated[Path, typer.Option("--out", "-o", help="The server profile to write, as JSON.")],
    option: Annotated[int, typer.Option(min=0, help="Which of the payload file's options to ask.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each closed loop; rates take at least twice that.")] = 3.0,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas that the server has.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Its max_batch_samples.")] = 16,
    yes: Annotated[bool, typer.Option("--yes", help="Send load to a host that is not this machine.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a real server, so that scenarios in virtual time can have one like it.

    Example:

    `python -m edge_sim calibrate-server --url http://127.0.0.1:8000 --payloads r20.payloads --out server.json`
    """
    import asyncio

    from edge_sim.calibrate_server import capacity_per_s, measure, profile_of
    from edge_sim.transport import HttpTransport
    from split_inference.calibration import refuse_unwritable
    from split_inference.cli import progress_bar
    from split_inference.payload_file import PayloadFile
    from split_inference.server_url import checked_base_url, is_this_machine

    refuse_unwritable(file)
    url = checked_base_url(url, called="--url")
    if not yes and not is_this_machine(url):
        raise UsageError(f"{url} is not this machine: say --yes if load may go there")
    with PayloadFile.open(payload_file) as payload:
        if option >= len(payload.header.options):
            raise UsageError(f"--option {option}: {payload_file} has {len(payload.header.options)} options, from 0")

        async def ask() -> Any:
            transport = HttpTransport(url, connections=64)
            try:
                with progress_bar() as bar:
                    task = bar.add_task("measuring", total=None)
                    return await measure(
                        transport,
                        payload,
                        option=option,
                        seconds=seconds,
                        on_level=lambda done, of: bar.update(task, completed=done, total=of),
                    )
            finally:
                await transport.close()

        samples = asyncio.run(ask())
        title = payload.header.options[option].title
        profile = profile_of(
            samples,
            split_point="*",
            source=f"calibrate-server {url}, {payload.header.model.name}, {title}",
            replicas=replicas,
            max_batch=max_batch,
        )
    file.write_text(profile.model_dump_json(indent=1) + "\n", encoding="utf-8")
    capacity = capacity_per_s(samples, seconds=seconds)
    sizes = profile.batch_s["*"]
    if as_json:
        print_json(
            {
                "file": str(file),
                "capacity_per_s": capacity,
                "answers": len(samples),
                "batches": list(sizes),
                "turnaround_ms": 1000 * profile.turnaround_s,
            }
        )
        return
    out.print(f"{len(samples)} answers, at most {capacity:.0f}/s")
    for rows, quantiles in sizes.items():
        out.print(f"batch of {rows}: median {1000 * quantiles[len(quantiles) // 2]:.1f} ms")
    out.print(f"{1000 * profile.turnaround_s:.1f} ms from one batch to the next")
    out.print(f"written to {file}")
