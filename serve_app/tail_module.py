"""A tail as it is served: unpack bits and dequantise on the tail's own device, cast, run, give float32 logits.

Knows torch and feature specs. Knows no codec, no wire and no batching: planes, codes and scales arrive as tensors.

Shape legend: N samples, C channels, K classes, B bits, W bytes of one sample's plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from serve_app.feature_form import FeatureForm
from split_inference.model_split import FeatureSpec

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


# One byte times the first number, shifted down by 7, has the byte's bits in the lowest bits of eight bytes, the highest
# bit first in memory (little-endian): factor i puts bit 7 - i at the bottom of byte i, and no two terms overlap.
_SPREAD = 0x8040_2010_0804_0201 - (1 << 64)
_LOWEST_BITS = 0x0101_0101_0101_0101


def unpack_planes(planes_NBW: Tensor, *, shape: Sequence[int]) -> Tensor:
    """Codes uint8 [N, *shape] of bit planes [N, B, W], as `feature_codec.decode_planes` writes them.

    Eight codes at a time, as the bytes of one integer: on a GPU an eighth of the elements that a tensor of single bits
    would have. Needs a little-endian machine, as every host of a CUDA device is.
    """
    eights = planes_NBW.to(torch.int64)
    codes: Tensor | None = None
    for bit in range(planes_NBW.shape[1]):
        plane_NW = (eights[:, bit] * _SPREAD >> 7).bitwise_and_(_LOWEST_BITS)
        # Every byte keeps to itself: at most eight bits are shifted into it.
        codes = plane_NW if codes is None else codes.bitwise_left_shift_(1).bitwise_or_(plane_NW)
    assert codes is not None
    return codes.view(torch.uint8)[:, : math.prod(shape)].reshape(-1, *shape)


class ServedTail(nn.Module):
    """The tail behind one split point, for features that arrive in given forms, one form for each tensor.

    forward takes for each tensor, by its form: floats float32 [N, ...]; or codes uint8 [N, ...], steps and lows; or
    planes uint8 [N, B, W], steps and lows. Steps and lows are float32 [N, C], where C is the length of the channel
    axis, or 1 where all channels share a range. Gives float32 [N, K].

    At float32 a code means the same bits as in `quantization.dequantize`: two roundings, a product and a sum.
    """

    def __init__(
        self,
        tail: nn.Module,
        features: Sequence[FeatureSpec],
        *,
        precision: str,
        channels_last: bool,
        forms: Sequence[FeatureForm],
    ) -> None:
        super().__init__()
        self.tail = tail
        self.channels_last = channels_last
        self._forms = tuple(forms)
        self._shapes = [spec.shape for spec in features]
        self._channel_axes = [spec.channel_axis for spec in features]
        # At float32 the model keeps whatever its features have.
        self._dtypes = [DTYPES[spec.dtype if precision == "float32" else precision] for spec in features]

    def forward(self, *inputs: Tensor) -> Tensor:
        features = []
        first = 0
        for index, (form, dtype) in enumerate(zip(self._forms, self._dtypes, strict=True)):
            value, *scales = inputs[first : first + form.arrays]
            first += form.arrays
            if form.kind == "planes":
                value = unpack_planes(value, shape=self._shapes[index])
            if scales:
                step_NC, low_NC = scales
                shape = [1] * value.dim()
                shape[0], shape[self._channel_axes[index]] = value.shape[0], step_NC.shape[1]
                value = value.to(torch.float32) * step_NC.reshape(shape) + low_NC.reshape(shape)
            value = value.to(dtype)
            if self.channels_last and value.dim() == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            features.append(value)
        logits: Tensor = self.tail(*features)
        return logits.to(torch.float32)


class WeightCaster:
    """Replaces a module's weights by ones of another precision, layout and device; what tails share stays shared."""

    def __init__(self, *, precision: str, channels_last: bool, device: torch.device) -> None:
        self._dtype = None if precision == "float32" else DTYPES[precision]
        self._channels_last = channels_last
        self._device = device
        self._cast: dict[int, tuple[Tensor, Tensor]] = {}

    def apply(self, module: nn.Module) -> nn.Module:
        """The module itself, with new weights; tails cut from one model share the new ones as they shared the old."""
        for part in module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                setattr(part, name, nn.Parameter(self._of(parameter), requires_grad=False))
            for name, buffer in list(part.named_buffers(recurse=False)):
                part.register_buffer(name, self._of(buffer))
            for name, value in list(vars(part).items()):
                if isinstance(value, Tensor):
                    setattr(part, name, self._of(value))
        return module

    def _of(self, tensor: Tensor) -> Tensor:
        known = self._cast.get(id(tensor))
        if known is not None:
            return known[1]
        value = tensor.detach().to(self._device)
        if self._dtype is not None and value.is_floating_point():
            value = value.to(self._dtype)
        if self._channels_last and value.dim() == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        # The old tensor is kept beside it, so that its id cannot come to mean another one.
        self._cast[id(tensor)] = (tensor, value)
        return value
