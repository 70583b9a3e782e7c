"""Each bad config is refused with the file, the line and the field's dotted name. Imports Ray, starts none."""

from __future__ import annotations

import copy
import re
import socket
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from edge_sim.server_process import free_port
from serve_app.config_check import check_config
from serve_app.settings import AppSettings, CatalogSettings
from split_inference.errors import ConfigError

CONFIG = Path(__file__).resolve().parents[2] / "config.yaml"
GOOD = yaml.safe_load(CONFIG.read_text())
MODEL = "applications[1]"
DEPLOYMENT = f"{MODEL}.deployments[0]"
SCALING = f"{DEPLOYMENT}.autoscaling_config"
ABSENT = object()


def changed(field, value):
    """The shipped config with one field set to a value, or removed where the value is ABSENT."""
    content = copy.deepcopy(GOOD)
    steps = [int(step) if step.isdigit() else step for step in re.findall(r"\w+", field)]
    at = content
    for step in steps[:-1]:
        at = at.setdefault(step, {}) if isinstance(at, dict) else at[step]
    if value is ABSENT:
        del at[steps[-1]]
    else:
        at[steps[-1]] = value
    return content


def check(tmp_path, content, **options):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return check_config(path, **options)


def test_the_shipped_config_passes_and_says_what_it_serves():
    checked = check_config(CONFIG)
    assert (checked.host, checked.port) == ("127.0.0.1", 8000)
    catalogue, model = checked.applications
    assert isinstance(catalogue.settings, CatalogSettings)
    assert isinstance(model.settings, AppSettings)
    assert (model.name, model.deployments) == ("resnet20-cifar10", ("TailDeployment",))


