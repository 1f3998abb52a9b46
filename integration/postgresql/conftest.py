from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from integration.conftest import server_or_skip
from integration.servers.postgresql import PostgreSQLServer
from taskline import config

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "postgresql"
sys.path.insert(0, str(EXAMPLE))

_numbers = count(1)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a server for tests that need nothing special."""
    given = os.environ.get("TASKLINE_TEST_POSTGRES")
    if given:
        yield given
    else:
        for server in server_or_skip(PostgreSQLServer):
            yield server.url


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """A schema of the test's own on the session's server."""
    return f"{postgresql_server}?schema=test_{os.getpid()}_{next(_numbers)}"


@pytest.fixture
def installed(tmp_path: Path) -> str:
    """A PYTHONPATH on which the example is installed as pip would: with its entry points."""
    site = tmp_path / "site"
    metadata = site / "taskline_postgresql-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: taskline-postgresql\n")
    groups = config.read(EXAMPLE / "pyproject.toml")["project"]["entry-points"]
    (metadata / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {path}\n" for name, path in points.items())
            for group, points in groups.items()
        )
    )
    return os.pathsep.join([str(site), str(EXAMPLE), str(EXAMPLE.parents[1])])
