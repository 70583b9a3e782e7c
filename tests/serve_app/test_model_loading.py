"""What is loaded beside a model that serves: in which thread, and what a child process does of it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from serve_app import model_loading
from serve_app.model_loading import prepare_in_child
from serve_app.replica import Replica
from serve_app.settings import AppSettings
from serve_app.tail_cache import TailCache
from split_inference.errors import ConfigError, UsageError
from split_inference.model_cache import read_cached_model
from split_inference.model_catalog import load_model
from split_inference.model_uri import parse_uri
from tests.serve_app.weights import Client, run


class Loading:
    """Stands for the cache, the child and the loader, and remembers in which thread each was called."""

    def __init__(self, monkeypatch, *, cached, cacheable, compiles=()):
        self.calls = []
        self._cached = cached
        monkeypatch.setattr(model_loading, "read_cached_model", self._read)
        if cacheable:
            monkeypatch.setattr(model_loading, "parse_uri", lambda uri: parse_uri("resnet18?weights=random"))
            monkeypatch.setattr(model_loading, "cache_place", lambda uri, folder: folder)
        monkeypatch.setattr(model_loading, "prepare_in_child", self._prepare)
        monkeypatch.setattr(model_loading, "load_model", self._load)
        lacking = list(compiles)
        monkeypatch.setattr(model_loading, "missing_keys", lambda settings, loaded: lacking.pop() if lacking else [])

    def _note(self, what):
        self.calls.append((what, "model" if threading.current_thread().name.startswith("model") else "beside"))

    def _read(self, uri, folder):
        self._note("read")
        return load_model(uri) if self._cached else None

    def _prepare(self, settings, given_up):
        self._note("child")
        self._cached = True

    def _load(self, uri):
        self._note("load")
        return load_model(uri)


@pytest.mark.parametrize(
    ("given", "calls"),
    [
        ({"cached": True, "cacheable": True}, ["read beside"]),
        ({"cached": False, "cacheable": True}, ["read beside", "child beside", "read beside"]),
        ({"cached": False, "cacheable": False}, ["read beside", "load model"]),
        ({"cached": True, "cacheable": True, "compiles": [True]}, ["read beside", "child beside"]),
    ],
)
def test_what_may_disturb_a_model_is_done_in_its_own_thread_or_in_a_child(settings, weights, monkeypatch, given, calls):
    loading = Loading(monkeypatch, **given)

    async def scenario():
        replica = Replica(settings)
        replica.reconfigure({"model": weights[1].uri})
        await replica.settled()
        assert await Client(replica).ask(weights[1]) == 200
        await replica.close()

    run(scenario())
    assert loading.calls == [tuple(each.split()) for each in calls]


@pytest.mark.slow
def test_a_child_exports_and_what_it_exported_is_read_without_exporting(tmp_path):
    settings = AppSettings.model_validate({"model": "resnet18?weights=random", "execution": {"cache": tmp_path}})
    folder = TailCache(tmp_path).models()
    assert read_cached_model(settings.model, folder) is None
    prepare_in_child(settings)
    loaded = read_cached_model(settings.model, folder)
    assert loaded is not None
    assert loaded.card.uri == settings.model
    [place] = folder.iterdir()
    (place / "about.json").unlink()
    assert read_cached_model(settings.model, folder) is None


@pytest.mark.slow
def test_a_child_that_cannot_prepare_says_why_in_one_line(tmp_path):
    settings = AppSettings.model_validate(
        {"model": "resnet18?weights=random&seed=no", "execution": {"cache": tmp_path}}
    )
    with pytest.raises(UsageError, match="seed"):
        prepare_in_child(settings)


def test_a_child_that_is_given_up_ends_at_once(tmp_path):
    given_up = threading.Event()
    threading.Timer(0.3, given_up.set).start()
    given = {"model": "resnet152?weights=random", "execution": {"cache": tmp_path}}
    began_s = time.monotonic()
    with pytest.raises(ConfigError, match="given up"):
        prepare_in_child(AppSettings.model_validate(given), given_up)
    # Exporting it takes many times as long.
    assert time.monotonic() - began_s < 20
    assert not [each for each in children() if "serve_app.model_loading" in each]


def children():
    """Command lines of this process's children."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                yield (folder / "cmdline").read_text()
        except OSError:
            continue
