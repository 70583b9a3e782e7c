from __future__ import annotations

import pytest

from serve_app.catalog import Catalog
from serve_app.settings import CatalogSettings
from serve_app.tokens import TokenBook, entry_line, new_token, parse_entries
from tests.serve_app.helpers import ask, python_without

SETTINGS = CatalogSettings.model_validate(
    {
        "models": [
            {"name": "resnet20-cifar10", "uri": "embedded:resnet20-cifar10"},
            {"name": "resnet34", "uri": "resnet34?weights=random&seed=0"},
        ]
    }
)


def get(path, method="GET"):
    return ask(Catalog(SETTINGS).answer, method, path, root_path="/v1/models")


def test_all_models_are_listed_with_their_routes():
    models = get("/v1/models").json()["models"]
    assert models[0] == {
        "name": "resnet20-cifar10",
        "uri": "embedded:resnet20-cifar10",
        "route": "/v1/models/resnet20-cifar10",
    }


def test_random_weights_are_called_untrained():
    models = get("/v1/models/").json()["models"]
    assert models[1]["trained"] is False
    assert models[1]["untrained_notice"].startswith("UNTRAINED")
    assert "trained" not in models[0]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_model_that_is_not_served_is_named_with_the_nearest(method):
    response = get("/v1/models/resnet35", method)
    assert response.status_code == 404
    assert response.json()["error"] == "UnknownModelError"
    assert "resnet34" in response.json()["reason"]


def test_only_get_is_allowed():
    response = get("/v1/models", "POST")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")


def test_the_catalogue_needs_neither_torch_nor_ray():
    python_without("import serve_app.catalog", "torch", "ray")


def test_with_tokens_only_those_who_have_one_may_read_the_list():
    token = new_token()
    tokens = TokenBook(parse_entries(entry_line("phones", token), where="test"))
    catalog = Catalog(CatalogSettings(), tokens=tokens)
    refused = ask(catalog.answer, "GET", "/v1/models", root_path="/v1/models")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    header = {"authorization": f"Bearer {token}"}
    assert ask(catalog.answer, "GET", "/v1/models", root_path="/v1/models", headers=header).status_code == 200
