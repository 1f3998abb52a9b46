"""Bytes to values and back: the only place that serializes, compresses and signs.

What comes in is not trusted. `open` and `loads` raise `SerializationError` or
its subclass `MessageRefused` and nothing else, whatever the bytes are.
`docs/protocol.md` is the specification.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from taskline import serializers
from taskline.config import Settings, nearest
from taskline.errors import ConfigurationError, MessageRefused, SerializationError
from taskline.message import Header, Message, Outcome, OutcomeHeader, join, split, split_outcome
from taskline.serializers import Serializer

SIGNATURE = 75
"""The length of a signature line: `~`, 8 digits of key id, `.`, 64 of digest, newline."""

_SIGNATURE_LINE = re.compile(rb"~[0-9a-f]{8}\.[0-9a-f]{64}\n")


class Codec:
    """Writes and reads frames as the settings say. Threads may share one.

    Raises `ConfigurationError` for a serializer or compression that is unknown or
    not installed, and for a serializer that may run code while no key guards it.
    """

    answers: ClassVar[bool] = False
    """Whether `reply` may have an answer."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.max_message_size
        self._accept_unsigned = settings.accept_unsigned
        self._signing = _Key(settings.signing_key) if settings.signing_key else None
        keys = [_Key(key) for key in settings.verify_keys]
        if self._signing:
            keys.append(self._signing)
        self._keys = {key.id: key for key in keys}
        found = _serializers(settings)
        self._dumps = {name: serializer.dumps for name, serializer in found.items()}
        self._loads = {name: serializer.loads for name, serializer in found.items()}
        self._compression = settings.compression
        self._compress_above = settings.compress_above
        self._compress = _compressor(settings.compression)

    def encode(self, header: Header, value: Any) -> Message:
        """The message of a header and a value, which is `[args, kwargs]` for a call.

        Sets `header.compression`. Raises `SerializationError` for a value that the
        header's serializer cannot write, or a message larger than `max_message_size`.
        """
        body = self.dump(header, value)
        try:
            frame = join(header, body)
        except Exception as error:
            raise _unwritable(header, error) from error
        if self._signing or len(frame) > self._limit:
            frame = self._seal(frame)
        return Message(header, frame)

    def reframe(self, header: Header, body: bytes) -> Message:
        """The message of a changed header and the body that `open` gave, as it is.

        For a further attempt: the body is neither decoded nor compressed again.
        """
        try:
            frame = join(header, body)
        except Exception as error:
            raise _unwritable(header, error) from error
        return Message(header, self._seal(frame))

    def reply(self, header: Header, outcome: Outcome) -> Message | None:
        """What tells a final outcome to who waits for it at a queue of its own."""
        return None

    def encode_outcome(
        self, header: OutcomeHeader, value: Any, *, sent: float, ttl: float | None
    ) -> Outcome:
        """The outcome of a task; `sent` is the message's, `ttl` in seconds. Raises as `encode`."""
        body = self.dump(header, value)
        try:
            frame = join(header, body)
        except Exception as error:
            raise _unwritable(header, error) from error
        if self._signing or len(frame) > self._limit:
            frame = self._seal(frame)
        return Outcome(header.id, header.state, sent, header.deliveries, ttl, frame)

    def open(self, frame: bytes) -> tuple[Header, bytes]:
        """The header of a message and its body, still encoded, once the frame may be trusted.

        Raises `MessageRefused` when it is too large, not signed as it must be, or
        in a serializer that is not accepted; `SerializationError` when it is no message.
        """
        if self._keys or frame[:1] == b"~" or len(frame) > self._limit:
            frame = self._unseal(frame)
        header, body = split(frame)
        if header.serializer not in self._loads:
            raise self._not_accepted(header.serializer)
        return header, body

    def open_outcome(self, frame: bytes) -> tuple[OutcomeHeader, bytes]:
        """The header of an outcome and its body, still encoded; raises as `open`."""
        if self._keys or frame[:1] == b"~" or len(frame) > self._limit:
            frame = self._unseal(frame)
        header, body = split_outcome(frame)
        if header.serializer not in self._loads:
            raise self._not_accepted(header.serializer)
        return header, body

    def loads(self, header: Header | OutcomeHeader, body: bytes) -> Any:
        """The value of a body: decompressed, at most to `max_message_size`, and decoded.

        Raises `MessageRefused` or `SerializationError`.
        """
        loads = self._loads.get(header.serializer)
        if loads is None:
            raise self._not_accepted(header.serializer)
        if header.compression:
            body = self._decompress(header.compression, body)
        try:
            return loads(body)
        except Exception as error:
            raise SerializationError(
                f"the body cannot be read as {header.serializer}: {_reason(error)}"
            ) from error

    def arguments(self, header: Header, body: bytes) -> tuple[Sequence[Any], dict[str, Any]]:
        """The positional and keyword arguments in a message's body; raises as `loads`."""
        value = self.loads(header, body)
        if isinstance(value, (list, tuple)) and len(value) == 2:
            args, kwargs = value
            if (
                isinstance(args, (list, tuple))
                and isinstance(kwargs, dict)
                and (not kwargs or all(isinstance(name, str) for name in kwargs))
            ):
                return args, kwargs
        raise SerializationError("the body is not [arguments, keyword arguments]")

    def dump(self, header: Header | OutcomeHeader, value: Any) -> bytes:
        """The body of a value. Sets `header.compression`; raises `SerializationError`."""
        dumps = self._dumps.get(header.serializer)
        if dumps is None:
            raise self._not_accepted(header.serializer)
        try:
            body = dumps(value)
        except Exception as error:
            raise SerializationError(
                f"{header.task}: cannot be written as {header.serializer}: {_reason(error)}"
            ) from error
        header.compression = ""
        if self._compress and self._compress_above < len(body) <= self._limit:
            smaller = self._compress(body)
            if len(smaller) < len(body):
                header.compression = self._compression
                return smaller
        return body

    def _decompress(self, name: str, body: bytes) -> bytes:
        from taskline import compression

        try:
            found = compression.find(name)
            if found is None:
                raise SerializationError(
                    f"unknown compression {_clip(repr(name))}: "
                    f"known are {', '.join(compression.names())}"
                )
            return found.decompress(body, self._limit)
        except SerializationError:
            raise
        except Exception as error:
            raise SerializationError(
                f"the body cannot be decompressed by {name}: {_reason(error)}"
            ) from error

    def _seal(self, frame: bytes) -> bytes:
        """The frame, signed if there is a key. Raises `SerializationError` for one too large."""
        if self._signing:
            frame = self._signing.sign(frame) + frame
        if len(frame) > self._limit:
            raise SerializationError(
                f"a message of {len(frame)} bytes is larger than max_message_size = {self._limit}"
            )
        return frame

    def _unseal(self, frame: bytes) -> bytes:
        """The unsigned frame within one that may be trusted; raises `MessageRefused`."""
        if len(frame) > self._limit:
            raise MessageRefused(
                f"a message of {len(frame)} bytes is larger than max_message_size = {self._limit}"
            )
        if frame[:1] != b"~":
            if self._keys and not self._accept_unsigned:
                raise MessageRefused("the message is not signed, and this side has a key")
            return frame
        line, unsigned = frame[:SIGNATURE], frame[SIGNATURE:]
        if not _SIGNATURE_LINE.fullmatch(line):
            raise MessageRefused("the message's signature line is malformed")
        key = self._keys.get(line[1:9])
        if key is None:
            raise MessageRefused(
                f"the message is signed with the key {line[1:9].decode()}, "
                f"which is neither the signing_key nor among the verify_keys here"
            )
        if not key.verifies(line, unsigned):
            raise MessageRefused(
                f"the message's signature by the key {line[1:9].decode()} is wrong: it was altered"
            )
        return unsigned

    def _not_accepted(self, name: str) -> MessageRefused:
        return MessageRefused(
            f"the serializer {_clip(repr(name))} is not accepted: accept has "
            f"{', '.join(self._loads)}"
        )


