"""HttpTransport over real loopback connections: what it refuses, what it sends, and that nothing hangs or grows."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl

import pytest
from aiohttp import web

from edge_sim.transport import HttpTransport, Request, Response
from split_inference.errors import ServerError, UsageError
from tests.edge_sim.loopback import http_server

GET = Request(method="GET", path="/v1/models")


def send(url: str, *requests: Request, timeout_s: float = 10.0, **options) -> list[Response]:
    async def all_of_them():
        transport = HttpTransport(url, **options)
        try:
            return [await transport.send(request, timeout_s=timeout_s) for request in requests or (GET,)]
        finally:
            await transport.close()

    return asyncio.run(all_of_them())


async def echo(request: web.Request) -> web.StreamResponse:
    return web.Response(body=await request.read(), headers={"X-Seen": request.headers.get("authorization", "none")})


def test_bodies_and_headers_arrive_and_come_back():
    body = bytes(range(256)) * 1000
    with http_server(echo) as url:
        (response,) = send(url + "/", Request(method="POST", path="/a", body=body), token="s3cret")
    assert (response.status, response.body, response.headers["x-seen"]) == (200, body, "Bearer s3cret")


def test_what_is_no_path_goes_nowhere():
    for path in ("@evil.example/v1", ".evil.example/x", "v1/models/m", ""):
        with pytest.raises(UsageError, match="begins with a slash"):
            send("http://127.0.0.1:9", Request(method="GET", path=path), token="s3cret")


def test_requests_share_a_connection():
    peers = set()

    async def handler(request):
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response()

    with http_server(handler) as url:
        send(url, GET, GET, GET)
    assert len(peers) == 1


def test_an_answer_of_any_status_is_an_answer():
    async def handler(request):
        return web.Response(status=503, body=b"later")

    with http_server(handler) as url:
        (response,) = send(url)
    assert (response.status, response.body) == (503, b"later")


def test_redirects_are_not_followed():
    async def handler(request):
        return web.Response(status=307, headers={"location": "http://127.0.0.1:1/elsewhere"})

    with http_server(handler) as url:
        assert send(url, token="s3cret")[0].status == 307


@pytest.mark.parametrize("stated", [True, False])
def test_an_answer_beyond_the_cap_is_given_up(stated):
    async def handler(request):
        if stated:
            return web.Response(body=b"x" * 5000)
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(50):
            await response.write(b"x" * 100)
        return response

    with http_server(handler) as url, pytest.raises(ServerError, match="more than 1000 bytes") as caught:
        send(url, max_response_bytes=1000)
    assert not caught.value.retriable


def test_a_compressed_answer_is_not_inflated():
    async def handler(request):
        return web.Response(body=b"\x1f\x8b not really gzip", headers={"content-encoding": "gzip"})

    with http_server(handler) as url:
        assert send(url)[0].body.startswith(b"\x1f\x8b")


def test_a_server_that_never_answers_is_given_up_in_time():
    async def handler(request):
        await asyncio.Event().wait()
        raise AssertionError

    with http_server(handler) as url, pytest.raises(ServerError, match=r"within 0\.05 s") as caught:
        send(url, timeout_s=0.05)
    assert caught.value.retriable


def test_a_server_that_is_away_is_one_line_and_may_be_tried_again():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(ServerError, match="is the server up") as caught:
        send(f"http://127.0.0.1:{port}")
    assert caught.value.retriable
    assert "\n" not in str(caught.value)


def test_a_connection_that_breaks_off_may_be_tried_again():
    async def handler(request):
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    with http_server(handler) as url, pytest.raises(ServerError, match="broke off") as caught:
        send(url)
    assert caught.value.retriable


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "ftp://a",
        "http://",
        "http://a:port",
        "http://a:99999",
        "http://u:p@a",
        "http://a?x=1",
        "file:///etc",
    ],
)
def test_what_is_no_servers_url_is_refused(url):
    with pytest.raises(UsageError):
        HttpTransport(url)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.1.2.3", True),
        ("http://localhost:8000", True),
        ("http://[::1]:8000", True),
        ("https://edge.example", True),
        ("http://edge.example", False),
        ("http://10.0.0.7", False),
        ("http://localhost.edge.example", False),
        ("http://[2001:db8::1]", False),
    ],
)
def test_a_token_leaves_the_machine_only_encrypted(url, allowed):
    if allowed:
        HttpTransport(url, token="s3cret")
    else:
        with pytest.raises(UsageError, match="in the clear") as caught:
            HttpTransport(url, token="s3cret")
        assert "s3cret" not in str(caught.value)
        HttpTransport(url, token="s3cret", allow_insecure_token=True)
        HttpTransport(url)


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "umläut", "\x00"])
def test_a_token_that_cannot_stand_in_a_header_is_refused_without_repeating_it(token):
    with pytest.raises(UsageError) as caught:
        HttpTransport("https://edge.example", token=token)
    assert not token or token not in str(caught.value)


def test_a_missing_certificate_file_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"ca\.pem"):
        HttpTransport("https://edge.example", ca=tmp_path / "ca.pem")


def test_a_certificate_file_without_tls_is_refused(tmp_path):
    with pytest.raises(UsageError, match="https"):
        HttpTransport("http://127.0.0.1:8000", ca=tmp_path / "ca.pem")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """PEM files of a certificate for 127.0.0.1 that signs itself, and of its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "ca.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


@pytest.fixture
def tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "ca.pem", certificate / "key.pem")
    return context


def test_a_server_with_a_certificate_of_the_given_ca_is_trusted(tls, certificate):
    with http_server(echo, tls=tls) as url:
        (response,) = send(url, ca=certificate / "ca.pem", token="s3cret")
    assert response.headers["x-seen"] == "Bearer s3cret"


def test_a_server_with_an_unknown_certificate_is_not(tls):
    with http_server(echo, tls=tls) as url, pytest.raises(UsageError, match="--ca"):
        send(url)
