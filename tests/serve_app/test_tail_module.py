"""Unpacking and dequantising as torch operations: the same bits as NumPy's, whatever the shape, bits and ranges.

On torch's processor device, where the module that a GPU runs runs too.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serve_app.feature_form import CODES, FLOATS, FeatureForm, form_of
from serve_app.tail_module import ServedTail, unpack_planes
from split_inference.codec_profile import CodecProfile
from split_inference.feature_codec import FeatureCodec, decode_codes, decode_planes, decode_tensor, planes_shape
from split_inference.model_split import FeatureSpec
from split_inference.packing import pack_planes

SHAPES = [(16, 4, 4), (3, 5, 7), (9,), (1, 1, 1), (2, 3), (6, 1, 3)]


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_unpacking_on_a_device_inverts_packing(bits, rows, count, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, count)).astype(np.uint8)
    planes = torch.from_numpy(np.stack([pack_planes(row, bits=bits) for row in codes]))
    np.testing.assert_array_equal(unpack_planes(planes, shape=(count,)).numpy(), codes)


def served(spec, form, precision="float32"):
    return ServedTail(torch.nn.Identity(), [spec], precision=precision, channels_last=False, forms=[form])


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("samples", [1, 3])
def test_planes_become_the_very_floats_that_decoding_gives(bits, per_channel, shape, samples):
    features = np.random.default_rng(bits).normal(size=(samples, *shape)).astype(np.float32)
    encoded = FeatureCodec(CodecProfile(bits=bits, per_channel=per_channel)).encode(features)
    spec = FeatureSpec(shape=shape, dtype="float32", channel_axis=1)
    form = form_of(f"u{bits}{'c' * per_channel}", from_codes=True, planes=True)
    assert form == FeatureForm(kind="planes", bits=bits, per_channel=per_channel)
    planes = np.empty(planes_shape(encoded.shape, bits=bits), np.uint8)
    scale = decode_planes(encoded, out=planes)
    columns = shape[0] if per_channel else 1
    steps_NC, lows_NC = (
        torch.from_numpy(np.broadcast_to(part[:, 0, :, 0], (samples, columns)).copy())
        for part in (scale.step, scale.low)
    )
    found = served(spec, form)(torch.from_numpy(planes), steps_NC, lows_NC)
    np.testing.assert_array_equal(found.numpy(), decode_tensor(encoded))
    codes = np.empty(encoded.shape, np.uint8)
    decode_codes(encoded, out=codes)
    steps_NC, lows_NC = (each.expand(samples, shape[0]) for each in (steps_NC, lows_NC))
    same = served(spec, CODES)(torch.from_numpy(codes), steps_NC, lows_NC)
    np.testing.assert_array_equal(same.numpy(), found.numpy())


def test_each_tensor_of_a_split_point_has_its_own_form():
    class Sum(torch.nn.Module):
        def forward(self, one, two):
            return one.flatten(1) + two.flatten(1)

    specs = [FeatureSpec(shape=(4, 2), dtype="float32", channel_axis=1) for _ in range(2)]
    codes = np.arange(8, dtype=np.uint8).reshape(1, 4, 2)
    planes = torch.from_numpy(pack_planes(codes.reshape(-1), bits=3)[np.newaxis])
    forms = [form_of("u3", from_codes=True, planes=True), CODES]
    module = ServedTail(Sum(), specs, precision="float32", channels_last=False, forms=forms)
    one, half = torch.ones((1, 1)), torch.full((1, 4), 0.5)
    found = module(planes, one, torch.zeros((1, 1)), torch.from_numpy(codes), half, torch.zeros((1, 4)))
    assert found.tolist() == [[1.5 * value for value in range(8)]]


def test_forms_are_of_quantizers_and_of_who_decodes():
    assert form_of("u4", from_codes=False, planes=True) == FLOATS
    assert form_of("u4c", from_codes=True, planes=False) == CODES
    assert form_of("jpeg", from_codes=True, planes=True) == CODES
    # No quantizer has nine bits: the decoder says so.
    assert form_of("u9", from_codes=True, planes=True) == CODES
