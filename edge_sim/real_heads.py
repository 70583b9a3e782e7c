"""[torch] Heads that are really run: this machine computes what the simulated device sends, and its time is padded.

One thread computes, as one device would, for all devices of the fleet together: a host that cannot keep up is late, and
every job that ends after its device would have is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge_sim.head_runner import HeadRunner
from split_inference.calibration import EMBEDDED_CALIBRATION, Calibration, load_calibration
from split_inference.codec_profile import CodecProfile
from split_inference.errors import UsageError
from split_inference.feature_codec import FeatureCodec
from split_inference.inputs import EncodedInput, read_inputs
from split_inference.model_catalog import load_model
from split_inference.payload_file import PayloadHeader
from split_inference.wire import DIGEST_BYTES, FeatureFrame, encode_frame

WHOLE = -1


class RealHeads:
    """Runs the heads of a payload file's options on the inputs that it was made from.

    Raises UsageError where model or inputs are not those of the payload file.
    """

    def __init__(self, header: PayloadHeader, inputs: Path, *, calibration: Path | None = None) -> None:
        loaded = load_model(header.model.uri)
        if loaded.model.digest != header.model.digest:
            raise UsageError(f"{header.model.uri} has another digest than the payloads' model: prepare them again")
        by_name = {each.name: each for each in read_inputs(inputs, labels=loaded.card.labels)}
        missing = [each.name for each in header.inputs if each.name not in by_name]
        if missing:
            raise UsageError(f"{inputs} has no {missing[0]}, which the payloads were made from")
        self._inputs: list[EncodedInput] = [by_name[each.name] for each in header.inputs]
        self._digest = bytes.fromhex(loaded.model.digest)[:DIGEST_BYTES]
        self._runners: dict[int, HeadRunner] = {}
        self._points: dict[int, str] = {}
        found = load_calibration(calibration or EMBEDDED_CALIBRATION)
        for index, option in enumerate(header.options):
            if option.mode != "split":
                continue
            assert option.split_point is not None
            assert option.codec is not None
            point = loaded.model.split_point(option.split_point)
            codecs: Sequence[FeatureCodec] = [
                FeatureCodec(CodecProfile.parse(option.codec), channel_axis=spec.channel_axis)
                for spec in point.features
            ]
            if option.calibrated:
                codecs = _calibrated(found, header)
            self._runners[index] = HeadRunner(loaded, at=point, codecs=codecs)
            self._points[index] = point.name
        self._whole = HeadRunner(loaded, at=loaded.model.split_point("input"), codecs=[_identity(loaded.model.input)])
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="real-heads")
        self.too_slow = 0
        """Jobs that this machine ended later than their device would have."""

    def begin(self, option: int, item: int) -> asyncio.Future[bytes]:
        """The body of this option for this input, computed now; WHOLE computes the whole model and gives nothing."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self._compute, option, item)

    def close(self) -> None:
        """No more jobs."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compute(self, option: int, item: int) -> bytes:
        data = self._inputs[item].data
        if option == WHOLE:
            self._whole.run_whole([data])
            return b""
        work = self._runners[option].run([data])
        frame = FeatureFrame(
            model_digest=self._digest,
            split_point=self._points[option],
            sample_count=work.sample_count,
            deadline_budget_ms=None,
            tensors=work.tensors,
        )
        return encode_frame(frame)


def _calibrated(calibration: Calibration, header: PayloadHeader) -> Sequence[FeatureCodec]:
    if calibration.model_digest != header.model.digest:
        raise UsageError("the payloads have a calibrated option: say its file as models.NAME.calibration")
    return calibration.codecs()


def _identity(spec: object) -> FeatureCodec:
    return FeatureCodec(CodecProfile(bits=8), channel_axis=getattr(spec, "channel_axis", 1))
