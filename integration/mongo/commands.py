"""What the driver sends, as the driver tells it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pymongo import monitoring


class Recorder(monitoring.CommandListener):
    """The commands that clients sent which were made while it was registered."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, dict[str, Any]]] = []

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.commands]

    def clear(self) -> None:
        self.commands.clear()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.commands.append((event.command_name, dict(event.command)))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


@contextlib.contextmanager
def recorded() -> Iterator[Recorder]:
    """Clients made within tell the recorder of all that they send, also afterwards."""
    recorder = Recorder()
    monitoring.register(recorder)
    try:
        yield recorder
    finally:
        monitoring._LISTENERS.command_listeners.remove(recorder)
