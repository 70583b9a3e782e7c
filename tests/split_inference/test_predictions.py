"""The best classes of a sample: their order, ties, probabilities, and logits that have none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from split_inference.predictions import top_predictions

# Few different values, so that most samples have ties, also at the last place that counts.
TIED = st.lists(st.sampled_from([-3.0, 0.0, 0.5, 0.5000001, 7.25]), min_size=1, max_size=30)
ANY = st.lists(st.floats(min_value=-1e4, max_value=1e4, width=32), min_size=1, max_size=30)


def best_of(logits, top_k, labels=()):
    (found,) = top_predictions(np.array([logits], np.float32), labels=labels, top_k=top_k)
    return found


@given(st.one_of(TIED, ANY), st.integers(min_value=1, max_value=40))
def test_they_are_the_first_of_all_classes_by_logit_and_then_by_index(logits, top_k):
    values = np.array(logits, np.float32)
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:top_k]
    assert [each.index for each in best_of(logits, top_k)] == expected


@given(st.one_of(TIED, ANY))
def test_scores_are_the_probabilities_of_a_softmax(logits):
    values = np.array(logits, np.float32).astype(np.float64)
    exponents = [math.exp(each - values.max()) for each in values]
    found = {each.index: each.score for each in best_of(logits, len(logits))}
    assert len(found) == len(logits)
    for index, exponent in enumerate(exponents):
        assert found[index] == pytest.approx(exponent / math.fsum(exponents), rel=1e-12, abs=1e-300)


def test_a_samples_answer_does_not_depend_on_its_company(rng):
    logits_NK = rng.normal(size=(16, 1000)).astype(np.float32)
    together = top_predictions(logits_NK, labels=(), top_k=5)
    assert together == tuple(top_predictions(logits_NK[n : n + 1], labels=(), top_k=5)[0] for n in range(16))


def test_a_class_without_a_label_is_called_by_its_number():
    assert [each.label for each in best_of([1.0, 3.0, 2.0], 3, labels=("zero", "one"))] == ["one", "2", "zero"]


def test_a_class_that_is_ruled_out_has_no_probability():
    assert [(each.index, each.score) for each in best_of([-math.inf, 1.0], 2)] == [(1, 1.0), (0, 0.0)]


@pytest.mark.parametrize("logits", [[math.nan, 1.0], [1.0, math.inf], [-math.inf, -math.inf]])
def test_logits_without_probabilities_are_refused(logits):
    with pytest.raises(ValueError, match="finite"):
        best_of(logits, 1)
