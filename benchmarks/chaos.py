"""Faults under load: a killed replica, a killed HAProxy, a removed node, replaced weights. No wrong answer, no hang.

Weights are replaced twice: by `user_config`, as operators should, and back by `args`, which restarts every replica. For
the second there is no bound: it takes the starts of all replicas, one after the other.

A Serve application with two replicas of the embedded model on a Ray cluster of four nodes, all on this machine, under a
steady load that compares every answer with the reference. After each fault: which answers were wrong (none may be),
which errors came and how long after the fault, and how long it took until all replicas were ready again, by Serve's own
word. Errors count as retriable where a client may send the same request again: 408, 429, 503, a broken connection, and
whatever comes without our own JSON, which is the proxy's.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.serving.process_stats import ProcessUse, of
from benchmarks.serving.systems import PLACE, ray_serve
from edge_sim.server_process import HOST, ServerProcess
from serve_app.tail_runner import TailRunner
from split_inference.codec_profile import CodecProfile
from split_inference.errors import ServerError
from split_inference.feature_codec import FeatureCodec
from split_inference.figures import Bound, report
from split_inference.inputs import read_inputs
from split_inference.model_catalog import EMBEDDED_FOLDER, EMBEDDED_URI, load_model
from split_inference.wire import FRAME_MEDIA_TYPE, FeatureFrame, decode_reply, encode_frame

APP, PATH = "model", "/v1/models/model"
SPLIT_POINT = "stage2"
REPLICAS = 2
FRAMES = 16
SENDERS = 4
PATIENCE_S = 10.0
BOUNDS: dict[str, Bound] = {
    "wrong_answers": ("==", 0),
    "hung_requests": ("==", 0),
    "other_errors": ("==", 0),
    "replica_last_error_s": ("<=", 10.0),
    "haproxy_last_error_s": ("<=", 10.0),
    "node_last_error_s": ("<=", 10.0),
    "weights_last_error_s": ("<=", 10.0),
}


@dataclass(kw_only=True, slots=True)
class Seen:
    """What the senders saw, by the time at which each request ended."""

    right: int = 0
    wrong: int = 0
    hung: int = 0
    retriable: list[tuple[float, str]] = field(default_factory=list)
    stale: list[tuple[float, str]] = field(default_factory=list)
    """409: the weights are others now; a client reads the card again."""
    other: list[tuple[float, str]] = field(default_factory=list)


class Load:
    """Sends frames from several threads for as long as the block lasts, and judges every answer."""

    def __init__(self, url: str, frames: list[bytes], expected: list[int]) -> None:
        self._url = url
        self._frames, self._expected = frames, expected
        self.seen = Seen()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,), daemon=True) for index in range(SENDERS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=PATIENCE_S + 5)

    def replace(self, frames: list[bytes], expected: list[int]) -> None:
        """Send other frames from now on: those for the new weights."""
        with self._lock:
            self._frames, self._expected = frames, expected

    def _run(self, index: int) -> None:
        turn = index
        while not self._stop.is_set():
            with self._lock:
                frames, expected = self._frames, self._expected
            number = turn % len(frames)
            turn += SENDERS
            kind, what = self._ask(frames[number], expected[number])
            now_s = time.monotonic()
            with self._lock:
                seen = self.seen
                if kind == "right":
                    seen.right += 1
                elif kind == "wrong":
                    seen.wrong += 1
                elif kind == "hung":
                    seen.hung += 1
                else:
                    getattr(seen, kind).append((now_s, what))
            if kind != "right":
                time.sleep(0.02)

    def _ask(self, frame: bytes, expected: int) -> tuple[str, str]:
        request = urllib.request.Request(self._url, data=frame, headers={"content-type": FRAME_MEDIA_TYPE})
        began_s = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                reply = decode_reply(response.read())
        except urllib.error.HTTPError as error:
            body = error.read()
            if error.code == 409:
                return "stale", "409"
            if error.code in (408, 429, 503) or not _is_ours(body):
                return "retriable", str(error.code)
            return "other", f"{error.code} {body[:80]!r}"
        except (OSError, ValueError) as error:
            if time.monotonic() - began_s >= PATIENCE_S:
                return "hung", type(error).__name__
            return "retriable", type(error).__name__
        assert reply.predictions is not None
        return ("right" if reply.predictions[0][0].index == expected else "wrong"), ""


def _is_ours(body: bytes) -> bool:
    try:
        return "error" in json.loads(body)
    except ValueError:
        return False


def frames_and_answers(uri: str) -> tuple[list[bytes], list[int]]:
    """Frames of the package's samples, and what the reference answers to them."""
    torch.set_num_threads(1)
    loaded = load_model(uri)
    runner = TailRunner(loaded.model, name=loaded.name, card=loaded.card)
    head = loaded.model.head(SPLIT_POINT)
    codec = FeatureCodec(CodecProfile.parse("u8+lz4"), channel_axis=1)
    frames, answers = [], []
    for each in read_inputs(EMBEDDED_FOLDER / "samples")[:FRAMES]:
        with torch.inference_mode():
            (features,) = head(torch.from_numpy(runner.preprocess(each.data)))
        frame = FeatureFrame(
            model_digest=bytes.fromhex(loaded.model.digest)[:16],
            split_point=SPLIT_POINT,
            sample_count=1,
            deadline_budget_ms=None,
            tensors=(codec.encode(np.ascontiguousarray(features.numpy())),),
        )
        frames.append(encode_frame(frame))
        answers.append(int(runner.answer(frame)[0].argmax()))
    return frames, answers


