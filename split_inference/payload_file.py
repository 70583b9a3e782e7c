"""Prepared requests in one file: bodies as they go over the wire, and the answers they should get.

For whoever sends requests without torch: a load test replays bodies, a simulation needs their sizes. Knows the layout
in docs/payload-format.md and nothing of models, codecs or HTTP: a body is opaque bytes. Imports no torch and no NumPy.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from io import FileIO
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from split_inference.errors import DataError
from split_inference.json_files import first_problem

VERSION: Final = 1

# 10,000 inputs with 20 options are 4 MB of header; parsed, a header takes about ten times its bytes.
MAX_HEADER_BYTES: Final = 16 * 2**20
MAX_INPUTS: Final = 100_000
MAX_OPTIONS: Final = 256
# The wire's limit for a frame (wire.MAX_FRAME_BYTES): a longer body would be refused by every server.
MAX_BODY_BYTES: Final = 32 * 2**20
# Opening reads everything once for the checksum; so much takes about ten seconds.
MAX_FILE_BYTES: Final = 16 * 2**30

_MAGIC: Final = b"SPLTLOAD"
_PREFIX: Final = struct.Struct("<8sII")  # magic, version, header's bytes
_CHECKSUM_BYTES: Final = 32
_CHUNK_BYTES: Final = 2**20
# Shares are written as decimals, whose sum need not be exactly one.
_SHARE_TOLERANCE: Final = 1e-6

ClassIndex = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(min_length=1, max_length=255)]
BodyBytes = Annotated[int, Field(ge=1, le=MAX_BODY_BYTES)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Part(BaseModel):
    # Strict: these files are written by programs, and true for 1 would be somebody's mistake.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PayloadModel(_Part):
    """The model that the requests are for."""

    name: Name
    uri: Annotated[str, Field(min_length=1, max_length=4096)]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    trained: bool = True
    """False: random weights, so that answers mean nothing; sizes are those of an untrained network."""
    macs: Annotated[int, Field(ge=0)]
    """Multiply-accumulates of the whole model, per sample."""
    work: dict[str, tuple[Annotated[int, Field(ge=0)], ...]] | None = None
    """Of the head before each split point that is asked, and before "output" for the whole model: its work in the
    families of edge_sim/work.py, per sample; None where nobody counted."""


class PayloadInput(_Part):
    """One image or sound."""

    name: Annotated[str, Field(min_length=1, max_length=1024)]
    label: ClassIndex | None = None
    """Index of the right class, or None where nobody said."""


class PayloadOption(_Part):
    """One way to ask for an answer, with a body for each input."""

    mode: Literal["split", "server_only"]
    """Features in a frame, or the encoded input as it is."""
    split_point: Name | None = None
    codec: Name | None = None
    media_type: Name
    """Content type of the bodies."""
    calibrated: bool = False
    """Whether the codec's ranges come from a calibration; else each request measures its own."""
    elements: Annotated[int, Field(ge=1)] | None = None
    """Values that cross the cut, per sample."""
    head_macs_share: Share = 0.0
    """Share of the model's multiply-accumulates that the device does."""
    reply_bytes: Annotated[int, Field(ge=1)]
    """Mean body of a binary reply with the best five classes."""
    expected: Annotated[tuple[ClassIndex, ...], Field(max_length=MAX_INPUTS)]
    """What the unsplit float model answers, per input."""
    answer: Annotated[tuple[ClassIndex, ...], Field(max_length=MAX_INPUTS)]
    """What a float server answers to this option's body, per input."""
    sizes: Annotated[tuple[BodyBytes, ...], Field(max_length=MAX_INPUTS)]
    """Bytes of each input's body."""

    @property
    def title(self) -> str:
        """As people read it: "server_only", "stage2, u4+lz4", "stage3, u2+lz4, calibrated"."""
        if self.mode == "server_only":
            return self.mode
        return f"{self.split_point}, {self.codec}{', calibrated' if self.calibrated else ''}"

    @model_validator(mode="after")
    def _refuse_nonsense(self) -> PayloadOption:
        if (self.mode == "split") != all(each is not None for each in (self.split_point, self.codec, self.elements)):
            raise ValueError("mode split needs split_point, codec and elements, and server_only has none of them")
        if self.mode == "server_only" and (self.split_point or self.codec or self.elements or self.calibrated):
            raise ValueError("server_only has no split_point, codec, elements or calibration")
        return self


