"""A real redis-server for these tests: on a free port, in a directory of its own, killed after."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rsmq_clients import missing

pytest.importorskip("redis", reason="redis-py is not installed: pip install 'taskline[rsmq]'")

START_WITHIN = 15.0
"""Seconds in which the server must listen."""


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """`host:port` of a server that nobody else uses."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        missing("no redis-server: apt-get install redis-server")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="taskline-rsmq-") as directory:
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        try:
            end = time.monotonic() + START_WITHIN
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > end:
                        pytest.fail(f"{program} did not start")
                    time.sleep(0.01)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait(START_WITHIN)


@pytest.fixture
def redis(redis_server: str) -> Iterator[Any]:
    """A redis-py client of the server, which is empty."""
    from redis import Redis

    client = Redis.from_url(f"redis://{redis_server}/0")
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def until() -> Callable[..., Any]:
    """Poll until the probe answers with something true; fails after 15 seconds."""

    def until(probe: Callable[[], Any]) -> Any:
        end = time.monotonic() + 15
        while not (answer := probe()):
            if time.monotonic() > end:
                pytest.fail(f"did not happen; the last answer was {answer!r}")
            time.sleep(0.01)
        return answer

    return until
