"""The main job, once, on the sample images: a server of our own, three ways to use it, and what each costs; then a
fleet of simulated devices that asks the same server.

Server-only sends the JPEG as it is; shared runs the head here and sends features; device-only sends nothing. Knows the
client, the server process and the recorder. Knows no terminal: who wants to see progress passes a function.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sim.client import Answer, EdgeClient
from edge_sim.demo_fleet import SECONDS, FleetResult, figures_of_fleet, run_fleet
from edge_sim.demo_summary import (
    DEVICE_ONLY,
    MODES,
    SERVER_ONLY,
    SHARED,
    ModeSummary,
    Outcome,
    figures_and_bounds,
    shared_jpeg_header_bytes,
    summarize,
)
from edge_sim.recorder import RunRecorder, new_run_folder
from edge_sim.server_process import ServerProcess
from split_inference.calibration import EMBEDDED_CALIBRATION, Calibration, load_calibration
from split_inference.errors import ConfigError
from split_inference.figures import Bound
from split_inference.inputs import EncodedInput, read_inputs
from split_inference.interruption import terminated_like_interrupted
from split_inference.model_catalog import EMBEDDED_FOLDER, EMBEDDED_URI, load_model
from split_inference.server_url import CATALOG_PATH, model_path

SAMPLES = EMBEDDED_FOLDER / "samples"
NO_NETWORK = (
    "Device and server are one machine here, so these latencies have no network in them: "
    "compare bytes and stages, not totals."
)
# Uncounted requests of each mode: the first ones pay for connections, caches and lazily cut tails.
WARM_UP = 3

Progress = Callable[[str, int, int], None]
"""What is going on, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """What a demo is asked to do."""

    model: str = EMBEDDED_URI
    """As the config names it; the samples have to be for it."""
    images: int = 100
    port: int | None = None
    config: Path = Path("config.yaml")
    samples: Path = SAMPLES
    calibration: Path = EMBEDDED_CALIBRATION
    runs: Path = Path("runs")
    command: str = "split-inference demo"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What a demo found."""

    folder: Path
    split_point: str
    codec: str
    modes: Mapping[str, ModeSummary]
    figures: Mapping[str, float]
    bounds: Mapping[str, Bound]
    fleet: FleetResult
    jpeg_header_bytes: int


def run_demo(settings: DemoSettings, *, on_progress: Progress = lambda text, done, total: None) -> DemoResult:
    """Run all three modes over the samples; whatever happens, nothing that was started is left running.

    Raises UsageError before anything starts where the config, the samples, the calibration or the port cannot be used;
    ServerError where the server does not come or fails.
    """
    started_s = time.perf_counter()
    server = ServerProcess(settings.config, port=settings.port)
    served_name = _served_name(server.config, settings)
    images = read_inputs(settings.samples, limit=settings.images)
    calibration = load_calibration(settings.calibration)
    header_bytes = shared_jpeg_header_bytes([image.data for image in images])
    facts = _facts(calibration, images=len(images), server=server, header_bytes=header_bytes)
    folder = new_run_folder(settings.runs)
    with terminated_like_interrupted(), RunRecorder(folder, command=settings.command, facts=facts) as recorder:
        with server.started(log=folder / "server.log"):
            on_progress("starting the server", 0, 0)
            # While the server starts in other processes, this one loads its own half.
            loaded = load_model(settings.model)
            edge = EdgeClient(
                server.url, loaded, calibration.split_point, calibration=calibration, served_name=served_name
            )
            server.wait_until_ready(model_path(served_name))
            ready_s = time.perf_counter()
            outcomes = asyncio.run(_ask_all(edge, images, recorder, on_progress))
            asked_s = time.perf_counter()
            on_progress("preparing the fleet's frames", 0, 0)
            fleet = run_fleet(
                url=server.url,
                route=model_path(served_name),
                loaded=loaded,
                calibration=calibration,
                inputs=images,
                folder=folder / "fleet",
                command=settings.command,
                on_progress=lambda progress: on_progress("a fleet asks", int(progress.now_s), int(SECONDS)),
            )
            fleet_s = time.perf_counter()
            on_progress("stopping the server", 0, 0)
        stopped_s = time.perf_counter()
    figures, bounds = figures_and_bounds(
        outcomes,
        jpeg_header_bytes=header_bytes,
        seconds={
            "server_start": ready_s - started_s,
            "requests": asked_s - ready_s,
            "fleet": fleet_s - asked_s,
            "server_stop": stopped_s - fleet_s,
            "total": stopped_s - started_s,
        },
        leftover_processes=len(server.leftover()),
    )
    fleet_figures, fleet_bounds = figures_of_fleet(fleet)
    return DemoResult(
        folder=folder,
        split_point=calibration.split_point,
        codec=calibration.codec,
        modes={mode: summarize([each for each in outcomes if each.mode == mode]) for mode in MODES},
        figures={**figures, **fleet_figures},
        bounds={**bounds, **fleet_bounds},
        fleet=fleet,
        jpeg_header_bytes=header_bytes,
    )


async def _ask_all(
    edge: EdgeClient, images: Sequence[EncodedInput], recorder: RunRecorder, on_progress: Progress
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    async with edge:
        for image in images[:WARM_UP]:
            for mode in MODES:
                await _ask(edge, mode, image)
        for number, image in enumerate(images):
            on_progress("asking", number, len(images))
            # Each mode is first, second and third equally often, so that none always finds the others' caches warm.
            for offset in range(len(MODES)):
                mode = MODES[(number + offset) % len(MODES)]
                answer = await _ask(edge, mode, image)
                outcomes.append(_outcome(mode, image, answer))
                _record(recorder, outcomes[-1], answer)
        on_progress("asking", len(images), len(images))
    return outcomes


async def _ask(edge: EdgeClient, mode: str, image: EncodedInput) -> Answer:
    if mode == SERVER_ONLY:
        return await edge.send_input(image.data, image.media_type)
    if mode == SHARED:
        return await edge.infer(image.data)
    assert mode == DEVICE_ONLY
    return await edge.infer_locally(image.data)


def _outcome(mode: str, image: EncodedInput, answer: Answer) -> Outcome:
    return Outcome(
        mode=mode,
        image=image.name,
        label=image.label,
        predicted=answer.top.index,
        sent_bytes=answer.sent_bytes,
        received_bytes=answer.received_bytes,
        total_s=answer.total_s,
        stages_s=answer.stages_s,
        server_stages_s=answer.server_stages_s,
    )


def _record(recorder: RunRecorder, outcome: Outcome, answer: Answer) -> None:
    recorder.request(
        mode=outcome.mode,
        image=outcome.image,
        label=outcome.label,
        predicted=outcome.predicted,
        score=round(answer.top.score, 4),
        sent_bytes=outcome.sent_bytes,
        received_bytes=outcome.received_bytes,
        attempts=answer.attempts,
        total_s=_rounded(outcome.total_s),
        stages_s={name: _rounded(value) for name, value in outcome.stages_s.items()},
        server_stages_s={name: _rounded(value) for name, value in outcome.server_stages_s.items()},
    )


def _rounded(seconds: float) -> float:
    # Microseconds: more digits are noise, and triple the file.
    return round(seconds, 6)


def _served_name(config: Mapping[str, Any], settings: DemoSettings) -> str:
    """Name under which the config serves the demo's model: the samples are for no other."""
    path, model = settings.config, settings.model
    applications = config.get("applications")
    for application in applications if isinstance(applications, list) else []:
        args = application.get("args") if isinstance(application, dict) else None
        if isinstance(args, dict) and args.get("model") == model:
            route = str(application.get("route_prefix", ""))
            if route.startswith(f"{CATALOG_PATH}/"):
                return route.removeprefix(f"{CATALOG_PATH}/")
            raise ConfigError(f"{path}: the demo expects {model} below {CATALOG_PATH}/, its route is {route!r}")
    raise ConfigError(f"{path} serves no {model}, which the demo's images are for: add it, or give --config")


def _facts(calibration: Calibration, *, images: int, server: ServerProcess, header_bytes: int) -> dict[str, Any]:
    return {
        "model": {"uri": calibration.model, "digest": calibration.model_digest},
        "split_point": calibration.split_point,
        "codec": calibration.codec,
        "images": images,
        "jpeg_header_bytes_shared_by_all": header_bytes,
        "modes": {
            SERVER_ONLY: "the JPEG bytes as they are; everything is computed on the server",
            SHARED: "head on the device, features as one frame, tail on the server",
            DEVICE_ONLY: "the whole model on the device; nothing is sent",
        },
        "network": NO_NETWORK,
        "warm_up_requests_per_mode_not_recorded": min(WARM_UP, images),
        "server": {"url": server.url, "config": dict(server.config)},
    }
