"""Which calibration belongs to the weights that an application serves: the one it names, or the one that ships."""

from __future__ import annotations

from serve_app.settings import AppSettings
from split_inference.calibration import EMBEDDED_CALIBRATION, Calibration, load_calibration
from split_inference.errors import ConfigError


def calibration_for(settings: AppSettings, *, digest: str) -> Calibration | None:
    """What calibration found for these weights; None without a calibration. Raises ConfigError."""
    if settings.calibration is not None:
        calibration = load_calibration(settings.calibration)
        if calibration.model_digest != digest:
            raise ConfigError(
                f"calibration: {settings.calibration} is for digest {calibration.model_digest[:16]}; the model has "
                f"{digest[:16]}"
            )
        return calibration
    embedded = load_calibration(EMBEDDED_CALIBRATION)
    return embedded if embedded.model_digest == digest else None


def calibrated_split_point(settings: AppSettings, *, digest: str) -> str | None:
    """The split point that calibration found for these weights; None without a calibration. Raises ConfigError."""
    calibration = calibration_for(settings, digest=digest)
    return calibration.split_point if calibration else None
