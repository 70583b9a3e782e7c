"""The `split-inference` command: what concerns models and codecs here, the rest joined by the other packages.

Packages add commands through the entry-point group `split_inference.commands`. Every command has --json (on standard
output; all else goes to standard error), and ends with 0, with 1 where something ran and failed, or with 2 and one
line where it could not be run as asked.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from split_inference.errors import ServerError, SplitInferenceError

if TYPE_CHECKING:
    from split_inference.model_catalog import LoadedModel

COMMANDS_GROUP = "split_inference.commands"

app = typer.Typer(
    name="split-inference",
    help="Cut a network in two: the head on the device, the tail on a server, compact features between.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
out = Console()
err = Console(stderr=True)

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="Model URI, as in `embedded:resnet20-cifar10`, `hf:FOLDER`, `pt2:FILE`, `resnet34?weights=random`; "
        "`split-inference models` lists all forms."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="torch threads; default: torch's own choice.")]


class Compressor(StrEnum):
    """The compressors of a codec profile, as choices on the command line."""

    lz4 = "lz4"
    lz4hc = "lz4hc"
    zstd = "zstd"
    none = "none"


def progress_bar() -> Progress:
    """A progress bar on standard error, the same in all commands."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2))


def load_with_notice(uri: str, *, max_tensors: int = 1, threads: int | None = None) -> LoadedModel:
    """Load a model with a spinner, and say on standard error where it is untrained."""
    with err.status(f"loading {uri}"):
        import torch

        from split_inference.model_card import UNTRAINED
        from split_inference.model_catalog import load_model

        if threads is not None:
            torch.set_num_threads(threads)
        loaded = load_model(uri, max_tensors=max_tensors)
    if not loaded.card.trained:
        err.print(f"[yellow]{loaded.name}: {UNTRAINED}[/yellow]")
    return loaded


@app.command()
def models(as_json: JsonOption = False) -> None:
    """List the models that can be split, and how to name one's own.

    Example: `split-inference models`
    """
    from split_inference.model_uri import CLASSIC_MODELS, EMBEDDED_URI

    rows = [(EMBEDDED_URI, "trained, ships with the package: CIFAR-10 in 10 classes", "yes")]
    rows += [
        (name, "structure only: add ?weights=FILE.safetensors, or ?weights=random&seed=0", "no")
        for name in CLASSIC_MODELS
    ]
    rows += [
        ("hf:ID-OR-FOLDER", "transformers image and audio classifiers, safetensors only", "theirs"),
        ("pt2:FILE", "a program saved by torch.export.save; add ?card=FILE for labels and preprocessing", "theirs"),
        ("factory:MODULE:CALLABLE", "a function of yours that gives a torch module; runs your code", "yours"),
    ]
    if as_json:
        print_json([{"uri": uri, "what": what, "weights": weights} for uri, what, weights in rows])
        return
    table = Table("model", "what it is", "weights")
    for row in rows:
        table.add_row(*row)
    out.print(table)


