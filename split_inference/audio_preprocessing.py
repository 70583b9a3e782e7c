"""From a sound file to the array that an audio model takes, through transformers' own feature extractors.

Both libraries are imported when the first sound is read: a server of images needs neither.
"""

from __future__ import annotations

import io
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, JsonValue, PositiveInt, field_validator

from split_inference.errors import MalformedInputError, ModelLoadError, TooLargeError

# Ten minutes at 48 kHz; audio classifiers look at ten seconds.
MAX_AUDIO_FRAMES = 10 * 60 * 48_000


class AudioPreprocessing(BaseModel):
    """Mono samples at the model's rate, then the model's feature extractor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["audio"] = "audio"
    sampling_rate: PositiveInt
    extractor: dict[str, JsonValue]
    """The model's preprocessor_config.json."""

    @field_validator("extractor")
    @classmethod
    def _name_an_extractor(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        name = value.get("feature_extractor_type")
        if not isinstance(name, str) or not name.isidentifier() or not name.endswith("FeatureExtractor"):
            raise ValueError(f"feature_extractor_type must name a transformers feature extractor, got {name!r}")
        return value

    def apply(self, data: bytes, *, max_pixels: int = MAX_AUDIO_FRAMES) -> NDArray[np.float32]:
        """A WAV, FLAC or OGG file -> float32 [1, ...]; MalformedInputError for another sampling rate or no sound.

        `max_pixels` is the limit of samples in time, named as for images so that callers need not know which they have.
        """
        try:
            import soundfile
        except ModuleNotFoundError as error:
            raise _not_installed("soundfile") from error
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as sound:
                if sound.frames > max_pixels or sound.frames * sound.channels > 8 * max_pixels:
                    raise TooLargeError(f"sound has {sound.frames} samples; at most {max_pixels} are decoded")
                rate = sound.samplerate
                waveform = sound.read(dtype="float32", always_2d=True).mean(axis=1)
        except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
            raise MalformedInputError(f"{len(data)} bytes that are no WAV, FLAC or OGG sound") from error
        if rate != self.sampling_rate:
            raise MalformedInputError(
                f"sound is sampled at {rate} Hz; this model takes {self.sampling_rate} Hz: resample it"
            )
        if not len(waveform):
            raise MalformedInputError("the sound is empty")
        return self.apply_waveform(waveform)

    def apply_waveform(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mono float32 samples -> float32 [1, ...]."""
        result = self._extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="np")
        (name,) = (key for key in result if key.startswith("input"))
        return np.ascontiguousarray(result[name], dtype=np.float32)

    @cached_property
    def _extractor(self) -> Any:
        try:
            import transformers
        except ModuleNotFoundError as error:
            raise _not_installed("transformers") from error
        name = str(self.extractor["feature_extractor_type"])
        kind = getattr(transformers, name, None)
        if kind is None:
            raise ModelLoadError(f"transformers {transformers.__version__} has no {name}")
        return kind.from_dict(dict(self.extractor))


def _not_installed(library: str) -> ModelLoadError:
    return ModelLoadError(
        f"sounds are read by {library}, which is not installed here: pip install 'split-inference[audio]'"
    )