class _Key:
    """A key that signs frames and verifies signatures (HMAC-SHA-256)."""

    def __init__(self, key: str) -> None:
        # hashlib loads OpenSSL, which only those who sign should pay for.
        import hashlib
        import hmac

        self._key = key.encode()
        self.id = hashlib.sha256(self._key).hexdigest()[:8].encode()
        self._digest = hmac.digest
        self._equal = hmac.compare_digest

    def sign(self, frame: bytes) -> bytes:
        """The signature line to put in front of an unsigned frame."""
        return b"~%b.%b\n" % (self.id, self._digest(self._key, frame, "sha256").hex().encode())

    def verifies(self, line: bytes, frame: bytes) -> bool:
        """Whether this signature line is this key's for this frame."""
        return self._equal(line, self.sign(frame))


def _serializers(settings: Settings) -> dict[str, Serializer]:
    """What `accept` names. Raises `ConfigurationError` for an unsafe one that nothing guards."""
    found = {name: serializers.get(name) for name in settings.accept}
    if settings.serializer not in found:
        raise ConfigurationError(
            f"serializer = {settings.serializer!r} is not in accept = {settings.accept}: add it"
        )
    guarded = settings.signing_key or settings.verify_keys or settings.accept_unsigned
    for serializer in found.values():
        if not serializer.safe and not guarded:
            raise ConfigurationError(
                f"accept names {serializer.name}, which runs code that a message brings: set "
                f"signing_key, or accept_unsigned=True if all who can reach the broker are trusted"
            )
    return found


def _compressor(name: str) -> Callable[[bytes], bytes] | None:
    if not name:
        return None
    from taskline import compression

    found = compression.find(name)
    if found is None:
        raise ConfigurationError(
            f"unknown compression {name!r}{nearest(name, tuple(compression.names()))}"
        )
    return found.compress


def _unwritable(header: Header | OutcomeHeader, error: Exception) -> SerializationError:
    return SerializationError(
        f"{header.task}: the header cannot be written as JSON, which carries plain data alone: "
        f"{_reason(error)}"
    )


def _reason(error: Exception) -> str:
    """What an exception says, on one line of bounded length."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or contains itself"
    return _clip(" ".join(str(error).split()) or type(error).__name__)


def _clip(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
