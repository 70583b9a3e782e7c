"""A tail as it is served: dequantise on the tail's own device, cast, run, give float32 logits.

Knows torch and feature specs. Knows no codec, no wire and no batching: codes, steps and lows arrive as tensors.

Shape legend: N samples, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from split_inference.model_split import FeatureSpec

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ServedTail(nn.Module):
    """The tail behind one split point, for features that arrive as codes or as floats.

    With `from_codes`, forward takes for each tensor its codes uint8 [N, ...], steps float32 [N, C] and lows float32
    [N, C], where C is the length of the channel axis; else each tensor as float32 [N, ...]. Gives float32 [N, K].

    At float32 a code means the same bits as in `quantization.dequantize`: two roundings, a product and a sum.
    """

    def __init__(
        self,
        tail: nn.Module,
        features: Sequence[FeatureSpec],
        *,
        precision: str,
        channels_last: bool,
        from_codes: bool,
    ) -> None:
        super().__init__()
        self.tail = tail
        self.from_codes = from_codes
        self.channels_last = channels_last
        self._channel_axes = [spec.channel_axis for spec in features]
        # At float32 the model keeps whatever its features have.
        self._dtypes = [DTYPES[spec.dtype if precision == "float32" else precision] for spec in features]

    def forward(self, *inputs: Tensor) -> Tensor:
        features = []
        for index, dtype in enumerate(self._dtypes):
            if self.from_codes:
                codes, step_NC, low_NC = inputs[3 * index : 3 * index + 3]
                shape = [1] * codes.dim()
                shape[0], shape[self._channel_axes[index]] = codes.shape[0], step_NC.shape[1]
                value = codes.to(torch.float32) * step_NC.reshape(shape) + low_NC.reshape(shape)
            else:
                value = inputs[index]
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
