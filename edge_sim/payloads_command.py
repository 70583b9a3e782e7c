"""The command `payloads`: a folder of inputs becomes a file of prepared requests, for replay without torch.

Knows the terminal: the table, the progress bar, exit codes. What is done is in payloads.py, which is imported when the
command runs, because it brings torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from split_inference.calibration import refuse_unwritable
from split_inference.cli import JsonOption, ModelArgument, err, out, print_json, progress_bar

if TYPE_CHECKING:
    from edge_sim.model_profile import ModelProfile
    from edge_sim.payloads import Choice
    from edge_sim.recorded_traffic import Asked
    from split_inference.payload_file import PayloadHeader

# As a shell reports a command that Ctrl-C ended.
INTERRUPTED = 130


def payloads(
    model: ModelArgument,
    inputs: Annotated[Path, typer.Option(help="Image or sound, a folder of them, or an archive; see `calibrate`.")],
    file: Annotated[Path, typer.Option("--out", "-o", help="The payload file to write.")],
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="`server_only`, `SPLIT_POINT,CODEC` or a calibration's `FILE.json`; give it several times for several "
            "options. By default the inputs as they are, and every stage's end with u8, u4 and u2.",
        ),
    ] = None,
    traffic_of: Annotated[
        Path | None,
        typer.Option(
            "--traffic-of",
            help="Folder of a fleet's run: load tests then ask in its proportions and at its rate. Its options are "
            "prepared, unless --option says others.",
        ),
    ] = None,
    traffic_model: Annotated[str | None, typer.Option(help="Which of that run's models, where it has several.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take this many files of a folder, a seeded sample.")] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Also write what a simulation has to know of the model, as JSON.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prepare requests for replay: run the heads on your own inputs, keep every body and the answer it should get.

    Load tests send what is in the file, and simulations read its sizes; neither needs torch or the model then.

    Examples:

    `python -m edge_sim payloads embedded:resnet20-cifar10 --inputs split_inference/embedded/samples --out r20.payloads`

    `python -m edge_sim payloads embedded:resnet20-cifar10 --inputs photos/ --option "stage2,u4+lz4" --out s2.payloads`

    `python -m edge_sim payloads embedded:resnet20-cifar10 --inputs photos/ --traffic-of runs/RUN -o f.payloads`

    `python -m edge_sim payloads hf:FOLDER --inputs photos/ --option server_only --option c.json -o m.payloads --json`
    """
    refuse_unwritable(file)
    if profile is not None:
        refuse_unwritable(profile)
    asked = [] if traffic_of is None else _asked(traffic_of, traffic_model)
    try:
        with progress_bar() as bar:
            task = bar.add_task("importing torch", total=None)
            from edge_sim.model_profile import ModelProfile
            from edge_sim.payloads import make_payloads, parse_choice
            from edge_sim.recorded_traffic import traffic_for

            def show(text: str, done: int, total: int) -> None:
                bar.update(task, description=text, completed=done, total=total or None)

            texts = option or [each.choice for each in asked]
            options = [parse_choice(text) for text in texts] if texts else None
            traffic = traffic_for(asked, [_facts(each) for each in options or []])
            header = make_payloads(model, inputs, file, options=options, limit=limit, traffic=traffic, on_progress=show)
        made = ModelProfile.from_header(header)
        if profile is not None:
            made.save(profile)
    except KeyboardInterrupt:
        err.print("stopped; no half file is left")
        raise typer.Exit(INTERRUPTED) from None
    if not header.model.trained:
        from split_inference.model_card import UNTRAINED

        err.print(f"[yellow]{header.model.name}: {UNTRAINED}[/yellow]")
    if as_json:
        print_json(_summary(file, header, made))
    else:
        _print(file, header, made)


def _asked(run: Path, model: str | None) -> list[Asked]:
    from edge_sim.recorded_traffic import asked_of
    from edge_sim.run_reader import read_run

    return asked_of(read_run(run), model=model)


def _facts(choice: Choice) -> tuple[str | None, str | None]:
    """Split point and codec's name, as records have them."""
    if isinstance(choice, str):
        return None, None
    point, codec = choice
    return point, codec if isinstance(codec, str) else codec.codec


def _summary(file: Path, header: PayloadHeader, profile: ModelProfile) -> dict[str, Any]:
    return {
        "file": str(file),
        "file_bytes": file.stat().st_size,
        "model": header.model.name,
        "digest": header.model.digest,
        "trained": header.model.trained,
        "inputs": len(header.inputs),
        "traffic": [each.model_dump() for each in header.traffic],
        "correct_means": profile.correct_means,
        "whole_correct": _share(profile.whole_correct),
        "options": [
            {
                "option": number,
                "mode": option.mode,
                "split_point": option.split_point,
                "codec": option.codec,
                "calibrated": option.calibrated,
                "head_macs_share": option.head_macs_share,
                "bytes_mean": sum(option.sizes) / len(option.sizes),
                "bytes_max": max(option.sizes),
                "same_answer": _share([a == e for a, e in zip(option.answer, option.expected, strict=True)]),
                "correct": _share(own.correct),
            }
            for number, (option, own) in enumerate(zip(header.options, profile.options, strict=True))
        ],
    }


def _share(flags: tuple[bool, ...] | list[bool] | None) -> float | None:
    return None if flags is None else sum(flags) / len(flags)


def _print(file: Path, header: PayloadHeader, profile: ModelProfile) -> None:
    summary = _summary(file, header, profile)
    by_label = profile.correct_means == "label"
    table = Table("option", "bytes per request", "head's MACs", "same answer as unsplit")
    shares = {each.option: each for each in header.traffic}
    if by_label:
        table.add_column("top-1")
    if shares:
        table.add_column("of the traffic")
    for number, (option, row) in enumerate(zip(header.options, summary["options"], strict=True)):
        cells = [
            option.title,
            f"{row['bytes_mean']:,.0f}",
            f"{option.head_macs_share:.1%}",
            f"{row['same_answer']:.1%}",
        ]
        cells += [f"{row['correct']:.1%}"] if by_label else []
        cells += [f"{shares[number].share:.1%}" if number in shares else "-"] if shares else []
        table.add_row(*cells)
    out.print(table)
    unsplit = f"; unsplit it is right on {summary['whole_correct']:.1%}" if by_label else ""
    out.print(
        f"{header.model.name}: {len(header.inputs)} inputs with {len(header.options)} options, "
        f"{summary['file_bytes']:,} bytes in {file}{unsplit}"
    )
