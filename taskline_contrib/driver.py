"""redis-py, as the transports here use it: imported when used, its errors as Taskline's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from taskline.errors import ConfigurationError, TransportError

if TYPE_CHECKING:
    from redis import Redis

CONNECT_TIMEOUT = 5.0
"""Seconds until a server that does not answer counts as unreachable."""


def open_client(scheme: str, url: str, *, answer_timeout: float, retries: int) -> Redis:
    """A client for a `redis://` or `rediss://` URL; it connects when it is first used.

    A command that finds its connection broken, as when the server was restarted since,
    is tried again `retries` times: only where it may be done twice. Raises
    `ConfigurationError` when redis-py is missing or the URL is none.
    """
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise ConfigurationError(
            f"the {scheme} broker needs redis-py: pip install 'taskline[{scheme}]'"
        ) from None
    try:
        return Redis.from_url(
            url,
            protocol=2,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=answer_timeout,
            retry=Retry(NoBackoff(), retries),
        )
    except ValueError as error:
        raise ConfigurationError(f"the {scheme} broker URL is wrong: {error}") from None


@contextmanager
def translated(server: str, passing: tuple[str, ...] = ()) -> Iterator[None]:
    """Errors of the driver as `TransportError`, naming the server.

    `passing` are the first words of answers that may be other ones later.
    """
    from redis import exceptions

    try:
        yield
    except (
        exceptions.ConnectionError,
        exceptions.TimeoutError,
        exceptions.ReadOnlyError,
        exceptions.OutOfMemoryError,
        OSError,
    ) as error:
        hopeless = isinstance(error, exceptions.AuthenticationError)
        raise TransportError(f"{server}: {_line(error)}", retryable=not hopeless) from error
    except exceptions.RedisError as error:
        line = _line(error)
        raise TransportError(f"{server}: {line}", retryable=line.startswith(passing)) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
