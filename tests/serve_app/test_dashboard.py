from __future__ import annotations

import json
import re

from scripts.make_dashboard import FILE, dashboard, rendered
from serve_app.metrics import METRICS


def expressions():
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def test_the_file_is_what_the_metrics_give():
    assert FILE.read_text() == rendered(), "run make dashboards"
    assert json.loads(rendered()) == dashboard()


def test_every_metric_is_shown_and_nothing_else():
    known = {metric.exported_name for metric in METRICS}
    shown = {re.sub(r"_bucket$", "", name) for query in expressions() for name in re.findall(r"ray_\w+", query)}
    assert shown == known


def test_histograms_are_asked_for_buckets_and_counters_for_rates():
    for metric in METRICS:
        queries = [query for query in expressions() if metric.exported_name in query]
        if metric.kind == "histogram":
            assert all(f"{metric.exported_name}_bucket" in query and "by (le" in query for query in queries)
        elif metric.kind == "counter":
            assert all(query.startswith(f"sum(rate({metric.exported_name}{{") for query in queries)
        for query in queries:
            assert query.count("(") == query.count(")")


def test_panels_do_not_overlap():
    places = [tuple(panel["gridPos"][axis] for axis in "xy") for panel in dashboard()["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(places)
