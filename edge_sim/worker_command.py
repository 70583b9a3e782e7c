"""The command `worker`: this machine as one real device of a fleet.

Knows the terminal. What is done is in real_worker.py, imported when the command runs, because it brings torch.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from edge_sim.fleet_options import INVALID, CaOption, InsecureTokenOption, RunsOption, TokenOption
from split_inference.cli import JsonOption, err, out, print_json
from split_inference.errors import UsageError


def worker(
    url: Annotated[str, typer.Option(help="The server, as in http://127.0.0.1:8000.")],
    inputs: Annotated[Path, typer.Option(help="Images or sounds of this device, a folder of them, or one.")],
    rate: Annotated[float, typer.Option(min=0.001, help="Requests a second, at Poisson moments.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="For how long.")] = 60.0,
    deadline: Annotated[float, typer.Option(min=0.01, help="Seconds; later answers are not in time.")] = 1.0,
    model: Annotated[str, typer.Option(help="Model URI, the same as the server's.")] = "embedded:resnet20-cifar10",
    calibration: Annotated[Path | None, typer.Option(help="File of `split-inference calibrate`.")] = None,
    at: Annotated[str | None, typer.Option(help="Split point, where there is no calibration.")] = None,
    codec: Annotated[str | None, typer.Option(help="Codec, where there is no calibration.")] = None,
    name: Annotated[str, typer.Option(help="This device's name in the records.")] = "device",
    token_file: TokenOption = None,
    insecure_token: InsecureTokenOption = False,
    ca: CaOption = None,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """This machine as one real device: its own processor, its own network, the fleet's records.

    Examples:

    `python -m edge_sim worker --url http://192.168.1.20:8000 --inputs photos/ --rate 2 --seconds 300`

    `python -m edge_sim worker --url http://127.0.0.1:8000 --inputs split_inference/embedded/samples --rate 5 --json`
    """
    import asyncio

    from edge_sim.client import EdgeClient
    from edge_sim.fleet_run import NO_REQUEST, FleetRecorder
    from edge_sim.real_worker import RealWorker
    from edge_sim.recorder import NOT_ENDED, RunRecorder, new_run_folder
    from edge_sim.transport import read_token
    from split_inference.calibration import EMBEDDED_CALIBRATION, load_calibration
    from split_inference.cli import load_with_notice
    from split_inference.inputs import read_inputs

    files = read_inputs(inputs)
    loaded = load_with_notice(model)
    chosen = load_calibration(calibration or EMBEDDED_CALIBRATION) if at is None else None
    if chosen is not None and calibration is None and chosen.model_digest != loaded.model.digest:
        raise UsageError("say --at and --codec, or --calibration: there is no calibration for this model")
    if at is not None and codec is None:
        raise UsageError("--at needs --codec")
    token = read_token(token_file)
    folder = new_run_folder(runs)
    facts = {
        "scenario_name": "worker",
        "clock": "wall",
        "seed": seed,
        "duration_s": seconds,
        "invalid": NOT_ENDED,
        "note": "a real device: nothing is simulated, and no energy is known",
    }

    async def live(writer: FleetRecorder) -> None:
        split_point = at or (chosen.split_point if chosen is not None else "")
        async with EdgeClient(
            url,
            loaded,
            split_point,
            codec,
            calibration=chosen,
            token=token,
            allow_insecure_token=insecure_token,
            ca=ca,
            timeout_s=deadline,
        ) as client:
            device = RealWorker(client, files, writer, name=name, seed=seed, label_of=lambda item: item.label)
            await device.live(rate_per_s=rate, seconds=seconds, deadline_s=deadline)

    command = shlex.join(["python", "-m", "edge_sim", *sys.argv[1:]])
    with RunRecorder(folder, command=command, facts=facts) as recorder:
        writer, began_s = FleetRecorder(recorder), time.monotonic()
        try:
            asyncio.run(live(writer))
        except BaseException:
            recorder.add_facts({"ended_at_s": min(seconds, time.monotonic() - began_s)})
            raise
        finally:
            writer.flush()
    progress = writer.progress
    # A device that is late is a slow device: that is what its records are for.
    invalid = None if progress.requests else NO_REQUEST
    recorder.add_facts(
        {
            "invalid": invalid,
            "lateness_p99_s": writer.lateness_p99_s,
            "outcomes": dict(progress.outcomes),
            "assumed": [],
        }
    )
    if as_json:
        print_json({"folder": str(folder), "requests": progress.requests, "outcomes": dict(progress.outcomes)})
    else:
        out.print(f"{progress.requests} requests: {dict(progress.outcomes)}; written to {folder}")
    if invalid:
        err.print(f"edge_sim: INVALID: {invalid}")
        raise typer.Exit(INVALID)
