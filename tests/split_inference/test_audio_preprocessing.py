"""Sounds: a real file becomes what the model's own feature extractor gives, and wrong ones are refused."""

import io
import sys

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from split_inference.audio_preprocessing import AudioPreprocessing
from split_inference.errors import MalformedInputError, ModelLoadError, TooLargeError

EXTRACTOR = {"feature_extractor_type": "ASTFeatureExtractor", "sampling_rate": 16000, "max_length": 64,
             "num_mel_bins": 32, "mean": -4.2, "std": 4.5, "do_normalize": True, "feature_size": 1,
             "padding_value": 0.0}  # fmt: skip


@pytest.fixture(scope="module")
def steps():
    return AudioPreprocessing.model_validate({"sampling_rate": 16000, "extractor": EXTRACTOR})


def sound(samples, *, rate=16000, kind="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


def tone(hertz, *, seconds=1.0, rate=16000):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_a_file_gives_what_the_extractor_gives_for_its_samples(steps):
    got = steps.apply(sound(tone(440), kind="FLAC"))
    assert got.shape == (1, 64, 32)
    assert got.dtype == np.float32
    # FLAC keeps 16 bits: a spectrogram in decibels moves by little.
    assert np.abs(got - steps.apply_waveform(tone(440))).mean() < 0.05


def test_a_higher_tone_lies_in_a_higher_band(steps):
    bands = [int(steps.apply_waveform(tone(hertz))[0, :40].mean(0).argmax()) for hertz in (300, 1200, 4000)]
    assert bands == sorted(bands)
    assert len(set(bands)) == 3


def test_stereo_is_mixed_to_mono(steps):
    both = np.stack([tone(440), tone(440)], axis=1)
    assert np.allclose(steps.apply(sound(both)), steps.apply(sound(tone(440))))


def test_another_sampling_rate_is_refused_with_what_to_do(steps):
    with pytest.raises(MalformedInputError, match="sampled at 8000 Hz; this model takes 16000 Hz: resample"):
        steps.apply(sound(tone(440, rate=8000), rate=8000))


@pytest.mark.parametrize("data", [b"", b"RIFF", b"no sound at all", b"RIFF\x24\0\0\0WAVEfmt "])
def test_bytes_that_are_no_sound_are_refused(steps, data):
    with pytest.raises(MalformedInputError):
        steps.apply(data)


def test_too_long_a_sound_is_refused_before_it_is_decoded(steps):
    with pytest.raises(TooLargeError, match="16000 samples; at most 15999"):
        steps.apply(sound(tone(440)), max_pixels=15_999)


def test_an_empty_sound_is_refused(steps):
    with pytest.raises(MalformedInputError, match="empty"):
        steps.apply(sound(np.zeros(0, np.float32)))


@pytest.mark.parametrize("library", ["soundfile", "transformers"])
def test_a_library_that_an_image_lacks_is_named_with_what_to_install(library, monkeypatch):
    data = sound(tone(440))
    monkeypatch.setitem(sys.modules, library, None)
    fresh = AudioPreprocessing.model_validate({"sampling_rate": 16000, "extractor": EXTRACTOR})
    with pytest.raises(ModelLoadError, match=rf"{library}, which is not installed.*split-inference\[audio\]"):
        fresh.apply(data)


@pytest.mark.parametrize("name", ["os.system", "ASTModel", "", None])
def test_an_extractor_is_named_like_one(name):
    with pytest.raises(ValidationError, match="feature extractor"):
        AudioPreprocessing.model_validate({"sampling_rate": 1, "extractor": {"feature_extractor_type": name}})
