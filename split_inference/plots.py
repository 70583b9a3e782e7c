"""Plots as SVG text: lines, bars in layers, bars beside one another. Pure: numbers in, text out, all of it escaped.

Colours are the page's own variables --c0 to --c9, so that they follow its light and dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 44
COLOURS = 10
# More points than this are more than the plot has pixels.
MAX_POINTS = 400


def ticks(most: float, *, about: int = 5) -> list[float]:
    """Round numbers from 0 to at least `most`: 1, 2 or 5 times a power of ten apart."""
    if not most > 0 or not math.isfinite(most):
        return [0.0, 1.0]
    rough = most / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * (1 - 1e-9))
    return [step * index for index in range(math.ceil(most / step - 1e-9) + 1)]


def line_plot(
    series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, x_label: str, y_label: str, y_most: float = 0.0
) -> str:
    """One line for each series of (x, y)."""
    points = [point for line in series.values() for point in line if all(map(math.isfinite, point))]
    xs = ticks(max((x for x, _ in points), default=0.0))
    ys = ticks(max(y_most, max((y for _, y in points), default=0.0)))
    parts = [_frame(xs, ys, x_label=x_label, y_label=y_label)]
    for index, line in enumerate(series.values()):
        thinned = thin([point for point in line if all(map(math.isfinite, point))])
        path = " ".join(f"{_x(x, xs[-1]):.1f},{_y(y, ys[-1]):.1f}" for x, y in thinned)
        if path:
            parts.append(f'<polyline class="line" style="stroke:var(--c{index % COLOURS})" points="{path}"/>')
    return _figure(title, parts, list(series))


def layered_bars(bars: Mapping[str, Mapping[str, float]], *, title: str, y_label: str, layers: Sequence[str]) -> str:
    """One bar for each name, made of layers on top of one another."""
    ys = ticks(max((sum(each.get(layer, 0.0) for layer in layers) for each in bars.values()), default=0.0))
    parts = [_frame([], ys, x_label="", y_label=y_label)]
    width = (WIDTH - _LEFT - _RIGHT) / max(1, len(bars))
    for place, (name, values) in enumerate(bars.items()):
        base = 0.0
        left = _LEFT + place * width
        for index, layer in enumerate(layers):
            value = values.get(layer, 0.0)
            top, bottom = _y(base + value, ys[-1]), _y(base, ys[-1])
            base += value
            parts.append(
                f'<rect x="{left + 0.15 * width:.1f}" y="{top:.1f}" width="{0.7 * width:.1f}" '
                f'height="{max(0.0, bottom - top):.1f}" style="fill:var(--c{index % COLOURS})">'
                f"<title>{escape(name)}: {escape(layer)} {value:.4g}</title></rect>"
            )
        shown = name if len(name) * 7 <= width else name[: max(1, int(width / 7) - 1)] + "…"
        parts.append(
            f'<text class="tick" x="{left + width / 2:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
            f"{escape(shown)}</text>"
        )
    return _figure(title, parts, layers)


def thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most MAX_POINTS of them, the first and the last among them."""
    if len(points) <= MAX_POINTS:
        return points
    last = len(points) - 1
    return [points[round(index * last / (MAX_POINTS - 1))] for index in range(MAX_POINTS)]


def _x(value: float, most: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / most


def _y(value: float, most: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / most


def _frame(xs: Sequence[float], ys: Sequence[float], *, x_label: str, y_label: str) -> str:
    parts = []
    for y in ys:
        at = _y(y, ys[-1])
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in xs:
        parts.append(
            f'<text class="tick" x="{_x(x, xs[-1]):.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{x:g}</text>'
        )
    parts.append(
        f'<text class="label" x="{(WIDTH + _LEFT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    parts.append(
        f'<text class="label" transform="translate(14 {(HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _figure(title: str, parts: Sequence[str], names: Sequence[str]) -> str:
    legend = "".join(
        f'<span><i style="background:var(--c{index % COLOURS})"></i>{escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="legend">{legend}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg></figure>"
    )
