from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
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
            assert last - first + 1 <= burst + rate * (entered_s[last] - entered_s[first]) + 1e-6


def test_a_client_that_waits_as_long_as_it_was_told_gets_in():
    clock = Clock()
    admission = Admission(Limits(), now_s=clock)
    client = Client(name="phones", rate_per_s=4, burst=1)
    with admission.enter(body_bytes=1, client=client):
        pass
    with (
        pytest.raises(OverShareError, match="4 requests a second") as refused,
        admission.enter(body_bytes=1, client=client),
    ):
        pass
    clock.now_s += refused.value.retry_after_s
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


def test_bytes_of_all_bodies_together_are_limited():
    admission = Admission(Limits(max_pending_bytes=MAX_FRAME_BYTES), now_s=Clock())
    with admission.enter(body_bytes=MAX_FRAME_BYTES):
        with pytest.raises(OverloadedError, match="bytes are waiting"), admission.enter(body_bytes=1):
            pass
        with admission.enter(body_bytes=0):
            pass


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
