"""The edge's commands: `infer` (own images through the split) and `demo` (the main job, with a server of its own).

Knows the terminal: tables, progress bars, exit codes. What is done is in client.py and demo.py, which are imported when
a command runs, because they bring torch.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edge_sim.fleet_options import CaOption, InsecureTokenOption, TokenOption
from split_inference.cli import err, load_with_notice, out, print_json, progress_bar
from split_inference.errors import UsageError

if TYPE_CHECKING:
    from edge_sim.client import Answer
    from edge_sim.demo import DemoResult
    from split_inference.calibration import Calibration
    from split_inference.inputs import EncodedInput
    from split_inference.model_catalog import LoadedModel

# Without a calibration: few enough bits to show what the codec does, enough for most layers of most networks.
UNCALIBRATED_CODEC = "u4+lz4"
# As time passes: on the device, on the way, on the server; what is left over belongs at the end.
STAGES = ("preprocess", "head", "encode", "http")
# As a shell reports a command that Ctrl-C ended.
INTERRUPTED = 130

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]


def register(app: typer.Typer) -> None:
    """Add this package's commands to the command line."""
    app.command()(infer)
    app.command()(demo)


def infer(
    inputs: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="An image or sound, or a folder of them.")],
    url: Annotated[str, typer.Option(help="The server, as in http://127.0.0.1:8000.")],
    model: Annotated[
        str | None, typer.Option(help="Model URI, the same as the server's; by default what its catalogue says.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name on the server, where it is not its own.")] = None,
    at: Annotated[
        str | None, typer.Option(help="Split point; `input` without --codec sends the files as they are.")
    ] = None,
    codec: Annotated[str | None, typer.Option(help="Codec, as in u4+lz4, u2c+zstd, float16 or jpeg75.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="File made by `calibrate`: split point, codec and clip ranges.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, max=100, help="How many classes per input.")] = 3,
    limit: Annotated[int | None, typer.Option(min=1, help="Take this many files of a folder, a seeded sample.")] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.01, help="Seconds per request, retries included.")
    ] = 10.0,
    token_file: TokenOption = None,
    ca: CaOption = None,
    insecure_token: InsecureTokenOption = False,
    as_json: JsonOption = False,
) -> None:
    """Send your own images or sounds through the split: what they are, how many bytes left the device, and each stage.

    Examples:

    `split-inference infer photo.jpg --url http://127.0.0.1:8000`

    `split-inference infer photos/ --url https://edge.example --ca ca.pem --token-file token --calibration c.json`

    `split-inference infer photo.jpg --url http://127.0.0.1:8000 --at layer2 --codec u3+zstd --json`
    """
    from edge_sim.transport import read_token
    from split_inference.calibration import load_calibration
    from split_inference.inputs import read_inputs

    files = read_inputs(inputs, limit=limit)
    token = read_token(token_file)
    calibrated = load_calibration(calibration) if calibration is not None else None

    async def ask() -> dict[str, Any]:
        from edge_sim.client import EdgeClient
        from edge_sim.transport import HttpTransport

        transport = HttpTransport(url, token=token, ca=ca, allow_insecure_token=insecure_token)
        try:
            uri, served_name = (
                (model, name) if model is not None else await _ask_for_model(transport, url, name, timeout_s)
            )
            loaded = load_with_notice(uri)
            split_point, fitting, profile, as_they_are = _resolve(loaded, at=at, codec=codec, calibration=calibrated)
            async with EdgeClient(
                url,
                loaded,
                split_point,
                profile,
                calibration=fitting,
                served_name=served_name,
                timeout_s=timeout_s,
                transport=transport,
            ) as edge:
                answers = []
                with progress_bar() as bar:
                    task = bar.add_task("asking", total=len(files))
                    for file in files:
                        answers.append(await _ask_one(edge, file, top_k=top_k, as_it_is=as_they_are))
                        bar.advance(task)
                return {
                    "url": url,
                    "model": edge.card.name,
                    "digest": edge.card.digest,
                    "trained": edge.card.trained,
                    "split_point": edge.split_point.name,
                    "codec": "the file as it is" if as_they_are else edge.codec_name,
                    "answers": [_answer_json(file, answer) for file, answer in zip(files, answers, strict=True)],
                }
        finally:
            await transport.close()

    result = asyncio.run(ask())
    if as_json:
        print_json(result)
    else:
        _print_answers(result)


