"""What a serializer is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class Serializer(msgspec.Struct, frozen=True):
    """A way to write values as bytes.

    `dumps` and `loads` may raise whatever they like; the codec makes a
    `SerializationError` of it. `safe` says that `loads` runs no code that the
    bytes name, whoever wrote them.
    """

    name: str
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]
    safe: bool = False
