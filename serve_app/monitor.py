"""What `/monitor` shows: the last minute of one replica, its last predictions and its last features as a picture.

Knows facts, NumPy and Pillow. Knows no Ray and no HTTP beyond status, headers and body: `monitor_response` is routed to
by whoever owns the path. Off by default, because features tell of the input that they come from and predictions of
who sent it; the data and the picture belong behind the token. The page itself holds nothing, and a browser that opens
it has no way to send one.

Shape legend: C channels, H height, W width, T tokens, D their features.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve_app.observer import BatchFacts, RequestFacts
from split_inference.wire import Prediction

HISTORY_S: Final = 60
"""Seconds that the page's chart goes back."""
WINDOW_S: Final = 10.0
"""Rates and latencies are of this many last seconds: long enough for a 95th percentile, short enough to be "now"."""
MAX_KEPT: Final = 4096
MAX_REASONS: Final = 32
MAX_PREDICTIONS: Final = 12
MAX_LABELS: Final = 3
MAX_TEXT: Final = 80

MAX_TILES: Final = 64
MAX_TILE_SIDE: Final = 64
MAX_TOKENS: Final = 256
MAX_TOKEN_WIDTH: Final = 512

# Copying a sample's features costs as much as a small decode; nobody looks more often.
FEATURES_EVERY_S: Final = 0.5
PREDICTIONS_EVERY_S: Final = 0.2

# Seven points of viridis: even steps of lightness, and readable without colour vision.
_VIRIDIS = ((68, 1, 84), (70, 50, 127), (54, 92, 141), (39, 127, 142), (31, 161, 135), (110, 206, 88), (253, 231, 37))


@dataclass(kw_only=True, slots=True)
class _Second:
    """What one second of the clock saw."""

    answered: int = 0
    refused: int = 0
    samples: int = 0
    bytes_in: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Features:
    """A copy of one sample's features."""

    split_point: str
    shape: tuple[int, ...]
    values: NDArray[Any]
    seen_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Predicted:
    """What one sample was answered with."""

    split_point: str
    client: str
    best: tuple[Prediction, ...]
    seen_s: float


