"""Search split point, bits and clipping for a model on real inputs.

The cheapest first: pairs of split point and bits are visited in the order of the bytes they send, each with several
clip ranges, until one holds the floors of accuracy and agreement. What is reported is measured on inputs that the
search did not see: chosen on one half and scored on the other, and the reverse, pooled.

Knows torch, the split, the codec and the wire. Knows no files and prints nothing: progress goes to a callback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from split_inference.calibration import Calibration, Clip
from split_inference.errors import DataError, UsageError
from split_inference.exactness import tensor_from
from split_inference.feature_codec import ClipRange, CodecProfile, FeatureCodec, decode_tensor
from split_inference.model_split import SplitPoint, SplittableModel
from split_inference.wire import DIGEST_BYTES, FeatureFrame, encode_frame

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

BATCH = 25  # of heads and tails: larger ones gain nothing on a CPU and cost memory at early split points
SIZING_INPUTS = 2  # enough to order candidates by bytes; the winner's bytes are measured on all inputs
SIZING_FACTOR = 0.55
SIZING_SLACK = 1.15  # an order made from so few inputs may be off by this much, so look a little further
QUANTILE = 0.9995  # the range that a clip factor of 1 keeps; the rest are outliers
QUANTILE_VALUES = 2_000_000  # values that a quantile is taken over at most
QUICK_INPUTS = 32
QUICK_MARGIN = 0.12  # about two standard errors of an agreement of 0.9 over 32 inputs

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """What may be chosen, and what must hold."""

    at: str | None = None
    """Only this split point; None searches all of them."""
    bits: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    clip_factors: tuple[float, ...] = (1.0, 0.8, 0.65, 0.55, 0.45, 0.35)
    compressor: str = "lz4"
    per_channel: tuple[bool, ...] = (False,)
    """Ranges per channel travel in every frame, 8 bytes each: they pay at many bits and large features only."""
    min_agreement: float = 0.95
    """Share of inputs for which the split model must answer as the unsplit one, 0..1."""
    max_loss_points: float = 1.0
    """Top-1 accuracy that may be lost, in percentage points; not looked at without labels."""
    max_head_share: float = 0.9
    """Share of the MACs that the device may do at most: without it the smallest features are the answer itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a candidate gave on some inputs."""

    inputs: int
    bytes_per_input: float
    agreement: float
    loss_points: float | None
    logit_error: float
    """Root mean square change of the logits over their standard deviation: a finer measure than agreement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    split_point: SplitPoint
    profile: CodecProfile
    clips: tuple[ClipRange, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The choice made on all inputs, and how well choices made like this do on inputs they have not seen."""

    calibration: Calibration
    unseen: Score
    seen: Score
    choices: tuple[Candidate, ...] = field(default=())
    """Made on the first half, on the second half, and on all inputs."""


class CalibrationSearch:
    """`inputs` float32 [N, ...] as the model takes them; `labels` int64 [N] or None."""

    def __init__(
        self,
        model: SplittableModel,
        inputs: Floats,
        labels: Indices | None,
        settings: SearchSettings,
        progress: Progress,
    ) -> None:
        if len(inputs) < 4:
            raise DataError(f"{len(inputs)} inputs are too few to calibrate on; give at least 4, better 100 or more")
        self._model = model
        self._inputs = inputs
        self._labels = labels
        self._settings = settings
        self._progress = progress
        self._features: dict[str, tuple[Floats, ...]] = {}
        self._tails: dict[str, torch.nn.Module] = {}
        self._whole = self._batched(model.whole, (inputs,))
        if settings.at is not None:
            self._points = [model.split_point(settings.at)]
        else:
            self._points = [
                point
                for point in model.split_points
                if point.name not in ("input", "output") and point.head_macs_share <= settings.max_head_share
            ]
        if not self._points:
            raise UsageError(f"no split point leaves the device at most {settings.max_head_share:.0%} of the work")

    def run(self, *, model_uri: str, made_by: str) -> SearchResult:
        """Choose on each half, score on the other, then choose on all."""
        everything = np.arange(len(self._inputs))
        halves = everything[::2], everything[1::2]
        unseen, choices = [], []
        for step, (chosen_on, scored_on) in enumerate((halves, halves[::-1])):
            candidate = self._choose(chosen_on, f"half {step + 1} of 2")
            choices.append(candidate)
            unseen.append(self._outcomes(candidate, scored_on))
        final = self._choose(everything, "all inputs")
        pooled = self._score(
            [np.concatenate(parts) for parts in zip(*unseen, strict=True)], np.concatenate(halves[::-1])
        )
        seen = self._score(list(self._outcomes(final, everything)), everything)
        figures = {
            "inputs": float(len(everything)),
            "bytes_per_input_unseen": pooled.bytes_per_input,
            "agreement_unseen": pooled.agreement,
            "bits_per_element": 8 * seen.bytes_per_input / final.split_point.elements,
            "head_macs_share": final.split_point.head_macs_share,
        }
        if pooled.loss_points is not None:
            figures["top1_loss_points_unseen"] = pooled.loss_points
            figures["top1_unsplit"] = float(np.mean(self._whole.argmax(1) == self._labels))
        calibration = Calibration(
            model=model_uri,
            model_digest=self._model.digest,
            split_point=final.split_point.name,
            codec=final.profile.name,
            clip=tuple(Clip(low=clip.low, high=clip.high) for clip in final.clips),
            channel_axes=tuple(spec.channel_axis for spec in final.split_point.features),
            figures={name: round(value, 6) for name, value in figures.items()},
            made_by=made_by,
        )
        return SearchResult(calibration=calibration, unseen=pooled, seen=seen, choices=(*choices, final))

    def _choose(self, indices: Indices, title: str) -> Candidate:
        groups = self._groups_by_bytes(indices[:SIZING_INPUTS])
        best: tuple[float, Candidate] | None = None
        closest: tuple[float, str] = (-1.0, "")
        for done, (estimate, point, profile) in enumerate(groups):
            self._progress(f"{title}: {point.name} {profile.name}", done, len(groups))
            if best is not None and estimate > best[0] * SIZING_SLACK:
                break
            candidate, score = self._best_clip(point, profile, indices)
            if score.agreement > closest[0]:
                closest = (score.agreement, f"{point.name} {profile.name}")
            if self._holds(score) and (best is None or score.bytes_per_input < best[0]):
                best = (score.bytes_per_input, candidate)
        self._progress(title, len(groups), len(groups))
        if best is None:
            raise UsageError(
                f"no codec holds an agreement of {self._settings.min_agreement:.1%} and a loss of "
                f"{self._settings.max_loss_points} points; the closest, {closest[1]}, agrees on {closest[0]:.1%}: "
                "allow more bits, or lower the floors"
            )
        return best[1]

    def _holds(self, score: Score) -> bool:
        lost_too_much = score.loss_points is not None and score.loss_points > self._settings.max_loss_points
        return score.agreement >= self._settings.min_agreement and not lost_too_much

    def _groups_by_bytes(self, indices: Indices) -> list[tuple[float, SplitPoint, CodecProfile]]:
        heads = (
            self._model.heads([p.name for p in self._points])
            if all(len(p.features) == 1 for p in self._points)
            else None
        )
        with torch.inference_mode():
            features: list[tuple[Floats, ...]]
            if heads is not None:
                features = [(value.float().numpy(),) for value in heads(torch.from_numpy(self._inputs[indices]))]
            else:
                features = [self._features_at(point, indices) for point in self._points]
        groups = []
        for point, tensors in zip(self._points, features, strict=True):
            for bits in self._settings.bits:
                for per_channel in self._settings.per_channel:
                    profile = CodecProfile(bits=bits, per_channel=per_channel, compressor=self._settings.compressor)  # type: ignore[arg-type]
                    clips = self._clips(point, profile, tensors, SIZING_FACTOR)
                    candidate = Candidate(split_point=point, profile=profile, clips=clips)
                    sizes = [
                        len(self._frame(candidate, [t[i : i + 1] for t in tensors])[0]) for i in range(len(indices))
                    ]
                    groups.append((float(np.mean(sizes)), point, profile))
        return sorted(groups, key=lambda group: group[0])

    def _best_clip(self, point: SplitPoint, profile: CodecProfile, indices: Indices) -> tuple[Candidate, Score]:
        tensors = self._features_at(point, indices)
        quick = indices[:QUICK_INPUTS]
        tried = []
        for factor in self._settings.clip_factors:
            candidate = Candidate(
                split_point=point, profile=profile, clips=self._clips(point, profile, tensors, factor)
            )
            tried.append((self._score(list(self._outcomes(candidate, quick)), quick), candidate))
        tried.sort(key=lambda pair: pair[0].logit_error)
        score, candidate = tried[0]
        if len(quick) == len(indices) or score.agreement < self._settings.min_agreement - QUICK_MARGIN:
            return candidate, score
        # The two best of the quick look, on all inputs; the smaller change of the logits decides, as agreement
        # over a hundred inputs is too coarse to tell neighbours apart.
        full = [(self._score(list(self._outcomes(c, indices)), indices), c) for _, c in tried[:2]]
        score, candidate = min(full, key=lambda pair: (not self._holds(pair[0]), pair[0].logit_error))
        return candidate, score

    def _clips(
        self, point: SplitPoint, profile: CodecProfile, tensors: Sequence[Floats], factor: float
    ) -> tuple[ClipRange, ...]:
        return tuple(
            clip_range(values, factor=factor, channel_axis=spec.channel_axis if profile.per_channel else None)
            for values, spec in zip(tensors, point.features, strict=True)
        )

    def _frame(self, candidate: Candidate, tensors: Sequence[Floats]) -> tuple[bytes, list[Floats]]:
        encoded = [
            FeatureCodec(candidate.profile, clip=clip, channel_axis=spec.channel_axis).encode(values)
            for values, clip, spec in zip(tensors, candidate.clips, candidate.split_point.features, strict=True)
        ]
        frame = FeatureFrame(
            model_digest=bytes.fromhex(self._model.digest)[:DIGEST_BYTES],
            split_point=candidate.split_point.name,
            sample_count=len(tensors[0]),
            deadline_budget_ms=None,
            tensors=tuple(encoded),
        )
        return encode_frame(frame), [decode_tensor(tensor) for tensor in encoded]

    def _outcomes(self, candidate: Candidate, indices: Indices) -> tuple[Floats, Floats]:
        """Frame bytes [n] and logits [n, K] of the split model, one frame per input."""
        tensors = self._features_at(candidate.split_point, indices)
        sizes, decoded = [], []
        for i in range(len(indices)):
            frame, values = self._frame(candidate, [t[i : i + 1] for t in tensors])
            sizes.append(len(frame))
            decoded.append(values)
        name = candidate.split_point.name
        if name not in self._tails:
            self._tails[name] = self._model.tail(name)
        stacked = tuple(np.concatenate(parts) for parts in zip(*decoded, strict=True))
        return np.array(sizes, dtype=np.float32), self._batched(self._tails[name], stacked)

    def _score(self, outcomes: Sequence[Floats], indices: Indices) -> Score:
        sizes, logits = outcomes
        expected = self._whole[indices]
        answers, right = logits.argmax(1), expected.argmax(1)
        loss = None
        if self._labels is not None:
            labels = self._labels[indices]
            loss = 100 * float(np.mean(right == labels) - np.mean(answers == labels))
        spread = float(expected.std()) or 1.0
        return Score(
            inputs=len(indices),
            bytes_per_input=float(sizes.mean()),
            agreement=float(np.mean(answers == right)),
            loss_points=loss,
            logit_error=float(np.sqrt(np.mean((logits - expected) ** 2))) / spread,
        )

    def _features_at(self, point: SplitPoint, indices: Indices) -> tuple[Floats, ...]:
        if point.name not in self._features:
            # Split points are visited once per bit width, neighbours soon after one another: keep a few.
            while len(self._features) >= 8:
                self._features.pop(next(iter(self._features)))
            head = self._model.head(point.name)
            with torch.inference_mode():
                parts = [
                    [value.float().numpy().copy() for value in head(torch.from_numpy(self._inputs[i : i + BATCH]))]
                    for i in range(0, len(self._inputs), BATCH)
                ]
            self._features[point.name] = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
        return tuple(values[indices] for values in self._features[point.name])

    @staticmethod
    def _batched(module: torch.nn.Module, arrays: Sequence[Floats]) -> Floats:
        with torch.inference_mode():
            parts = [
                module(*(tensor_from(array[i : i + BATCH]) for array in arrays)).numpy().copy()
                for i in range(0, len(arrays[0]), BATCH)
            ]
        return np.concatenate(parts)


def clip_range(values: Floats, *, factor: float, channel_axis: int | None) -> ClipRange:
    """`factor` times the range that holds all but 0.05 % of the values at either end; per channel if asked.

    Features behind a ReLU keep 0 as their lower end. A range without extent is widened by a hair.
    """
    if channel_axis is None:
        flat = values.reshape(1, -1)
    else:
        flat = np.moveaxis(values, channel_axis, 0).reshape(values.shape[channel_axis], -1)
    step = max(1, flat.size // QUANTILE_VALUES)
    low, high = np.quantile(flat[:, ::step], [1 - QUANTILE, QUANTILE], axis=1)
    low, high = np.minimum(low * factor, 0.0) if low.min() <= 0 else low, high * factor
    high = np.maximum(high, low + np.maximum(np.abs(low) * 1e-3, 1e-6))
    return ClipRange(
        low=tuple(float(np.float32(value)) for value in low), high=tuple(float(np.float32(value)) for value in high)
    )
