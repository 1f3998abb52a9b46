"""Serializers that are registered with kombu, by their name there.

None of them counts as safe: kombu does not know what its decoders may run.
Imported, and kombu with it, only when a name is not one of Taskline's own.
"""

from __future__ import annotations

from typing import Any

from kombu.serialization import registry

from taskline.serializers.base import Serializer


def find(name: str) -> Serializer | None:
    """The serializer that kombu knows by this name, if any."""
    content_type = registry.name_to_type.get(name)
    if content_type is None:
        return None

    def dumps(value: Any) -> bytes:
        _, encoding, body = registry.dumps(value, serializer=name)
        if isinstance(body, str):
            return body.encode("utf-8" if encoding == "binary" else encoding)
        return bytes(body)

    def loads(body: bytes) -> Any:
        return registry.loads(body, content_type, "binary", force=True)

    return Serializer(name, dumps, loads)


def names() -> list[str]:
    """The names that kombu's registry holds."""
    return sorted(registry.name_to_type)
