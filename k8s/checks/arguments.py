"""J. Commands and arguments of every container, parsed by the very programs that will parse them.

`ray start` by Ray's own click command, the fleet by edge_sim's own application and its scenario by its own reader,
Locust by Locust's parser with the locustfile's arguments (in a process of its own: importing it patches the process),
the drain by its own main, shell scripts by the shell. A program without a parser here is a finding, not a pass.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from k8s.checks.model import Document, Finding, Overlay, name_of, title
from k8s.checks.pods import Pod, pods_of, ray_container, ray_pods
from k8s.checks.ray_rules import environment
from k8s.checks.ray_start import ray_start_words
from k8s.checks.render import ROOT

_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_SCRIPTS = ("wait-for-model", "upload-results")
# Locust's parser, with what the locustfile adds; then the values, by the load tests' own check.
_PARSE_LOCUST = """
import json, sys
from locust.argument_parser import get_parser
from locust.util.load_locustfile import load_locustfile
words = json.load(sys.stdin)
load_locustfile(words[words.index("--locustfile") + 1])
options = get_parser(default_config_files=[]).parse_args(words)
from loadtests.options import RunOptions
from split_inference.errors import SplitInferenceError
try:
    RunOptions.of(options, host=options.host)
except SplitInferenceError as error:
    sys.exit(str(error))
known = ("headless", "slo", "master", "worker", "expect_workers", "master_host", "host")
print(json.dumps({name: getattr(options, name) for name in known}))
"""


def check_arguments(overlay: Overlay) -> list[Finding]:
    """Every container of every pod, and what two of them have to agree on."""
    found = []
    for pod in pods_of(overlay):
        for container in pod.containers():
            where = f"{pod.where} container {container['name']}"
            found += [Finding(where=where, problem=problem) for problem in _of_container(container, pod, overlay)]
    found += [Finding(where=where, problem=problem) for where, problem in _agreements(overlay)]
    return found


def words_of(container: Document, overlay: Overlay, **more: str) -> list[str]:
    """command and args with $(VARIABLES) replaced, as the kubelet does; unknown ones stay."""
    variables = {**environment(container, overlay), **more}
    words = [*container.get("command", []), *container.get("args", [])]
    return [_VARIABLE.sub(lambda found: variables.get(found[1], found[0]), word) for word in words]


def _of_container(container: Document, pod: Pod, overlay: Overlay) -> Iterator[str]:
    if "ray.io/node-type" in pod.labels:
        if pod.ray_group is not None and container["name"] == ray_container(pod)["name"]:
            yield from _ray_start(ray_start_words(pod, overlay)[2:])
            stop = ((container.get("lifecycle") or {}).get("preStop") or {}).get("exec") or {}
            if stop:
                yield from _program(stop.get("command", []))
        return
    more = {"POD_NAME": "pod", "JOB_COMPLETION_INDEX": "0"}
    yield from _program(words_of(container, overlay, **more))


def _program(words: Sequence[str]) -> Iterator[str]:
    match list(words):
        case ["python", "-m", "edge_sim", *rest]:
            yield from _edge_sim(tuple(rest))
        case ["python", "-m", "serve_app.drain_node", *rest]:
            yield from _drain(rest)
        case ["locust", *rest]:
            options = parse_locust(tuple(rest))
            if isinstance(options, str):
                yield options
        case [script, *rest] if script in _SCRIPTS:
            yield from _script(script, rest)
        case ["/bin/sh" | "/bin/bash", "-c", script, *_]:
            yield from _shell(script)
        case []:
            yield "no command: what runs is the image's business"
        case other:
            yield f"no parser is known for {other[0]}"


def _ray_start(words: Sequence[str]) -> Iterator[str]:
    import click
    from ray.scripts.scripts import start

    try:
        start.make_context("ray start", list(words))
    except click.ClickException as error:
        yield f"ray start refuses it: {error.format_message()}"


@cache
def _edge_sim(words: tuple[str, ...]) -> tuple[str, ...]:
    import typer

    from edge_sim.fleet_commands import app

    group: Any = typer.main.get_command(app)
    try:
        context = group.make_context("edge_sim", list(words))
        rest = [*getattr(context, "_protected_args", []), *context.args]
        # Typer brings its own copy of click, so that nothing can be said of the type here.
        name, command, left = group.resolve_command(context, rest)
        command.make_context(name, left, parent=context)
    except Exception as error:
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        return (f"edge_sim refuses it: {' '.join(said.split())}",)
    return ()


class _ParsedError(Exception):
    """Parsing went well; nothing is run."""


def _drain(words: Sequence[str]) -> Iterator[str]:
    from serve_app.drain_node import main

    yield from _argparse(main, words)


def _argparse(main: Callable[[Sequence[str]], Any], words: Sequence[str]) -> Iterator[str]:
    """Run a main as far as its parser: the parser is inside, and what comes after it must not happen here."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *given: Any, **named: Any) -> Any:
        parse(self, *given, **named)
        raise _ParsedError

    said = io.StringIO()
    argparse.ArgumentParser.parse_args = parse_and_stop  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stderr(said):
            main(list(words))
    except _ParsedError:
        return
    except SystemExit:
        yield (said.getvalue().strip().splitlines() or ["refused"])[-1]
    finally:
        argparse.ArgumentParser.parse_args = parse  # type: ignore[method-assign]


