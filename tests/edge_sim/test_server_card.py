"""Which models a device loads on a server's word."""

from __future__ import annotations

import pytest

from edge_sim.server_card import Catalog, CatalogEntry, safe_uri
from split_inference.errors import ServerError, UsageError


def entry(uri: str) -> CatalogEntry:
    return CatalogEntry(name="m", uri=uri, route="/v1/models/m")


@pytest.mark.parametrize(
    "uri",
    ["embedded:resnet20-cifar10", "hf:microsoft/resnet-18", "resnet34?weights=random&seed=0", "vgg16?weights=random"],
)
def test_names_and_the_hub_are_loaded(uri):
    assert safe_uri(entry(uri)) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "factory:os:getcwd",
        "factory:os:getcwd?weights=random",
        "pt2:/tmp/model.pt2",
        "resnet34?weights=/etc/passwd",
        "hf:a/b?card=/etc/passwd",
        "Factory:os:getcwd",
        "http://evil.example/model",
        "",
    ],
)
def test_code_and_files_are_not(uri):
    with pytest.raises(UsageError):
        safe_uri(entry(uri))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"models": [{"name": "a"}]}', b"\xff\xfe", b"[" * 100_000])
def test_a_catalogue_that_is_none_is_one_line(body):
    with pytest.raises(ServerError, match="is no Catalog") as caught:
        Catalog.parse(body, where="http://a/v1/models")
    assert "\n" not in str(caught.value)