def config_of(
    uri: str,
    *,
    name: str | None = None,
    live: Mapping[str, Any] | None = None,
    resources: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Two replicas of one model, each of which takes these of Ray's resources; `live` is their `user_config`."""
    return {
        "http_options": {"host": HOST, "port": 8000},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": APP,
                "route_prefix": PATH,
                "import_path": "serve_app.app:build_app",
                "args": {"model": uri} | ({"name": name} if name else {}),
                "deployments": [
                    {
                        "name": "TailDeployment",
                        "num_replicas": REPLICAS,
                        "user_config": dict(live or {}),
                        "health_check_period_s": 1,
                        "health_check_timeout_s": 5,
                        "ray_actor_options": {"num_cpus": 0.2, "resources": dict(resources or {})},
                    }
                ],
            }
        ],
    }


def replicas_of(server: ServerProcess) -> dict[int, ProcessUse]:
    """Replica processes of the model."""
    return {pid: use for pid, use in of(set(server.leftover())).items() if f"ServeReplica:{APP}" in use.name}


def running(server: ServerProcess) -> set[str]:
    """Replicas that are ready; none while nobody can say."""
    try:
        return server.running_replicas(APP)
    except ServerError:
        return set()


def served_digest(url: str) -> str:
    """Digest of the weights by the card of whichever replica answers; empty while none does."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            return str(json.load(response)["digest"])
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, ValueError):
        pass
    return ""


def haproxies_of(server: ServerProcess) -> list[int]:
    """HAProxy's own processes."""
    return [pid for pid, use in of(set(server.leftover())).items() if "bin/haproxy" in use.name]


def after_fault(
    name: str, load: Load, fault: Callable[[], None], is_whole: Callable[[], bool], *, watch_s: float
) -> dict[str, float]:
    """Let it happen, watch, and say when the last error came and when everything was there again."""
    before = (load.seen.right, len(load.seen.retriable), len(load.seen.stale))
    began_s = time.monotonic()
    fault()
    whole_s = float("nan")
    while (now_s := time.monotonic()) - began_s < watch_s:
        if np.isnan(whole_s) and is_whole():
            whole_s = now_s - began_s
        time.sleep(0.1)
    errors = load.seen.retriable[before[1] :] + load.seen.stale[before[2] :]
    print(
        f"{name}: {load.seen.right - before[0]} right answers, {len(errors)} errors {_kinds(errors)}", file=sys.stderr
    )
    return {
        f"{name}_errors": len(errors),
        f"{name}_last_error_s": max((when_s - began_s for when_s, _ in errors), default=0.0),
        f"{name}_whole_again_s": whole_s,
    }


