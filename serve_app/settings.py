"""All that `args` in config.yaml may say, checked before anything starts.

Knows names, ranges and reasons. Knows no Ray, no torch and no HTTP. A wrong key or value is one line that names
the field, because Serve itself prints a traceback and runs on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from split_inference.settings import Settings
from split_inference.wire import MAX_FRAME_BYTES, MAX_RAW_BYTES, MAX_SAMPLES

DEFAULT_ROUTE = "/v1/models"
SLOTS = 256
"""`max_ongoing_requests` of our deployments, where config.yaml says nothing."""

# Served names are one path segment that needs no escaping in a URL, a log line or a metric label.
ServedName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


def _printable(value: str) -> str:
    if value != value.strip() or not value.isprintable():
        raise ValueError("a model URI has no surrounding blanks and no control characters")
    return value


ModelUriText = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_printable)]


class Limits(Settings):
    """What one request, and all waiting requests together, may cost. Serve itself has no limit on a body."""

    max_frame_bytes: int = Field(default=MAX_FRAME_BYTES, ge=1024, le=MAX_FRAME_BYTES)
    """Bytes of one frame; the wire format's own limit is the most. Checked against Content-Length before reading."""
    max_raw_bytes: int = Field(default=MAX_RAW_BYTES, ge=1024, le=MAX_RAW_BYTES)
    """Bytes of one frame's tensors after decoding; without it a few packed bytes could ask for any amount of memory."""
    max_samples: int = Field(default=MAX_SAMPLES, ge=1, le=MAX_SAMPLES)
    """Samples in one frame: one frame holds the model for as long as all of its samples take."""
    max_pixels: int = Field(default=50_000_000, ge=1, le=200_000_000)
    """Pixels of an encoded image by its header: 50 million are 150 MB decoded, and few phones take more."""
    max_input_bytes: int = Field(default=16 * 2**20, ge=1, le=MAX_FRAME_BYTES)
    """Bytes of an encoded image or sound: a 50-megapixel JPEG at a high quality has about this many."""
    body_timeout_s: float = Field(default=2.0, ge=0.1, le=600)
    """A body has to arrive within this time: a request has its slot before, and half-sent ones would starve others."""
    max_unread_requests: int | None = Field(default=None, ge=1, le=100_000)
    """Requests whose body is arriving; fewer than `max_pending_requests`, so that slow senders leave places free. By
    default half of them."""
    max_unread_share: float = Field(default=0.25, gt=0, le=1)
    """Share of `max_pending_requests` that one client's arriving bodies may hold."""
    max_pending_requests: int = Field(default=192, ge=1, le=100_000)
    """Requests that arrive, wait or run; fewer than `max_ongoing_requests`, so that a refusal says when to retry."""
    max_pending_bytes: int = Field(default=256 * 2**20, ge=MAX_FRAME_BYTES, le=64 * 2**30)
    """Body bytes held at one time by all of them: bounds memory where few requests are large."""
    max_streams: int = Field(default=48, ge=1, le=100_000)
    """gRPC streams open at one time. Each holds one of the deployment's `max_ongoing_requests` for as long as it lasts,
    so that these and `max_pending_requests` together have to be fewer."""
    stream_idle_s: float = Field(default=60.0, ge=1, le=3600)
    """A stream in which nothing came and nothing ran for so long is ended."""
    max_request_age_s: float = Field(default=60.0, gt=0, le=3600)
    """A replica whose oldest request, batch or decoding is older than this says that it is unhealthy and is replaced.
    A request that would wait for half of it is refused."""

    @model_validator(mode="after")
    def _a_slow_body_is_no_sick_replica(self) -> Limits:
        # The other half is for waiting.
        if self.body_timeout_s > self.max_request_age_s / 2:
            raise ValueError(
                f"body_timeout_s ({self.body_timeout_s:g}) may be half of max_request_age_s "
                f"({self.max_request_age_s:g}) at most, or one slow sender would make a replica look sick"
            )
        return self

    @model_validator(mode="after")
    def _slow_senders_leave_places_free(self) -> Limits:
        if self.max_unread_requests is not None and self.max_unread_requests >= max(2, self.max_pending_requests):
            raise ValueError(
                f"max_unread_requests ({self.max_unread_requests}) has to be below max_pending_requests "
                f"({self.max_pending_requests}), or it never limits anything"
            )
        return self

    @property
    def most_unread(self) -> int:
        """`max_unread_requests`, or its default."""
        return self.max_unread_requests or max(1, self.max_pending_requests // 2)


class AuthSettings(Settings):
    """Who may ask. Tokens are made by `split-inference make-token`."""

    mode: Literal["none", "token"] = "none"
    """none: everybody who reaches the port. token: whoever has one of the tokens."""
    tokens_file: Path | None = None
    """YAML or JSON list of clients with hashed tokens; only its owner and group may read it."""
    tokens_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of an environment variable that holds such a list."""

    @model_validator(mode="after")
    def _tokens_have_one_source(self) -> AuthSettings:
        sources = (self.tokens_file is not None) + (self.tokens_env is not None)
        if self.mode == "token" and sources != 1:
            raise ValueError("mode token needs tokens_file or tokens_env, one of the two")
        if self.mode == "none" and sources:
            raise ValueError("tokens are given, but mode is none; write mode: token")
        return self


class BatchingSettings(Settings):
    """How waiting requests become batches; may change while the replica runs (`user_config`)."""

    max_batch_samples: int = Field(default=16, ge=1, le=MAX_SAMPLES)
    """Samples that run together. Beyond 16 a processor gains a percent of throughput, and waits twice as long."""
    linger_ms: float = Field(default=0.0, ge=0, le=100)
    """How long an idle model waits for company of the first request. A busy one needs none: batches fill meanwhile."""
    lead_ms: float = Field(default=2.0, ge=0, le=100)
    """How long before the model is free a batch that is not full leaves, besides what decoding it takes: the way
    through event loop and threads."""
    max_in_flight: int = Field(default=2, ge=1, le=4)
    """Batches that are decoded or run: with two, the next one is ready when the model is."""


class LiveSettings(Settings):
    """`user_config` of the deployment: what Serve may change on running replicas, without a restart."""

    model: ModelUriText | None = None
    """URI of the weights to serve instead of `args.model`, for as long as it is here: loaded beside the old ones, which
    answer until then, and go on where they cannot be. A change of `args` restarts every replica; this restarts none,
    and takes the memory of both for a moment."""
    calibration: Path | None = None
    """Calibration of those weights, in the place of `args.calibration`, which is for the others."""
    batching: BatchingSettings = BatchingSettings()
    monitor: bool = False
    """Whether the route has the page /monitor, which shows predictions and features to whoever holds a token."""

    @model_validator(mode="after")
    def _calibration_is_of_a_model(self) -> LiveSettings:
        if self.calibration is not None and self.model is None:
            raise ValueError("calibration: is of other weights, and there is no model: write it into args")
        return self


class ExecutionSettings(Settings):
    """How tails run. float32 without compiling is the reference; the card says what each faster way agrees with it."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and activations. Refused where the processor has no instructions for it."""
    channels_last: bool | None = None
    """Memory layout of images; by default with bfloat16 and float16, where it is faster, and not with float32."""
    compile: Literal["auto", "none"] | tuple[str, ...] = "auto"
    """Split points whose tails are compiled; the others run eagerly. auto: nothing at float32 and nothing on a GPU
    (which has `cuda_graphs`); else the calibrated split point and the stage ends, at most four."""
    buckets: tuple[int, ...] = Field(default=(1, 4, 16), min_length=1, max_length=8)
    """Batch sizes to compile for, or to capture as CUDA graphs. Another number of samples runs as several of them, or
    as a larger one with empty rows, whichever was faster when the replica warmed up."""
    cuda_graphs: Literal["auto", "required", "off"] = "auto"
    """On a GPU: whether the tails behind the calibrated split point and the stage ends, at most four, are captured as
    CUDA graphs. auto: those that can be; the card says why others run eagerly. required: a tail that cannot be ends
    the start. On the processor there are none."""
    cache: Path | None = None
    """Folder of compiled tails; by default $SPLIT_INFERENCE_CACHE, else ~/.cache/split-inference/tails."""

    @field_validator("buckets")
    @classmethod
    def _ascends(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)) or value[0] != 1 or value[-1] > MAX_SAMPLES:
            raise ValueError(f"buckets ascend from 1 to at most {MAX_SAMPLES}")
        return value


