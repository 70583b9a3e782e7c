"""Search split point, bits and clipping for a model on real inputs.

The cheapest first: pairs of split point and bits are visited in the order of the bytes they send, each with several
clip ranges, until one holds the floors of accuracy and agreement. What is reported is measured on inputs that the
search did not see: chosen on one half and scored on the other, and the reverse, pooled over a few divisions.

Knows torch, the split, the codec and the wire. Knows no files and prints nothing: progress goes to a callback.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from split_inference.calibration import Calibration, Clip
from split_inference.codec_profile import ClipRange, CodecProfile
from split_inference.errors import DataError, UsageError
from split_inference.feature_codec import FeatureCodec
from split_inference.model_split import SplitPoint, SplittableModel
from split_inference.split_evaluation import Floats, Indices, Outcomes, Score, SplitEvaluation
from split_inference.wire import encode_frame

SIZING_INPUTS = 2  # enough to order candidates by bytes; the winner's bytes are measured on all inputs
SIZING_FACTOR = 0.55
SIZING_SLACK = 1.15  # an order made from so few inputs may be off by this much, so look a little further
QUANTILE = 0.9995  # the range that a clip factor of 1 keeps; the rest are outliers
QUANTILE_VALUES = 2_000_000  # values that a quantile is taken over at most
EQUAL_BYTES = 1.03  # differences that do not decide between split points
EQUAL_DAMAGE = 1.2
COARSE_STEP = 3
FULL_LOOKS = 3
QUICK_INPUTS = 32
QUICK_MARGIN = 0.12  # about two standard errors of an agreement of 0.9 over 32 inputs

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """What may be chosen, and what must hold."""

    at: str | None = None
    """Only this split point; None searches all of them."""
    bits: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    clip_factors: tuple[float, ...] = (1.0, 0.8, 0.65, 0.55, 0.5, 0.45, 0.4, 0.35)
    compressor: Literal["none", "lz4", "lz4hc", "zstd"] = "lz4"
    per_channel: tuple[bool, ...] = (False,)
    """Ranges per channel travel in every frame, 8 bytes each: they pay at many bits and large features only."""
    min_agreement: float = 0.95
    """Share of inputs for which the split model must answer as the unsplit one, 0..1; see CalibrationSearch._holds."""
    max_loss_points: float = 1.0
    """Top-1 accuracy that may be lost, in percentage points; not looked at without labels."""
    repeats: int = 3
    """How often the inputs are divided into halves for the scores on unseen inputs."""
    max_head_share: float = 0.9
    """Share of the MACs that the device may do at most: without it the smallest features are the answer itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A split point with a codec for each of its tensors."""

    split_point: SplitPoint
    profile: CodecProfile
    clips: tuple[ClipRange, ...]

    def codecs(self) -> tuple[FeatureCodec, ...]:
        return tuple(
            FeatureCodec(self.profile, clip=clip, channel_axis=spec.channel_axis)
            for clip, spec in zip(self.clips, self.split_point.features, strict=True)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The choice made on all inputs, and how well choices made like this do on inputs they have not seen."""

    calibration: Calibration
    unseen: Score
    """Pooled over all halves of all repeats."""
    unseen_by_repeat: tuple[Score, ...]
    """Each over all inputs once: their spread is what the division into halves alone changes."""
    seen: Score
    choices: tuple[Candidate, ...]
    """Made on each half in turn, and last on all inputs."""


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
        classes = model.output.elements
        if labels is not None and labels.max() >= classes:
            raise DataError(f"a label says {labels.max()}, but the model has {classes} outputs, counted from 0")
        self._model = model
        self._settings = settings
        self._progress = progress
        self._evaluation = SplitEvaluation(model, inputs, labels)
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

    def run(self, *, model_uri: str, made_by: str, trained: bool = True) -> SearchResult:
        """Choose on each half and score on the other, a few times over; then choose on all."""
        everything = np.arange(len(self._evaluation.inputs))
        unseen, choices = [], []
        for repeat in range(self._settings.repeats):
            # Shuffled, because folders are sorted, often by class, and each half should look like the other.
            shuffled = np.random.default_rng(repeat).permutation(everything)
            halves = shuffled[::2], shuffled[1::2]
            for half, (chosen_on, scored_on) in enumerate((halves, halves[::-1])):
                title = f"half {2 * repeat + half + 1} of {2 * self._settings.repeats}"
                choices.append(self._choose(chosen_on, title))
                unseen.append(self._outcomes(choices[-1], scored_on))
        final = self._choose(np.random.default_rng(0).permutation(everything), "all inputs")
        pooled = self._evaluation.score(*unseen)
        by_repeat = tuple(self._evaluation.score(*unseen[i : i + 2]) for i in range(0, len(unseen), 2))
        seen = self._evaluation.score(self._outcomes(final, everything))
        figures = {
            "inputs": float(len(everything)),
            "bytes_per_input_unseen": pooled.bytes_per_input,
            "agreement_unseen": pooled.agreement,
            "bits_per_element": 8 * seen.bytes_per_input / final.split_point.elements,
            "head_macs_share": final.split_point.head_macs_share,
        }
        if pooled.loss_points is not None:
            figures["top1_loss_points_unseen"] = pooled.loss_points
            figures["top1_unsplit"] = self._evaluation.whole_accuracy() or 0.0
        calibration = Calibration(
            model=model_uri,
            model_digest=self._model.digest,
            trained=trained,
            split_point=final.split_point.name,
            codec=final.profile.name,
            clip=tuple(Clip(low=clip.low, high=clip.high) for clip in final.clips),
            channel_axes=tuple(spec.channel_axis for spec in final.split_point.features),
            figures={name: round(value, 6) for name, value in figures.items()},
            made_by=made_by,
        )
        return SearchResult(
            calibration=calibration, unseen=pooled, unseen_by_repeat=by_repeat, seen=seen, choices=(*choices, final)
        )

    def _choose(self, indices: Indices, title: str) -> Candidate:
        groups = self._groups_by_bytes(indices[:SIZING_INPUTS])
        holding: list[tuple[Score, Candidate]] = []
        closest: tuple[float, str] = (-1.0, "")
        for done, (estimate, point, profile) in enumerate(groups):
            self._progress(f"{title}: {point.name} {profile.name}", done, len(groups))
            if holding and estimate > SIZING_SLACK * min(score.bytes_per_input for score, _ in holding):
                break
            candidate, score = self._best_clip(point, profile, indices)
            if score.agreement > closest[0]:
                closest = (score.agreement, f"{point.name} {profile.name}")
            if self._holds(score):
                holding.append((score, candidate))
        self._progress(title, len(groups), len(groups))
        if not holding:
            raise UsageError(
                f"no codec holds an agreement of {self._settings.min_agreement:.1%} and a loss of "
                f"{self._settings.max_loss_points} points; the closest, {closest[1]}, agrees on {closest[0]:.1%}: "
                "allow more bits, or lower the floors"
            )
        return _best_of(holding)

    def _holds(self, score: Score) -> bool:
        """Whether the floors hold, or are missed by less than one standard error.

        Over a hundred inputs an agreement of 0.95 is known to two points only: a candidate that is as good as the
        floor would be refused every other time. What was chosen is judged on unseen inputs afterwards.
        """
        changed = 1 - score.agreement
        if changed > (floor := 1 - self._settings.min_agreement) + math.sqrt(floor * (1 - floor) / score.inputs):
            return False
        # Each changed answer moves the accuracy by one input up or down, or not at all.
        error_points = 100 * math.sqrt(changed / score.inputs)
        return score.loss_points is None or score.loss_points <= self._settings.max_loss_points + error_points

    def _groups_by_bytes(self, indices: Indices) -> list[tuple[float, SplitPoint, CodecProfile]]:
        """Every pair of split point and profile with the bytes that it sends for a few inputs, fewest first."""
        with torch.inference_mode():
            heads = self._model.heads([point.name for point in self._points])
            features = iter(heads(torch.from_numpy(self._evaluation.inputs[indices])))
        groups = []
        for point in self._points:
            tensors = tuple(next(features).float().numpy() for _ in point.features)
            for bits in self._settings.bits:
                for per_channel in self._settings.per_channel:
                    profile = CodecProfile(bits=bits, per_channel=per_channel, compressor=self._settings.compressor)
                    codecs = self._candidate(point, profile, tensors, SIZING_FACTOR).codecs()
                    sizes = [
                        len(encode_frame(self._evaluation.frame(point, codecs, [t[i : i + 1] for t in tensors])))
                        for i in range(len(indices))
                    ]
                    groups.append((float(np.mean(sizes)), point, profile))
        return sorted(groups, key=lambda group: group[0])

    def _best_clip(self, point: SplitPoint, profile: CodecProfile, indices: Indices) -> tuple[Candidate, Score]:
        tensors = self._evaluation.features_at(point, indices)
        quick = indices[:QUICK_INPUTS]
        tried: list[tuple[Score, Candidate]] = []

        def look(factors: Sequence[float]) -> float:
            for factor in factors:
                candidate = self._candidate(point, profile, tensors, factor)
                tried.append((self._evaluation.score(self._outcomes(candidate, quick)), candidate))
            tried.sort(key=lambda pair: pair[0].damage)
            return max(score.agreement for score, _ in tried)

        # A few factors tell whether these bits are hopeless here; most pairs of few bytes are.
        factors = self._settings.clip_factors
        promising = look(factors[1::COARSE_STEP] or factors) >= self._settings.min_agreement - 2 * QUICK_MARGIN
        rest = [factor for i, factor in enumerate(factors) if i % COARSE_STEP != 1] if len(factors) > 1 else []
        if promising and rest:
            look(rest)
        score, candidate = tried[0]
        if len(quick) == len(indices) or score.agreement < self._settings.min_agreement - QUICK_MARGIN:
            return candidate, score
        # The best of the quick look, on all inputs; the smaller damage decides, as agreement over a hundred inputs
        # is too coarse to tell neighbours apart.
        full = [(self._evaluation.score(self._outcomes(c, indices)), c) for _, c in tried[:FULL_LOOKS]]
        score, candidate = min(full, key=lambda pair: (not self._holds(pair[0]), pair[0].damage))
        return candidate, score

    def _outcomes(self, candidate: Candidate, indices: Indices) -> Outcomes:
        return self._evaluation.outcomes(candidate.split_point, candidate.codecs(), indices)

    @staticmethod
    def _candidate(point: SplitPoint, profile: CodecProfile, tensors: Sequence[Floats], factor: float) -> Candidate:
        clips = tuple(
            clip_range(values, factor=factor, channel_axis=spec.channel_axis if profile.per_channel else None)
            for values, spec in zip(tensors, point.features, strict=True)
        )
        return Candidate(split_point=point, profile=profile, clips=clips)


def _best_of(holding: Sequence[tuple[Score, Candidate]]) -> Candidate:
    """Fewest bytes; among equals in bytes and damage, the least work for the device."""
    fewest = min(score.bytes_per_input for score, _ in holding)
    equal = [pair for pair in holding if pair[0].bytes_per_input <= EQUAL_BYTES * fewest]
    least = min(score.damage for score, _ in equal)
    equal = [pair for pair in equal if pair[0].damage <= EQUAL_DAMAGE * least]
    return min(equal, key=lambda pair: pair[1].split_point.head_macs)[1]


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
