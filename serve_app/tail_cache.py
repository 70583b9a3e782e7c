"""The folder of compiled tails and exported models: what each is for, and whether it may be loaded.

Knows files and keys. Knows no torch and compiles nothing. A compiled tail is native code, so that whoever can write
here can run what he likes in the server: folders that others may write to are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from split_inference.errors import ConfigError

CACHE_VARIABLE = "SPLIT_INFERENCE_CACHE"
# Raised whenever tails are compiled in another way: older files are then left alone and new ones made.
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TailKey:
    """All that a compiled tail depends on."""

    digest: str
    split_point: str
    precision: str
    channels_last: bool
    bucket: int
    """Rows that it takes, neither more nor fewer."""
    threads: int
    torch: str
    instruction_set: str

    @property
    def folder(self) -> str:
        """Name of its folder: readable, and unique by a digest of the whole key."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", self.split_point)[-60:].strip("-.")
        return f"{readable}-{self.precision}-{self.bucket}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Agreement(BaseModel):
    """How often a faster way gives the same most likely class as float32 run eagerly, for the same frames."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top1: float = Field(ge=0, le=1)
    """Share of samples."""
    samples: int = Field(ge=1)
    largest_difference: float = Field(ge=0)
    """Of any logit, over the largest logit of its sample."""
    inputs: str
    """What the samples were."""


class TailCache:
    """Finds, stores and forgets what belongs to a key."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).expanduser()

    def models(self) -> Path:
        """The folder of exported models; it need not exist. Raises ConfigError for a folder not to be trusted."""
        folder = self.root / "models"
        for place in (self.root, folder):
            if place.exists():
                _refuse_writable_by_others(place)
        return folder

    def library(self, key: TailKey) -> Path | None:
        """The compiled tail for this key, if there is one. Raises ConfigError for a folder not to be trusted."""
        file = self.root / key.folder / "tail.so"
        if not file.is_file():
            return None
        for place in (self.root, file.parent, file):
            _refuse_writable_by_others(place)
        return file

    def store(self, key: TailKey, library: Path, facts: Mapping[str, Any]) -> Path:
        """Put a library and what is known of it into the folder at once: readers see all of it or nothing."""
        with self._new_folder() as folder:
            shutil.copyfile(library, folder / "tail.so")
            (folder / "tail.so").chmod(0o600)
            about = {"key": asdict(key), **facts}
            (folder / "about.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
            target = self.root / key.folder
            if target.exists():
                shutil.rmtree(target)
            folder.rename(target)
        return target / "tail.so"

    def agreement(self, key: TailKey) -> Agreement | None:
        """What was measured for this key's precision, whatever its bucket; None where nothing was, or is legible."""
        try:
            return Agreement.model_validate_json(self._agreement_file(key).read_bytes())
        except (OSError, ValidationError):
            return None

    def store_agreement(self, key: TailKey, agreement: Agreement) -> None:
        """Keep what was measured."""
        self._make_root()
        file = self._agreement_file(key)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(agreement.model_dump_json(indent=1) + "\n")
        new.replace(file)

    def _agreement_file(self, key: TailKey) -> Path:
        anonymous = TailKey(**{**asdict(key), "bucket": 0, "threads": 0})
        return self.root / f"{anonymous.folder}.agreement.json"

    def _make_root(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"the folder of compiled tails cannot be made: {error}") from None
        _refuse_writable_by_others(self.root)

    @contextmanager
    def _new_folder(self) -> Iterator[Path]:
        self._make_root()
        try:
            folder = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
        except OSError as error:
            raise ConfigError(f"the folder of compiled tails cannot be written to: {error}") from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def default_root() -> Path:
    """$SPLIT_INFERENCE_CACHE, or the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path("~/.cache/split-inference/tails")


def _refuse_writable_by_others(path: Path) -> None:
    state = path.stat()
    if state.st_uid not in (os.getuid(), 0):
        raise ConfigError(f"{path} belongs to another user, who could run code here; use a folder of your own")
    if state.st_mode & 0o022:
        raise ConfigError(f"{path} can be written by others, who could run code here; chmod go-w it")
