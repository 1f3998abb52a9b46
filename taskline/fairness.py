"""`fair_key`: what says whose message it is, in a queue that is shared fairly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.errors import ConfigurationError, InvalidArguments

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.message import Header
    from taskline.signature import TaskSignature


class FairKey:
    """Writes the header by which the queue is shared, unless the call has given it."""

    def __init__(self, by: str | Callable[..., Any], signature: TaskSignature) -> None:
        self._by = by
        self._signature = signature.signature

    def mark(
        self, app: Taskline, header: Header, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Raises `InvalidArguments` for a value that JSON does not carry."""
        route = app.queues.routes.get(header.queue)
        if route is None or not route.fair or route.fair in header.headers:
            return
        if isinstance(self._by, str):
            call = self._signature.bind(*args, **kwargs)
            call.apply_defaults()
            value = call.arguments[self._by]
        else:
            value = self._by(*args, **kwargs)
        try:
            plain = msgspec.to_builtins(value)
        except TypeError as error:
            raise InvalidArguments(
                f"{header.task}: fair_key gives {type(value).__name__}: {error}"
            ) from None
        header.headers = {**header.headers, route.fair: plain}


def fair_key(app: Taskline, queue: str, by: object, signature: TaskSignature) -> FairKey:
    """The `fair_key` of a task of this queue; raises `ConfigurationError` when it cannot be."""
    route = app.queues.routes.get(queue)
    if route is None or not route.fair:
        raise ConfigurationError(
            f"fair_key={by!r}: the queue {queue} is not fair: say in the setting queues between "
            f'the values of which header, such as {{"{queue}": {{"fair": "tenant"}}}}'
        )
    if isinstance(by, str):
        if by not in signature.signature.parameters:
            raise ConfigurationError(
                f"fair_key={by!r}: {signature.name}{signature} has no such argument"
            )
        return FairKey(by, signature)
    if not callable(by):
        raise ConfigurationError(
            f"fair_key={by!r}: must be the name of an argument, or a function of the arguments"
        )
    return FairKey(by, signature)