def _kinds(errors: list[tuple[float, str]]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for _, what in errors:
        kinds[what] = kinds.get(what, 0) + 1
    return kinds


def main() -> int:
    """All faults, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watch", type=float, default=25.0, help="seconds to watch after each fault")
    options = parser.parse_args()
    logs = Path("runs/chaos")
    logs.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    other_uri = other_weights(logs)
    frames, answers = frames_and_answers(EMBEDDED_URI)
    new_frames, new_answers = frames_and_answers(other_uri)
    new_digest = load_model(other_uri).model.digest
    # As `make serve` sets them: Serve's own watch over HAProxy, which needs 24 s by default.
    flags = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2"}
    places = {PLACE: 1.0}
    command = [sys.executable, "-m", "benchmarks.serving.cluster_serve"]
    config = config_of(EMBEDDED_URI, resources=places)
    with ray_serve("chaos", config, log=logs / "serve.log", environment=flags, command=command) as server:
        server.wait_until_ready(PATH, timeout_s=180)
        _wait(lambda: len(running(server)) == REPLICAS)
        with Load(f"{server.url}{PATH}", frames, answers) as load:
            time.sleep(3)

            def kill_replica() -> None:
                os.kill(min(replicas_of(server)), signal.SIGKILL)

            def kill_haproxy() -> None:
                for pid in haproxies_of(server):
                    os.kill(pid, signal.SIGKILL)

            def replace_weights() -> None:
                server.deploy(config_of(EMBEDDED_URI, live={"model": other_uri}, resources=places))
                load.replace(new_frames, new_answers)

            def restart_with_weights() -> None:
                # The first weights again, by other `args`.
                server.deploy(config_of(EMBEDDED_URI, name=APP, resources=places))
                load.replace(frames, answers)

            def answers_anew() -> bool:
                url = f"{server.url}{PATH}"
                if len(running(server)) < REPLICAS:
                    return False
                return all(served_digest(url) == new_digest for _ in range(10 * REPLICAS))

            def whole(old: set[str], *, new: int) -> Callable[[], bool]:
                return lambda: len(now := running(server)) == REPLICAS and len(now - old) >= new

            watch_s = options.watch
            figures |= after_fault("replica", load, kill_replica, whole(running(server), new=1), watch_s=watch_s)
            figures |= after_fault("haproxy", load, kill_haproxy, lambda: bool(haproxies_of(server)), watch_s=watch_s)
            remove = functools.partial(server.send_signal, signal.SIGUSR1)
            figures |= after_fault("node", load, remove, whole(running(server), new=1), watch_s=watch_s)
            figures |= after_fault("weights", load, replace_weights, answers_anew, watch_s=watch_s)
            all_new = whole(running(server), new=REPLICAS)
            figures |= after_fault("restart", load, restart_with_weights, all_new, watch_s=watch_s)
        seen = load.seen
    figures |= {
        "right_answers": seen.right,
        "wrong_answers": seen.wrong,
        "hung_requests": seen.hung,
        "other_errors": len(seen.other),
    }
    for _, what in seen.other[:5]:
        print(f"not retriable: {what}", file=sys.stderr)
    return report("chaos", figures, BOUNDS)


def other_weights(folder: Path) -> str:
    """The embedded network with slightly other weights, as a URI."""
    program = load_model(EMBEDDED_URI).model.program
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.mul_(1.001)
    file = (folder / "other.pt2").resolve()
    torch.export.save(program, file)
    shutil.copyfile(EMBEDDED_FOLDER / "resnet20_cifar10.card.json", file.with_suffix(".card.json"))
    return f"pt2:{file}"


def _wait(what: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not what() and time.monotonic() < deadline_s:
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
