"""From logits to the classes that people read: the same on the server and on the device.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from split_inference.wire import Prediction


def top_predictions(
    logits_NK: NDArray[np.float32], *, labels: Sequence[str], top_k: int
) -> tuple[tuple[Prediction, ...], ...]:
    """The `top_k` classes of each sample, best first, with softmax probabilities as scores.

    Of equal logits the lower index comes first, so that every machine gives the same order. Raises ValueError for
    logits that have no probabilities: with NaN or infinity.
    """
    return tuple(_best(logits_K, labels, top_k) for logits_K in logits_NK)


def _best(logits_K: NDArray[np.float32], labels: Sequence[str], top_k: int) -> tuple[Prediction, ...]:
    # float64: the sum of many exponentials in float32 would depend on the order of summation.
    exponents_K = logits_K.astype(np.float64)
    largest = float(exponents_K.max())
    if not math.isfinite(largest):
        raise ValueError(f"logits must be finite to have probabilities, the largest is {largest}")
    exponents_K -= largest
    np.exp(exponents_K, out=exponents_K)
    total = float(exponents_K.sum())
    # Selecting takes a fifth of sorting a thousand classes, and this runs on the server's event loop.
    above = max(0, len(logits_K) - top_k)
    (candidates,) = (logits_K >= np.partition(logits_K, above)[above]).nonzero()
    best = candidates[np.argsort(-logits_K[candidates], kind="stable")[:top_k]]
    scores = (exponents_K[best] / total).tolist()
    return tuple(
        Prediction(index=index, label=labels[index] if index < len(labels) else str(index), score=score)
        for index, score in zip(best.tolist(), scores, strict=True)
    )
