"""A service-level objective as a YAML file: what a run has to reach to count as good.

Knows pydantic and YAML; what a run reached is gate.py's business. An empty objective is refused: it would be met by
anything.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from split_inference.errors import ConfigError
from split_inference.settings import Settings
from split_inference.yaml_lines import read_yaml
from split_inference.yaml_settings import first_problem_line

Milliseconds = Annotated[float, Field(gt=0, le=3.6e6)]
Share = Annotated[float, Field(ge=0, le=1)]

# Names in the file, and the shares that they stand for.
PERCENTILES: Final[dict[str, float]] = {
    "p50_ms": 0.50,
    "p90_ms": 0.90,
    "p95_ms": 0.95,
    "p99_ms": 0.99,
    "p999_ms": 0.999,
    "max_ms": 1.0,
}


class LatencyBounds(Settings):
    """Upper bounds of latency percentiles, in milliseconds, from the intended start, over what was answered."""

    p50_ms: Milliseconds | None = None
    p90_ms: Milliseconds | None = None
    p95_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    p999_ms: Milliseconds | None = None
    max_ms: Milliseconds | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        said = [(name, value) for name in PERCENTILES if (value := getattr(self, name)) is not None]
        for (lower, below), (higher, above) in pairwise(said):
            if below > above:
                raise ValueError(f"{lower} of {below:g} is above {higher} of {above:g}")
        return self

    def said(self) -> dict[str, float]:
        """Those that the file says: name to milliseconds."""
        return {name: value for name in PERCENTILES if (value := getattr(self, name)) is not None}


class Slo(Settings):
    """One objective. Everything that it says has to hold; shares are of the intended requests."""

    version: Literal[1]
    name: Annotated[str, Field(min_length=1, max_length=200)] = "slo"
    latency: LatencyBounds = LatencyBounds()
    min_goodput: Share | None = None
    """Share that was answered in time and not wrongly. In time is within the run's deadline."""
    min_goodput_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    max_errors: Share | None = None
    """Share that failed or was answered wrongly."""
    max_rejects: Share | None = None
    """Share that the server refused for load or deadline: 408, 429, 503."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        others = (self.min_goodput, self.min_goodput_per_s, self.max_errors, self.max_rejects)
        if not self.latency.said() and all(each is None for each in others):
            raise ValueError(
                "says nothing to hold: give latency, min_goodput, min_goodput_per_s, max_errors or max_rejects"
            )
        return self


def read_slo(path: Path) -> Slo:
    """The objective in a file. Raises ConfigError: file, line, field, what is wrong."""
    file = read_yaml(path)
    if not isinstance(file.data, dict):
        raise ConfigError(f"{path}: expected a mapping with version and what has to hold")
    try:
        return Slo.model_validate(file.data)
    except ValidationError as error:
        raise ConfigError(first_problem_line(file, error, Slo, root="slo")) from None
