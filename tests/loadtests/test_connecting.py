"""A name has several addresses: the sender uses the one that takes a connection, remembers it, and ends in time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from loadtests.http_sender import CONNECT_TIMEOUT_S, MAX_ADDRESSES, HttpSender, SendError

SIX, FOUR = ("::1", 8000, 0, 0), ("127.0.0.1", 8000)


class Network:
    """Addresses of one name, and who listens at which; time passes only where nobody answers."""

    def __init__(self, addresses, *, listening=(), silent=()):
        self.addresses = addresses
        self.listening = listening
        self.silent = silent
        self.now_s = 100.0
        self.tried = []
        self.lookups = 0

    def getaddrinfo(self, host, port, **_):
        self.lookups += 1
        return [(10 if len(each) == 4 else 2, 1, 6, "", each) for each in self.addresses]

    def socket(self, family, kind):
        return Endpoint(self)


class Endpoint:
    """A socket of that network."""

    def __init__(self, network):
        self._network = network
        self._timeout_s = None

    def settimeout(self, timeout_s):
        self._timeout_s = timeout_s

    def connect(self, address):
        network = self._network
        network.tried.append(address)
        if address in network.silent:
            network.now_s += self._timeout_s
            raise TimeoutError
        if address not in network.listening:
            raise ConnectionRefusedError(111, "Connection refused")

    def setsockopt(self, *_):
        pass

    def close(self):
        pass


@pytest.fixture
def sender_in(monkeypatch):
    """A sender whose name has the addresses of a network."""

    def made(network):
        names = {"SOCK_STREAM": 1, "IPPROTO_TCP": 6, "TCP_NODELAY": 1}
        fake = SimpleNamespace(getaddrinfo=network.getaddrinfo, socket=network.socket, **names)
        monkeypatch.setattr("loadtests.http_sender.socket", fake)
        monkeypatch.setattr("loadtests.http_sender.time", SimpleNamespace(monotonic=lambda: network.now_s))
        return HttpSender("http://localhost:8000", timeout_s=10)

    return made


@pytest.mark.parametrize("listening", [SIX, FOUR])
def test_a_server_that_listens_on_one_address_of_its_name_is_reached(sender_in, listening):
    network = Network([SIX, FOUR], listening=[listening])
    sender = sender_in(network)
    sender.open_all(3)
    assert (sender.idle, sender.opened) == (3, 3)


def test_the_address_that_works_is_remembered(sender_in):
    network = Network([SIX, FOUR], listening=[FOUR])
    sender = sender_in(network)
    sender.open_all(1)
    assert network.tried == [SIX, FOUR]
    sender.open_all(5)
    assert network.tried == [SIX, FOUR, *5 * [FOUR]]
    assert network.lookups == 1
    # Where it stops to work, that is a failure, and not a load for somebody else.
    network.listening = [SIX]
    with pytest.raises(SendError, match="no connection"):
        sender.open_all(1)
    assert network.tried[-1] == FOUR


def test_an_address_that_never_answers_leaves_the_others_their_time(sender_in):
    network = Network([SIX, FOUR], listening=[FOUR], silent=[SIX])
    sender = sender_in(network)
    sender.open_all(1)
    assert sender.idle == 1
    assert network.now_s - 100 == pytest.approx(CONNECT_TIMEOUT_S / 2)


@pytest.mark.parametrize("is_silent", [True, False])
def test_many_addresses_take_no_longer_than_one(sender_in, is_silent):
    addresses = [(f"127.0.0.{number}", 8000) for number in range(1, 100)]
    network = Network(addresses, silent=addresses if is_silent else ())
    with pytest.raises(SendError, match="connect timeout" if is_silent else "no connection"):
        sender_in(network).open_all(1)
    assert network.tried == addresses[:MAX_ADDRESSES]
    assert network.now_s - 100 <= CONNECT_TIMEOUT_S + 1e-9
