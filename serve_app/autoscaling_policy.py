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


def queue_delay_policy(ctx: Any) -> tuple[int, dict[str, Any]]:
    """Replicas wanted, and the policy's state, which is none.

    With figures of all running replicas: as many as bring the busy share to TARGET_BUSY_SHARE, and more where requests
    wait longer than TARGET_QUEUE_DELAY_S. Without them, as when replicas have just started, Serve's own rule: ongoing
    requests over `target_ongoing_requests`.
    """
    ongoing = _number(ctx.total_num_requests)
    replicas = len(ctx.running_replicas)
    figures = ctx.aggregated_metrics or {}
    busy = _of_all(figures.get(BUSY_SHARE), ctx.running_replicas)
    delays_s = _of_all(figures.get(QUEUE_DELAY), ctx.running_replicas)
    if not replicas or busy is None or delays_s is None:
        return _default_rule(ongoing, ctx), {}
    if ongoing <= 0 and max(busy) <= 0:
        # Serve keeps `min_replicas` of them; where that is 0, nothing is left running for nobody.
        return 0, {}
    load = sum(busy) / len(busy) / TARGET_BUSY_SHARE
    waiting = sum(delays_s) / len(delays_s) / TARGET_QUEUE_DELAY_S
    if waiting > 1:
        # Where the models idle, it is not for want of replicas that requests wait (a linger time, say): then no fewer.
        load = max(load, waiting if load >= BUSY_ENOUGH else 1.0)
    if ENOUGH <= load <= NOT_TOO_FEW:
        return max(1, replicas), {}
    return max(1, math.ceil(replicas * min(load, MOST_GROWTH) - 1e-9)), {}


def _default_rule(ongoing: float, ctx: Any) -> int:
    target = _number(getattr(ctx.config, "target_ongoing_requests", 1)) or 1.0
    return math.ceil(ongoing / target)


def _of_all(by_replica: Mapping[Any, Any] | None, running: Iterable[Any]) -> list[float] | None:
    """One sane figure of each running replica; None where one is missing."""
    if not by_replica:
        return None
    values = []
    for replica in running:
        value = by_replica.get(replica)
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            return None
        values.append(float(value))
    return values


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