class Monitor:
    """An observer with a short memory. Everything it keeps is bounded, and asking it changes nothing."""

    def __init__(
        self,
        *,
        model: str,
        digest: str,
        versions: Mapping[str, str],
        replica: str = "",
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`versions` is what the page's foot says, such as {"split-inference": "0.1.0", "torch": "2.13.0"}.

        `replica` tells apart the processes that the same address may lead to.
        """
        self._model = model
        self.digest = digest
        self._versions = dict(versions)
        self._replica = replica
        self._now_s = now_s
        self._started_s = now_s()
        # The facts come from several threads, and the page asks from another one.
        self._lock = threading.Lock()
        self._seconds: dict[int, _Second] = {}
        self._latencies: deque[tuple[float, float]] = deque(maxlen=MAX_KEPT)
        self._batches: deque[tuple[float, BatchFacts]] = deque(maxlen=MAX_KEPT)
        self._reasons: Counter[str] = Counter()
        self._predictions: deque[_Predicted] = deque(maxlen=MAX_PREDICTIONS)
        self._predictions_due_s = -math.inf
        self._features: _Features | None = None
        self._features_due_s = -math.inf
        self._picture: tuple[_Features, bytes] | None = None

    def batch_done(self, facts: BatchFacts) -> None:
        """Remember the batch's sizes and times."""
        with self._lock:
            self._batches.append((self._now_s(), facts))

    def request_done(self, facts: RequestFacts) -> None:
        """Count the request, and remember how long its answer took."""
        now_s = self._now_s()
        with self._lock:
            second = self._second(now_s)
            second.bytes_in += facts.bytes_in
            if facts.status < 400:
                second.answered += 1
                second.samples += facts.samples
                self._latencies.append((now_s, facts.total_s))
            else:
                second.refused += 1
                reason = _short(facts.error or str(facts.status))
                full = reason not in self._reasons and len(self._reasons) >= MAX_REASONS
                self._reasons["other" if full else reason] += 1

    @property
    def wants_features(self) -> bool:
        """Whether it is time for new features; where making them costs something, ask first."""
        return self._now_s() >= self._features_due_s

    def saw_features(self, split_point: str, codes: NDArray[Any]) -> None:
        """Keep a copy of one sample's features, [C, H, W] or [T, D]; twice a second at most, else nothing."""
        now_s = self._now_s()
        if now_s < self._features_due_s:
            return
        self._features_due_s = now_s + FEATURES_EVERY_S
        if codes.size:
            kept = np.array(_thinned(codes))
            self._features = _Features(split_point=_short(split_point), shape=codes.shape, values=kept, seen_s=now_s)

    def saw_predictions(self, split_point: str, best: Sequence[Prediction], *, client: str = "") -> None:
        """Remember the best classes of one sample; five times a second at most, else nothing."""
        now_s = self._now_s()
        if now_s < self._predictions_due_s:
            return
        self._predictions_due_s = now_s + PREDICTIONS_EVERY_S
        seen = _Predicted(
            split_point=_short(split_point), client=_short(client), best=tuple(best[:MAX_LABELS]), seen_s=now_s
        )
        with self._lock:
            self._predictions.append(seen)

    def snapshot(self) -> dict[str, Any]:
        """Everything the page shows but the picture, as a JSON object; times in seconds."""
        now_s = self._now_s()
        since_s = now_s - WINDOW_S
        with self._lock:
            history = [self._seconds.get(second, _Second()) for second in self._shown_seconds(now_s)]
            latencies_s = [total_s for seen_s, total_s in self._latencies if seen_s >= since_s]
            batches = [facts for seen_s, facts in self._batches if seen_s >= since_s]
            reasons = self._reasons.most_common()
            predictions = list(self._predictions)
        features = self._features
        # Seconds that are over: the present one would look like a drop.
        recent = history[-1 - int(WINDOW_S) : -1]
        span_s = max(1.0, min(WINDOW_S, now_s - self._started_s))
        return {
            "model": self._model,
            "digest": self.digest,
            "versions": self._versions,
            "replica": self._replica,
            "up_s": now_s - self._started_s,
            "window_s": WINDOW_S,
            "rates_per_s": {
                "answered": sum(each.answered for each in recent) / span_s,
                "refused": sum(each.refused for each in recent) / span_s,
                "samples": sum(each.samples for each in recent) / span_s,
                "bytes_in": sum(each.bytes_in for each in recent) / span_s,
            },
            "history": {
                "answered": [each.answered for each in history[:-1]],
                "refused": [each.refused for each in history[:-1]],
            },
            "latency_s": _percentiles(latencies_s),
            "stages_s": {
                "queue": _median([delay_s for facts in batches for delay_s in facts.queue_delays_s]),
                "decode": _median([facts.decode_s for facts in batches]),
                "tail": _median([facts.tail_s for facts in batches]),
            },
            "batch_sizes": sorted(Counter(facts.samples for facts in batches).items()),
            "split_points": Counter(_short(facts.split_point) for facts in batches).most_common(8),
            "rejects": reasons,
            "predictions": [
                {
                    "age_s": now_s - each.seen_s,
                    "split_point": each.split_point,
                    "client": each.client,
                    "best": [{"label": _short(one.label), "score": _finite(one.score)} for one in each.best],
                }
                for each in reversed(predictions)
            ],
            "features": None
            if features is None
            else {
                "split_point": features.split_point,
                "shape": list(features.shape),
                "age_s": now_s - features.seen_s,
            },
        }

    def feature_tiles(self) -> bytes | None:
        """The last features as a PNG; None before there were any. Made once for each of them."""
        features = self._features
        if features is None:
            return None
        if self._picture is None or self._picture[0] is not features:
            self._picture = (features, _png(tiles(features.values)))
        return self._picture[1]

    def _second(self, now_s: float) -> _Second:
        number = math.floor(now_s)
        second = self._seconds.get(number)
        if second is None:
            for old in [each for each in self._seconds if each < number - HISTORY_S]:
                del self._seconds[old]
            second = self._seconds[number] = _Second()
        return second

    def _shown_seconds(self, now_s: float) -> range:
        last = math.floor(now_s)
        return range(last - HISTORY_S, last + 1)


def tiles(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Features as one picture [height, width] of 0 (gap) and 1..255 (from the least to the greatest of its tile).

    [C, H, W] is a grid of up to 64 channels, each stretched over its own range, as channels differ by orders of
    magnitude; [T, D] is one picture with a row for each token. More axes than three are more channels.
    """
    thin = _thinned(values)
    if thin.ndim < 3:
        rows: NDArray[np.uint8] = _stretched(thin.reshape(-1, thin.shape[-1])[None])[0]
        return rows
    channels_CHW = _stretched(thin)
    count, height, width = channels_CHW.shape
    columns = math.ceil(math.sqrt(count * height / width))
    lines = math.ceil(count / columns)
    picture = np.zeros((lines * (height + 1) - 1, columns * (width + 1) - 1), np.uint8)
    for index, channel_HW in enumerate(channels_CHW):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        picture[top : top + height, left : left + width] = channel_HW
    return picture


def _thinned(values: NDArray[Any]) -> NDArray[Any]:
    """A view of few enough channels and pixels to look at, spread evenly; [T, D] or [C, H, W]."""
    if values.ndim < 3:
        rows = values.reshape(-1, values.shape[-1] if values.ndim else 1)
        return rows[:: _step(rows.shape[0], MAX_TOKENS), :: _step(rows.shape[1], MAX_TOKEN_WIDTH)]
    channels = values.reshape(-1, *values.shape[-2:])
    _, height, width = channels.shape
    down, across = _step(height, MAX_TILE_SIDE), _step(width, MAX_TILE_SIDE)
    return channels[:: _step(len(channels), MAX_TILES), ::down, ::across]


def _step(size: int, most: int) -> int:
    return -(-size // most)


def _stretched(values_CHW: NDArray[Any]) -> NDArray[np.uint8]:
    finite = np.nan_to_num(values_CHW.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low = finite.min(axis=(1, 2), keepdims=True)
    spread = finite.max(axis=(1, 2), keepdims=True) - low
    # A channel that is the same everywhere is dark, not a division by zero.
    part = (finite - low) / np.where(spread > 0, spread, 1.0)
    scaled: NDArray[np.uint8] = (1 + np.rint(254 * part)).astype(np.uint8)
    return scaled


def _png(picture: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(picture)
    image.putpalette(_PALETTE)
    data = io.BytesIO()
    # Colour 0 is the gap between tiles: see-through, so that it fits a dark page and a light one.
    image.save(data, "PNG", transparency=0, compress_level=1)
    return data.getvalue()


def _palette() -> list[int]:
    at = np.linspace(0, len(_VIRIDIS) - 1, 255)
    points = np.array(_VIRIDIS, dtype=np.float64)
    ramp = np.stack([np.interp(at, range(len(points)), points[:, colour]) for colour in range(3)], axis=1)
    return [0, 0, 0, *np.rint(ramp).astype(int).ravel().tolist()]


_PALETTE = _palette()


def _percentiles(latencies_s: Sequence[float]) -> dict[str, float | None]:
    if not latencies_s:
        return {"p50": None, "p95": None, "p99": None}
    p50, p95, p99 = np.percentile(latencies_s, (50, 95, 99)).tolist()
    return {"p50": p50, "p95": p95, "p99": p99}


def _median(times_s: Sequence[float]) -> float | None:
    return float(np.median(times_s)) if times_s else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


class MonitorResponse(NamedTuple):
    """What is answered: for any HTTP framework to wrap."""

    status: int
    content_type: str
    headers: Mapping[str, str]
    body: bytes


def monitor_response(path: str, monitor: Monitor) -> MonitorResponse:
    """The answer to GET on a path below the model's route: monitor, monitor/data or monitor/features.png.

    The first one is the page, which needs no token and tells nothing of the model; the others are for its holders.
    """
    match path.strip("/"):
        case "monitor":
            return MonitorResponse(200, "text/html; charset=utf-8", _PAGE_HEADERS, _PAGE)
        case "monitor/data":
            data = json.dumps(monitor.snapshot(), separators=(",", ":"), allow_nan=False).encode()
            return MonitorResponse(200, "application/json", _HEADERS, data)
        case "monitor/features.png":
            picture = monitor.feature_tiles()
            # 204: there is nothing yet, which is no mistake of who asks.
            return MonitorResponse(204 if picture is None else 200, "image/png", _HEADERS, picture or b"")
    refusal = b'{"error":"UnknownPath","reason":"the monitor has monitor, monitor/data and monitor/features.png"}'
    return MonitorResponse(404, "application/json", _HEADERS, refusal)


def is_page(path: str) -> bool:
    """Whether the path is the page, which is shown without a token."""
    return path.strip("/") == "monitor"


def _content_security_policy(page: bytes) -> str:
    def source(tag: str) -> str:
        [inner] = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(inner).digest()).decode()}'"

    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {source('script')}",
            f"style-src {source('style')}",
            "connect-src 'self'",
            "img-src blob: data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


_PAGE = resources.files("serve_app").joinpath("monitor_page.html").read_bytes()
_HEADERS: Mapping[str, str] = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_PAGE_HEADERS: Mapping[str, str] = {
    **_HEADERS,
    "content-security-policy": _content_security_policy(_PAGE),
    "referrer-policy": "no-referrer",
}
