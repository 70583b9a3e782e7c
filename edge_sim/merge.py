"""Shards of one run joined: their records in the order of the moments at which requests were meant to begin."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sim.recorder import NOT_ENDED, RunRecorder
from edge_sim.run_reader import read_header
from split_inference.errors import DataError, UsageError

# What all shards of one run have in common.
_SAME = ("scenario", "seed", "clock", "duration_s")


def merge_runs(folders: Sequence[Path], into: Path, *, command: str) -> Path:
    """Join the shards in `folders` into the folder `into`, which is made. DataError where they are not of one run.

    Needs memory for all records: a shard's lines are in the order in which requests ended, and are sorted first.
    """
    headers = [read_header(folder) for folder in folders]
    if not headers:
        raise DataError("nothing to merge: give the shards' folders")
    for folder, header in zip(folders, headers, strict=True):
        for fact in _SAME:
            if header.get(fact) != headers[0].get(fact):
                raise DataError(f"{folder} is of another run than {folders[0]}: its {fact} differs")
    shards = [tuple(header.get("shard", (0, 1))) for header in headers]
    for index, shard in enumerate(shards):
        if shard in shards[:index]:
            raise DataError(
                f"{folders[index]} is shard {shard[0]}/{shard[1]}, and so is {folders[shards.index(shard)]}"
            )
    if len({count for _, count in shards}) != 1 or len(shards) != shards[0][1]:
        raise DataError(f"{len(shards)} shards of {shards[0][1]}: all of them are needed")
    for folder in folders:
        if not (folder / "requests.jsonl").is_file():
            raise DataError(f"{folder} has no requests.jsonl: the run was moved, or is none")
    lines = [_sorted(folder, number) for number, folder in enumerate(folders)]
    try:
        into.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"cannot make {into}: {error.strerror}") from error
    invalid = [
        f"shard {shard[0]}: {header['invalid']}"
        for shard, header in zip(shards, headers, strict=True)
        if header.get("invalid")
    ]
    facts: dict[str, Any] = {
        **{name: headers[0].get(name) for name in (*_SAME, "scenario_name", "scenario_folder")},
        "shard": [0, 1],
        "merged": [str(folder) for folder in folders],
        "assumed": sorted({each for header in headers for each in header.get("assumed", [])}),
        "invalid": NOT_ENDED,
        "lateness_p99_s": max(float(header.get("lateness_p99_s") or 0.0) for header in headers),
        "wrong_answers": sum(int(header.get("wrong_answers") or 0) for header in headers),
        "host_too_slow": sum(int(header.get("host_too_slow") or 0) for header in headers),
        "outcomes": dict(Counter(outcome for each in lines for *_, outcome in each)),
    }
    if any(header.get("ended_at_s") is not None for header in headers):
        # The longest, as goodput is of all shards together.
        facts["ended_at_s"] = max(
            float(header.get("ended_at_s", header.get("duration_s") or 0.0)) for header in headers
        )
    with RunRecorder(into, command=command, facts=facts) as recorder:
        for _, _, line, _ in heapq.merge(*lines):
            recorder.lines(line + "\n")
    recorder.add_facts({"invalid": "; ".join(invalid) or None})
    return into


def _sorted(folder: Path, shard: int) -> list[tuple[float, int, str, str]]:
    """Intended start, shard, line and outcome of each record. A last line that a kill has cut off is left out."""
    keyed = []
    with (folder / "requests.jsonl").open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                break
            try:
                row = json.loads(line)
                keyed.append((float(row["intended_s"]), shard, line.rstrip("\n"), str(row["outcome"])))
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{folder}/requests.jsonl:{number}: no record of a request") from None
    keyed.sort()
    return keyed
