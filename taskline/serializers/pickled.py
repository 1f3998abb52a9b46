"""pickle and cloudpickle: any object, read only from those who hold a key.

Reading a pickle runs whatever it says. The codec reads one only when `accept`
names the serializer and the frame's signature is right (or that was waived).
"""

from __future__ import annotations

import pickle
from typing import Any

from taskline.serializers.base import Serializer

# Protocol 5 is the highest that every supported Python reads.
PROTOCOL = 5


def _dumps(value: Any) -> bytes:
    return pickle.dumps(value, protocol=PROTOCOL)


PICKLE = Serializer("pickle", _dumps, pickle.loads)


def cloudpickle_serializer() -> Serializer:
    """Pickle that also carries functions and closures, by value; imports cloudpickle."""
    import cloudpickle

    def dumps(value: Any) -> bytes:
        body: bytes = cloudpickle.dumps(value, protocol=PROTOCOL)
        return body

    return Serializer("cloudpickle", dumps, pickle.loads)
