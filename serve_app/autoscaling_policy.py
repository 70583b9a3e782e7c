"""How many replicas a model needs: by how busy they are and how long requests wait, not by how many are there.

Requests in flight say little here, because batches fill on purpose: sixteen that share one batch cost little more than
four. Standard library only, because Serve imports and pickles this module on the head when it reads the config; the
context is Ray Serve's AutoscalingContext, of which no more than its attributes are known. Serve applies delays and
bounds (`upscale_delay_s`, `min_replicas`, ...) to what comes out, and wakes a deployment at zero replicas by itself.

In config.yaml: autoscaling_config: {policy: {policy_function: "serve_app.autoscaling_policy:queue_delay_policy"}}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

QUEUE_DELAY = "queue_delay_s"
BUSY_SHARE = "busy_share"
HEARD = "heard"
"""Name in the policy's state."""

# Above this share a Poisson stream's queue grows steeply; below it, replicas stand idle.
TARGET_BUSY_SHARE = 0.7
# A twentieth of the second that people call at once; longer waits are a lack of replicas, whatever the busy share says.
TARGET_QUEUE_DELAY_S = 0.05
# One decision at most doubles: the next one is a few seconds away, and knows more.
MOST_GROWTH = 2.0
# Between these, as many as there are is right: without a band, noise would be followed up and down.
ENOUGH, NOT_TOO_FEW = 0.8, 1.1
# Share of the target below which a wait says nothing about the number of replicas.
BUSY_ENOUGH = 0.5
# Where the config says neither an interval nor a window: Serve's default window.
SILENT_AFTER_S = 30.0


def queue_delay_policy(ctx: Any) -> tuple[int, dict[str, Any]]:
    """Replicas wanted, and what to remember: since when each replica's figures are as they are.

    With fresh figures of at least half of the running replicas: as many as bring the busy share to TARGET_BUSY_SHARE,
    and more where requests wait longer than TARGET_QUEUE_DELAY_S; the silent ones are taken to be like the others.
    Without, as when replicas have just started, Serve's own rule: ongoing requests over `target_ongoing_requests`.
    """
    ongoing = _number(ctx.total_num_requests)
    replicas = len(ctx.running_replicas)
    figures = ctx.aggregated_metrics or {}
    heard = _heard(ctx)
    state: dict[str, Any] = {HEARD: heard}
    fresh = [each for each in ctx.running_replicas if not _is_silent(each, heard, ctx)]
    pairs = _of_each(figures.get(BUSY_SHARE), figures.get(QUEUE_DELAY), fresh)
    if not replicas or 2 * len(pairs) < replicas:
        return _default_rule(ongoing, ctx), state
    busy = [share for share, _ in pairs]
    if ongoing <= 0 and max(busy) <= 0:
        # Serve keeps `min_replicas` of them; where that is 0, nothing is left running for nobody.
        return 0, state
    load = sum(busy) / len(busy) / TARGET_BUSY_SHARE
    waiting = sum(delay_s for _, delay_s in pairs) / len(pairs) / TARGET_QUEUE_DELAY_S
    if waiting > 1:
        # Where the models idle, it is not for want of replicas that requests wait (a linger time, say): then no fewer.
        load = max(load, waiting if load >= BUSY_ENOUGH else 1.0)
    if ENOUGH <= load <= NOT_TOO_FEW:
        return max(1, replicas), state
    return max(1, math.ceil(replicas * min(load, MOST_GROWTH) - 1e-9)), state


def _heard(ctx: Any) -> dict[Any, tuple[float, float]]:
    """Of each running replica: the time of its last figures by its own clock, and when they were first seen by ours.

    Serve keeps the last report of a replica that has fallen silent, and gives its figures for ever. Only our own clock
    measures the silence: that of another machine may be wrong by more than it lasts.
    """
    now_s = _number(getattr(ctx, "current_time", None))
    before = (getattr(ctx, "policy_state", None) or {}).get(HEARD, {})
    series = (getattr(ctx, "raw_metrics", None) or {}).get(BUSY_SHARE) or {}
    heard = {}
    for replica in ctx.running_replicas:
        points = series.get(replica)
        last_s = _number(getattr(points[-1], "timestamp", None)) if points else 0.0
        known = before.get(replica)
        heard[replica] = known if known and known[0] == last_s else (last_s, now_s)
    return heard


def _is_silent(replica: Any, heard: Mapping[Any, tuple[float, float]], ctx: Any) -> bool:
    if getattr(ctx, "raw_metrics", None) is None:
        # Whoever gives no series gives no times: the figures are taken as they are.
        return False
    # Until then what was reported is part of the window that figures are of; three reports may be late.
    patience_s = max(
        _number(getattr(ctx.config, "look_back_period_s", 0)), 3 * _number(getattr(ctx.config, "metrics_interval_s", 0))
    )
    return _number(getattr(ctx, "current_time", None)) - heard[replica][1] > (patience_s or SILENT_AFTER_S)


def _default_rule(ongoing: float, ctx: Any) -> int:
    target = _number(getattr(ctx.config, "target_ongoing_requests", 1)) or 1.0
    return math.ceil(ongoing / target)


def _of_each(
    shares: Mapping[Any, Any] | None, delays_s: Mapping[Any, Any] | None, replicas: Iterable[Any]
) -> list[tuple[float, float]]:
    """Busy share and queue delay of those replicas that have sane figures of both."""
    pairs = ((_sane((shares or {}).get(each)), _sane((delays_s or {}).get(each))) for each in replicas)
    return [(share, delay_s) for share, delay_s in pairs if share is not None and delay_s is not None]


def _sane(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value >= 0 else None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
