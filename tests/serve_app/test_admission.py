from __future__ import annotations

import pytest

from serve_app.admission import Admission
from serve_app.settings import Limits
from split_inference.errors import OverloadedError
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
    with admission.enter(body_bytes=1) as ticket:
        with pytest.raises(OverloadedError, match="still arriving"), admission.enter(body_bytes=1):
            pass
        admission.has_read(ticket)
        with admission.enter(body_bytes=1):
            assert admission.pending == 2


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
