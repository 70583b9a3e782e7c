from __future__ import annotations

import pytest

from serve_app.gpu_share import cap_gpu_memory
from split_inference.errors import ConfigError


class Cuda:
    def __init__(self, *, available=True):
        self.available, self.fractions = available, []

    def is_available(self):
        return self.available

    def set_per_process_memory_fraction(self, fraction):
        self.fractions.append(fraction)


def test_a_part_of_a_gpu_gets_that_part_of_its_memory():
    cuda = Cuda()
    assert cap_gpu_memory(0.25, cuda=cuda) == 0.25
    assert cuda.fractions == [0.25]


@pytest.mark.parametrize("whole", [1, 2])
def test_whole_gpus_have_no_cap(whole):
    cuda = Cuda()
    assert cap_gpu_memory(whole, cuda=cuda) is None
    assert cuda.fractions == []


def test_without_a_gpu_or_without_asking_for_one_there_is_one_line():
    with pytest.raises(ConfigError, match="no CUDA device"):
        cap_gpu_memory(0.5, cuda=Cuda(available=False))
    with pytest.raises(ConfigError, match="num_gpus"):
        cap_gpu_memory(0, cuda=Cuda())
