"""A worker whose broker can never serve its queues: it says so once, and ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stage import Stage

PICKY = """
from taskline import Taskline
from taskline.errors import ConfigurationError
from taskline.transports.memory import MemoryTransport


class Picky(MemoryTransport):
    scheme = "picky"

    @classmethod
    def from_spec(cls, spec, clock):
        return cls(clock=clock)

    def prepare(self, queues, lease, consumer):
        if "mail" in queues:
            raise ConfigurationError(f"no 'mail' here, only {len(queues) - 1} others")


picky = {"type": "picky.Picky"}
plain = Taskline("picky", broker=picky)
renamed = Taskline("picky", broker="memory://", queues={"post": {"broker": picky, "name": "mail"}})
"""


@pytest.mark.parametrize(("app", "queues"), [("plain", "mail,low"), ("renamed", "post,low")])
def test_queues_that_its_broker_cannot_have(
    stage: Stage, tmp_path: Path, app: str, queues: str
) -> None:
    (tmp_path / "picky.py").write_text(PICKY)
    worker = [sys.executable, "-m", "taskline", "worker", "-A", f"picky:{app}", "-c", "2"]
    path = ":".join([str(tmp_path), *sys.path])
    group = stage.launch([*worker, "-Q", queues], {"PYTHONPATH": path})
    assert group.exit_code() == 2
    others = 1 if app == "plain" else 0
    told = [line for line in group.log.splitlines() if f"only {others} others" in line]
    assert 1 <= len(told) <= 2, "once in a process"
    assert "replaced" not in group.log
    assert "Traceback" not in group.log