class PayloadTraffic(_Part):
    """How often one option is asked for."""

    option: Annotated[int, Field(ge=0)]
    """Position among the file's options."""
    share: Share
    """Of all requests, 0..1."""
    rate_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Requests a second of this option, where the file says one."""


class PayloadHeader(_Part):
    """All of a payload file but the bodies."""

    model: PayloadModel
    inputs: Annotated[tuple[PayloadInput, ...], Field(min_length=1, max_length=MAX_INPUTS)]
    options: Annotated[tuple[PayloadOption, ...], Field(min_length=1, max_length=MAX_OPTIONS)]
    traffic: Annotated[tuple[PayloadTraffic, ...], Field(max_length=MAX_OPTIONS)] = ()
    """Empty, or one entry for each option that is asked for; the shares' sum is one."""

    @model_validator(mode="after")
    def _refuse_nonsense(self) -> PayloadHeader:
        for number, option in enumerate(self.options):
            if {len(option.sizes), len(option.expected), len(option.answer)} != {len(self.inputs)}:
                raise ValueError(f"option {number} has not one size, expected and answer for each input")
            if option.expected != self.options[0].expected:
                raise ValueError(f"option {number} disagrees with the first on what the unsplit model answers")
        for traffic in self.traffic:
            if traffic.option >= len(self.options):
                raise ValueError(f"traffic for option {traffic.option}, and there are {len(self.options)}")
        if self.traffic and abs(sum(traffic.share for traffic in self.traffic) - 1) > _SHARE_TOLERANCE:
            raise ValueError("the shares of the traffic are not one together")
        return self