class AppSettings(Settings):
    """`args` of `serve_app.app:build_app`: one model, all of its split points, one route."""

    model: ModelUriText
    """URI of the model: `embedded:`, `hf:`, `pt2:`, `factory:` or a name such as `resnet34?weights=random&seed=0`."""
    name: ServedName | None = None
    """Name in the card; by default the model's own."""
    split_points: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the split points to answer for; by default all of them."""
    threads: int = Field(default=1, ge=1, le=256)
    """Torch threads of a replica. One, and more replicas, is faster than several that fight for a busy machine."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the tail runs."""
    execution: ExecutionSettings = ExecutionSettings()
    calibration: Path | None = None
    """File that `split-inference calibrate` wrote; its split point is compiled first."""
    limits: Limits = Limits()
    auth: AuthSettings = AuthSettings()

    @property
    def compiles(self) -> bool:
        """Whether any tail may be compiled."""
        execution = self.execution
        if self.device != "cpu" or execution.compile == "none":
            return False
        return execution.compile != "auto" or execution.precision != "float32"

    @model_validator(mode="after")
    def _device_can_execute(self) -> AppSettings:
        if self.device == "cpu" and self.execution.cuda_graphs == "required":
            raise ValueError("execution.cuda_graphs: there are none on the processor; write auto, or device: cuda")
        if self.device == "cuda" and not isinstance(self.execution.compile, str):
            raise ValueError(
                "execution.compile: compiled tails run on the processor; leave it out for cuda, which has graphs"
            )
        return self

    def with_live(self, live: LiveSettings) -> AppSettings:
        """These settings with the weights that `user_config` puts in the place of `model`, where it does."""
        if live.model is None or (live.model == self.model and live.calibration is None):
            return self
        return self.model_copy(update={"model": live.model, "calibration": live.calibration})


class CatalogEntry(Settings):
    """One line of the catalogue."""

    name: ServedName
    uri: str = Field(min_length=1, max_length=4096)
    route: str | None = Field(default=None, pattern=r"^/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-]$")
    """Path of the model's application; by default the catalogue's route and the name."""


class CatalogSettings(Settings):
    """`args` of `serve_app.app:build_catalog`: what GET on the catalogue lists."""

    models: tuple[CatalogEntry, ...] = ()
    route: str = Field(default=DEFAULT_ROUTE, pattern=r"^/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-]$")
    """The catalogue's own path, from which the models' default paths are made."""
    auth: AuthSettings = AuthSettings()

    @model_validator(mode="after")
    def _names_are_unique(self) -> CatalogSettings:
        names = [entry.name for entry in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"models: {', '.join(twice)} listed twice")
        return self

    def route_of(self, entry: CatalogEntry) -> str:
        """Path under which the entry's model answers."""
        return entry.route or f"{self.route}/{entry.name}"