def demo(
    images: Annotated[int, typer.Option(min=1, help="How many of the 100 sample images.")] = 100,
    port: Annotated[int | None, typer.Option(help="Port of the server; by default a free one.")] = None,
    config: Annotated[Path, typer.Option(help="Config of the server that is started.")] = Path("config.yaml"),
    as_json: JsonOption = False,
) -> None:
    """Run the main job once: start a server, run the sample images three ways, compare, stop everything.

    Server-only sends the JPEGs, shared sends features of the calibrated split, device-only sends nothing. Every request
    is kept in `runs/<time>/`, the figures in `runs/latest/demo.json`; ends with 1 where a bound is missed.

    Example: `split-inference demo --images 20`
    """
    from edge_sim.demo import DemoSettings, run_demo
    from split_inference.figures import report

    command = " ".join(["split-inference", *sys.argv[1:]])
    settings = DemoSettings(images=images, port=port, config=config, command=command)
    try:
        with progress_bar() as bar:
            task = bar.add_task("loading", total=None)

            def show(text: str, done: int, total: int) -> None:
                bar.update(task, description=text, completed=done, total=total or None)

            result = run_demo(settings, on_progress=show)
    except KeyboardInterrupt:
        err.print("stopped; nothing that was started is left running")
        raise typer.Exit(INTERRUPTED) from None
    if not as_json:
        _print_demo(result)
    code = report("demo", result.figures, result.bounds, command=[command], to_stderr=as_json)
    if as_json:
        print_json(_demo_json(result, missed=bool(code)))
    raise typer.Exit(code)


async def _ask_for_model(transport: Any, url: str, name: str | None, timeout_s: float) -> tuple[str, str]:
    """URI and served name of the one model that the server has, or of the one called `name`."""
    from edge_sim.exchange import Exchange
    from edge_sim.server_card import safe_uri

    catalog = await Exchange.plain(transport, url=url, timeout_s=timeout_s).read_catalog()
    entries = [entry for entry in catalog.models if name in (None, entry.name)]
    if len(entries) != 1:
        names = ", ".join(entry.name for entry in catalog.models) or "no models"
        raise UsageError(f"{url} has {names}: give --model URI, or the --name of one of them")
    return safe_uri(entries[0]), entries[0].name


def _resolve(
    loaded: LoadedModel, *, at: str | None, codec: str | None, calibration: Calibration | None
) -> tuple[str, Calibration | None, str | None, bool]:
    """Split point, calibration, codec, and whether files are sent as they are."""
    from split_inference.calibration import EMBEDDED_CALIBRATION, load_calibration

    if calibration is None and at is None and EMBEDDED_CALIBRATION.is_file():
        embedded = load_calibration(EMBEDDED_CALIBRATION)
        if embedded.model_digest == loaded.model.digest:
            # Another codec is measured without the calibration, at its split point.
            calibration, at = (embedded, None) if codec in (None, embedded.codec) else (None, embedded.split_point)
    if calibration is not None:
        return at or calibration.split_point, calibration, codec, False
    if at is None:
        raise UsageError(
            f"where to split {loaded.name}? give --calibration FILE, or --at (listed by "
            f"`split-inference split-points {loaded.card.uri}`)"
        )
    as_they_are = codec is None and loaded.model.split_point(at).name == "input"
    return at, None, codec or UNCALIBRATED_CODEC, as_they_are


async def _ask_one(edge: Any, file: EncodedInput, *, top_k: int, as_it_is: bool) -> Answer:
    from split_inference.errors import MalformedInputError, TooLargeError

    try:
        if as_it_is:
            answer: Answer = await edge.send_input(file.data, file.media_type, top_k=top_k)
        else:
            answer = await edge.infer(file.data, top_k=top_k)
    except (MalformedInputError, TooLargeError) as error:
        raise type(error)(f"{file.name}: {error}") from error
    return answer


