"""Compiles tails ahead of time, for fixed numbers of rows, with weights folded into the layout of the processor.

Knows torch's AOTInductor and the cache's keys. Needs a C++ compiler. Runs in a process of its own, because compiling
leaves hundreds of megabytes behind and torch's settings changed (`python -m serve_app.tail_compiler` reads one job
from its standard input, and is started by `compile_missing` only).

Why fixed numbers of rows: a tail compiled for any number runs one sample in 6.0 ms, one compiled for just one in
3.6 ms, because the library packs the weights for it (docs/results/serving_*.md).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from serve_app.compiled_tail import CompiledTail
from serve_app.feature_form import CODES
from serve_app.tail_cache import TailCache, TailKey
from serve_app.tail_module import ServedTail, WeightCaster
from split_inference.errors import ConfigError, ModelExportError, SplitInferenceError, UsageError
from split_inference.model_catalog import load_model
from split_inference.model_split import FeatureSpec, SplittableModel, first_line

# Of one tail. A large one takes a minute; without any bound a compiler that hangs would keep a replica from starting.
TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What compiling one tail took."""

    key: TailKey
    seconds: float
    library_bytes: int


def compile_missing(
    uri: str,
    keys: Sequence[TailKey],
    cache: TailCache,
    *,
    on_start: Callable[[TailKey, int, int], None] = lambda key, index, count: None,
    on_done: Callable[[Compiled], None] = lambda compiled: None,
) -> list[Compiled]:
    """Compile what the cache lacks, each in a process of its own. Raises ConfigError with the reason in one line."""
    missing = [key for key in keys if cache.library(key) is None]
    if missing and _compiler() is None:
        raise ConfigError(
            "execution.compile: no C++ compiler here (g++, clang++ or $CXX); compile where there is one with "
            "`split-inference compile`, or write compile: none"
        )
    done = []
    for index, key in enumerate(missing):
        on_start(key, index, len(missing))
        compiled = _in_own_process(uri, key, cache)
        on_done(compiled)
        done.append(compiled)
    return done


def compile_tail(model: SplittableModel, key: TailKey, cache: TailCache) -> Compiled:
    """Compile one tail in this process and store it. Raises ModelExportError where torch refuses it."""
    started_s = time.perf_counter()
    point = model.split_point(key.split_point)
    caster = WeightCaster(precision=key.precision, channels_last=key.channels_last, device=torch.device("cpu"))
    tail = caster.apply(model.tail(key.split_point))
    served = ServedTail(
        tail,
        point.features,
        precision=key.precision,
        channels_last=key.channels_last,
        forms=[CODES] * len(point.features),
    ).eval()
    with tempfile.TemporaryDirectory(prefix="tail-") as folder:
        try:
            library = _compile(served, example_inputs(point.features, key.bucket), key, Path(folder))
        except SplitInferenceError:
            raise
        except Exception as error:
            raise ModelExportError(
                f"the tail behind {key.split_point} cannot be compiled at {key.precision}: {first_line(error)}"
            ) from error
        # It has to load and run here before anybody else relies on it.
        CompiledTail(library)(*example_inputs(point.features, key.bucket))
        seconds = time.perf_counter() - started_s
        size = library.stat().st_size
        cache.store(key, library, {"compile_s": round(seconds, 2), "library_bytes": size})
    return Compiled(key=key, seconds=seconds, library_bytes=size)


def example_inputs(features: Sequence[FeatureSpec], rows: int) -> tuple[Tensor, ...]:
    """Codes, steps and lows of zeros, as ServedTail takes them."""
    inputs: list[Tensor] = []
    for spec in features:
        channels = spec.shape[spec.channel_axis - 1] if spec.shape else 1
        inputs.append(torch.zeros((rows, *spec.shape), dtype=torch.uint8))
        inputs += [torch.zeros((rows, channels)), torch.zeros((rows, channels))]
    return tuple(inputs)


def _compile(served: ServedTail, inputs: tuple[Tensor, ...], key: TailKey, folder: Path) -> Path:
    import torch._inductor
    from torch._inductor import config

    # freezing: weights become constants, and oneDNN packs them once instead of at each call.
    with warnings.catch_warnings(), torch.no_grad(), config.patch({"freezing": True, "cpp.threads": key.threads}):
        warnings.simplefilter("ignore")
        program = torch.export.export(served, inputs)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "tail.pt2"))
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        for name in names:
            if name.endswith(".wrapper.json") and json.loads(archive.read(name)).get("nodes"):
                raise ModelExportError(
                    f"the tail behind {key.split_point} needs operations outside AOTInductor's C interface; leave it "
                    "out of execution.compile"
                )
        (library,) = (name for name in names if name.endswith(".so"))
        file = folder / "tail.so"
        with archive.open(library) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target)
    return file


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("g++") or shutil.which("clang++")


def _in_own_process(uri: str, key: TailKey, cache: TailCache) -> Compiled:
    job = json.dumps({"uri": uri, "key": asdict(key), "cache": str(cache.root)})
    with tempfile.TemporaryDirectory(prefix="inductor-") as folder:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder, "OMP_NUM_THREADS": str(key.threads)}
        try:
            result = subprocess.run(
                [sys.executable, "-m", "serve_app.tail_compiler"],
                input=job,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"compiling the tail behind {key.split_point} took over {TIMEOUT_S:g} s") from None
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["no reason given"]
        raise ConfigError(lines[-1].removeprefix("error: "))
    done = json.loads(result.stdout.splitlines()[-1])
    return Compiled(key=key, seconds=done["seconds"], library_bytes=done["library_bytes"])


def main() -> int:
    """One job from standard input, one line of JSON to standard output."""
    job = json.loads(sys.stdin.read())
    key = TailKey(**job["key"])
    try:
        torch.set_num_threads(key.threads)
        model = load_model(job["uri"]).model
        if model.digest != key.digest:
            raise UsageError(f"{job['uri']} has digest {model.digest[:16]}, not {key.digest[:16]}: it has changed")
        compiled = compile_tail(model, key, TailCache(Path(job["cache"])))
    except SplitInferenceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"seconds": compiled.seconds, "library_bytes": compiled.library_bytes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
