"""One supervisor with its processes: `python -m integration.chaos.site CONFIG OPTIONS`."""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
import time

import msgspec

from integration.chaos.tasks import Config, make_app
from taskline.clock import Clock
from taskline.worker import Supervisor, WorkerOptions

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have Linux kill this process when the one that started it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def set_clock(skew: float) -> None:
    """Have Taskline read a wrong time in this process, and in those that it forks."""
    if skew:
        # Not a clock of another type: stores would take its word instead of their server's.
        Clock.time = lambda self: time.time() + skew  # type: ignore[method-assign]


def main(config: str, options: str) -> int:
    die_with_parent()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s"
    )
    settings = Config.loads(config)
    set_clock(settings.skew)
    app = make_app(settings)
    code = Supervisor(app, msgspec.json.decode(options, type=WorkerOptions)).run()
    # It has stopped: a second SIGTERM that comes while Python ends changes nothing.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