@app.command("split-points")
def split_points(
    model: ModelArgument,
    max_tensors: Annotated[int, typer.Option(min=1, help="Also list cuts that send up to this many tensors.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """List every place where a model can be cut, with what crosses the cut and what either side computes.

    Example: `split-inference split-points resnet34?weights=random`
    """
    loaded = load_with_notice(model, max_tensors=max_tensors)
    points = loaded.model.split_points
    if as_json:
        print_json(
            {"model": loaded.name, "digest": loaded.card.digest, "split_points": [_point_json(p) for p in points]}
        )
        return
    table = _table_by_split_point("features", "elements", "head MMACs", "of MACs", "of parameters")
    for point in points:
        table.add_row(
            point.name,
            " + ".join("x".join(map(str, spec.shape)) for spec in point.features),
            f"{point.elements:,}",
            f"{point.head_macs / 1e6:,.1f}",
            f"{point.head_macs_share:.1%}",
            f"{point.head_parameters_share:.1%}",
        )
    out.print(table)
    out.print(f"{loaded.name}: {len(points)} split points, digest {loaded.card.digest}")


def _table_by_split_point(*columns: str) -> Table:
    """Names wrap where a terminal is narrow and are never cut off: they are what one copies."""
    table = Table()
    table.add_column("split point", overflow="fold", min_width=14)
    for column in columns:
        table.add_column(column)
    return table


def _point_json(point: Any) -> dict[str, object]:
    return {
        "name": point.name,
        "aliases": list(point.aliases),
        "features": [
            {"shape": list(s.shape), "dtype": s.dtype, "channel_axis": s.channel_axis} for s in point.features
        ],
        "elements": point.elements,
        "head_macs": point.head_macs,
        "tail_macs": point.tail_macs,
        "head_parameters": point.head_parameters,
        "total_parameters": point.total_parameters,
    }


@app.command()
def verify(
    model: ModelArgument,
    max_tensors: Annotated[int, typer.Option(min=1, help="Also verify cuts that send up to this many tensors.")] = 1,
    samples: Annotated[
        list[int] | None, typer.Option(min=1, help="Samples per frame; repeatable. Default: 1 and 3.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise that is run through the model.")] = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that the split model is the unsplit one, bit for bit, at every split point.

    The features travel as the bytes of a float32 frame. Ends with 1 where a single bit differs.

    Example: `split-inference verify embedded:resnet20-cifar10`
    """
    from split_inference.exactness import ExactnessResult
    from split_inference.exactness import verify as prove

    loaded = load_with_notice(model, max_tensors=max_tensors, threads=threads)
    counts = tuple(dict.fromkeys(samples or (1, 3)))
    with progress_bar() as bar:
        task = bar.add_task("verifying", total=len(loaded.model.split_points) * len(counts))

        def advance(result: ExactnessResult) -> None:
            bar.update(task, advance=1, description=result.split_point.name[-40:])

        results = prove(loaded.model, samples=counts, seed=seed, on_result=advance)
    wrong = [result for result in results if not result.exact]
    if as_json:
        print_json(
            {
                "model": loaded.name,
                "digest": loaded.card.digest,
                "split_points": len(loaded.model.split_points),
                "exact": not wrong,
                "results": [
                    {
                        "split_point": r.split_point.name,
                        "samples": r.samples,
                        "exact": r.exact,
                        "largest_difference": r.largest_difference,
                        "frame_bytes": r.frame_bytes,
                    }
                    for r in results
                ],
            }
        )
    else:
        table = _table_by_split_point(
            "features", *(f"{count} sample{'s' * (count > 1)}" for count in counts), "frame bytes"
        )
        for i, point in enumerate(loaded.model.split_points):
            mine = results[i * len(counts) : (i + 1) * len(counts)]
            verdicts = ["exact" if r.exact else f"[red]differs by {r.largest_difference:.3g}[/red]" for r in mine]
            features = " + ".join("x".join(map(str, spec.shape)) for spec in point.features)
            table.add_row(point.name, features, *verdicts, f"{mine[0].frame_bytes:,}")
        out.print(table)
        proved = len(results) - len(wrong)
        out.print(f"{loaded.name}: {proved} of {len(results)} runs equal the unsplit model bit for bit")
    if wrong:
        raise typer.Exit(1)


@app.command()
def calibrate(
    model: ModelArgument,
    data: Annotated[
        Path, typer.Option(help="Folder of images or sounds; labels.csv (file,label) or class folders are used.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the calibration is written.")] = Path(
        "calibration.json"
    ),
    limit: Annotated[int | None, typer.Option(min=4, help="Use this many inputs, chosen by --seed.")] = None,
    at: Annotated[str | None, typer.Option(help="Only this split point.")] = None,
    bits: Annotated[list[int] | None, typer.Option(min=1, max=8, help="Only these bits; repeatable.")] = None,
    compressor: Annotated[Compressor, typer.Option(help="Behind the bit planes.")] = Compressor.lz4,
    per_channel: Annotated[bool, typer.Option(help="Try ranges per channel too.")] = False,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Share of answers that must stay the same.")
    ] = 0.95,
    max_loss_points: Annotated[float, typer.Option(min=0, help="Top-1 points that may be lost.")] = 1.0,
    max_head_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the MACs that the device may do.")
    ] = 0.9,
    repeats: Annotated[int, typer.Option(min=1, help="Divisions into halves for the unseen scores.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the sample that --limit takes.")] = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the split point, bits and clipping that send the fewest bytes within an accuracy floor.

    Chosen on one half of the inputs and scored on the other, and the reverse; what is printed as "unseen" is that.

    Example: `split-inference calibrate embedded:resnet20-cifar10 --data photos/ -o calibration.json`
    """
    import numpy as np

    from split_inference.calibration import refuse_unwritable, save_calibration
    from split_inference.calibration_search import CalibrationSearch, SearchSettings
    from split_inference.errors import DataError, UsageError
    from split_inference.inputs import read_inputs

    refuse_unwritable(output)
    loaded = load_with_notice(model, threads=threads)
    if loaded.card.preprocessing is None:
        raise UsageError(f"{model} does not say how inputs are preprocessed; add ?card=FILE with a preprocessing")
    inputs = read_inputs(data, limit=limit, seed=seed, labels=loaded.card.labels)
    known = [item.label for item in inputs]
    labels = np.array(known, dtype=np.int64) if all(label is not None for label in known) else None
    with progress_bar() as bar:
        task = bar.add_task("reading inputs", total=len(inputs))
        arrays = []
        for item in inputs:
            array = loaded.card.preprocessing.apply(item.data)
            if array.shape[1:] != loaded.model.input.shape:
                given, taken = ("x".join(map(str, each)) for each in (array.shape[1:], loaded.model.input.shape))
                raise DataError(f"{item.name} becomes {given}, and the model takes {taken}: cut it to that, or pad it")
            arrays.append(array)
            bar.advance(task)

        def show(text: str, done: int, total: int) -> None:
            bar.update(task, description=text[:60], completed=done, total=total)

        settings = SearchSettings(
            at=at,
            bits=tuple(bits) if bits else SearchSettings().bits,
            compressor=compressor.value,
            per_channel=(False, True) if per_channel else (False,),
            min_agreement=min_agreement,
            max_loss_points=max_loss_points,
            max_head_share=max_head_share,
            repeats=repeats,
        )
        search = CalibrationSearch(loaded.model, np.concatenate(arrays), labels, settings, show)
        command = " ".join(["split-inference", *(Path(a).name if "/" in a else a for a in sys.argv[1:])])
        result = search.run(model_uri=model, made_by=command, trained=loaded.card.trained)
    save_calibration(result.calibration, output)
    header = np.mean([item.header_bytes for item in inputs])
    size = np.mean([len(item.data) for item in inputs])
    if as_json:
        print_json(
            {**result.calibration.model_dump(mode="json"), "input_bytes": float(size), "written_to": str(output)}
        )
        return
    table = Table("", "chosen", "bytes per input", "agreement", "top-1 lost")
    unseen, seen = result.unseen, result.seen
    for title, score in (("unseen inputs", unseen), ("all inputs", seen)):
        lost = "no labels" if score.loss_points is None else f"{score.loss_points:+.2f} points"
        what = f"{result.calibration.split_point} {result.calibration.codec}" if score is seen else "by halves"
        table.add_row(title, what, f"{score.bytes_per_input:,.0f}", f"{score.agreement:.1%}", lost)
    without = f" ({size - header:,.0f} without the header they share)" if header else ""
    table.add_row("the inputs themselves", "as files", f"{size:,.0f}{without}", "", "")
    out.print(table)
    if unseen.agreement < min_agreement:
        out.print(f"[yellow]on unseen inputs the agreement is below the floor of {min_agreement:.1%}[/yellow]")
    out.print(f"written: {output}")


def _join_commands() -> None:
    for entry in sorted(entry_points(group=COMMANDS_GROUP), key=lambda entry: entry.name):
        entry.load()(app)


def main() -> None:
    """The `split-inference` command."""
    _join_commands()
    run(app, "split-inference")


def run(commands: typer.Typer, name: str) -> None:
    """Run a command line; every refusal of ours is one line on standard error that begins with `name`."""
    try:
        commands()
    except ServerError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except SplitInferenceError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # `split-inference models | head`
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
