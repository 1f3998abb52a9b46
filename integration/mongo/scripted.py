"""A server that says what a test tells it to, in MongoDB's wire protocol.

For what no stand-in does: only as much of the protocol as the driver needs
(https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/).
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import bson

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
_HEADER = struct.Struct("<iiii")

Document = dict[str, Any]
HELLO: Document = {
    "ok": 1,
    "minWireVersion": 0,
    "maxWireVersion": 21,
    "maxBsonObjectSize": 16777216,
    "maxMessageSizeBytes": 48000000,
    "maxWriteBatchSize": 100000,
    "logicalSessionTimeoutMinutes": 30,
    "connectionId": 1,
}


class Scripted:
    """Answers each command with what `answer(name, command)` returns; remembers all of them."""

    def __init__(self, answer: Callable[[str, Document], Document]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.asked: list[tuple[str, Document]] = []
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, name="scripted", daemon=True).start()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *error: object) -> None:
        for each in (self._listener, *self._connections):
            each.close()

    def count(self, name: str) -> int:
        """How often a command came."""
        return sum(each == name for each, _ in self.asked)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(
                target=self._serve, args=(connection,), name="scripted-peer", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while True:
                length, request, _, code = _HEADER.unpack(_read(connection, _HEADER.size))
                body = _read(connection, length - _HEADER.size)
                command = _query(body) if code == OP_QUERY else _message(body)
                name = next(iter(command))
                self.asked.append((name, command))
                found = bson.encode(self._answer("hello" if name == "ismaster" else name, command))
                if code == OP_QUERY:
                    reply, kind = struct.pack("<iqii", 8, 0, 0, 1) + found, OP_REPLY
                else:
                    reply, kind = struct.pack("<ib", 0, 0) + found, OP_MSG
                connection.sendall(
                    _HEADER.pack(_HEADER.size + len(reply), 0, request, kind) + reply
                )
        except OSError:
            connection.close()


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data


def _query(body: bytes) -> Document:
    """Of OP_QUERY: flags, the collection's name, two numbers, the document."""
    return bson.decode(body[body.index(b"\0", 4) + 9 :])


def _message(body: bytes) -> Document:
    """Of OP_MSG: flags, then the section of the command, then those of its documents."""
    at, command = 4, {}
    while at < len(body):
        kind, at = body[at], at + 1
        (size,) = struct.unpack_from("<i", body, at)
        if kind == 0:
            command = bson.decode(body[at : at + size])
        at += size
    return command