def test_weights_of_user_config_are_those_in_force_and_the_catalogue_has_to_say_so(tmp_path):
    other = tmp_path / "other.pt2"
    other.write_bytes(b"")
    content = changed(f"{DEPLOYMENT}.user_config", {"model": f"pt2:{other}"})
    with pytest.raises(ConfigError, match=re.escape(f"serves pt2:{other}")):
        check(tmp_path, content)
    content["applications"][0]["args"]["models"][0]["uri"] = f"pt2:{other}"
    settings = check(tmp_path, content).applications[1].settings
    assert isinstance(settings, AppSettings)
    assert settings.model == f"pt2:{other}"
    # A file that holds nothing is refused where it is named.
    with pytest.raises(ConfigError, match=re.escape(f"{DEPLOYMENT}.user_config.model")):
        check(tmp_path, content, load=True)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (f"{MODEL}.args.auth", {"mode": "token", "tokens_env": "NOT_SET_HERE"}, "NOT_SET_HERE is not set"),
        (f"{MODEL}.args.execution.precision", "bf16", "'float32', 'bfloat16' or 'float16'"),
        (f"{DEPLOYMENT}.user_config.batching.linger", 1, "did you mean linger_ms?"),
        (f"{DEPLOYMENT}.user_config.batching.max_batch_samples", 0, "greater than or equal to 1"),
        # Unknown keys, at every level, with the nearest known one.
        ("application", [], "did you mean applications?"),
        ("http_options.prot", 1, "did you mean port?"),
        ("logging_config.loglevel", "INFO", "did you mean log_level?"),
        (f"{MODEL}.routeprefix", "/x", "did you mean route_prefix?"),
        (f"{MODEL}.args.models", "x", "did you mean model?"),
        (f"{MODEL}.args.limits", {"max_pixel": 3}, None),
        (f"{DEPLOYMENT}.max_ongoing_request", 3, "did you mean max_ongoing_requests?"),
        (f"{DEPLOYMENT}.ray_actor_options.num_cpu", 1, "did you mean num_cpus?"),
        (f"{DEPLOYMENT}.backpressure_config.retry_after", 1, "did you mean retry_after_s?"),
        (f"{SCALING}.min_replica", 1, "did you mean min_replicas?"),
        (f"{SCALING}.entirely_else", 1, "unknown key"),
        ("applications[0].args.models[0].url", "x", "did you mean uri?"),
        # Wrong values.
        ("http_options.port", 0, "1 to 65535"),
        ("http_options.port", "http", "1 to 65535"),
        ("http_options.port", True, "1 to 65535"),
        ("http_options.host", ABSENT, "has to be set"),
        ("http_options.host", 0, "has to be set"),
        ("http_options.host", 127, "has to be text"),
        ("http_options.ssl_certfile", "/cert.pem", "TLS"),
        ("http_options.request_timeout_s", "soon", "valid number"),
        ("proxy_location", "Anywhere", "EveryNode"),
        ("logging_config.log_level", "LOUD", "log_level"),
        ("applications", [], "at least one"),
        ("applications", ABSENT, "at least one"),
        (f"{MODEL}.name", "catalog", "applications[0] has the name"),
        (f"{MODEL}.name", "", "has to be text"),
        (f"{MODEL}.route_prefix", "/v1/models", "applications[0] has the route"),
        (f"{MODEL}.route_prefix", "v1", "begins with a slash"),
        (f"{MODEL}.route_prefix", "/v1/", "begins with a slash"),
        (f"{MODEL}.port", 8001, "belongs in http_options"),
        (f"{MODEL}.import_path", "serve_app.app:build_ap", "did you mean build_app?"),
        (f"{MODEL}.import_path", "serve_ap.app:build_app", "cannot be imported"),
        (f"{MODEL}.import_path", "serve_app", "import path"),
        (f"{MODEL}.import_path", ABSENT, "has to be set"),
        (f"{MODEL}.import_path", "serve_app.settings:DEFAULT_ROUTE", "not a Serve application"),
        (f"{MODEL}.args", [], "valid dictionary"),
        (f"{MODEL}.args.model", ABSENT, "has to be set"),
        (f"{MODEL}.args.model", "embed:resnet20-cifar10", "embedded:"),
        (f"{MODEL}.args.model", "embedded:resnet99", "no embedded model"),
        (f"{MODEL}.args.model", "resnet34?weights=/no/such.safetensors", "no file /no/such.safetensors"),
        (f"{MODEL}.args.model", "pt2:/no/such.pt2", "no file /no/such.pt2"),
        (f"{DEPLOYMENT}.user_config.model", "pt2:/no/such.pt2", "no file /no/such.pt2"),
        (f"{DEPLOYMENT}.user_config.model", " embedded:resnet20-cifar10", "surrounding blanks"),
        (f"{DEPLOYMENT}.user_config", {"calibration": "file.json"}, "there is no model"),
        (f"{MODEL}.args.threads", 0, "greater than or equal to 1"),
        (f"{DEPLOYMENT}.name", "TailDeploymen", "it has TailDeployment"),
        (f"{DEPLOYMENT}.name", ABSENT, "has to be set"),
        (f"{DEPLOYMENT}.max_ongoing_requests", 0, "greater than 0"),
        (f"{DEPLOYMENT}.max_queued_requests", "many", "valid integer"),
        (f"{DEPLOYMENT}.num_replicas", 2, "exclude each other"),
        (f"{DEPLOYMENT}.num_replicas", "some", "or auto"),
        (f"{DEPLOYMENT}.health_check_period_s", "often", "valid number"),
        (f"{DEPLOYMENT}.backpressure_config.status_code", 500, "503 or 429"),
        (f"{DEPLOYMENT}.ray_actor_options.num_cpus", -1, "greater than or equal to 0"),
        (f"{SCALING}.min_replicas", 9, "more than max_replicas, 8"),
        (f"{SCALING}.initial_replicas", 9, "not within 1..8"),
        (f"{SCALING}.upscale_delay_s", -1, "greater than or equal to 0"),
        (f"{SCALING}.max_replicas", "lots", "valid integer"),
        (SCALING, 3, "mapping"),
        # What the catalogue promises has to be there.
        ("applications[0].args.models[0].name", "other", "no application has the route_prefix /v1/models/other"),
        ("applications[0].args.models[0].route", "/other", "no application has the route_prefix /other"),
        ("applications[0].args.models[0].uri", "resnet34", "serves embedded:resnet20-cifar10"),
        ("applications[0].args.route", "/models", "is not the route_prefix"),
    ],
)
def test_a_bad_config_is_refused_with_the_field(tmp_path, field, value, reason):
    if reason is None:
        field, reason, content = f"{field}.max_pixel", "did you mean max_pixels?", changed(field, value)
    else:
        content = changed(field, value)
    with pytest.raises(ConfigError) as refusal:
        check(tmp_path, content)
    message = str(refusal.value)
    assert re.match(rf"{re.escape(str(tmp_path))}/config\.yaml:\d+: {re.escape(field)}: ", message), message
    assert reason in message
    assert "\n" not in message


def test_the_line_is_the_one_where_the_field_stands(tmp_path):
    path = tmp_path / "config.yaml"
    text = CONFIG.read_text().replace("threads: 1", "threads: none")
    path.write_text(text)
    line = next(number for number, each in enumerate(text.splitlines(), start=1) if "threads: none" in each)
    with pytest.raises(ConfigError, match=rf"config\.yaml:{line}: applications\[1\]\.args\.threads: "):
        check_config(path)


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a mapping with http_options and applications is needed, got list"):
        check(tmp_path, [1])


def test_a_builder_of_someone_elses_is_checked_by_its_annotation(tmp_path):
    content = changed(f"{MODEL}.import_path", f"{__name__}:build_other")
    content["applications"] = content["applications"][1:]
    content["applications"][0]["args"] = {"colour": "red"}
    with pytest.raises(ConfigError, match=r"applications\[0\]\.args\.colour: unknown key; did you mean color\?"):
        check(tmp_path, content)


