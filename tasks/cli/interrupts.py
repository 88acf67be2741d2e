"""Ctrl-C, TERM and a closed terminal, handled once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def one_interrupt() -> Iterator[None]:
    """The first of Ctrl-C, TERM and HUP raises `KeyboardInterrupt`; the ones after it are ignored.

    So the clean-up that it starts is not cut short: people press Ctrl-C twice, and `timeout` and a closing
    terminal signal both the shell and what runs in it.
    """

    def interrupt(_number: int, _frame: object) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
