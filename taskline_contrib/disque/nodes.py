"""The nodes of one Disque cluster, of which one is talked to at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from taskline.errors import TransportError
from taskline.registry import hide_password
from taskline_contrib.disque import jobs
from taskline_contrib.driver import open_client, translated

if TYPE_CHECKING:
    from redis import Redis

PORT = 7711
ANSWER_TIMEOUT = 15.0
"""Seconds; above the time for which GETJOB and ADDJOB may wait."""
PAGE = 1000
PASSING = ("NOREPL", "PAUSED", "LEAVING")
"""Errors after which the same call may succeed, on another node or later."""


class Nodes:
    """`address` is `:password@host:port,host:port`. Connects when it is first used."""

    def __init__(self, address: str) -> None:
        credentials, at, hosts = address.rpartition("@")
        urls = [
            f"redis://{credentials}{at}{host if ':' in host else f'{host}:{PORT}'}"
            for host in hosts.split(",")
        ]
        self._clients: list[Redis] = [
            open_client("disque", url, answer_timeout=ANSWER_TIMEOUT, retries=0) for url in urls
        ]
        self._addresses = [f"disque{hide_password(url).removeprefix('redis')}" for url in urls]
        self._node = 0
        self._closed = False

    @property
    def address(self) -> str:
        """That of the node in use, without the password."""
        return self._addresses[self._node]

    def call(self, *command: Any) -> Any:
        """The answer to one command; raises `TransportError`."""
        (answer,) = self.pipeline([command], strict=True)
        return answer

    def pipeline(self, commands: Sequence[tuple[Any, ...]], strict: bool = False) -> list[Any]:
        """The answers, errors among them; raises the first of these when `strict`.

        A node that is lost or leaves is given up: the next call goes to the next one.
        """
        if self._closed:
            raise _closed()
        if not commands:
            return []
        node = self._node
        try:
            with translated(self._addresses[node], PASSING):
                pipeline = self._clients[node].pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                answers: list[Any] = pipeline.execute(raise_on_error=False)
                # Not left to the driver, which would show the commands with all they carry.
                for answer in answers if strict else ():
                    if isinstance(answer, Exception):
                        raise answer
        except TransportError as error:
            if error.retryable:
                self._node = (node + 1) % len(self._clients)
            raise
        except ValueError:
            if self._closed:  # by another thread, while this one read the answer
                raise _closed() from None
            raise
        return answers

    def refuse(self, answer: Exception) -> NoReturn:
        """Raise an error that was an answer."""
        with translated(self.address, PASSING):
            raise answer
        raise answer

    def queues(self) -> list[str]:
        """The names of the queues that the node knows, sorted."""
        _, names = self.call("QSCAN", "BUSYLOOP")
        return sorted({name.decode() for name in names})

    def jobs(self, queue: str, *states: str) -> Iterator[jobs.Shown]:
        """The jobs of a queue in these states, a page at a time; none of them twice."""
        cursor, seen = b"0", set()
        wanted = [word for state in states for word in ("STATE", state)]
        while True:
            cursor, page = self.call(
                "JSCAN", cursor, "COUNT", PAGE, "QUEUE", queue, *wanted, "REPLY", "all"
            )
            for answer in page:
                job = jobs.shown(answer)
                if job.job_id not in seen:
                    seen.add(job.job_id)
                    yield job
            if cursor == b"0":
                return

    def close(self) -> None:
        self._closed = True
        for client in self._clients:
            client.close()


def _closed() -> TransportError:
    return TransportError("the disque transport is closed: open another", retryable=False)
