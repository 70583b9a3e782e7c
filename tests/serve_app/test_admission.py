from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve_app.admission import Admission
from serve_app.settings import Limits
from serve_app.tokens import Client
from split_inference.errors import OverloadedError, OverShareError
from split_inference.wire import MAX_FRAME_BYTES


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_no_more_than_the_stated_number_get_in_and_a_place_is_free_after_leaving():
    admission = Admission(Limits(max_pending_requests=1), now_s=Clock())
    with admission.enter(body_bytes=1):
        assert admission.pending == 1
        with pytest.raises(OverloadedError, match="1 requests"), admission.enter(body_bytes=1):
            pass
    with admission.enter(body_bytes=1):
        assert admission.pending == 1
    assert admission.pending == 0


def test_bodies_that_arrive_slowly_leave_room_for_others_once_they_are_read():
    admission = Admission(Limits(max_unread_requests=1), now_s=Clock())
    with admission.enter(body_bytes=1) as slow, admission.enter(body_bytes=1) as other:
        admission.reading(slow)
        with pytest.raises(OverloadedError, match="still arriving"):
            admission.reading(other)
        admission.has_read(slow)
        admission.reading(other)


def test_one_client_gets_a_quarter_of_the_places_for_bodies_that_still_arrive():
    admission = Admission(Limits(max_pending_requests=40), now_s=Clock())
    greedy, modest = Client(name="greedy"), Client(name="modest")
    with ExitStack() as inside:
        tickets = [inside.enter_context(admission.enter(body_bytes=1, client=greedy)) for _ in range(11)]
        for ticket in tickets[:10]:
            admission.reading(ticket)
        with pytest.raises(OverShareError, match="greedy"):
            admission.reading(tickets[10])
        admission.reading(inside.enter_context(admission.enter(body_bytes=1, client=modest)))


def test_a_client_over_its_share_is_refused_and_others_are_not():
    admission = Admission(Limits(max_pending_requests=10), now_s=Clock())
    greedy, modest = Client(name="greedy", share=0.7), Client(name="modest", share=0.3)
    with ExitStack() as inside:
        for _ in range(7):
            inside.enter_context(admission.enter(body_bytes=1, client=greedy))
        with pytest.raises(OverShareError, match="greedy has 7 requests") as refused:
            inside.enter_context(admission.enter(body_bytes=1, client=greedy))
        assert 0 < refused.value.retry_after_s <= 1
        for _ in range(3):
            inside.enter_context(admission.enter(body_bytes=1, client=modest))
    assert admission.pending == 0


