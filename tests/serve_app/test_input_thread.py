from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from functools import partial

import pytest

from serve_app.input_thread import InputThread
from tests.patience import PATIENCE_S


class Body:
    """Stands for megabytes."""


def test_it_says_how_long_whoever_comes_now_would_wait():
    now_s = [0.0]
    thread = InputThread(now_s=lambda: now_s[0])
    begun, go_on = threading.Event(), threading.Event()

    def read():
        begun.set()
        assert go_on.wait(PATIENCE_S)
        now_s[0] += 2.0
        return "read"

    async def play():
        assert thread.wait_s() == thread.running_s() == 0.0
        go_on.set()
        assert tuple(await thread.run(read)) == ("read", 0.0, 2.0)
        assert thread.wait_s() == 0.0
        go_on.clear()
        begun.clear()
        waiting = [asyncio.create_task(thread.run(read)) for _ in range(3)]
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        now_s[0] += 1.5
        assert (thread.wait_s(), thread.running_s()) == (4.5, 1.5)
        go_on.set()
        results = await asyncio.gather(*waiting)
        assert [each.result for each in results] == ["read"] * 3
        assert results[0].waited_s <= results[1].waited_s <= results[2].waited_s
        assert thread.wait_s() == thread.running_s() == 0.0

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    thread.close()


def test_what_was_to_be_read_is_let_go_when_nobody_waits_for_it():
    thread = InputThread(now_s=lambda: 0.0)
    begun, go_on = threading.Event(), threading.Event()

    def hold():
        begun.set()
        assert go_on.wait(PATIENCE_S)

    async def play():
        first = asyncio.create_task(thread.run(hold))
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        body = Body()
        seen = weakref.ref(body)
        left = asyncio.create_task(thread.run(partial(id, body)))
        del body
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait({left})
        assert left.cancelled()
        del left
        gc.collect()
        assert seen() is None
        go_on.set()
        await first

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    thread.close()


def test_what_goes_wrong_reaches_whoever_asked_and_the_next_one_is_read():
    thread = InputThread(now_s=lambda: 0.0)

    async def play():
        with pytest.raises(ZeroDivisionError):
            await thread.run(lambda: 1 // 0)
        assert thread.running_s() == 0.0
        assert (await thread.run(lambda: 7)).result == 7

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    thread.close()