@cache
def parse_locust(words: tuple[str, ...]) -> dict[str, Any] | str:
    """What Locust reads, or why it does not."""
    if "--locustfile" not in words[:-1]:
        return "no --locustfile"
    run = subprocess.run(
        [sys.executable, "-c", _PARSE_LOCUST],
        input=json.dumps(words),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if run.returncode != 0:
        return f"locust refuses it: {' '.join(run.stderr.strip().splitlines()[-2:]) or 'no reason given'}"
    parsed: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return parsed


def _script(name: str, words: Sequence[str]) -> Iterator[str]:
    file = ROOT / "k8s" / "images" / name
    if not file.is_file():
        yield f"k8s/images has no {name}"
        return
    if len(words) != 1 or not words[0].startswith("/"):
        yield f"{name} takes one path, got {' '.join(words)!r}"
    run = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True, timeout=30, check=False)
    if run.returncode != 0:
        yield f"{name}: {run.stderr.strip()}"


def _shell(script: str) -> Iterator[str]:
    run = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True, timeout=30, check=False)
    if run.returncode != 0:
        yield f"the shell does not read it: {run.stderr.strip()}"


def _agreements(overlay: Overlay) -> Iterator[tuple[str, str]]:
    """What one container says of others: numbers of workers and shards, the master's name, the scenario's file."""
    for job in overlay.of_kind("Job"):
        container = job["spec"]["template"]["spec"]["containers"][0]
        words = words_of(container, overlay, JOB_COMPLETION_INDEX="0", POD_NAME="pod")
        if words[:3] == ["python", "-m", "edge_sim"]:
            yield from ((title(job), each) for each in _of_fleet(job, words, overlay))
        if words[:1] == ["locust"]:
            yield from ((title(job), each) for each in _of_locust(job, words, overlay))
    for pod in ray_pods(overlay):
        env = environment(ray_container(pod), overlay)
        if env.get("RAY_AUTH_MODE") != "token":
            yield pod.where, "RAY_AUTH_MODE is not token"


def _of_fleet(job: Document, words: Sequence[str], overlay: Overlay) -> Iterator[str]:
    completions = job["spec"].get("completions", 1)
    shard = words[words.index("--shard") + 1] if "--shard" in words[:-1] else "0/1"
    if job["spec"].get("completionMode") != "Indexed":
        yield "completionMode is not Indexed, so that no pod knows its shard"
    if shard != f"0/{completions}":
        yield f"the first pod runs shard {shard} of {completions} completions"
    for config_map in overlay.of_kind("ConfigMap"):
        for name, text in (config_map.get("data") or {}).items():
            if name == "scenario.yaml":
                yield from _scenario(text)


