from __future__ import annotations

import signal

import pytest

from split_inference.interruption import terminated_like_interrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("interrupts", [signal.default_int_handler, signal.SIG_IGN])
def test_being_terminated_is_being_interrupted_even_where_ctrl_c_is_ignored(number, interrupts):
    before = signal.signal(signal.SIGINT, interrupts)
    outside = signal.getsignal(number)
    try:
        with pytest.raises(KeyboardInterrupt), terminated_like_interrupted():
            signal.raise_signal(number)
        assert signal.getsignal(number) == outside
    finally:
        signal.signal(signal.SIGINT, before)