def test_a_builder_that_fails_is_one_line(tmp_path):
    content = changed(f"{MODEL}.import_path", f"{__name__}:build_nothing")
    content["applications"] = content["applications"][1:]
    with pytest.raises(
        ConfigError, match=r"applications\[0\]\.args: the application cannot be built: nothing to build"
    ):
        check(tmp_path, content)


class OtherSettings(BaseModel, extra="forbid"):
    color: str = "blue"


def build_other(settings: OtherSettings):
    raise AssertionError("wrong args never reach the builder")


def build_nothing(args: dict[str, str]):
    raise RuntimeError("nothing\nto build")


def test_a_port_in_use_is_refused_only_when_it_is_asked_for(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        content = changed("http_options.port", taken.getsockname()[1])
        check(tmp_path, content)
        with pytest.raises(ConfigError, match=r"http_options\.port: port \d+ on 127\.0\.0\.1 cannot be used"):
            check(tmp_path, content, port_free=True)
    check(tmp_path, content, port_free=True)


def test_a_host_that_is_not_this_machine_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"http_options\.(host|port): "):
        check(tmp_path, changed("http_options.host", "192.0.2.77"), port_free=True)


@pytest.mark.parametrize(
    "name",
    ["RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"],
)
def test_haproxys_other_ports_are_checked_too(tmp_path, monkeypatch, name):
    with socket.socket() as taken, socket.socket() as free:
        for each in (taken, free):
            each.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = free.getsockname()[1]
        free.close()
        for other in ("METRICS", "STATS"):
            monkeypatch.setenv(f"RAY_SERVE_HAPROXY_{other}_PORT", str(port))
        monkeypatch.setenv(name, str(taken.getsockname()[1]))
        with pytest.raises(ConfigError, match=f"set {name} to another one"):
            check(tmp_path, changed("http_options.port", port), port_free=True, haproxy=True)


GRPC = {"grpc_servicer_functions": ["split_inference.grpc.inference_pb2_grpc.add_InferenceServicer_to_server"]}


def test_our_limits_have_to_be_reached_before_serves_own(tmp_path):
    for limits in ({"max_pending_requests": 256}, {"max_pending_requests": 512}):
        with pytest.raises(ConfigError, match=re.escape(f"{MODEL}.args.limits: max_pending_requests")):
            check(tmp_path, changed(f"{MODEL}.args.limits", limits))
    few = changed(f"{DEPLOYMENT}.max_ongoing_requests", 100)
    with pytest.raises(ConfigError, match=re.escape("max_ongoing_requests (100)")):
        check(tmp_path, few)
    streams = changed(f"{MODEL}.args.limits", {"max_streams": 64})
    check(tmp_path, streams)
    with pytest.raises(ConfigError, match=re.escape("max_streams (64)")):
        check(tmp_path, {**streams, "grpc_options": GRPC})


def test_grpc_that_would_listen_everywhere_without_tokens_is_refused(tmp_path):
    port, grpc_port = free_port(), free_port()
    content = {**changed("http_options.port", port), "grpc_options": {**GRPC, "port": grpc_port}}
    with pytest.raises(ConfigError, match="grpc_options: Serve's own proxy listens for gRPC on every interface"):
        check(tmp_path, content, port_free=True)
    check(tmp_path, {**content, "grpc_options": {"port": grpc_port}}, port_free=True)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", grpc_port))
        taken.listen(1)
        with pytest.raises(ConfigError, match=rf"grpc_options.port: port {grpc_port} on 0.0.0.0 cannot be used"):
            check(
                tmp_path,
                {**content, "http_options": {"host": "0.0.0.0", "port": port}},
                port_free=True,
            )


def test_loading_gives_the_digest_that_the_card_will_have():
    checked = check_config(CONFIG, load=True)
    assert re.fullmatch("[0-9a-f]{64}", checked.loaded["resnet20-cifar10"])


def test_a_model_that_does_not_load_is_refused_when_loading_is_asked_for(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    content = changed(f"{MODEL}.args.model", f"factory:split_inference.embedded.resnet20:ResNet20?weights={broken}")
    content["applications"] = content["applications"][1:]
    check(tmp_path, content)
    with pytest.raises(ConfigError, match=r"applications\[0\]\.args\.model: "):
        check(tmp_path, content, load=True)


def test_a_split_point_that_the_model_lacks_is_refused_when_loading_is_asked_for(tmp_path):
    content = changed(f"{MODEL}.args.split_points", ["stage33"])
    with pytest.raises(ConfigError, match=r"no split point .stage33.; the nearest are .*stage3"):
        check(tmp_path, content, load=True)
