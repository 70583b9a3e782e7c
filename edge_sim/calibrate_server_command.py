"""The command `calibrate-server`: a real server becomes a profile for simulations.

Knows the terminal: the progress bar, the table. What is done is in calibrate_server.py, imported when the command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from split_inference.cli import JsonOption, out, print_json
from split_inference.errors import UsageError


def calibrate_server(
    url: Annotated[str, typer.Option(help="The server, as in http://127.0.0.1:8000.")],
    payload_file: Annotated[Path, typer.Option("--payloads", help="Prepared requests; see `payloads`.")],
    file: Annotated[Path, typer.Option("--out", "-o", help="The server profile to write, as JSON.")],
    options: Annotated[
        list[int] | None,
        typer.Option(
            "--option", min=0, help="Which of the payload file's options to ask; may be repeated. [default: all]"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each closed loop; rates take at least twice that.")] = 3.0,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas that the server has.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Its max_batch_samples.")] = 16,
    yes: Annotated[bool, typer.Option("--yes", help="Send load to a host that is not this machine.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a real server, so that scenarios in virtual time can have one like it: what is asked, by split point.

    Example:

    `python -m edge_sim calibrate-server --url http://127.0.0.1:8000 --payloads r20.payloads --out server.json`
    """
    import asyncio

    from edge_sim.calibrate_server import Sample, capacity_per_s, measure, profile_of, together
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
        offered = payload.header.options
        chosen = options or range(len(offered))
        if (last := max(chosen)) >= len(offered):
            raise UsageError(f"--option {last}: {payload_file} has {len(offered)} options, from 0")
        by_point: dict[str, int] = {}
        for each in chosen:
            # Two codecs of one split point have one tail.
            by_point.setdefault(offered[each].split_point or "input", each)

        async def ask(option: int) -> list[Sample]:
            transport = HttpTransport(url, connections=64)
            try:
                with progress_bar() as bar:
                    task = bar.add_task(f"measuring {offered[option].title}", total=None)
                    return await measure(
                        transport,
                        payload,
                        option=option,
                        seconds=seconds,
                        on_level=lambda done, of: bar.update(task, completed=done, total=of),
                    )
            finally:
                await transport.close()

        samples = {point: asyncio.run(ask(option)) for point, option in by_point.items()}
        titles = ", ".join(offered[each].title for each in by_point.values())
        profile = together(
            [
                profile_of(
                    found,
                    split_point=point,
                    source=f"calibrate-server {url}, {payload.header.model.name}, {titles}",
                    replicas=replicas,
                    max_batch=max_batch,
                )
                for point, found in samples.items()
            ]
        )
    file.write_text(profile.model_dump_json(indent=1) + "\n", encoding="utf-8")
    rates = {point: capacity_per_s(each, seconds=seconds) for point, each in samples.items()}
    answers = sum(map(len, samples.values()))
    if as_json:
        print_json(
            {
                "file": str(file),
                "capacity_per_s": rates,
                "answers": answers,
                "batches": {point: list(sizes) for point, sizes in profile.batch_s.items()},
                "turnaround_ms": 1000 * profile.turnaround_s,
            }
        )
        return
    for point, sizes in profile.batch_s.items():
        out.print(f"{point}: at most {rates[point]:.0f}/s")
        for rows, quantiles in sizes.items():
            out.print(f"  batch of {rows}: median {1000 * quantiles[len(quantiles) // 2]:.1f} ms")
    out.print(f"{answers} answers; {1000 * profile.turnaround_s:.1f} ms from a full batch to the next")
    out.print(f"written to {file}")
