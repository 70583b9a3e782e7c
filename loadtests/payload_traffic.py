"""What is sent: bodies of payload files in the proportions asked for, as a seeded sequence without a state.

Request number n of a run is the same body for every number of workers, because it is drawn from the seed and n alone.
Knows payload files and no HTTP beyond a path and a media type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from split_inference.errors import UsageError
from split_inference.payload_file import PayloadFile

Mode = Literal["any", "split", "server_only"]

# Bodies are kept once read; more than this stays on disk, and costs a read for each request.
MAX_KEPT_BYTES = 512 * 2**20
_CHUNK = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """One request that is ready to go."""

    label: str
    """Which option of which model, as people read it."""
    model: int
    """Position among the payload files."""
    media_type: str
    body: bytes
    answer: int
    """Class index that a float server answers to this body."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    label: str
    source: int
    option: int
    weight: float


class PayloadTraffic:
    """Requests by number, from one or several payload files; UsageError where nothing fits."""

    def __init__(
        self,
        files: Sequence[PayloadFile],
        *,
        mode: Mode = "any",
        option: str = "",
        weights: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        """`option` names options, as in "0" or "stage2, u4+lz4=3; server_only=1"; empty: the files' own traffic.

        `weights` has one for each file.
        """
        if not files:
            raise UsageError("no payload file; `python -m edge_sim payloads` makes one, --payloads names it")
        self._files = list(files)
        self._seed = seed
        self._choices: list[_Choice] = []
        self.rate_per_s: float | None = 0.0
        """What the files' traffic says, all together; None where one of them says nothing."""
        for number, (file, weight) in enumerate(zip(files, _file_weights(files, weights), strict=True)):
            self._add(number, file, weight, mode=mode, option=option)
        total = sum(choice.weight for choice in self._choices)
        if not total > 0:
            raise UsageError("every weight is zero: nothing would be sent")
        self._shares = np.array([choice.weight / total for choice in self._choices])
        self._edges = np.cumsum(self._shares)
        self._edges[-1] = 1.0
        self._inputs = [len(files[choice.source].header.inputs) for choice in self._choices]
        self.labels = tuple(choice.label for choice in self._choices)
        self._kept: dict[tuple[int, int, int], bytes] = {}
        self._kept_bytes = 0
        self._drawn: tuple[int, list[int], list[float]] = (-1, [], [])

    def _add(self, number: int, file: PayloadFile, weight: float, *, mode: Mode, option: str) -> None:
        header = file.header
        prefix = f"{header.model.name}: " if len(self._files) > 1 else ""
        shares = {each.option: each.share for each in header.traffic}
        rates = [each.rate_per_s for each in header.traffic]
        known = None if not rates or None in rates else sum(rate for rate in rates if rate is not None)
        self.rate_per_s = None if known is None or self.rate_per_s is None else self.rate_per_s + known
        asked_for = _asked_options(option)
        wanted = {
            index: next((asked_for[name] for name in (str(index), each.title) if name in asked_for), 1.0)
            for index, each in enumerate(header.options)
            if mode in ("any", each.mode) and (not asked_for or {str(index), each.title} & asked_for.keys())
        }
        if not wanted:
            titles = "; ".join(f"{index}: {each.title}" for index, each in enumerate(header.options))
            asked = f"no option {option!r}" if option else f"nothing for {mode}"
            raise UsageError(
                f"{file.path} has {asked}{f' of {mode}' if option and mode != 'any' else ''}; it has {titles}"
            )
        used = {index: shares.get(index, 0.0) for index in wanted}
        if option or not sum(used.values()) > 0:
            used = wanted
        total = sum(used.values())
        self._choices += [
            _Choice(
                label=f"{prefix}{header.options[index].title}",
                source=number,
                option=index,
                weight=weight * share / total,
            )
            for index, share in used.items()
            if share > 0
        ]

    @property
    def mean_body_bytes(self) -> float:
        """Of a request."""
        sizes = [self._files[choice.source].header.options[choice.option].sizes for choice in self._choices]
        return float(sum(share * sum(each) / len(each) for share, each in zip(self._shares, sizes, strict=True)))

    def shares(self) -> dict[str, float]:
        """Label to share of all requests."""
        return {label: float(share) for label, share in zip(self.labels, self._shares, strict=True)}

    def request(self, number: int) -> Prepared:
        """Request number `number` of the run, from 0."""
        chunk, within = divmod(number, _CHUNK)
        if self._drawn[0] != chunk:
            rng = np.random.default_rng([self._seed, 1, chunk])
            picks = np.searchsorted(self._edges, rng.random(_CHUNK), side="right")
            picks = np.minimum(picks, len(self._choices) - 1)
            # Lists: taking one number out of an array costs ten times as much.
            self._drawn = (chunk, picks.tolist(), rng.random(_CHUNK).tolist())
        position = self._drawn[1][within]
        choice = self._choices[position]
        index = int(self._drawn[2][within] * self._inputs[position])
        option = self._files[choice.source].header.options[choice.option]
        return Prepared(
            label=choice.label,
            model=choice.source,
            media_type=option.media_type,
            body=self._body(choice.source, choice.option, index),
            answer=option.answer[index],
        )

    def _body(self, source: int, option: int, index: int) -> bytes:
        key = (source, option, index)
        body = self._kept.get(key)
        if body is None:
            body = self._files[source].body(option, index)
            if self._kept_bytes + len(body) <= MAX_KEPT_BYTES:
                self._kept[key] = body
                self._kept_bytes += len(body)
        return body

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def _asked_options(text: str) -> dict[str, float]:
    """Title or number to weight."""
    asked = {}
    for part in filter(None, (each.strip() for each in text.split(";"))):
        name, equals, number = part.rpartition("=")
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            weight = -1.0
        if not 0 <= weight < float("inf"):
            raise UsageError(f"--option {part[:80]!r}: expected TITLE, NUMBER, or one of them and =WEIGHT")
        asked[name.strip() if equals else part] = weight
    return asked


def _file_weights(files: Sequence[PayloadFile], weights: Sequence[float]) -> list[float]:
    if weights:
        if len(weights) != len(files) or not all(0 <= weight < float("inf") for weight in weights):
            raise UsageError(f"--weights needs one number, zero or more, for each of {len(files)} payload files")
        return list(weights)
    rates = [[each.rate_per_s for each in file.header.traffic] for file in files]
    if all(each and None not in each for each in rates):
        return [sum(rate for rate in each if rate is not None) for each in rates]
    return [1.0] * len(files)
