"""Work before a split point grows to the whole, its MACs are the model's, and what ships is what is counted."""

from __future__ import annotations

import itertools

import pytest

from edge_sim.layer_work import work_of
from edge_sim.work import reference_work
from split_inference.model_catalog import EMBEDDED_URI, load_model


@pytest.fixture(scope="module")
def embedded():
    return load_model(EMBEDDED_URI).model


def test_macs_are_the_models_at_every_split_point(embedded):
    work = work_of(embedded)
    for point in embedded.split_points:
        assert sum(work.head(point.name)[:5]) == point.head_macs


def test_heads_never_shrink(embedded):
    heads = [work_of(embedded).head(point.name) for point in embedded.split_points]
    for before, after in itertools.pairwise(heads):
        assert all(one <= two for one, two in zip(before, after, strict=True))


def test_what_ships_is_what_is_counted(embedded):
    assert reference_work()["resnet20-cifar10"] == work_of(embedded)


def test_the_families_of_published_networks():
    work = reference_work()
    # As their papers count them: MobileNetV2's 300 million, ResNet-18's 1.8 and VGG-16's 15.5 billion.
    assert sum(work["mobilenet_v2"].whole[:5]) == pytest.approx(300e6, rel=0.01)
    assert sum(work["resnet18"].whole[:5]) == pytest.approx(1.82e9, rel=0.01)
    assert sum(work["vgg16"].whole[:5]) == pytest.approx(15.5e9, rel=0.01)
    assert work["mobilenet_v2"].whole.depthwise_macs > 0
    assert work["vgg16"].whole.depthwise_macs == work["vgg16"].whole.pointwise_macs == 0