class PayloadWriter:
    """Writes a payload file whole or not at all; bodies wait in a nameless file, not in memory.

    `add` takes an option's bodies in the order of the inputs; options may take turns. Nothing is at `path` before
    `finish`, and nothing is left anywhere without it. Raises DataError where the file cannot be written.

    >>> with PayloadWriter(path, options=1) as writer:                                           # doctest: +SKIP
    ...     writer.add(0, body)
    ...     writer.finish(header_with(writer.sizes(0)))
    """

    def __init__(self, path: Path, *, options: int) -> None:
        if not 1 <= options <= MAX_OPTIONS:
            raise ValueError(f"a payload file has 1..{MAX_OPTIONS} options, got {options}")
        self._path = path
        self._places: list[list[tuple[int, int]]] = [[] for _ in range(options)]
        if path.is_dir():
            raise DataError(f"cannot write {path}: it is a folder; name a file in it")
        try:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
            self._spool: IO[bytes] = tempfile.TemporaryFile(dir=path.absolute().parent)  # noqa: SIM115
        except OSError as error:
            raise self._cannot_write(error) from error

    def add(self, option: int, body: bytes) -> None:
        """The next input's body for an option; ValueError for one that no file may hold."""
        if not 1 <= len(body) <= MAX_BODY_BYTES or len(self._places[option]) == MAX_INPUTS:
            raise ValueError(f"a body of {len(body)} bytes; 1..{MAX_BODY_BYTES} and {MAX_INPUTS} bodies are possible")
        try:
            self._places[option].append((self._spool.tell(), len(body)))
            self._spool.write(body)
        except OSError as error:
            raise self._cannot_write(error) from error

    def sizes(self, option: int) -> tuple[int, ...]:
        """Bytes of the bodies added so far, for the header."""
        return tuple(size for _, size in self._places[option])

    def finish(self, header: PayloadHeader) -> None:
        """Write the file; ValueError where the header does not tell the sizes of what was added."""
        if [option.sizes for option in header.options] != [self.sizes(i) for i in range(len(self._places))]:
            raise ValueError("the header's sizes are not those of the bodies")
        text = header.model_dump_json().encode()
        if len(text) > MAX_HEADER_BYTES:
            raise DataError(f"cannot write {self._path}: its header is {len(text)} bytes; take fewer inputs or options")
        partial = self._path.with_name(self._path.name + ".partial")
        try:
            with partial.open("wb") as file:
                sha = hashlib.sha256()
                for chunk in (_PREFIX.pack(_MAGIC, VERSION, len(text)), text, *self._bodies()):
                    sha.update(chunk)
                    file.write(chunk)
                file.write(sha.digest())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
        except OSError as error:
            raise self._cannot_write(error) from error
        finally:
            partial.unlink(missing_ok=True)

    def _bodies(self) -> Iterator[bytes]:
        for places in self._places:
            for place, size in places:
                self._spool.seek(place)
                yield self._spool.read(size)

    def _cannot_write(self, error: OSError) -> DataError:
        return DataError(f"cannot write {self._path}: {error.strerror}; choose another place")

    def close(self) -> None:
        """Give the waiting bodies' disk space back; safe to call twice."""
        self._spool.close()

    def __enter__(self) -> PayloadWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PayloadFile:
    """An open payload file: its header in memory, its bodies on disk.

    Processes that fork, and threads, may share it: reading moves no common position.
    """

    def __init__(self, path: Path, file: FileIO, header: PayloadHeader, *, first_body: int) -> None:
        self.path = path
        self.header = header
        self._file = file
        self._starts = []
        for option in header.options:
            starts = list(accumulate(option.sizes, initial=first_body))
            first_body = starts.pop()
            self._starts.append(starts)

    @classmethod
    def open(cls, path: Path) -> PayloadFile:
        """Check the whole file, and keep it open for `body`. Raises DataError in one line, and nothing else."""
        if not path.is_file():
            raise DataError(f"no payload file {path}; `python -m edge_sim payloads` makes one")
        try:
            file = path.open("rb", buffering=0)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        try:
            header, first_body = _checked(path, file)
            return cls(path, file, header, first_body=first_body)
        except OSError as error:
            file.close()
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        except BaseException:
            file.close()
            raise

    def sizes(self, option: int) -> list[int]:
        """Bytes of each input's body."""
        return list(self.header.options[option].sizes)

    def body(self, option: int, input_index: int) -> bytes:
        """One request's body, read now; IndexError for what the file does not hold, DataError where it was changed."""
        if option < 0 or input_index < 0:
            raise IndexError(f"no option {option} or input {input_index}")
        size = self.header.options[option].sizes[input_index]
        try:
            body = os.pread(self._file.fileno(), size, self._starts[option][input_index])
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from error
        if len(body) != size:
            raise DataError(f"{self.path} became shorter while it was open; make it again")
        return body

    def close(self) -> None:
        """Safe to call twice."""
        self._file.close()

    def __enter__(self) -> PayloadFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked(path: Path, file: FileIO) -> tuple[PayloadHeader, int]:
    """The header, and where the bodies begin, of a file that is whole."""
    file_bytes = os.fstat(file.fileno()).st_size
    smallest = _PREFIX.size + _CHECKSUM_BYTES
    if not smallest <= file_bytes <= MAX_FILE_BYTES:
        raise _refused(path, f"is {file_bytes} bytes; expected {smallest}..{MAX_FILE_BYTES}")
    magic, version, header_bytes = _PREFIX.unpack(os.pread(file.fileno(), _PREFIX.size, 0))
    if magic != _MAGIC:
        raise _refused(path, "is no payload file")
    if version != VERSION:
        raise _refused(path, f"has version {version}; known is {VERSION}")
    if header_bytes > min(MAX_HEADER_BYTES, file_bytes - smallest):
        raise _refused(path, f"has a header of {header_bytes} bytes; at most {MAX_HEADER_BYTES}, and within the file")
    sha = hashlib.sha256()
    left = file_bytes - _CHECKSUM_BYTES
    chunk = memoryview(bytearray(_CHUNK_BYTES))
    file.seek(0)
    while left:
        got = file.readinto(chunk[: min(left, _CHUNK_BYTES)])
        if not got:
            raise _refused(path, "became shorter while it was read")
        sha.update(chunk[:got])
        left -= got
    if os.pread(file.fileno(), _CHECKSUM_BYTES, file_bytes - _CHECKSUM_BYTES) != sha.digest():
        raise _refused(path, "is damaged: its checksum is wrong")
    try:
        header = PayloadHeader.model_validate_json(os.pread(file.fileno(), header_bytes, _PREFIX.size))
    except ValidationError as error:
        raise _refused(path, f"has a wrong header: {first_problem(error)}") from None
    first_body = _PREFIX.size + header_bytes
    bodies_bytes = sum(sum(option.sizes) for option in header.options)
    if first_body + bodies_bytes + _CHECKSUM_BYTES != file_bytes:
        raise _refused(path, f"holds {file_bytes - smallest - header_bytes} bytes of bodies, not {bodies_bytes}")
    return header, first_body


def _refused(path: Path, what: str) -> DataError:
    return DataError(f"{path} {what}; make it again with `python -m edge_sim payloads`")
