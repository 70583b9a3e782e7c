"""`python -m k8s.checks` (`make k8s-check`): every check of every overlay, what it found, and the figures."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from k8s.checks.autoscaler import plan_of
from k8s.checks.model import Document, Finding, Overlay, UnavailableError
from k8s.checks.pods import pods_of
from k8s.checks.registry import OVERLAY_CHECKS, REPOSITORY_CHECKS, Result, run_check
from k8s.checks.render import overlay_names, render
from k8s.checks.schemas import mutants
from split_inference.figures import Bound, report

EXAMPLES = """examples:
  python -m k8s.checks
  python -m k8s.checks --overlay prod-gpu --check autoscaler --check references
  python -m k8s.checks --json

Exit code 1 where something was found; with REQUIRE_DATA=1 also where a check could not be run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; 0, 1 or 2 (asked for something that is not there)."""
    checks, overlays = [*OVERLAY_CHECKS, *REPOSITORY_CHECKS], overlay_names()
    parser = argparse.ArgumentParser(
        prog="python -m k8s.checks",
        description="Check the Kubernetes manifests without a cluster.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--overlay", action="append", choices=overlays, help="only this one (may be repeated)")
    parser.add_argument("--check", action="append", choices=checks, help="only this one (may be repeated)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args(arguments)
    # Ray's scheduler says on stderr what it adds.
    logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)
    wanted = options.check or checks
    results, rendered = [], []
    for result, overlay in _run(options.overlay or overlays, wanted):
        results.append(result)
        rendered += [overlay] if overlay else []
        if not options.json:
            _print(result)
    figures, bounds = _figures(results, rendered, whole=not options.check and not options.overlay)
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    return report("k8s-check", figures, bounds, command=["python", "-m", "k8s.checks"], to_stderr=options.json)


def _run(overlays: Sequence[str], wanted: Sequence[str]) -> Iterator[tuple[Result, Overlay | None]]:
    for name in overlays:
        made: list[Overlay] = []
        yield run_check("A", "renders", name, partial(_rendered, name, made)), (made[0] if made else None)
        for check, (letter, function) in OVERLAY_CHECKS.items():
            if made and check in wanted:
                yield run_check(letter, check, name, partial(function, made[0])), None
    for check, (letter, of_files) in REPOSITORY_CHECKS.items():
        if check in wanted:
            yield run_check(letter, check, "files", of_files), None


def _rendered(name: str, into: list[Overlay]) -> list[Finding]:
    try:
        into.append(render(name))
    except ValueError as error:
        return [Finding(where=f"k8s/overlays/{name}", problem=str(error))]
    return []


def _print(result: Result) -> None:
    verdict = "NOT RUN" if result.not_run else f"{len(result.findings)} findings" if result.findings else "ok"
    print(f"{result.letter} {result.check:20} {result.of:14} {verdict:12} {result.took_s:6.2f} s", flush=True)
    if result.not_run:
        print(f"    {result.not_run}")
    for finding in result.findings:
        print(f"    {finding}", flush=True)


def _figures(
    results: Sequence[Result], overlays: Sequence[Overlay], *, whole: bool
) -> tuple[dict[str, float], dict[str, Bound]]:
    figures: dict[str, float] = {
        "checks": len(results),
        "findings": sum(len(result.findings) for result in results),
        "checks_not_run": sum(result.not_run is not None for result in results),
        "overlays": len(overlays),
        "documents": sum(len(overlay.documents) for overlay in overlays),
        "pods": sum(len(pods_of(overlay)) for overlay in overlays),
    }
    bounds: dict[str, Bound] = {"findings": ("==", 0)}
    if os.environ.get("REQUIRE_DATA") == "1":
        bounds["checks_not_run"] = ("==", 0)
    if not whole:
        return figures, bounds
    bounds["overlays"] = (">=", len(overlay_names()))
    kinds: dict[str, Document] = {}
    for overlay in overlays:
        kinds |= {document["kind"]: document for document in overlay.documents}
        figures |= _of_autoscaler(overlay, bounds)
    figures["kinds"] = len(kinds)
    figures["mutants_of_all_kinds"] = len([path for document in kinds.values() for path, _ in mutants(document)])
    return figures, bounds


def _of_autoscaler(overlay: Overlay, bounds: dict[str, Bound]) -> dict[str, float]:
    """What Ray's own code makes of it; a manifest that it cannot read is a finding already."""
    try:
        plan = plan_of(overlay.rayservice())
    except (ValueError, KeyError, AssertionError, UnavailableError):
        return {}
    figures: dict[str, float] = {}
    for what, shape in (("rest", plan.rest), ("max", plan.full)):
        for group, count in shape.pods.items():
            figures[f"{overlay.name} {group} pods at {what}"] = count
        figures[f"{overlay.name} infeasible at {what}"] = shape.infeasible
        bounds[f"{overlay.name} infeasible at {what}"] = ("==", 0)
    if plan.gpus:
        bounds[f"{overlay.name} gpu pods at rest"] = ("==", 0)
        # A GPU for each pod, and a quarter of one for each replica.
        bounds[f"{overlay.name} gpu pods at max"] = ("==", plan.gpus)
    return figures


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[2])
    sys.exit(main())
