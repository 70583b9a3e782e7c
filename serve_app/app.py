"""What config.yaml names: `serve_app.app:build_app` and `serve_app.app:build_catalog`.

Knows Ray and the settings. Loads no weights: Serve builds applications on the head, and models belong on replicas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve import Application

from serve_app.settings import AppSettings, CatalogSettings
from serve_app.tail_deployment import CatalogDeployment, TailDeployment
from split_inference.errors import ConfigError, ModelLoadError
from split_inference.model_uri import parse_uri
from split_inference.settings import read_settings


def build_app(args: AppSettings | Mapping[str, Any]) -> Application:
    """An application that serves all split points of one model. Raises ConfigError with one line.

    Serve passes `args` of config.yaml as a mapping: with a plain settings class as annotation it would validate
    them itself, and a wrong key would be a traceback of many lines.
    """
    settings = read_settings(AppSettings, args)
    try:
        parse_uri(settings.model)
    except ModelLoadError as error:
        raise ConfigError(f"model: {error}") from None
    application: Application = TailDeployment.bind(settings)
    return application


def build_catalog(args: CatalogSettings | Mapping[str, Any]) -> Application:
    """An application that lists the served models. Raises ConfigError with one line."""
    application: Application = CatalogDeployment.bind(read_settings(CatalogSettings, args))
    return application
