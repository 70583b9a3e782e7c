"""[torch] Prepared requests: real heads on real inputs, encoded as a device would send them, with the right answers.

Knows the model, its preprocessing, the codec and the wire. Knows no server and no network, and no terminal: who wants
to see progress passes a function. The file that it writes is read without torch (split_inference/payload_file.py).

Shape legend: N samples, K classes; features are NumPy arrays with the sample axis first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sim.layer_work import work_of
from split_inference.calibration import EMBEDDED_CALIBRATION, Calibration, load_calibration
from split_inference.codec_profile import CodecProfile
from split_inference.errors import DataError, FeatureMismatchError, MalformedInputError, TooLargeError, UsageError
from split_inference.exactness import tensor_from
from split_inference.feature_codec import EncodedTensor, FeatureCodec, decode_tensor
from split_inference.inputs import EncodedInput, read_inputs
from split_inference.model_catalog import LoadedModel, load_model
from split_inference.model_split import SplitPoint, SplittableModel
from split_inference.payload_file import (
    PayloadHeader,
    PayloadInput,
    PayloadModel,
    PayloadOption,
    PayloadTraffic,
    PayloadWriter,
)
from split_inference.predictions import top_predictions
from split_inference.split_evaluation import BATCH_BYTES, BATCH_LIMITS
from split_inference.wire import (
    DIGEST_BYTES,
    FRAME_MEDIA_TYPE,
    FeatureFrame,
    ReplyFrame,
    decode_frame,
    encode_frame,
    encode_reply,
)

SERVER_ONLY: Final = "server_only"
Choice = str | tuple[str, str | Calibration]
"""SERVER_ONLY, or a split point with a codec's name or a calibration."""
Progress = Callable[[str, int, int], None]
"""What is going on, how much of it is done, and how much there is."""

# One codec each for nothing lost, little lost and few bytes.
DEFAULT_CODECS: Final = ("u8+lz4", "u4+lz4", "u2+lz4")
MAX_STAGE_ENDS: Final = 6
# Behind it the tail is a formality, and the device might as well answer alone.
LARGEST_HEAD_SHARE: Final = 0.99
# What a server answers unless it is asked for another number (serve_app/ingress.py, and EdgeClient.infer).
REPLY_TOP_K: Final = 5
# Names, not values, decide the reply's length; `parse` is `preprocess` for an encoded input.
_REPLY_STAGES: Final = ("read", "parse", "queue", "decode", "tail", "total")


@dataclass(kw_only=True, eq=False)
class _Option:
    """What one option is, and what has been found for it so far."""

    point: SplitPoint | None
    """None: the encoded input is sent."""
    codecs: tuple[FeatureCodec, ...]
    calibrated: bool
    media_type: str
    answers: list[int] = field(default_factory=list)
    reply_bytes: list[int] = field(default_factory=list)


def stage_ends(model: SplittableModel) -> tuple[SplitPoint, ...]:
    """The last split point of each shape of features, in graph order: where a network has just become smaller.

    Where these are more than MAX_STAGE_ENDS, those that send fewer values than all before them, and the last of these.
    """
    last: dict[tuple[tuple[int, ...], ...], SplitPoint] = {}
    for point in model.split_points:
        if len(point.features) == 1 and 0 < point.head_macs_share <= LARGEST_HEAD_SHARE:
            last[tuple(spec.shape for spec in point.features)] = point
    order = [point.name for point in model.split_points]
    ends = sorted(last.values(), key=lambda point: order.index(point.name))
    if len(ends) > MAX_STAGE_ENDS:
        ends = [point for i, point in enumerate(ends) if all(point.elements < each.elements for each in ends[:i])]
    return tuple(ends[-MAX_STAGE_ENDS:])


def default_options(loaded: LoadedModel) -> tuple[Choice, ...]:
    """The input itself, every stage end with three codecs, and the embedded model's calibration for that model."""
    options: list[Choice] = [SERVER_ONLY]
    options += [(point.name, codec) for point in stage_ends(loaded.model) for codec in DEFAULT_CODECS]
    embedded = load_calibration(EMBEDDED_CALIBRATION)
    if embedded.model_digest == loaded.model.digest:
        options.append((embedded.split_point, embedded))
    return tuple(options)


def parse_choice(text: str) -> Choice:
    """An option as typed: "server_only", "stage2,u4+lz4", or a calibration's file. Raises UsageError or ConfigError."""
    if text == SERVER_ONLY:
        return SERVER_ONLY
    if text.endswith(".json"):
        calibration = load_calibration(Path(text))
        return calibration.split_point, calibration
    split_point, comma, codec = text.rpartition(",")
    if not (comma and split_point and codec):
        raise UsageError(f"option {text!r}: give {SERVER_ONLY}, SPLIT_POINT,CODEC or a calibration's FILE.json")
    return split_point, codec