@example(percent=29, places=100, attempts=100)
@given(percent=st.integers(1, 100), places=st.integers(1, 400), attempts=st.integers(1, 450))
def test_a_client_never_holds_more_than_its_share_and_always_gets_all_of_it(percent, places, attempts):
    admission = Admission(Limits(max_pending_requests=places), now_s=Clock())
    client = Client(name="phones", share=percent / 100)
    entered = 0
    with ExitStack() as inside:
        for _ in range(attempts):
            try:
                inside.enter_context(admission.enter(body_bytes=1, client=client))
            except (OverShareError, OverloadedError):
                continue
            entered += 1
    # In whole numbers, because 0.29 * 100 is less than 29.
    assert entered == min(attempts, max(1, places * percent // 100))


# Often of the largest size, which a body without a length counts as.
BODY_BYTES = st.just(MAX_FRAME_BYTES) | st.integers(0, MAX_FRAME_BYTES)


@given(
    percent=st.integers(13, 99),
    greedy_bytes=st.lists(BODY_BYTES, min_size=1, max_size=10),
    modest_bytes=st.lists(BODY_BYTES, min_size=1, max_size=40),
    slow=st.randoms(use_true_random=False),
)
def test_a_greedy_client_keeps_no_other_from_its_places_bytes_or_slow_bodies(percent, greedy_bytes, modest_bytes, slow):
    limits = Limits(max_pending_requests=40, max_unread_requests=20)
    admission = Admission(limits, now_s=Clock())
    # No single body is larger than the greedy client's part of the bytes: the one that always gets in stays inside it.
    greedy = Client(name="greedy", share=percent / 100)
    modest = Client(name="modest", share=(100 - percent) / 100)
    with ExitStack() as inside:
        for size in greedy_bytes * 40:
            try:
                ticket = inside.enter_context(admission.enter(body_bytes=size, client=greedy))
                admission.reading(ticket)
            except OverShareError:
                continue
        held = slow_ones = 0
        for place, size in enumerate(modest_bytes[: admission.places_of(modest)]):
            if held + size > admission.bytes_of(modest):
                break
            ticket = inside.enter_context(admission.enter(body_bytes=size, client=modest))
            held += size
            if slow_ones < 10 and slow.random() < 0.5:
                admission.reading(ticket)
                slow_ones += 1
            assert admission.pending > place
    assert admission.pending == 0


def test_a_client_with_half_the_places_cannot_hold_all_bytes():
    admission = Admission(Limits(max_pending_bytes=4 * MAX_FRAME_BYTES), now_s=Clock())
    greedy, modest = Client(name="greedy", share=0.5), Client(name="modest", share=0.5)
    with ExitStack() as inside:
        for _ in range(2):
            inside.enter_context(admission.enter(body_bytes=MAX_FRAME_BYTES, client=greedy))
        with pytest.raises(OverShareError, match="greedy has 67108864 bytes") as refused:
            inside.enter_context(admission.enter(body_bytes=1, client=greedy))
        assert 0 < refused.value.retry_after_s <= 1
        inside.enter_context(admission.enter(body_bytes=MAX_FRAME_BYTES, client=modest))


def test_a_small_share_still_holds_one_body_of_any_allowed_size():
    admission = Admission(Limits(max_pending_bytes=4 * MAX_FRAME_BYTES), now_s=Clock())
    small = Client(name="small", share=0.05)
    for _ in range(2):
        with (
            admission.enter(body_bytes=MAX_FRAME_BYTES, client=small),
            pytest.raises(OverShareError, match="bytes"),
            admission.enter(body_bytes=1, client=small),
        ):
            pass


@given(
    gaps_s=st.lists(st.floats(0, 2), min_size=1, max_size=80),
    rate=st.floats(0.5, 50),
    burst=st.floats(1, 20),
)
def test_within_any_time_no_more_get_in_than_the_burst_and_the_rate_allow(gaps_s, rate, burst):
    clock = Clock()
    admission = Admission(Limits(), now_s=clock)
    client = Client(name="phones", rate_per_s=rate, burst=burst)
    entered_s = []
    for gap_s in gaps_s:
        clock.now_s += gap_s
        try:
            with admission.enter(body_bytes=1, client=client):
                entered_s.append(clock.now_s)
        except OverShareError:
            continue
    for first in range(len(entered_s)):
        for last in range(first, len(entered_s)):
            assert last - first + 1 <= burst + rate * (entered_s[last] - entered_s[first]) + 1e-5


@given(rate=st.floats(0.001, 10_000), burst=st.integers(1, 20), part=st.floats(0, 0.99))
def test_a_client_that_waits_as_long_as_it_was_told_gets_in(rate, burst, part):
    clock = Clock()
    admission = Admission(Limits(), now_s=clock)
    client = Client(name="phones", rate_per_s=rate, burst=burst + part)
    for _ in range(burst):
        with admission.enter(body_bytes=1, client=client):
            pass
    with (
        pytest.raises(OverShareError, match=r"phones sends more than its .* requests a second") as refused,
        admission.enter(body_bytes=1, client=client),
    ):
        pass
    clock.now_s += refused.value.retry_after_s
    with admission.enter(body_bytes=1, client=client):
        pass


def test_the_stated_wait_fits_into_a_header_however_small_the_rate():
    admission = Admission(Limits(), now_s=Clock())
    client = Client(name="phones", rate_per_s=1e-320)
    with admission.enter(body_bytes=1, client=client):
        pass
    with pytest.raises(OverShareError) as refused, admission.enter(body_bytes=1, client=client):
        pass
    assert refused.value.retry_after_s == 3600


def test_a_refusal_for_the_share_costs_nothing_of_the_rate():
    admission = Admission(Limits(max_pending_requests=2), now_s=Clock())
    client = Client(name="phones", share=0.5, rate_per_s=1, burst=2)
    with admission.enter(body_bytes=1, client=client):
        for _ in range(3):
            with pytest.raises(OverShareError, match="its share"), admission.enter(body_bytes=1, client=client):
                pass
    with admission.enter(body_bytes=1, client=client):
        pass


@given(shares=st.lists(st.floats(0.01, 1), min_size=1, max_size=6), orders=st.randoms(use_true_random=False))
def test_counts_return_to_zero_whatever_the_order_of_leaving(shares, orders):
    admission = Admission(Limits(max_pending_requests=20, max_unread_requests=5), now_s=Clock())
    entered = []
    for index, share in enumerate(shares * 8):
        place = ExitStack()
        try:
            ticket = place.enter_context(admission.enter(body_bytes=3, client=Client(name=str(index % 6), share=share)))
            if orders.random() < 0.5:
                admission.reading(ticket)
        except (OverShareError, OverloadedError):
            place.close()
            continue
        entered.append(place)
    assert admission.pending == len(entered) <= 20
    orders.shuffle(entered)
    for place in entered:
        place.close()
    assert admission.pending == 0
    with ExitStack() as inside:
        # Everything is free again: all places, all readers, all bytes.
        tickets = [inside.enter_context(admission.enter(body_bytes=1)) for _ in range(20)]
        for ticket in tickets[:5]:
            admission.reading(ticket)


def test_a_body_counts_once_however_often_it_is_said_to_arrive():
    admission = Admission(Limits(max_unread_requests=1), now_s=Clock())
    for _ in range(2):
        with admission.enter(body_bytes=1) as ticket:
            admission.reading(ticket)
            admission.reading(ticket)
            admission.has_read(ticket)
            admission.has_read(ticket)
    with admission.enter(body_bytes=1) as ticket:
        admission.reading(ticket)


def test_bytes_of_all_bodies_together_are_limited():
    admission = Admission(Limits(max_pending_bytes=MAX_FRAME_BYTES), now_s=Clock())
    with admission.enter(body_bytes=MAX_FRAME_BYTES) as large:
        admission.arrived(large, MAX_FRAME_BYTES)
        with pytest.raises(OverloadedError, match="bytes are waiting"), admission.enter(body_bytes=1):
            pass
        with admission.enter(body_bytes=0):
            pass
    with admission.enter(body_bytes=MAX_FRAME_BYTES):
        pass


def test_what_is_only_announced_keeps_nobody_out_and_what_arrives_is_limited():
    admission = Admission(Limits(max_pending_bytes=2 * MAX_FRAME_BYTES), now_s=Clock())
    with ExitStack() as inside:
        silent = [inside.enter_context(admission.enter(body_bytes=MAX_FRAME_BYTES)) for _ in range(50)]
        with admission.enter(body_bytes=400) as honest:
            admission.arrived(honest, 400)
        for ticket in silent[:2]:
            admission.arrived(ticket, MAX_FRAME_BYTES)
        with pytest.raises(OverloadedError, match="bytes are waiting"):
            admission.arrived(silent[2], 1)
    with admission.enter(body_bytes=MAX_FRAME_BYTES) as ticket:
        admission.arrived(ticket, MAX_FRAME_BYTES)


@given(shares=st.lists(st.floats(0.01, 1), min_size=1, max_size=6), orders=st.randoms(use_true_random=False))
def test_streams_are_limited_in_all_and_for_each_client(shares, orders):
    limits = Limits(max_streams=10)
    admission = Admission(limits, now_s=Clock())
    clients = [Client(name=str(index), share=share) for index, share in enumerate(shares)]
    open_ones: list[tuple[Client, ExitStack]] = []
    for _ in range(60):
        client = orders.choice(clients)
        own = sum(each is client for each, _ in open_ones)
        stack = ExitStack()
        try:
            stack.enter_context(admission.stream(client))
        except OverShareError:
            assert own >= max(1, int(10 * client.share))
        except OverloadedError:
            assert len(open_ones) == 10
        else:
            open_ones.append((client, stack))
        if open_ones and orders.random() < 0.4:
            open_ones.pop(orders.randrange(len(open_ones)))[1].close()
        assert len(open_ones) <= 10
    for _, stack in open_ones:
        stack.close()
    with ExitStack() as inside:
        for _ in range(10):
            inside.enter_context(admission.stream(Client(name="whole", share=1.0)))


def test_a_place_is_given_back_after_an_error():
    admission = Admission(Limits(max_pending_requests=1, max_unread_requests=1), now_s=Clock())
    for _ in range(3):
        with pytest.raises(KeyError), admission.enter(body_bytes=5):
            raise KeyError
    assert admission.pending == 0


def test_the_oldest_request_sets_the_age():
    clock = Clock()
    admission = Admission(Limits(), now_s=clock)
    assert admission.oldest_age_s() == 0
    with admission.enter(body_bytes=1):
        clock.now_s += 3
        with admission.enter(body_bytes=1):
            clock.now_s += 2
            assert admission.oldest_age_s() == 5
        assert admission.oldest_age_s() == 5
    assert admission.oldest_age_s() == 0
