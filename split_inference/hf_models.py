"""Image and audio classifiers of the transformers library, from the hub or a local folder.

Weights are safetensors only and code from the hub is never run. transformers takes seconds to import, so this file
is imported when a URI needs it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from torch import nn

from split_inference.audio_preprocessing import AudioPreprocessing
from split_inference.errors import ModelLoadError
from split_inference.hf_image_steps import image_steps
from split_inference.model_card import CardFile, Preprocessing, Task
from split_inference.model_split import first_line
from split_inference.preprocessing import ImagePreprocessing

HUB_CONNECT_TIMEOUT_S = 5.0


def load_hf(source: str, *, random_weights: bool) -> tuple[nn.Module, CardFile]:
    """A classifier and its card; `random_weights` reads the configuration only and leaves the weights to the caller.

    Raises ModelLoadError: no such folder or hub id, no network, no safetensors, not a classifier.
    """
    import transformers

    local = Path(source).is_dir()
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local}
    if not local and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ModelLoadError(f"no folder {source}")
    if not local:
        _require_hub(source)
    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(source, **options)
            task, auto = _kind_of(config, source)
            if random_weights:
                module = auto.from_config(config)
            else:
                module = auto.from_pretrained(source, use_safetensors=True, **options)
            card = _card(source, config, task, local=local)
        except ModelLoadError:
            raise
        except Exception as error:  # transformers and the hub client raise OSError, ValueError and types of their own
            reason = first_line(error)
            advice = "" if local else "; without a network, download it elsewhere and give hf:FOLDER"
            raise ModelLoadError(f"cannot load hf:{source}: {reason}{advice}") from error
    return module, card


def _require_hub(source: str) -> None:
    """Say at once that there is no network: the hub's client would try for half a minute first."""
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(source, "config.json")
    except ValueError as error:  # no valid hub id
        raise ModelLoadError(f"hf:{source} is neither a folder nor a hub id: {first_line(error)}") from error
    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if isinstance(cached, str) or proxied or constants.HF_HUB_OFFLINE:
        return
    hub = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname or "", hub.port or 443), timeout=HUB_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ModelLoadError(
            f"cannot load hf:{source}: no folder of that name, and {hub.hostname} is not reached "
            f"({error.strerror or error}); download the model elsewhere and give hf:FOLDER"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and notes off the user's screen; what matters is raised."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)


def _kind_of(config: Any, source: str) -> tuple[Task, Any]:
    import transformers

    if type(config) in transformers.AutoModelForImageClassification._model_mapping:
        return "image-classification", transformers.AutoModelForImageClassification
    if type(config) in transformers.AutoModelForAudioClassification._model_mapping:
        return "audio-classification", transformers.AutoModelForAudioClassification
    raise ModelLoadError(f"hf:{source} is a {config.model_type} model; image and audio classifiers can be split")


def _card(source: str, config: Any, task: Task, *, local: bool) -> CardFile:
    import transformers

    labels = tuple(str(config.id2label[i]) for i in sorted(config.id2label))
    preprocessing: Preprocessing | None = None
    input_shape: tuple[int, ...] | None = None
    settings = _preprocessor_settings(source, local=local)
    if task == "image-classification":
        preprocessing = _image_preprocessing(source, config, local=local)
    elif settings is not None and "feature_extractor_type" in settings:
        rate = int(settings.get("sampling_rate", 16_000))
        preprocessing = AudioPreprocessing(sampling_rate=rate, extractor=settings)
        input_shape = preprocessing.apply_waveform(np.zeros(rate, dtype=np.float32)).shape[1:]
    elif hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        input_shape = (config.max_length, config.num_mel_bins)
    return CardFile(
        task=task,
        labels=labels,
        preprocessing=preprocessing,
        input_shape=input_shape,
        notes=f"{config.model_type} from hf:{source}, transformers {transformers.__version__}",
    )


def _preprocessor_settings(source: str, *, local: bool) -> dict[str, Any] | None:
    import json

    from transformers.utils import cached_file

    found = cached_file(
        source, "preprocessor_config.json", local_files_only=local, _raise_exceptions_for_missing_entries=False
    )
    if found is None:
        return None
    settings: dict[str, Any] = json.loads(Path(found).read_text(encoding="utf-8"))
    return settings


def _image_preprocessing(source: str, config: Any, *, local: bool) -> ImagePreprocessing:
    """What its processor does; of a model without one, resizing to what it takes, with pixels of 0 to 1."""
    import transformers

    if _preprocessor_settings(source, local=local) is None:
        edge = getattr(config, "image_size", 224)
        height, width = edge if isinstance(edge, (list, tuple)) else (edge, edge)
        return ImagePreprocessing(height=height, width=width)
    # The one on PIL: the other one needs torchvision, and resizes a little differently.
    processor = transformers.AutoImageProcessor.from_pretrained(
        source, backend="pil", trust_remote_code=False, local_files_only=local
    )
    return image_steps(processor, source=source)