@cache
def _scenario(text: str) -> tuple[str, ...]:
    from edge_sim.scenario import read_scenario
    from split_inference.errors import SplitInferenceError

    with tempfile.TemporaryDirectory(prefix="si-scenario-") as folder:
        # Payloads lie in the image (references.py looks for them there); that the file can be read is local_e2e's.
        for name in re.findall(r"/opt/split-inference/[\w./-]+", text):
            Path(folder, Path(name).name).touch()
            text = text.replace(name, Path(name).name)
        file = Path(folder, "scenario.yaml")
        file.write_text(text, encoding="utf-8")
        try:
            found = read_scenario(file)
        except SplitInferenceError as error:
            return (str(error).replace(f"{file}", "scenario.yaml"),)
    if found.clock != "wall":
        return (f"scenario.yaml: clock is {found.clock}; a server is asked on the wall clock",)
    return ()


def _of_locust(job: Document, words: Sequence[str], overlay: Overlay) -> Iterator[str]:
    options = parse_locust(tuple(words[1:]))
    if isinstance(options, str):
        return  # said already
    if not options["master"] and not options["worker"]:
        yield "is neither Locust's master nor a worker of one"
    if options["master"]:
        workers = [each for each in overlay.of_kind("Job") if "--worker" in _words(each)]
        count = sum(each["spec"].get("completions", 1) for each in workers)
        if options["expect_workers"] != count:
            yield f"expects {options['expect_workers']} workers; {count} are started"
        if not options["headless"]:
            yield "is not --headless, and would wait for somebody at its web page"
        if not options["slo"]:
            yield "no --slo: nobody judges the run"
        yield from _objective(options["slo"], job, overlay)
        for worker in workers:
            # Locust sends the master's options to its workers, which read the same files.
            if options["slo"] and not any(_texts(options["slo"], worker, overlay)):
                yield f"{title(worker)} has no {options['slo']}, which its master's options name"
    if options["worker"]:
        names = {name_of(service) for service in overlay.of_kind("Service")}
        if options["master_host"] not in names:
            yield f"looks for its master at {options['master_host']}, which is no Service"
        if job["spec"].get("parallelism") != job["spec"].get("completions"):
            yield "not all workers run at the same time"


def _objective(path: str, job: Document, overlay: Overlay) -> Iterator[str]:
    """The file of --slo, read by the load tests' own reader; that it is there is references.py's business."""
    for text in _texts(path, job, overlay):
        yield from _slo(text)


def _texts(path: str, job: Document, overlay: Overlay) -> Iterator[str]:
    """What the ConfigMaps mounted in a Job's container have at this path."""
    spec = job["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for mount in spec["containers"][0].get("volumeMounts", []):
        name = (volumes.get(mount["name"], {}).get("configMap") or {}).get("name")
        config_map = overlay.find("ConfigMap", name) if name else None
        text = (config_map or {}).get("data", {}).get(path.removeprefix(f"{mount['mountPath']}/"))
        if text is not None:
            yield text


@cache
def _slo(text: str) -> tuple[str, ...]:
    from loadtests.slo import read_slo
    from split_inference.errors import SplitInferenceError

    with tempfile.TemporaryDirectory(prefix="si-slo-") as folder:
        file = Path(folder, "slo.yaml")
        file.write_text(text, encoding="utf-8")
        try:
            read_slo(file)
        except SplitInferenceError as error:
            return (str(error).replace(f"{file}", "slo.yaml"),)
    return ()


def _words(job: Document) -> list[str]:
    container: Document = job["spec"]["template"]["spec"]["containers"][0]
    return [*container.get("command", []), *container.get("args", [])]
