from __future__ import annotations

import logging

import pytest

from serve_app.observer import Observers
from tests.serve_app.facts import batch, request
from tests.serve_app.helpers import python_without


class Notebook:
    def __init__(self):
        self.seen = []

    def batch_done(self, facts):
        self.seen.append(facts)

    def request_done(self, facts):
        self.seen.append(facts)


class Broken:
    def batch_done(self, facts):
        raise ZeroDivisionError("a batch")

    def request_done(self, facts):
        raise ZeroDivisionError("a request")


def test_all_observers_are_told_in_order():
    first, second = Notebook(), Notebook()
    observers = Observers([first, second])
    observers.batch_done(batch())
    observers.request_done(request())
    assert first.seen == second.seen == [batch(), request()]


def test_an_observer_that_fails_disturbs_nobody_and_is_logged_once(caplog):
    notebook = Notebook()
    observers = Observers([Broken(), notebook])
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            observers.request_done(request())
            observers.batch_done(batch())
    assert len(notebook.seen) == 10
    [record] = caplog.records
    assert "Broken" in record.getMessage()
    assert record.exc_info


def test_each_of_several_failing_observers_is_logged(caplog):
    class AlsoBroken(Broken):
        pass

    with caplog.at_level(logging.ERROR):
        Observers([Broken(), AlsoBroken()]).request_done(request())
    assert [record.getMessage().split()[0] for record in caplog.records] == ["Broken", "AlsoBroken"]


def test_what_is_no_error_passes_through():
    class Stop:
        def batch_done(self, facts):
            raise KeyboardInterrupt

        request_done = batch_done

    with pytest.raises(KeyboardInterrupt):
        Observers([Stop()]).batch_done(batch())


def test_watching_needs_neither_ray_nor_torch():
    modules = ("observer", "metrics", "request_log", "request_context", "server_timing", "monitor")
    python_without("\n".join(f"import serve_app.{name}" for name in modules), "ray", "torch", "starlette")
