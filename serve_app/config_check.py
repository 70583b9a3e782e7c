"""Says what is wrong with config.yaml, in one line, before Serve starts.

`serve run` refuses nothing: unknown keys are dropped, wrong `args` print a traceback while it runs on, and a port in
use is another program's traceback. Knows Ray's schema, our settings and the catalogue's duties. Starts nothing.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import typing
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from serve_app.port_check import GRPC_PORT, check_grpc, check_ports
from serve_app.settings import SLOTS, AppSettings, CatalogSettings, LiveSettings
from serve_app.tokens import TokenBook
from split_inference.errors import ConfigError, UsageError, WireError
from split_inference.model_uri import parse_uri
from split_inference.settings import dotted, first_problem, known_keys, settings_model, unknown_key
from split_inference.yaml_lines import Place, YamlFile, read_yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedApplication:
    """One application of a config that passed."""

    name: str
    route_prefix: str | None
    import_path: str
    deployments: tuple[str, ...]
    settings: BaseModel | None
    """What `args` says, where the builder's annotation names a settings class; of a model, the weights in force."""
    model_place: Place = ()
    """Where the file names these weights: in `args`, or in a `user_config`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedConfig:
    """A config that passed."""

    path: Path
    host: str
    port: int
    applications: tuple[CheckedApplication, ...]
    loaded: Mapping[str, str] = field(default_factory=dict)
    """Application -> digest of its model, where loading was asked for."""


def check_config(path: Path, *, port_free: bool = False, load: bool = False, haproxy: bool = False) -> CheckedConfig:
    """Check a Serve config file. Raises ConfigError: file, line, the field's dotted name, what is wrong.

    `port_free` also requires that the port can be bound now (with `haproxy`, the two ports of HAProxy's own too);
    `load` also loads every model, as a replica would.
    """
    return _Check(read_yaml(path)).run(port_free=port_free, load=load, haproxy=haproxy)


class _Check:
    def __init__(self, file: YamlFile) -> None:
        self._file = file

    def run(self, *, port_free: bool, load: bool, haproxy: bool) -> CheckedConfig:
        data = self._file.data
        if not isinstance(data, dict):
            self._refuse((), f"a mapping with http_options and applications is needed, got {type(data).__name__}")
        from ray.serve.schema import ServeDeploySchema

        self._refuse_unknown_keys(ServeDeploySchema, data, ())
        host, port = self._host_and_port(data)
        self._check_names_and_routes(data)
        for place, deployment in self._deployments(data):
            self._check_replicas(place, deployment)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._validate(ServeDeploySchema, data, ())
        applications = tuple(self._application(index, app) for index, app in enumerate(data["applications"]))
        self._check_catalogues(applications)
        grpc = data.get("grpc_options") or {}
        asks_grpc = bool(grpc.get("grpc_servicer_functions"))
        for index, app in enumerate(applications):
            self._check_slots(("applications", index), data["applications"][index], app.settings, asks_grpc=asks_grpc)
        if port_free:
            check_ports(self._refuse, host, port, haproxy=haproxy)
            if asks_grpc:
                unguarded = [app.name for app in applications if _lets_everybody_in(app)]
                check_grpc(self._refuse, host, grpc.get("port", GRPC_PORT), unguarded=unguarded, haproxy=haproxy)
        loaded = dict(self._load(app) for app in applications if _is_model(app)) if load else {}
        return CheckedConfig(path=self._file.path, host=host, port=port, applications=applications, loaded=loaded)

    def _refuse(self, place: Place, reason: str) -> NoReturn:
        name = dotted(place)
        line = self._file.line_of(place)
        raise ConfigError(f"{self._file.path}:{line}: {f'{name}: ' if name else ''}{' '.join(reason.split())}")

    def _refuse_unknown_keys(self, model: type[BaseModel], value: object, place: Place) -> None:
        if isinstance(value, list):
            for index, item in enumerate(value):
                self._refuse_unknown_keys(model, item, (*place, index))
        if not isinstance(value, dict):
            return
        for key, inner in value.items():
            known = model.model_fields.get(key) if isinstance(key, str) else None
            if known is None:
                self._refuse((*place, str(key)), unknown_key(str(key), known_keys(model, ())))
            inner_model = settings_model(known.annotation)
            if inner_model is not None:
                self._refuse_unknown_keys(inner_model, inner, (*place, key))

    def _validate(self, model: type[BaseModel], value: object, place: Place) -> BaseModel:
        try:
            return model.model_validate(value)
        except ValidationError as error:
            path, reason = first_problem(error, model)
            at = (*place, *path)
            if error.errors()[0]["type"] != "missing":
                # Unions add the names of their branches to the place; the file knows where the value ends.
                at = self._file.known_part(at)
            self._refuse(at, reason)

    def _host_and_port(self, data: dict[str, Any]) -> tuple[str, int]:
        options = data.get("http_options")
        place = ("http_options",)
        if not isinstance(options, dict) or not options.get("host"):
            self._refuse((*place, "host"), "has to be set: Serve's default is every interface; write host: 127.0.0.1")
        for key in options:
            if key.startswith("ssl_") and options[key] is not None:
                self._refuse((*place, key), "HAProxy does not speak TLS to Serve and hangs; put TLS in front of it")
        host, port = options["host"], options.get("port", 8000)
        if not isinstance(host, str):
            self._refuse((*place, "host"), f"has to be text, got {host!r}")
        if type(port) is not int or not 1 <= port <= 65535:
            self._refuse((*place, "port"), f"has to be a number from 1 to 65535, got {port!r}")
        return host, port

    def _check_names_and_routes(self, data: dict[str, Any]) -> None:
        apps = data.get("applications")
        if not isinstance(apps, list) or not apps:
            self._refuse(("applications",), "has to be a list with at least one application")
        names: dict[str, int] = {}
        routes: dict[str, int] = {}
        for index, app in enumerate(apps):
            place = ("applications", index)
            if not isinstance(app, dict):
                self._refuse(place, f"has to be a mapping, got {app!r}")
            for key in ("host", "port"):
                if key in app:
                    self._refuse((*place, key), "belongs in http_options")
            name, route = app.get("name", "default"), app.get("route_prefix", "/")
            if not isinstance(name, str) or not name:
                self._refuse((*place, "name"), f"has to be text, got {name!r}")
            if name in names:
                self._refuse((*place, "name"), f"applications[{names[name]}] has the name {name!r} too")
            names[name] = index
            if route is None:
                continue
            if not isinstance(route, str) or not route.startswith("/") or (route != "/" and route.endswith("/")):
                self._refuse((*place, "route_prefix"), f"begins with a slash and does not end with one, got {route!r}")
            if route in routes:
                self._refuse((*place, "route_prefix"), f"applications[{routes[route]}] has the route {route} too")
            routes[route] = index

    def _deployments(self, data: dict[str, Any]) -> Iterator[tuple[Place, dict[str, Any]]]:
        for index, app in enumerate(data["applications"]):
            listed = app.get("deployments", [])
            for number, deployment in enumerate(listed if isinstance(listed, list) else []):
                if isinstance(deployment, dict):
                    yield ("applications", index, "deployments", number), deployment

    def _check_replicas(self, place: Place, deployment: dict[str, Any]) -> None:
        from ray.serve.config import AutoscalingConfig

        scaling, replicas = deployment.get("autoscaling_config"), deployment.get("num_replicas")
        if replicas not in (None, "auto") and not (type(replicas) is int and replicas >= 1):
            self._refuse((*place, "num_replicas"), f"is a number from 1, or auto, got {replicas!r}")
        if scaling is None:
            return
        if type(replicas) is int:
            self._refuse((*place, "num_replicas"), "a fixed number and autoscaling_config exclude each other")
        place = (*place, "autoscaling_config")
        if not isinstance(scaling, dict):
            self._refuse(place, f"has to be a mapping, got {scaling!r}")
        # With `num_replicas: auto`, Serve puts what is written over defaults of its own.
        automatic = AutoscalingConfig.default().model_dump() if replicas == "auto" else {}
        low = scaling.get("min_replicas", automatic.get("min_replicas", 1))
        high = scaling.get("max_replicas", automatic.get("max_replicas", 1))
        first = scaling.get("initial_replicas")
        if type(low) is int and type(high) is int:
            if low > high:
                self._refuse((*place, "min_replicas"), f"{low} is more than max_replicas, {high}")
            if type(first) is int and not low <= first <= high:
                self._refuse((*place, "initial_replicas"), f"{first} is not within {low}..{high}")
        with warnings.catch_warnings():
            # `metrics_interval_s` is deprecated and still the only setting of a replica's interval that has effect.
            warnings.simplefilter("ignore")
            self._validate(AutoscalingConfig, scaling, place)

    def _application(self, index: int, app: dict[str, Any]) -> CheckedApplication:
        place: Place = ("applications", index)
        import_path, args = app["import_path"], app.get("args", {})
        builder = self._import((*place, "import_path"), import_path)
        kind = _args_model(builder)
        settings = None if kind is None else self._settings(kind, args, (*place, "args"))
        model_place: Place = (*place, "args", "model")
        if isinstance(settings, AppSettings):
            with self._refusing_at(model_place):
                parse_uri(settings.model)
        if isinstance(settings, AppSettings | CatalogSettings):
            # A list of tokens that is wrong would be seen only when a replica does not start.
            with self._refusing_at((*place, "args", "auth")):
                TokenBook.load(settings.auth, environ=os.environ)
        deployments = self._built_deployments(place, builder, args if settings is None else settings)
        for number, deployment in enumerate(app.get("deployments", [])):
            live = deployment.get("user_config")
            if isinstance(settings, AppSettings) and live is not None:
                here = (*place, "deployments", number, "user_config")
                checked = self._settings(LiveSettings, live, here)
                assert isinstance(checked, LiveSettings)
                in_force = settings.with_live(checked)
                if in_force is not settings:
                    settings, model_place = in_force, (*here, "model")
            if deployment["name"] not in deployments:
                here = (*place, "deployments", number, "name")
                self._refuse(
                    here, f"{import_path} has no deployment {deployment['name']!r}; it has {', '.join(deployments)}"
                )
        if isinstance(settings, AppSettings):
            self._check_model_uri(settings, model_place)
        return CheckedApplication(
            name=app.get("name", "default"),
            route_prefix=app.get("route_prefix", "/"),
            import_path=import_path,
            deployments=deployments,
            settings=settings,
            model_place=model_place,
        )

    def _settings(self, kind: type[BaseModel], args: object, place: Place) -> BaseModel:
        if not isinstance(args, dict):
            self._refuse(place, f"has to be a mapping, got {args!r}")
        try:
            return kind.model_validate(args)
        except ValidationError as error:
            path, reason = first_problem(error, kind)
            self._refuse((*place, *path), reason)

    def _import(self, place: Place, import_path: str) -> object:
        module_name, _, attribute = import_path.partition(":") if ":" in import_path else import_path.rpartition(".")
        # `serve run` puts the working directory first, too.
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            self._refuse(place, f"{module_name} cannot be imported: {error or type(error).__name__}")
        if not hasattr(module, attribute):
            public = [name for name in vars(module) if not name.startswith("_")]
            self._refuse(
                place, f"{module_name} has no {attribute}: {unknown_key(attribute, public).partition('; ')[2]}"
            )
        return getattr(module, attribute)

    def _built_deployments(self, place: Place, builder: object, args: object) -> tuple[str, ...]:
        from ray.serve._private.build_app import build_app
        from ray.serve.deployment import Application

        try:
            built = builder(args) if inspect.isfunction(builder) else builder
            if not isinstance(built, Application):
                self._refuse((*place, "import_path"), f"gives a {type(built).__name__}, not a Serve application")
            parts = build_app(built, name="check", make_deployment_handle=_no_handle).deployments
        except ConfigError:
            raise
        except Exception as error:
            self._refuse((*place, "args"), f"the application cannot be built: {error or type(error).__name__}")
        return tuple(part.name for part in parts)

    def _check_model_uri(self, settings: AppSettings, place: Place) -> None:
        with self._refusing_at(place):
            uri = parse_uri(settings.model)
        files = [uri.options[key] for key in ("weights", "card") if key in uri.options]
        files += [uri.path] if uri.scheme == "pt2" else []
        for name in files:
            if name != "random" and not Path(name).is_file():
                self._refuse(place, f"no file {name}")

    def _check_catalogues(self, applications: tuple[CheckedApplication, ...]) -> None:
        by_route = {app.route_prefix: app for app in applications}
        for index, app in enumerate(applications):
            if not isinstance(app.settings, CatalogSettings):
                continue
            place: Place = ("applications", index, "args")
            if app.settings.route != app.route_prefix:
                self._refuse((*place, "route"), f"{app.settings.route} is not the route_prefix, {app.route_prefix}")
            for number, entry in enumerate(app.settings.models):
                here, route = (*place, "models", number), app.settings.route_of(entry)
                served = by_route.get(route)
                if served is None:
                    self._refuse(
                        (*here, "route" if entry.route else "name"), f"no application has the route_prefix {route}"
                    )
                if isinstance(served.settings, AppSettings) and served.settings.model != entry.uri:
                    named = dotted(served.model_place)
                    self._refuse(
                        (*here, "uri"),
                        f"the application at {route} serves {served.settings.model} ({named}); write that here, too",
                    )

    def _check_slots(self, place: Place, app: dict[str, Any], settings: object, *, asks_grpc: bool) -> None:
        """Ours has to be the limit that is reached first: Serve's refusal says neither why nor when to come again."""
        if not isinstance(settings, AppSettings):
            return
        limits = settings.limits
        slots = min((each.get("max_ongoing_requests", SLOTS) for each in app.get("deployments", [])), default=SLOTS)
        needed = limits.max_pending_requests + (limits.max_streams if asks_grpc else 0)
        if needed >= slots:
            streams = f" and max_streams ({limits.max_streams})" if asks_grpc else ""
            self._refuse(
                (*place, "args", "limits"),
                f"max_pending_requests ({limits.max_pending_requests}){streams} have to be fewer than the deployment's "
                f"max_ongoing_requests ({slots})",
            )

    def _load(self, app: CheckedApplication) -> tuple[str, str]:
        from serve_app.tail_runner import TailRunner

        assert isinstance(app.settings, AppSettings)
        with self._refusing_at(app.model_place):
            return app.name, TailRunner.load(app.settings).digest

    @contextmanager
    def _refusing_at(self, place: Place) -> Iterator[None]:
        try:
            yield
        except (UsageError, WireError) as error:
            self._refuse(place, str(error))


def _is_model(app: CheckedApplication) -> bool:
    return isinstance(app.settings, AppSettings)


def _lets_everybody_in(app: CheckedApplication) -> bool:
    return isinstance(app.settings, AppSettings) and app.settings.auth.mode == "none"


def _args_model(builder: object) -> type[BaseModel] | None:
    """The settings class that a builder's only argument is annotated with, alone or beside others."""
    if not inspect.isfunction(builder):
        return None
    parameters = list(inspect.signature(builder).parameters)
    return settings_model(typing.get_type_hints(builder).get(parameters[0])) if parameters else None


def _no_handle(*_: object) -> Any:
    """Stands for handles to other deployments: a check connects to nothing."""
    return None
