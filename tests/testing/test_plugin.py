from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import taskline
from taskline.backends import open_backend
from taskline.clock import ManualClock
from taskline.message import SUCCESS, Outcome
from taskline.testing.cases.transport import message
from taskline.transports import open_transport

PLUGIN = "taskline.testing.plugin"
SEEN: list[str] = []


def test_the_clock_stands_still_until_it_is_moved(taskline_clock: ManualClock) -> None:
    before = taskline_clock.time()
    assert taskline_clock.time() == before
    taskline_clock.advance(3600)
    assert taskline_clock.time() == before + 3600


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_a_memory_of_its_own(turn: int, taskline_memory: str) -> None:
    assert taskline_memory not in SEEN
    SEEN.append(taskline_memory)
    transport, backend = open_transport(taskline_memory), open_backend(taskline_memory)
    assert not any(each.ready for each in transport.stats())
    transport.send([message(id="the same in both")])
    assert backend.fetch(["a"]) == {}
    backend.store([Outcome("a", SUCCESS, 0.0, 1, None, b"")])


def test_its_memory_is_gone_afterwards(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from taskline.backends import memory as backends
        from taskline.transports import memory as transports, open_transport

        def test_open(taskline_memory):
            name = taskline_memory.partition("://")[2]
            open_transport(taskline_memory)
            assert name in transports._stores
            test_open.name = name

        def test_later():
            assert test_open.name not in transports._stores
            assert test_open.name not in backends._stores
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", PLUGIN)
    assert result.parseoutcomes() == {"passed": 2}


def test_taskline_itself_does_not_import_pytest() -> None:
    code = (
        "import sys, taskline.transports.memory, taskline.backends.memory, taskline.testing;"
        "print([name for name in ('pytest', 'hypothesis') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(taskline.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.strip() == "[]"


def test_the_plug_in_may_be_named_where_it_is_installed_too(pytester: pytest.Pytester) -> None:
    """Pytest refuses one plug-in under two names, so the entry point is named as its module."""
    dist = pytester.mkdir("site") / "taskline_like-1.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: taskline-like\nVersion: 1.0\n")
    setup = (Path(taskline.__file__).parent.parent / "setup.cfg").read_text()
    (line,) = [each for each in setup.splitlines() if "= taskline.testing.plugin" in each]
    (dist / "entry_points.txt").write_text(f"[pytest11]\n{line.strip()}\n")
    pytester.makeconftest("pytest_plugins = ['taskline.testing.plugin']")
    pytester.makepyfile("def test_clock(taskline_clock): taskline_clock.advance(1)")
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(taskline.__file__).parent.parent)
        patch.setenv("PYTHONPATH", f"{dist.parent}:{root}")
        result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=60)
    assert result.parseoutcomes() == {"passed": 1}
