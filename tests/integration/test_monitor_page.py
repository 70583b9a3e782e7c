"""The live page in a real browser: what it shows while requests come, and that text from outside stays text."""

from __future__ import annotations

import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
import uvicorn
from starlette.requests import Request

from edge_sim.server_process import HOST, free_port
from serve_app.ingress import Ingress
from serve_app.monitor import Monitor
from serve_app.observer import Observers
from serve_app.service import InferenceService
from serve_app.tokens import TokenBook, entry_line, new_token, parse_entries
from split_inference.wire import FRAME_MEDIA_TYPE, Prediction
from tests.patience import PATIENCE_S
from tests.serve_app.helpers import DIGEST, TinyRunner, frame_of, one_hot_features

HOSTILE = "<img src=x onerror=document.title='owned'>"


class Served:
    """An ingress with a monitor on a port of its own."""

    def __init__(self, tokens=None):
        self.monitor = Monitor(model="tiny", digest=DIGEST, versions={"split-inference": "test"})
        service = InferenceService(
            TinyRunner(),
            observers=Observers([self.monitor]),
            on_predictions=lambda call, best: self.monitor.saw_predictions(call.split_point or "", best),
        )
        self._ingress = Ingress(service, tokens=tokens)
        self._ingress.monitor = self.monitor
        self.port = free_port()
        config = uvicorn.Config(
            self._application,
            host=HOST,
            port=self.port,
            log_level="warning",
            lifespan="off",
            ws="none",
            interface="asgi3",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    async def _application(self, scope, receive, send):
        response = await self._ingress.answer(Request(scope, receive, send))
        await response(scope, receive, send)

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *exception):
        self._server.should_exit = True
        self._thread.join(timeout=PATIENCE_S)
        self._ingress.close()

    def url(self, path):
        return f"http://{HOST}:{self.port}/{path}"

    def send(self, label):
        body = frame_of(one_hot_features(label))
        request = urllib.request.Request(self.url(""), data=body, headers={"content-type": FRAME_MEDIA_TYPE})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status


def page_after(chromium, url, tmp_path, *, milliseconds=4000):
    """The document as it is after that much time of the browser's clock."""
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--virtual-time-budget={milliseconds}",
        "--dump-dom",
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout


def test_the_page_shows_what_was_answered_and_text_from_outside_stays_text(chromium, tmp_path):
    with Served() as served:
        for label in (0, 1, 2, 2):
            assert served.send(label) == 200
            time.sleep(0.25)
        served.monitor.saw_predictions("middle", [Prediction(index=0, label=HOSTILE, score=0.5)])
        served.monitor.saw_features("middle", one_hot_features(1)[0])
        document = page_after(chromium, served.url("monitor"), tmp_path)
    assert "tiny" in document
    assert "frog" in document
    assert "&lt;img src=x" in document
    assert "<title>owned" not in document
    assert "blob:" in document, "the picture of the features is not there"


def test_without_a_token_the_page_is_empty_and_the_data_is_refused(chromium, tmp_path):
    token = new_token()
    tokens = TokenBook(parse_entries(entry_line("operator", token), where="test"))
    with Served(tokens) as served:
        served.monitor.saw_predictions("middle", [Prediction(index=0, label="secret-label", score=0.5)])
        document = page_after(chromium, served.url("monitor"), tmp_path, milliseconds=2000)
        assert "secret-label" not in document
        assert 'type="password"' in document
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(served.url("monitor/data"), timeout=PATIENCE_S)
        assert refused.value.code == 401
        refused.value.close()
        request = urllib.request.Request(served.url("monitor/data"), headers={"authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            assert b"secret-label" in response.read()
