"""A TCP proxy that can do to a connection what networks do."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time

PASS, DELAY, HANG, REFUSE = "pass", "delay", "hang", "refuse"


class Proxy:
    """Forwards a loopback port to another; `mode` may be changed while connections live.

    `cut` and `reset` end the connections that there are; `after` makes the next
    one happen when so many more bytes have come back from the server.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.mode = PASS
        self.delay = 0.0
        self._after: int | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._wanted = ""
        self._bell, self._ear = socket.socketpair()
        self._closing = False
        self.accepted = 0
        self._thread = threading.Thread(target=self._run, name="taskline-proxy", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """End all connections as a closed peer does."""
        self._ask("cut")

    def reset(self) -> None:
        """End all connections with RST."""
        self._ask("reset")

    def set(self, mode: str, delay: float = 0.0) -> None:
        """What happens from now on: pass, delay (seconds each way), hang, or refuse new ones."""
        self.delay = delay
        self.mode = mode
        self._bell.send(b"x")

    def cut_after(self, answered: int) -> None:
        """Cut all connections once the server has sent so many bytes more, which are dropped."""
        self._after = answered

    def _ask(self, what: str) -> None:
        self._wanted = what
        self._bell.send(b"x")

    def close(self) -> None:
        """End everything."""
        self._closing = True
        self._bell.send(b"x")
        self._thread.join(5)
        for each in (self._listener, self._bell, self._ear):
            each.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._ear, selectors.EVENT_READ)
                if self.mode != HANG:
                    for each in self._pairs:
                        selector.register(each, selectors.EVENT_READ)
                ready = [key.fileobj for key, _ in selector.select()]
            for each in ready:
                if each is self._ear:
                    self._ear.recv(4096)
                elif each is self._listener:
                    self._accept()
                elif each in self._pairs:
                    self._pass(each)  # type: ignore[arg-type]
            if self._wanted:
                self._end_all(self._wanted == "reset")
                self._wanted = ""
        self._end_all(False)

    def _accept(self) -> None:
        here, _ = self._listener.accept()
        self.accepted += 1
        if self.mode == REFUSE:
            self._kill(here, reset=True)
            return
        try:
            there = socket.create_connection(("127.0.0.1", self.target), timeout=2)
        except OSError:
            self._kill(here, reset=True)
            return
        for each in (here, there):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs[here], self._pairs[there] = there, here

    def _pass(self, source: socket.socket) -> None:
        sink = self._pairs[source]
        try:
            data = source.recv(65536)
            from_server = source.getpeername()[1] == self.target
        except OSError:
            data, from_server = b"", False
        if data and self.mode == DELAY:
            time.sleep(self.delay)
        if data and from_server and self._after is not None:
            self._after -= len(data)
            if self._after <= 0:
                self._after = None
                self._end_all(False)
                return
        try:
            if data:
                sink.sendall(data)
                return
        except OSError:
            data = b""
        for each in (source, sink):
            self._pairs.pop(each, None)
            each.close()

    def _end_all(self, reset: bool) -> None:
        pairs, self._pairs = self._pairs, {}
        for each in pairs:
            self._kill(each, reset)

    def _kill(self, each: socket.socket, reset: bool) -> None:
        with contextlib.suppress(OSError):
            if reset:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()
