"""What a simulation must know of a model, without the model: sizes, right answers and who computes how much.

Made from a payload file, kept as JSON; profiles of three networks ship with the package (model_profiles/, made by
scripts/make_model_profiles.py). Imports no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from split_inference.errors import UsageError
from split_inference.json_files import read_json_file
from split_inference.payload_file import PayloadFile, PayloadHeader, PayloadOption

PROFILES_FOLDER: Final = Path(__file__).resolve().parent / "model_profiles"

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]
Flags = tuple[bool, ...]
Meaning = Literal["label", "unsplit answer"]


class OptionProfile(BaseModel):
    """One way to ask for an answer, input by input."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["split", "server_only"]
    split_point: str | None
    codec: str | None
    calibrated: bool
    """Whether the codec's ranges come from a calibration."""
    elements: Positive | None
    """Values that cross the cut, per sample."""
    head_macs_share: Share
    """Share of the model's multiply-accumulates that the device does."""
    reply_bytes: Positive
    """Mean body of a binary reply with the best five classes."""
    sizes: tuple[Positive, ...]
    """Bytes of the whole HTTP body, per input."""
    correct: Flags | None
    """Per input, in the profile's sense of correct."""


class ModelProfile(BaseModel):
    """A model as a simulation sees it; inputs are numbered alike in all options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    uri: str
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    trained: bool
    """False: random weights, so nothing is correct or wrong, and sizes are those of an untrained network."""
    macs: int = Field(ge=0)
    """Multiply-accumulates of the whole model, per sample."""
    work: dict[str, tuple[int, ...]] | None = None
    """As PayloadModel has it: what devices' seconds are predicted from; None: by the model's name."""
    note: str = ""
    """What the inputs were."""
    correct_means: Meaning | None
    """The answer is the input's label, or, where not every input has one, what the unsplit model answers."""
    whole_correct: Flags | None
    """Of the unsplit model, per input: for a device that does everything itself."""
    options: tuple[OptionProfile, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _refuse_nonsense(self) -> ModelProfile:
        for number, option in enumerate(self.options):
            if len(option.sizes) != len(self.options[0].sizes):
                raise ValueError(f"option {number} has {len(option.sizes)} sizes, the first {self.inputs}")
        for flags in (self.whole_correct, *(option.correct for option in self.options)):
            if (flags is None) != (self.correct_means is None):
                raise ValueError("either all of correct_means, whole_correct and correct are null, or none is")
            if flags is not None and len(flags) != self.inputs:
                raise ValueError(f"{len(flags)} flags for {self.inputs} inputs")
        if not self.trained and self.correct_means is not None:
            raise ValueError("an untrained model's answers are neither correct nor wrong")
        return self

    @property
    def inputs(self) -> int:
        """How many inputs the profile was made from."""
        return len(self.options[0].sizes)

    @classmethod
    def from_payloads(cls, path: Path, *, note: str = "") -> ModelProfile:
        """The profile of a payload file's model; DataError where it is none."""
        with PayloadFile.open(path) as file:
            return cls.from_header(file.header, note=note)

    @classmethod
    def from_header(cls, header: PayloadHeader, *, note: str = "") -> ModelProfile:
        """The profile of a payload file whose header is known."""
        model = header.model
        expected = header.options[0].expected
        meaning, right = _right_answers(header)
        return cls(
            name=model.name,
            uri=model.uri,
            digest=model.digest,
            trained=model.trained,
            macs=model.macs,
            work=model.work,
            note=note,
            correct_means=meaning,
            whole_correct=_flags(expected, right),
            options=tuple(_option(option, right) for option in header.options),
        )

    @classmethod
    def load(cls, name_or_file: str | Path) -> ModelProfile:
        """A file, or a profile that ships with the package by its name; ConfigError says what is wrong with it."""
        path = Path(name_or_file)
        if path.suffix != ".json":
            path = PROFILES_FOLDER / f"{name_or_file}.json"
            if not path.is_file():
                known = ", ".join(sorted(each.stem for each in PROFILES_FOLDER.glob("*.json")))
                raise UsageError(f"no model profile {str(name_or_file)!r}; known are {known}, or give a FILE.json")
        return read_json_file(path, cls, what="model profile")

    def save(self, path: Path) -> None:
        """Write the profile whole or not at all, a line for each option; UsageError where it cannot be written."""
        facts = self.model_dump(mode="json")
        options = ",\n".join(f"    {json.dumps(option, separators=(',', ':'))}" for option in facts.pop("options"))
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items()]
        text = "{\n" + ",\n".join([*lines, f'  "options": [\n{options}\n  ]']) + "\n}\n"
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _right_answers(header: PayloadHeader) -> tuple[Meaning | None, tuple[int, ...] | None]:
    """The labels, or the unsplit model's answers where not every input has one; None for an untrained model."""
    if not header.model.trained:
        return None, None
    labels = tuple(each.label for each in header.inputs if each.label is not None)
    if len(labels) == len(header.inputs):
        return "label", labels
    return "unsplit answer", header.options[0].expected


def _flags(answers: tuple[int, ...], right: tuple[int, ...] | None) -> Flags | None:
    return None if right is None else tuple(one == other for one, other in zip(answers, right, strict=True))


def _option(option: PayloadOption, right: tuple[int, ...] | None) -> OptionProfile:
    return OptionProfile(
        mode=option.mode,
        split_point=option.split_point,
        codec=option.codec,
        calibrated=option.calibrated,
        elements=option.elements,
        head_macs_share=option.head_macs_share,
        reply_bytes=option.reply_bytes,
        sizes=option.sizes,
        correct=_flags(option.answer, right),
    )
