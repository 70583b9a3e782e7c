"""`serve deploy` on a server that serves: other models, knobs, weights, without a dropped request or a new replica."""

from __future__ import annotations

import copy
import json
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest
import yaml

from benchmarks.chaos import other_weights, served_digest
from edge_sim.server_process import ServerProcess
from split_inference.model_catalog import EMBEDDED_FOLDER
from tests.integration import processes
from tests.patience import PATIENCE_S

CONFIG = Path(__file__).resolve().parents[2] / "config.yaml"
ROUTE = "/v1/models/resnet20-cifar10"
wait_for = partial(processes.wait_for, why="it did not come about")
IMAGE = (EMBEDDED_FOLDER / "samples" / "test-00000.jpg").read_bytes()


def logging_into(folder):
    content = yaml.safe_load(CONFIG.read_text())
    content["logging_config"]["logs_dir"] = str(folder)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def server(tmp_path_factory, logs):
    folder = tmp_path_factory.mktemp("live")
    # In throughput mode Serve holds a thousand lines of its logs back.
    started = ServerProcess(logging_into(logs), environment={"RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1"})
    with started.started(log=folder / "log"):
        started.wait_until_ready(ROUTE)
        yield started


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("live-logs")


def ask(url):
    request = urllib.request.Request(url, data=IMAGE, headers={"content-type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return response.status


def replicas(server, app="resnet20-cifar10"):
    names = {}
    for pid in server.leftover():
        try:
            names[pid] = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
    return {pid for pid, name in names.items() if f"ServeReplica:{app}" in name}


def closed(error):
    """An answer with an error status is a response too, with a socket."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()


class Load:
    """Asks all the time, and remembers everything that was no answer."""

    def __init__(self, url):
        self.url, self.answers, self.failures = url, 0, []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._stop.is_set():
            try:
                ask(self.url)
                self.answers += 1
            except OSError as error:
                closed(error)
                self.failures.append(repr(error))
            time.sleep(0.005)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        self._thread.join(timeout=PATIENCE_S)


def answers(url):
    try:
        return ask(url) == 200
    except OSError as error:
        closed(error)
        return False


def test_a_refused_request_is_a_line_of_json_with_its_id_and_trace(server, logs):
    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    headers = {"content-type": "image/jpeg", "x-request-id": "find-me", "traceparent": trace}
    request = urllib.request.Request(f"{server.url}{ROUTE}", data=b"no \n image", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=PATIENCE_S)
    refused.value.close()
    assert refused.value.headers["x-request-id"] == "find-me"

    def lines():
        text = "".join(file.read_text() for file in logs.glob("replica_*.log"))
        return [json.loads(line) for line in text.splitlines() if "find-me" in line]

    wait_for(lines)
    [line] = lines()
    assert (line["request_id"], line["trace_id"], line["status"]) == ("find-me", "ab" * 16, 400)
    assert line["levelname"] == "WARNING"
    assert line["error"]


def test_a_model_is_added_and_knobs_are_changed_without_a_dropped_request(server):
    config = yaml.safe_load(CONFIG.read_text())
    before = replicas(server)
    assert len(before) == 1
    with Load(f"{server.url}{ROUTE}") as load:
        wait_for(lambda: load.answers > 20)
        second = copy.deepcopy(config["applications"][1])
        second |= {"name": "second", "route_prefix": "/v1/models/second"}
        config["applications"].append(second)
        config["applications"][0]["args"]["models"].append({"name": "second", "uri": second["args"]["model"]})
        batching = {"max_batch_samples": 4, "linger_ms": 1}
        config["applications"][1]["deployments"][0]["user_config"] = {"batching": batching, "monitor": True}
        server.deploy(config)
        wait_for(lambda: answers(f"{server.url}/v1/models/second"))
        seen = load.answers
        wait_for(lambda: load.answers > seen + 20)
    assert load.failures == []
    # The first model's replica is the same process, with other knobs: its monitor is on now.
    assert replicas(server) == before
    with urllib.request.urlopen(f"{server.url}{ROUTE}/monitor/data", timeout=PATIENCE_S) as response:
        assert json.load(response)["model"] == "resnet20-cifar10"
    with urllib.request.urlopen(f"{server.url}/v1/models", timeout=PATIENCE_S) as response:
        assert [each["name"] for each in json.load(response)["models"]] == ["resnet20-cifar10", "second"]


def test_weights_are_replaced_in_the_running_replica_without_a_dropped_request(server, tmp_path):
    uri = other_weights(tmp_path)
    config = yaml.safe_load(CONFIG.read_text())
    server.deploy(config)
    wait_for(lambda: answers(f"{server.url}{ROUTE}"))
    before = replicas(server)
    digest = served_digest(f"{server.url}{ROUTE}")
    with Load(f"{server.url}{ROUTE}") as load:
        wait_for(lambda: load.answers > 20)
        config["applications"][1]["deployments"][0]["user_config"] = {"model": uri}
        config["applications"][0]["args"]["models"][0]["uri"] = uri
        server.deploy(config)
        wait_for(lambda: served_digest(f"{server.url}{ROUTE}") not in ("", digest))
        seen = load.answers
        wait_for(lambda: load.answers > seen + 20)
    assert load.failures == []
    assert replicas(server) == before


def test_a_cold_model_has_no_replica_and_a_request_through_haproxy_wakes_one(server):
    """HAProxy passes what has no replica to a proxy of Serve's own, which waits for one."""
    config = yaml.safe_load(CONFIG.read_text())
    cold = copy.deepcopy(config["applications"][1])
    cold |= {"name": "cold", "route_prefix": "/v1/models/cold"}
    cold["deployments"][0]["autoscaling_config"] |= {
        "min_replicas": 0,
        "initial_replicas": 0,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 2,
        "downscale_delay_s": 1,
        "downscale_to_zero_delay_s": 1,
    }
    config["applications"].append(cold)
    server.deploy(config)
    # Until its route is known, HAProxy says 404; after that, the request waits.
    wait_for(lambda: status(f"{server.url}/v1/models/cold") == 200)
    assert len(replicas(server, "cold")) == 1
    wait_for(lambda: not replicas(server, "cold"))
    # The other model served meanwhile, by the replica that it had.
    assert answers(f"{server.url}{ROUTE}")


def status(url):
    request = urllib.request.Request(url, data=IMAGE, headers={"content-type": "image/jpeg"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        # Where waking takes longer than HAProxy or we have patience for.
        return 0