def make_payloads(
    model: str | LoadedModel,
    inputs: Path | Sequence[EncodedInput],
    out: Path,
    *,
    options: Sequence[Choice] | None = None,
    limit: int | None = None,
    traffic: Sequence[PayloadTraffic] = (),
    on_progress: Progress = lambda text, done, total: None,
) -> PayloadHeader:
    """Run heads on all inputs, or on a seeded sample of `limit` of a folder, and write the payload file `out`.

    Heads run one sample at a time, as devices do, so that bodies do not depend on how many inputs there are; tails run
    in batches. Uses one torch thread. Raises UsageError for what cannot be asked or written (nothing is left then),
    UnknownSplitPointError, UnknownCodecError, and FeatureMismatchError where a codec cannot hold the features.
    """
    torch.set_num_threads(1)
    on_progress("loading the model", 0, 0)
    loaded = load_model(model) if isinstance(model, str) else model
    if isinstance(inputs, Path):
        inputs = read_inputs(inputs, limit=limit, labels=loaded.card.labels)
    if not inputs:
        raise DataError("there are no inputs to prepare requests from")
    chosen = default_options(loaded) if options is None else tuple(options)
    if not chosen:
        raise UsageError("there is no option to prepare requests for")
    found = [_option(loaded, choice, inputs) for choice in chosen]
    expected: list[int] = []
    with PayloadWriter(out, options=len(found)) as writer, torch.inference_mode():
        worker = _Worker(loaded, found, writer)
        for start in range(0, len(inputs), BATCH_LIMITS[1]):
            on_progress("preparing requests", start, len(inputs))
            expected += worker.prepare(inputs[start : start + BATCH_LIMITS[1]])
        header = PayloadHeader(
            model=_model_facts(loaded, dict.fromkeys(each.point.name for each in found if each.point is not None)),
            inputs=tuple(PayloadInput(name=each.name, label=each.label) for each in inputs),
            options=tuple(_facts(each, expected, writer.sizes(i)) for i, each in enumerate(found)),
            traffic=tuple(traffic),
        )
        on_progress("writing", len(inputs), len(inputs))
        writer.finish(header)
    return header


