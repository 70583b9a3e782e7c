"""What the images are built from, and the two shell scripts in them, run against a server on this machine."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from io import BytesIO
from pathlib import Path

import pytest

from tests.integration.processes import wait_for
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "k8s" / "images"


@pytest.fixture
def server():
    """Answers 503 twice, then 200, to whoever shows the token; keeps what is put."""
    if shutil.which("curl") is None:
        if os.environ.get("REQUIRE_DATA"):
            pytest.fail("curl is needed: the images' scripts use it")
        pytest.skip("curl is not installed here; the images bring it")
    seen: list[tuple[str, str, dict[str, str], bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(("GET", self.path, {k.lower(): v for k, v in self.headers.items()}, b""))
            allowed = self.headers.get("authorization") == "Bearer si_secret"
            self.send_response(401 if not allowed else 503 if len(seen) < 3 else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            seen.append(("PUT", self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(500 if len([each for each in seen if each[0] == "PUT"]) < 2 else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", seen
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def wait_for_model(url, tmp_path, *, token="si_secret", seconds="20"):
    (tmp_path / "token").write_text(token + "\n")
    environment = {**os.environ, "TARGET_URL": url, "TOKEN_FILE": str(tmp_path / "token")}
    environment |= {"WAIT_S": seconds, "WAIT_DELAY_S": "1"}
    command = [str(IMAGES / "wait-for-model"), "/v1/models/resnet20-cifar10"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_a_job_waits_until_the_model_answers_its_token(server, tmp_path):
    url, seen = server
    result = wait_for_model(url, tmp_path)
    assert result.returncode == 0, result.stderr
    assert [path for _, path, _, _ in seen] == ["/v1/models/resnet20-cifar10"] * 3
    assert "si_secret" not in result.stderr


def test_a_job_that_waits_in_vain_ends_and_says_why(server, tmp_path):
    url, _ = server
    result = wait_for_model(url, tmp_path, token="si_wrong", seconds="2")
    assert result.returncode != 0
    assert "401" in result.stderr
    assert "si_wrong" not in result.stderr


def upload(tmp_path, **environment):
    results = tmp_path / "results"
    results.mkdir()
    (results / "requests.jsonl").write_text("{}\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RESULTS_"))}
    process = subprocess.Popen(
        [str(IMAGES / "upload-results"), str(results)],
        env={**clean, "POD_NAME": f"edge-fleet-0-{os.getpid()}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Until its trap is set: it starts a sleep right before.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: children.read_text().strip(), why="no child")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    try:
        error = process.communicate(timeout=PATIENCE_S)[1]
    finally:
        process.kill()
    return process.returncode, error


def test_a_sidecar_that_is_told_to_end_puts_the_results_once_they_are_there(server, tmp_path):
    url, seen = server
    code, error = upload(tmp_path, RESULTS_URL=f"{url}/runs/")
    assert code == 0, error
    _, path, headers, body = seen[-1]
    assert len(seen) == 2, "the first try is answered with 500"
    assert re.fullmatch(r"/runs/edge-fleet-0-\d+\.tar\.gz", path)
    assert "authorization" not in headers
    with tarfile.open(fileobj=BytesIO(body)) as archive:
        member = archive.extractfile("./requests.jsonl")
        assert member is not None
        assert member.read() == b"{}\n"


def expected_signature(path, headers, body, *, secret, region):
    """The signature that S3 computes of a request (AWS Signature Version 4), and what it was computed of."""
    found = re.search(
        r"Credential=\w+/(\d{8})/\S+, ?SignedHeaders=(\S+), ?Signature=([0-9a-f]{64})", headers["authorization"]
    )
    assert found is not None
    day, signed, signature = found.groups()
    canonical = "\n".join(f"{name}:{headers[name].strip()}" for name in signed.split(";"))
    digest = hashlib.sha256(body).hexdigest()
    request = f"PUT\n{path}\n\n{canonical}\n\n{signed}\n{digest}"
    scope = f"{day}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return signature, hmac.digest(key, text.encode(), "sha256").hex(), digest


def test_with_keys_of_an_object_store_the_request_is_signed_as_s3_checks_it(server, tmp_path):
    url, seen = server
    keys = {"AWS_ACCESS_KEY_ID": "AKEXAMPLE", "AWS_SECRET_ACCESS_KEY": "top/secret+key", "AWS_REGION": "eu-central-1"}
    code, error = upload(tmp_path, RESULTS_URL=f"{url}/runs", **keys)
    assert code == 0, error
    _, path, headers, body = seen[-1]
    signature, expected, digest = expected_signature(
        path, headers, body, secret="top/secret+key", region="eu-central-1"
    )
    assert signature == expected
    assert headers["x-amz-content-sha256"] == digest
    assert not any("top/secret+key" in value for value in headers.values())


def test_without_a_place_nothing_is_sent(server, tmp_path):
    _, seen = server
    assert upload(tmp_path)[0] == 0
    assert seen == []


@pytest.mark.parametrize(
    ("arguments", "has", "lacks"),
    [
        (["serve", "--without", "torch"], "ray[serve]==2.60.0", "torch"),
        (["load", "--without", "torch"], "locust", "torch"),
        (["edge"], "torch==2.13.0", "ray"),
        (["--only", "torch"], "torch==2.13.0", "numpy"),
    ],
)
def test_images_install_what_the_project_pins(arguments, has, lacks):
    command = [sys.executable, IMAGES / "requirements.py", "--project", ROOT / "pyproject.toml", *arguments]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert any(line.startswith(has) for line in lines)
    assert not any(re.match(rf"{lacks}\b", line) for line in lines)
