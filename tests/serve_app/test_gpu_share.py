from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serve_app.gpu_share import CONTEXT_BYTES, allocator_fraction, cap_gpu_memory
from split_inference.errors import ConfigError

GIB = 2**30


class Cuda:
    def __init__(self, *, available=True, total_bytes=80 * GIB):
        self.available, self.total_bytes, self.fractions = available, total_bytes, []

    def is_available(self):
        return self.available

    def get_device_properties(self, device):
        assert device == 0
        return SimpleNamespace(total_memory=self.total_bytes)

    def set_per_process_memory_fraction(self, fraction):
        self.fractions.append(fraction)


def test_a_part_of_a_gpu_gets_that_part_of_its_memory_less_a_context():
    cuda = Cuda()
    fraction = cap_gpu_memory(0.25, cuda=cuda)
    assert fraction == pytest.approx(0.25 - 0.75 / 80)
    assert cuda.fractions == [fraction]


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=30), st.integers(4 * GIB, 192 * GIB))
def test_replicas_that_share_a_gpu_never_need_more_than_it_has(weights, total_bytes):
    """However one GPU is divided: what the allocators may take and what the contexts hold are at most all of it."""
    shares = [weight / sum(weights) for weight in weights]
    assume(max(shares) < 1)
    taken = 0.0
    for share in shares:
        try:
            fraction = allocator_fraction(share, total_bytes=total_bytes)
        except ConfigError:
            # A replica that does not start takes nothing.
            continue
        assert 0 < fraction < share
        # Half of its share is a replica's own at least.
        assert fraction * total_bytes >= share * total_bytes / 2 - 1
        taken += fraction * total_bytes + CONTEXT_BYTES
    assert taken <= total_bytes * (1 + 1e-9)


@pytest.mark.parametrize("whole", [1, 2])
def test_whole_gpus_have_no_cap(whole):
    cuda = Cuda()
    assert cap_gpu_memory(whole, cuda=cuda) is None
    assert cuda.fractions == []


def test_a_share_that_a_context_would_fill_is_refused_with_the_smallest_that_works():
    cuda = Cuda(total_bytes=16 * GIB)
    with pytest.raises(ConfigError, match=r"num_gpus 0.05 of this GPU is 819 MiB, .* up to 768; write 0.1 or more"):
        cap_gpu_memory(0.05, cuda=cuda)
    assert cuda.fractions == []
    assert cap_gpu_memory(0.1, cuda=cuda) == pytest.approx((1.6 - 0.75) / 16)
    with pytest.raises(ConfigError, match=r"write 0.14 or more"):
        cap_gpu_memory(0.1, cuda=Cuda(total_bytes=11 * GIB))
    with pytest.raises(ConfigError, match="too small to be shared"):
        cap_gpu_memory(0.5, cuda=Cuda(total_bytes=GIB))


def test_without_a_gpu_or_without_asking_for_one_there_is_one_line():
    with pytest.raises(ConfigError, match="no CUDA device"):
        cap_gpu_memory(0.5, cuda=Cuda(available=False))
    with pytest.raises(ConfigError, match="num_gpus"):
        cap_gpu_memory(0, cuda=Cuda())
