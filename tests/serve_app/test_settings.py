from __future__ import annotations

import pytest

from serve_app.settings import AppSettings, CatalogSettings, Limits
from split_inference.errors import ConfigError
from split_inference.settings import read_settings

GOOD = {"model": "embedded:resnet20-cifar10"}


def test_a_model_alone_is_enough():
    settings = read_settings(AppSettings, GOOD)
    assert (settings.name, settings.split_points, settings.threads, settings.device) == (None, None, 1, "cpu")


def test_settings_that_are_settings_already_pass():
    settings = AppSettings(model="resnet34?weights=random")
    assert read_settings(AppSettings, settings) is settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("model", 7),
        ("model", " resnet34"),
        ("model", "resnet34\nresnet50"),
        ("name", "with/slash"),
        ("name", ""),
        ("split_points", []),
        ("split_points", "input"),
        ("threads", 0),
        ("threads", "many"),
        ("device", "tpu"),
        ("execution", {"precision": "int8"}),
        ("execution", {"compile": "all"}),
        ("execution", {"buckets": [4, 1]}),
        ("execution", {"buckets": [2, 4]}),
        ("calibration", 7),
        ("auth", {"mode": "token"}),
        ("limits", 3),
        ("limits", {"body_timeout_s": 31}),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(field, value):
    with pytest.raises(ConfigError, match=rf"^args\.{field}[.:]") as refusal:
        read_settings(AppSettings, {**GOOD, field: value})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("field", Limits.model_fields)
@pytest.mark.parametrize("value", [0, -1, "much", 10**20, float("nan"), float("inf")])
def test_a_wrong_limit_is_refused_with_its_name(field, value):
    with pytest.raises(ConfigError, match=rf"^args\.limits\.{field}: "):
        read_settings(AppSettings, {**GOOD, "limits": {field: value}})


def test_every_field_has_a_test_with_a_wrong_value():
    tested = {"model", "name", "split_points", "threads", "device", "limits", "execution", "calibration", "auth"}
    assert set(AppSettings.model_fields) == tested


def test_a_missing_model_is_named():
    with pytest.raises(ConfigError, match=r"^args\.model: has to be set$"):
        read_settings(AppSettings, {})


def test_an_unknown_key_is_refused_and_the_nearest_known_one_named():
    with pytest.raises(ConfigError, match=r"^args\.thread: unknown key; did you mean threads\?$"):
        read_settings(AppSettings, {**GOOD, "thread": 1})
    with pytest.raises(ConfigError, match=r"^args\.limits\.max_pixel: unknown key; did you mean max_pixels\?$"):
        read_settings(AppSettings, {**GOOD, "limits": {"max_pixel": 1}})


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ({"models": [{"name": "a"}]}, r"args\.models\[0\]\.uri"),
        ({"models": [{"name": "a/b", "uri": "x"}]}, r"args\.models\[0\]\.name"),
        ({"models": [{"name": "a", "uri": "x", "route": "no-slash"}]}, r"args\.models\[0\]\.route"),
        ({"models": [{"name": "a", "uri": "x", "rout": "/a"}]}, r"args\.models\[0\]\.rout"),
        ({"models": [{"name": "a", "uri": "x"}, {"name": "a", "uri": "y"}]}, "args: models: a listed twice"),
        ({"models": 3}, r"args\.models"),
        ({"route": "v1"}, r"args\.route"),
        ({"model": []}, r"args\.model: unknown key; did you mean models\?"),
    ],
)
def test_a_wrong_catalogue_is_refused_with_the_field(args, field):
    with pytest.raises(ConfigError, match=f"^{field}"):
        read_settings(CatalogSettings, args)


def test_a_models_route_is_below_the_catalogue_unless_it_is_written():
    settings = read_settings(
        CatalogSettings, {"models": [{"name": "a", "uri": "x"}, {"name": "b", "uri": "y", "route": "/other/b"}]}
    )
    assert [settings.route_of(entry) for entry in settings.models] == ["/v1/models/a", "/other/b"]
