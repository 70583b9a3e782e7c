"""From settings to a runner: what takes long, or disturbs a model that serves in the same process, in a child before.

Exporting a network and making its program functional replaces methods of torch's classes while it lasts, in every
thread: nothing that runs beside it can be trusted. Loading what was exported replaces nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from serve_app.compile_command import compile_for
from serve_app.settings import AppSettings
from serve_app.tail_cache import TailCache
from serve_app.tail_runner import TailRunner
from split_inference.errors import ConfigError, SplitInferenceError
from split_inference.model_cache import cache_place, load_cached_model

# The largest networks compile in ten minutes on two cores.
CHILD_TIMEOUT_S = 3600.0


def load_runner(settings: AppSettings, *, say: Callable[[str], None] = lambda line: None) -> TailRunner:
    """The settings' model and what was compiled of it; what was not, is first. Raises UsageError in one line."""
    return TailRunner.load(
        settings,
        # Does nothing where everything is compiled, as it is after `python -m serve_app.serve` or in an image.
        on_loaded=lambda loaded: compile_for(settings, loaded=loaded, say=say),
        on_phase=say,
    )


def loads_undisturbing(settings: AppSettings) -> bool:
    """Whether the program comes from the cache, so that it may be loaded beside a model that runs."""
    place = _place(settings)
    return place is not None and place.is_dir()


def prepare_in_child(settings: AppSettings) -> None:
    """Fill the caches with the exported program and its compiled tails, in another process.

    Does nothing where there is nothing to do. Raises ConfigError in one line.
    """
    cached = _place(settings)
    if not settings.compiles and (cached is None or cached.is_dir()):
        return
    try:
        done = subprocess.run(
            [sys.executable, "-m", "serve_app.model_loading"],
            input=settings.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"model: {settings.model} could not be prepared: {error}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(f"model: {settings.model} could not be prepared: {reason}")


def main() -> int:
    """The child: settings as JSON on standard input, a reason in the last line of standard error."""
    try:
        settings = AppSettings.model_validate_json(sys.stdin.read())
        loaded = load_cached_model(settings.model, TailCache(settings.execution.cache).models())
        compile_for(settings, loaded=loaded)
    except SplitInferenceError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def _place(settings: AppSettings) -> Path | None:
    return cache_place(settings.model, TailCache(settings.execution.cache).models())


if __name__ == "__main__":
    sys.exit(main())