class _Worker:
    """Runs heads, codecs and tails over some inputs at a time."""

    def __init__(self, loaded: LoadedModel, options: Sequence[_Option], writer: PayloadWriter) -> None:
        self._loaded = loaded
        self._options = options
        self._writer = writer
        self._points = list({each.point.name: each.point for each in options if each.point is not None}.values())
        # One pass of the network gives the features of all split points.
        self._heads = loaded.model.heads([point.name for point in self._points]) if self._points else None
        self._tails = {point.name: loaded.model.tail(point.name) for point in self._points}
        self._digest = bytes.fromhex(loaded.model.digest)[:DIGEST_BYTES]

    def prepare(self, inputs: Sequence[EncodedInput]) -> list[int]:
        """Add the bodies and answers of these inputs to all options; gives what the unsplit model answers."""
        arrays = [self._preprocessed(each) for each in inputs]
        whole_NK = _batched(self._loaded.model.whole, np.concatenate(arrays), self._loaded.model.input.dtype)
        if whole_NK.ndim != 2:
            raise UsageError(f"{self._loaded.name} gives {list(whole_NK.shape)}; a classifier gives [samples, classes]")
        features = self._features(arrays)
        for number, option in enumerate(self._options):
            if option.point is None:
                for each in inputs:
                    self._writer.add(number, each.data)
                logits_NK = whole_NK
            else:
                logits_NK = self._through_frames(number, option, option.point, features[option.point.name])
            option.answers += [int(k) for k in logits_NK.argmax(axis=1)]
            option.reply_bytes += self._reply_bytes(logits_NK, encoded_input=option.point is None)
        return [int(k) for k in whole_NK.argmax(axis=1)]

    def _features(self, arrays: Sequence[NDArray[np.float32]]) -> dict[str, list[NDArray[np.float32]]]:
        """Of each split point, one array [1, ...] per input."""
        features: dict[str, list[NDArray[np.float32]]] = {point.name: [] for point in self._points}
        if self._heads is not None:
            dtype = getattr(torch, self._loaded.model.input.dtype)
            for array in arrays:
                values = self._heads(tensor_from(array).to(dtype))
                for point, value in zip(self._points, values, strict=True):
                    features[point.name].append(value.float().numpy())
        return features

    def _through_frames(
        self, number: int, option: _Option, point: SplitPoint, features: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Logits [N, K] of the tail for what the frames say, after adding them to the file."""
        (codec,) = option.codecs
        arrived = []
        for values in features:
            body = self._frame(point, _encoded(codec, values, at=point.name))
            self._writer.add(number, body)
            arrived.append(decode_tensor(decode_frame(body).tensors[0]))
        return _batched(self._tails[point.name], np.concatenate(arrived), point.features[0].dtype)

    def _frame(self, point: SplitPoint, tensor: EncodedTensor) -> bytes:
        return encode_frame(
            FeatureFrame(
                model_digest=self._digest,
                split_point=point.name,
                sample_count=1,
                # Whoever replays it knows how long it waits, and the checksum stands in the way of changing a frame.
                deadline_budget_ms=None,
                tensors=(tensor,),
            )
        )

    def _reply_bytes(self, logits_NK: NDArray[np.float32], *, encoded_input: bool) -> list[int]:
        stages = {"preprocess" if encoded_input and stage == "parse" else stage: 0.0 for stage in _REPLY_STAGES}
        rows = top_predictions(logits_NK, labels=self._loaded.card.labels, top_k=REPLY_TOP_K)
        return [
            len(
                encode_reply(
                    ReplyFrame(
                        model_digest=self._digest, sample_count=1, timings_s=stages, predictions=(row,), logits=None
                    )
                )
            )
            for row in rows
        ]

    def _preprocessed(self, given: EncodedInput) -> NDArray[np.float32]:
        preprocessing = self._loaded.card.preprocessing
        if preprocessing is None:
            raise UsageError(
                f"{self._loaded.name} does not say how its inputs are preprocessed: add ?card=FILE with `preprocessing`"
            )
        try:
            array: NDArray[np.float32] = preprocessing.apply(given.data)
        except (MalformedInputError, TooLargeError) as error:
            raise type(error)(f"{given.name}: {error}") from error
        return array


def _option(loaded: LoadedModel, choice: Choice, inputs: Sequence[EncodedInput]) -> _Option:
    if isinstance(choice, str):
        if choice != SERVER_ONLY:
            raise UsageError(f"option {choice!r}: give {SERVER_ONLY!r}, or a split point with a codec or a calibration")
        kinds = sorted({each.media_type for each in inputs})
        if len(kinds) > 1:
            raise DataError(f"the inputs are {' and '.join(kinds)}: {SERVER_ONLY} sends one kind; give one kind")
        return _Option(point=None, codecs=(), calibrated=False, media_type=kinds[0])
    split_point, given = choice
    point = loaded.model.split_point(split_point)
    if len(point.features) != 1:
        raise UsageError(f"split point {point.name} sends {len(point.features)} tensors; payload files take one")
    if isinstance(given, str):
        axis = point.features[0].channel_axis
        codecs: tuple[FeatureCodec, ...] = (FeatureCodec(CodecProfile.parse(given), channel_axis=axis),)
    else:
        _check_calibration(given, loaded, point)
        codecs = given.codecs()
    # A calibration without clip ranges chose a split point and a codec; ranges are measured all the same.
    calibrated = codecs[0].clip is not None
    return _Option(point=point, codecs=codecs, calibrated=calibrated, media_type=FRAME_MEDIA_TYPE)


def _check_calibration(calibration: Calibration, loaded: LoadedModel, point: SplitPoint) -> None:
    if calibration.model_digest != loaded.model.digest:
        raise UsageError(
            f"the calibration is for {calibration.model} with digest {calibration.model_digest[:12]}.., the model "
            f"here is {loaded.name} with {loaded.model.digest[:12]}..: calibrate again"
        )
    if calibration.split_point not in (point.name, *point.aliases):
        raise UsageError(f"the calibration is for split point {calibration.split_point}, not for {point.name}")


def _encoded(codec: FeatureCodec, values: NDArray[np.float32], *, at: str) -> EncodedTensor:
    try:
        return codec.encode(values)
    except ValueError as error:
        raise FeatureMismatchError(f"the features at {at} cannot be encoded: {error}") from error


def _batched(module: torch.nn.Module, values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    return np.concatenate(
        [module(tensor_from(part).to(getattr(torch, dtype))).float().numpy().copy() for part in _parts(values)]
    )


def _parts(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Slices of the sample axis, as large as runs best; why so is at BATCH_BYTES."""
    low, high = BATCH_LIMITS
    count = min(high, max(low, BATCH_BYTES // values[0].nbytes))
    return (values[start : start + count] for start in range(0, len(values), count))


def _model_facts(loaded: LoadedModel, split_points: Iterable[str]) -> PayloadModel:
    first, work = loaded.model.split_points[0], work_of(loaded.model)
    return PayloadModel(
        name=loaded.name,
        uri=loaded.card.uri,
        digest=loaded.model.digest,
        trained=loaded.card.trained,
        macs=first.head_macs + first.tail_macs,
        work={"output": tuple(work.whole), **{name: tuple(work.head(name)) for name in split_points}},
    )


def _facts(option: _Option, expected: Sequence[int], sizes: tuple[int, ...]) -> PayloadOption:
    point = option.point
    return PayloadOption(
        mode="server_only" if point is None else "split",
        split_point=None if point is None else point.name,
        codec=None if point is None else option.codecs[0].profile.name,
        media_type=option.media_type,
        calibrated=option.calibrated,
        elements=None if point is None else point.elements,
        head_macs_share=0.0 if point is None else point.head_macs_share,
        reply_bytes=round(sum(option.reply_bytes) / len(option.reply_bytes)),
        expected=tuple(expected),
        answer=tuple(option.answers),
        sizes=sizes,
    )
