"""Writes the Grafana dashboards in k8s/dashboards; `--check` compares.

Ours is made from the table in serve_app/metrics.py, one panel for each metric, so that a new metric is on the dashboard
with the next `make dashboards`. Those of Ray and Ray Serve are made by the Ray that is installed, so that they fit it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from serve_app.metrics import METRICS, Metric

FOLDER = Path(__file__).resolve().parents[1] / "k8s" / "dashboards"
FILE = FOLDER / "serving.json"
# A panel's window follows the scrape interval, whatever that is.
WINDOW = "$__rate_interval"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {"seconds": "s", "bytes": "bytes"}
SELECTOR = '{application=~"$application"}'


def dashboard() -> dict[str, Any]:
    """The whole dashboard, the same for the same table."""
    panels = [_panel(index, metric) for index, metric in enumerate(METRICS)]
    return {
        "title": "split-inference: serving",
        "uid": "split-inference-serving",
        "schemaVersion": 39,
        "tags": ["split-inference"],
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                {
                    "name": "application",
                    "type": "query",
                    "label": "Application",
                    "datasource": SOURCE,
                    "query": f"label_values({METRICS[0].exported_name}, application)",
                    "includeAll": True,
                    "multi": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                    "refresh": 2,
                },
            ]
        },
        "panels": panels,
    }


def _panel(index: int, metric: Metric) -> dict[str, Any]:
    return {
        "id": index + 1,
        "title": _title(metric),
        "description": metric.description,
        "type": "table" if metric.name.endswith("_info") else "timeseries",
        "datasource": SOURCE,
        "gridPos": {"x": 12 * (index % 2), "y": 8 * (index // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": _unit(metric), "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for number, (query, legend) in enumerate(_queries(metric))
        ],
    }


def _queries(metric: Metric) -> list[tuple[str, str]]:
    """Queries and their legends: rates of counters, percentiles of histograms, gauges as they are."""
    name, by = metric.exported_name, ", ".join(metric.labels)
    legend = " ".join(f"{{{{{label}}}}}" for label in metric.labels) or "{{application}}"
    grouped = f" by ({by})" if by else " by (application)"
    if metric.kind == "counter":
        return [(f"sum(rate({name}{SELECTOR}[{WINDOW}])){grouped}", legend)]
    if metric.kind == "gauge":
        return [(f"sum({name}{SELECTOR}){grouped}", legend)]
    with_le = f" by (le{f', {by}' if by else ''})"
    return [
        (f"histogram_quantile({share}, sum(rate({name}_bucket{SELECTOR}[{WINDOW}])){with_le})", f"p{percent} {legend}")
        for share, percent in ((0.5, 50), (0.99, 99))
    ]


def _title(metric: Metric) -> str:
    words = metric.name.removeprefix("split_inference_").removesuffix("_total").replace("_", " ")
    return f"{words[0].upper()}{words[1:]}{' per second' if metric.kind == 'counter' else ''}"


def _unit(metric: Metric) -> str:
    if metric.kind == "counter":
        return "Bps" if metric.unit == "bytes" else "ops"
    return UNITS.get(metric.unit, "short")


def rendered() -> str:
    """The content of our own dashboard's file."""
    return json.dumps(dashboard(), indent=2) + "\n"


def ray_dashboards() -> dict[Path, str]:
    """Files of Ray's own dashboards: the cluster's, Serve's, and Serve's by deployment."""
    from ray.dashboard.modules.metrics import grafana_dashboard_factory as factory

    made = {
        "ray-default.json": factory.generate_default_grafana_dashboard(),
        "ray-serve.json": factory.generate_serve_grafana_dashboard(),
        "ray-serve-deployment.json": factory.generate_serve_deployment_grafana_dashboard(),
    }
    return {FOLDER / name: json.dumps(json.loads(text), indent=1) + "\n" for name, (text, _) in made.items()}


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a file differs")
    options = parser.parse_args()
    files = {FILE: rendered(), **ray_dashboards()}
    differing = [file for file, text in files.items() if not file.is_file() or file.read_text() != text]
    for file in differing:
        if options.check:
            print(f"{file} is not what make dashboards writes; run it", file=sys.stderr)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(files[file])
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
