"""Revoking many at once: all messages of a task, or with a header, that were sent until a moment.

Such a wish is a revocation as that of one task is, kept and told to workers in the
same way: in the place of the id stands what it is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.backends.base import Revocation
from taskline.errors import ConfigurationError
from taskline.message import Header
from taskline.options import headers as json_headers
from taskline.options import identifier, moment
from taskline.result import REVOCATION_TTL

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.calls import Calls

MARK = "all "
"""Begins such a wish; no id of a task has a blank."""


class Wish(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which messages are not to be run; what is left out is any."""

    before: float
    """Those sent until then, Unix seconds."""
    task: str = ""
    headers: dict[str, Any] = {}

    def written(self) -> str:
        """As it stands in the place of an id."""
        return MARK + msgspec.json.encode(self).decode()

    @property
    def about(self) -> tuple[str, bytes]:
        """What makes it the same wish as another, but for the moment."""
        return self.task, msgspec.json.encode(self.headers, order="sorted")

    def concerns(self, header: Header) -> bool:
        """Whether this message is meant. One that does not say when it was sent never is."""
        return (
            0.0 < header.sent <= self.before
            and (not self.task or header.task == self.task)
            and all(
                name in header.headers and _same(header.headers[name], value)
                for name, value in self.headers.items()
            )
        )


def read(written: str) -> Wish:
    """The wish that stands in the place of an id, where that begins with `MARK`.

    Raises `ConfigurationError` for one that this version does not understand.
    """
    try:
        return msgspec.json.decode(written[len(MARK) :], type=Wish)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConfigurationError(
            f"a revocation is not understood, and not heeded: {error}: {written[:200]}"
        ) from None


def revoke(
    app: Taskline,
    task: str | Calls[..., Any] | None,
    headers: Mapping[str, Any] | None,
    before: datetime | float | None,
    terminate: bool,
) -> None:
    """See `Taskline.revoke`."""
    if task is None and not headers:
        raise ConfigurationError("revoke what? Give task=, headers=, or both")
    name = task if isinstance(task, str) or task is None else task.name
    wish = Wish(
        app.now() if before is None else moment("before", before),
        "" if name is None else identifier("task", name),
        json_headers("headers", headers or {}),
    )
    try:
        written = wish.written()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"headers={headers!r}: must be JSON values: {error}") from None
    app.require_backend().revoke([Revocation(written, terminate)], REVOCATION_TTL)


def _same(value: Any, wanted: Any) -> bool:
    """Equal as JSON is: true is not 1."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)
