"""From settings to a runner: at once when a process starts, and beside a model that serves without disturbing it.

Exporting a network and making its program functional replaces methods of torch's classes while it lasts, in every
thread: nothing that runs beside it can be trusted. Reading what was exported does not.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor

from serve_app.compile_command import compile_for, missing_keys
from serve_app.settings import AppSettings
from serve_app.tail_cache import TailCache
from serve_app.tail_runner import TailRunner
from split_inference.errors import ConfigError, SplitInferenceError
from split_inference.model_cache import cache_place, load_cached_model, read_cached_model
from split_inference.model_catalog import load_model
from split_inference.model_uri import parse_uri

# The largest networks compile in ten minutes on two cores.
CHILD_TIMEOUT_S = 3600.0
# How often it is looked whether a child is still wanted.
_LOOK_S = 0.2


def load_runner(settings: AppSettings, *, say: Callable[[str], None] = lambda line: None) -> TailRunner:
    """The settings' model and what was compiled of it; what was not, is first. Raises UsageError in one line."""
    return TailRunner.load(
        settings,
        # Does nothing where everything is compiled, as it is after `python -m serve_app.serve` or in an image.
        on_loaded=lambda loaded: compile_for(settings, loaded=loaded, say=say),
        on_phase=say,
    )


async def load_runner_beside(settings: AppSettings, *, model_thread: Executor, given_up: threading.Event) -> TailRunner:
    """As `load_runner`, while another model runs in `model_thread`. Raises UsageError in one line.

    What has to be exported or compiled is so in a child process, which ends when `given_up` is set. Programs that the
    cache does not keep may have to be made functional: that takes its turn in the model's thread, and holds batches up
    for as long.
    """
    folder = TailCache(settings.execution.cache).models()
    loaded = await asyncio.to_thread(read_cached_model, settings.model, folder)
    if loaded is None and parse_uri(settings.model).scheme in ("classic", "hf"):
        if await asyncio.to_thread(cache_place, settings.model, folder) is None:
            raise ConfigError(f"{settings.model}: what it is made of does not all lie on this machine")
        await asyncio.to_thread(prepare_in_child, settings, given_up)
        loaded = await asyncio.to_thread(read_cached_model, settings.model, folder)
        if loaded is None:
            raise ConfigError(f"{settings.model}: the exported program could not be kept in {folder}")
    if loaded is None:
        loaded = await asyncio.get_running_loop().run_in_executor(model_thread, load_model, settings.model)
    if await asyncio.to_thread(missing_keys, settings, loaded):
        await asyncio.to_thread(prepare_in_child, settings, given_up)
    return await asyncio.to_thread(TailRunner.of, loaded, settings)


def prepare_in_child(settings: AppSettings, given_up: threading.Event | None = None) -> None:
    """Fill the caches with the exported program and its compiled tails, in another process. Raises ConfigError."""
    child = subprocess.Popen(
        [sys.executable, "-m", "serve_app.model_loading"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    give_up_s = time.monotonic() + CHILD_TIMEOUT_S
    given: str | None = settings.model_dump_json()
    while True:
        try:
            _, errors = child.communicate(given, timeout=_LOOK_S)
            break
        except subprocess.TimeoutExpired:
            # It has them; communicate goes on where it was.
            given = None
        if time.monotonic() > give_up_s or (given_up is not None and given_up.is_set()):
            # With the compilers that it started.
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            raise ConfigError(f"{settings.model}: given up before it was prepared")
    if child.returncode:
        reason = (errors.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise ConfigError(f"{settings.model} could not be prepared: {reason}")


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


if __name__ == "__main__":
    sys.exit(main())
