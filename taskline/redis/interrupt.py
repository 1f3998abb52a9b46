"""How a thread that waits for a socket is woken by another."""

from __future__ import annotations

import contextlib
import os


class Interrupt:
    """Set from any thread; wakes who polls its file descriptor."""

    def __init__(self) -> None:
        self._set = False
        self._ear, self._bell = os.pipe()
        for end in (self._ear, self._bell):
            os.set_blocking(end, False)

    def set(self) -> None:
        """Wake who waits, or who waits next."""
        if not self._set:
            self._set = True
            os.write(self._bell, b"!")

    def spent(self) -> bool:
        """Whether it was set since the last look."""
        if not self._set:
            return False
        with contextlib.suppress(BlockingIOError):
            os.read(self._ear, 64)
        self._set = False
        return True

    def fileno(self) -> int:
        """For `select`."""
        return self._ear

    def __del__(self) -> None:
        # Not earlier: a thread may be polling while another closes the transport.
        os.close(self._ear)
        os.close(self._bell)