def _answer_json(file: EncodedInput, answer: Answer) -> dict[str, Any]:
    return {
        "file": file.name,
        "file_bytes": len(file.data),
        "sent_bytes": answer.sent_bytes,
        "received_bytes": answer.received_bytes,
        "attempts": answer.attempts,
        "predictions": [
            {"index": each.index, "label": each.label, "score": each.score} for each in answer.predictions[0]
        ],
        "total_ms": 1000 * answer.total_s,
        "stages_ms": {stage: 1000 * value for stage, value in answer.stages_s.items()},
        "server_stages_ms": {stage: 1000 * value for stage, value in answer.server_stages_s.items()},
    }


def _print_answers(result: dict[str, Any]) -> None:
    table = Table("file", "answers", "file bytes", "sent", "total ms")
    table.add_column("stages ms", no_wrap=True)
    for answer in result["answers"]:
        table.add_row(
            answer["file"],
            "\n".join(f"{each['label']} {each['score']:.1%}" for each in answer["predictions"]),
            f"{answer['file_bytes']:,}",
            f"{answer['sent_bytes']:,}",
            f"{answer['total_ms']:.1f}",
            "\n".join(f"{stage} {value:.2f}" for stage, value in answer["stages_ms"].items()),
        )
    out.print(table)
    count = len(result["answers"])
    sent = sum(answer["sent_bytes"] for answer in result["answers"]) / count
    held = sum(answer["file_bytes"] for answer in result["answers"]) / count
    out.print(
        f"{result['model']} split at {result['split_point']}, codec {result['codec']}: "
        f"{sent:,.0f} bytes sent per input of {held:,.0f} bytes, {count} in all"
    )


def _print_demo(result: DemoResult) -> None:
    from edge_sim.demo import NO_NETWORK
    from edge_sim.demo_fleet import COUNT
    from edge_sim.demo_summary import SERVER_ONLY
    from edge_sim.run_summary import render_summary

    table = Table(
        "mode", "top-1", "bytes per request", "p50 ms", "p99 ms", title=f"n = {int(result.figures['images'])}"
    )
    for mode, summary in result.modes.items():
        sent = f"{summary.sent_bytes:,.0f}"
        if mode == SERVER_ONLY and result.jpeg_header_bytes:
            sent += f"; {summary.sent_bytes - result.jpeg_header_bytes:,.0f} without shared header"
        top1 = "no labels" if summary.top1 is None else f"{summary.top1:.1%} of {summary.labelled}"
        table.add_row(mode, top1, sent, f"{1000 * summary.p50_s:.2f}", f"{1000 * summary.p99_s:.2f}")
    out.print(table)
    stages = Table("mean ms of", *result.modes)
    names = dict.fromkeys(name for summary in result.modes.values() for name in summary.stages_s)
    for name in sorted(names, key=_stage_order):
        values = [summary.stages_s.get(name) for summary in result.modes.values()]
        stages.add_row(name, *("" if value is None else f"{1000 * value:.3f}" for value in values))
    out.print(stages)
    out.print(f"shared: split at {result.split_point}, codec {result.codec}")
    out.print(NO_NETWORK)
    out.print()
    out.print(f"a fleet of {5 * COUNT} simulated devices, their links simulated too, against the same server:")
    render_summary(out, result.fleet.groups, assumed=result.fleet.assumed)
    out.print(f"look at {result.fleet.report}")
    out.print(f"every request: {result.folder}/requests.jsonl, how it was made: {result.folder}/header.json")


def _stage_order(name: str) -> int:
    if name in STAGES:
        return STAGES.index(name)
    return len(STAGES) + (name == "other")


def _demo_json(result: DemoResult, *, missed: bool) -> dict[str, Any]:
    from edge_sim.run_summary import summary_facts

    return {
        "run": str(result.folder),
        "split_point": result.split_point,
        "codec": result.codec,
        "modes": {
            mode: {
                "requests": summary.requests,
                "labelled": summary.labelled,
                "top1": summary.top1,
                "bytes_per_request": summary.sent_bytes,
                "p50_ms": 1000 * summary.p50_s,
                "p99_ms": 1000 * summary.p99_s,
                "stages_ms": {name: 1000 * value for name, value in summary.stages_s.items()},
            }
            for mode, summary in result.modes.items()
        },
        "jpeg_header_bytes": result.jpeg_header_bytes,
        "fleet": {"report": str(result.fleet.report), "groups": summary_facts(result.fleet.groups)},
        "figures": dict(result.figures),
        "bounds": {name: list(bound) for name, bound in result.bounds.items()},
        "missed": missed,
    }
