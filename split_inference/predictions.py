"""From logits to the classes that people read: the same on the server and on the device.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from split_inference.wire import Prediction


def top_predictions(
    logits_NK: NDArray[np.float32], *, labels: Sequence[str], top_k: int
) -> tuple[tuple[Prediction, ...], ...]:
    """The `top_k` classes of each sample, best first, with softmax probabilities as scores.

    Of equal logits the lower index comes first, so that every machine gives the same order.
    """
    # float64: the sum of many exponentials in float32 would depend on the order of summation.
    exponents_NK = logits_NK.astype(np.float64)
    exponents_NK -= exponents_NK.max(axis=1, keepdims=True)
    scores_NK = np.exp(exponents_NK)
    scores_NK /= scores_NK.sum(axis=1, keepdims=True)
    best_NK = np.argsort(-logits_NK, axis=1, kind="stable")[:, :top_k]
    return tuple(
        tuple(
            Prediction(index=int(k), label=labels[k] if k < len(labels) else str(k), score=float(scores_K[k]))
            for k in best_K
        )
        for best_K, scores_K in zip(best_NK, scores_NK, strict=True)
    )
