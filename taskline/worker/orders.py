"""How a worker process is told to stop: by signals, or by its supervisor through a pipe."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

STOP = b"s"
STOP_NOW = b"n"
RETIRE = b"r"
"""Take no more, and end when what runs has ended."""


def ending() -> tuple[signal.Signals, ...]:
    """The signals that end a worker: that of a terminal which closes only where it is not ignored.

    With `nohup` it is.
    """
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return signal.SIGTERM, signal.SIGINT
    return signal.SIGTERM, signal.SIGINT, signal.SIGHUP


class Interrupts(Protocol):
    """Who is told of SIGINT instead."""

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """In the main thread, as soon as it runs Python. It must not stop anything itself: what
        it interrupts may hold the locks for that."""

    def noticed(self) -> None:
        """In a thread of its own, at once."""


class Orders:
    """Calls `stop(now)` and `retire()` from a thread of its own, from `open` to `close`.

    By itself a process stops at SIGTERM, SIGINT or SIGHUP, and at once at the second. With
    `control`, the pipe of a supervisor, SIGINT and SIGHUP are ignored and SIGTERM never
    stops at once, since all may go to the whole group; the pipe's end, which is the
    supervisor's death, is an order to stop. With `on_sigint`, SIGINT is its affair.
    """

    def __init__(
        self,
        stop: Callable[[bool], None],
        retire: Callable[[], None],
        control: int | None,
        on_sigint: Interrupts | None = None,
    ) -> None:
        self._stop = stop
        self._retire = retire
        self._control = control
        self._on_sigint = on_sigint
        self._stopping = False
        self._read_end, self._signalled = os.pipe()
        os.set_blocking(self._signalled, False)
        self._thread = threading.Thread(target=self._obey, name="taskline-control", daemon=True)
        self._before: list[tuple[signal.Signals, Any]] = []
        self._wakeup_before = -1
        self._stops: tuple[int, ...] = ()

    def open(self) -> None:
        """Begin to obey. For the main thread."""
        # The byte is written by C code whichever thread the system chose for the signal:
        # a handler in Python would wait for the end of what the main thread does.
        self._wakeup_before = signal.set_wakeup_fd(self._signalled, warn_on_full_buffer=False)
        numbers = ending()
        self._stops = numbers if self._control is None else (signal.SIGTERM,)
        for number in numbers:
            handler: Any = self._on_signal
            if number == signal.SIGINT and self._control is not None:
                handler = signal.SIG_IGN
            elif number == signal.SIGINT and self._on_sigint is not None:
                handler = self._on_sigint.handle
            self._before.append((number, signal.signal(number, handler)))
        self._thread.start()

    def close(self) -> None:
        """Obey no more; signals mean what they meant before."""
        for number, handler in self._before:
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._signalled)
        self._thread.join(timeout=1.0)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        # A task may have put its own descriptor in place of ours, as asyncio does.
        theirs = signal.set_wakeup_fd(self._signalled, warn_on_full_buffer=False)
        if theirs != self._signalled:
            os.write(self._signalled, bytes([signum]))
            signal.set_wakeup_fd(theirs)

    def _obey(self) -> None:
        sources = [self._read_end]
        if self._control is not None:
            sources.append(self._control)
        while True:
            readable, _, _ = select.select(sources, [], [])
            for source in readable:
                order = os.read(source, 1)
                if source == self._control:
                    if order == RETIRE:
                        self._retire()
                    else:
                        self._stop(order == STOP_NOW)
                    if not order:
                        sources.remove(source)
                elif not order:
                    os.close(source)
                    return
                elif order[0] == signal.SIGINT and self._on_sigint is not None:
                    self._on_sigint.noticed()
                elif order[0] in self._stops:
                    self._stop(self._stopping and self._control is None)
                    self._stopping = True
