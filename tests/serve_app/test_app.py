from __future__ import annotations

import pytest

from serve_app.app import build_app, build_catalog
from serve_app.settings import AppSettings
from split_inference.errors import ConfigError
from tests.serve_app.helpers import python_without


def test_building_an_application_loads_no_model_and_no_torch():
    python_without("from serve_app.app import build_app\nbuild_app({'model': 'embedded:resnet20-cifar10'})", "torch")


def test_settings_and_a_mapping_of_them_build_the_same_application():
    from_mapping = build_app({"model": "embedded:resnet20-cifar10"})
    from_settings = build_app(AppSettings(model="embedded:resnet20-cifar10"))
    assert type(from_mapping) is type(from_settings)


@pytest.mark.parametrize(
    ("build", "args", "line"),
    [
        (build_app, {}, "args.model: has to be set"),
        (build_app, {"model": "resnet34", "thread": 2}, "args.thread: unknown key; did you mean threads?"),
        (
            build_app,
            {"model": "resnet34", "threads": 0},
            "args.threads: Input should be greater than or equal to 1, got 0",
        ),
        (build_catalog, {"models": [{"name": "a"}]}, "args.models[0].uri: has to be set"),
    ],
)
def test_wrong_args_are_one_line_with_the_field(build, args, line):
    with pytest.raises(ConfigError) as refusal:
        build(args)
    assert str(refusal.value) == line
