"""What a Redis server counts, asked over a socket, so that no peer's client takes part."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

_SCRIPTED = re.compile(rb"^\+[\d.]+ \[\d+ lua\]")


@dataclass
class Reading:
    received: int
    """Bytes from clients."""
    memory: int
    calls: int
    """Of commands, by clients and by scripts."""


@dataclass
class Watch:
    commands: int = 0
    """That clients sent; those that scripts call are not among them."""


class Counters:
    """Of the server at a URL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 6379)

    def read(self) -> Reading:
        with self._connect() as connection, connection.makefile("rb") as answers:
            connection.sendall(b"INFO everything\r\n")
            text = answers.read(int(answers.readline()[1:])).decode()
        fields = dict(re.findall(r"^(\w+):(\d+)\r?$", text, re.MULTILINE))
        calls = sum(map(int, re.findall(r"^cmdstat_[^:]+:calls=(\d+)", text, re.MULTILINE)))
        return Reading(int(fields["total_net_input_bytes"]), int(fields["used_memory"]), calls)

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Counts commands meanwhile, by MONITOR: it slows the server, so nothing is timed here."""
        watch = Watch()
        with self._connect() as connection, connection.makefile("rb") as lines:
            connection.settimeout(None)
            connection.sendall(b"MONITOR\r\n")
            lines.readline()
            thread = threading.Thread(target=self._count, args=(lines, watch), name="bench-monitor")
            thread.start()
            try:
                yield watch
            finally:
                # Also the last line: the server writes in order.
                with self._connect() as last, last.makefile("rb") as answer:
                    last.sendall(b"ECHO end-of-watch\r\n")
                    answer.readline()
                thread.join(30)

    @staticmethod
    def _count(lines: Iterator[bytes], watch: Watch) -> None:
        for line in lines:
            if line.endswith(b'"ECHO" "end-of-watch"\r\n'):
                return
            if not _SCRIPTED.match(line):
                watch.commands += 1

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._address, timeout=30)
