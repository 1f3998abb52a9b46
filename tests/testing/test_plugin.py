from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import taskline
from taskline import Taskline
from taskline.backends import open_backend
from taskline.clock import ManualClock
from taskline.message import SUCCESS, Outcome
from taskline.testing.cases.transport import message
from taskline.transports import open_transport
from taskline.worker import Worker

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


def test_a_new_app_lives_in_memory(taskline_app: Taskline, taskline_memory: str) -> None:
    assert taskline_app.settings.broker == taskline_app.settings.backend == taskline_memory
    assert taskline_app.tasks == {}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Taskline]:
    url = f"sqlite:///{tmp_path}/shop.db"
    with Taskline("shop", broker=url, backend=url) as app:

        @app.task(name="double")
        def double(number: int) -> int:
            return number * 2

        yield app


def test_an_app_is_moved_into_memory_and_back(shop: Taskline, pytester: pytest.Pytester) -> None:
    double = shop.tasks["double"]
    double.delay(1)
    pytester.makepyfile(
        """
        def test_moved(taskline_in_memory, taskline_worker, shop):
            app = taskline_in_memory(shop)
            assert app is shop
            assert app.settings.broker.startswith("memory://")
            assert not any(each.ready for each in app.transport.stats())
            taskline_worker(app)
            assert app.tasks["double"].delay(21).get(timeout=10) == 42
        """
    )

    class Given:
        @pytest.fixture
        def shop(self) -> Taskline:
            return shop

    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", PLUGIN, plugins=[Given()])
    assert result.parseoutcomes() == {"passed": 1}
    assert str(shop.settings.broker).startswith("sqlite://")
    assert str(shop.settings.backend).startswith("sqlite://")
    (queue,) = shop.transport.stats(["default"])
    assert queue.ready == 1


def test_an_app_is_eager_for_one_test(shop: Taskline, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_eager(taskline_eager, shop):
            assert taskline_eager(shop).tasks["double"].delay(21).result == 42
        """
    )

    class Given:
        @pytest.fixture
        def shop(self) -> Taskline:
            return shop

    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", PLUGIN, plugins=[Given()])
    assert result.parseoutcomes() == {"passed": 1}
    assert shop.settings.eager is False


def test_a_worker_stops_with_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import threading

        def ours():
            names = [thread.name for thread in threading.enumerate()]
            return [name for name in names if name.startswith(("taskline-io", "taskline-slot"))]

        def test_works(taskline_app, taskline_worker):
            @taskline_app.task
            def double(number: int) -> int:
                return number * 2

            taskline_worker(taskline_app, threads=3)
            assert len(ours()) == 4
            assert [each.get(timeout=10) for each in map(double.delay, range(5))] == [0, 2, 4, 6, 8]

        def test_over():
            assert ours() == []
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", PLUGIN)
    assert result.parseoutcomes() == {"passed": 2}


def test_a_worker_lives_by_the_clock_of_the_test(
    taskline_memory: str,
    taskline_clock: ManualClock,
    taskline_worker: Callable[..., Worker],
) -> None:
    app = Taskline("shop", broker=taskline_memory, backend=taskline_memory, clock=taskline_clock)

    @app.task
    def greet(name: str) -> str:
        return f"Good morning, {name}"

    taskline_worker(app)
    tomorrow = greet.apply_async(("Ann",), countdown=24 * 3600)
    assert greet.delay("Bob").get(timeout=10) == "Good morning, Bob"
    assert not tomorrow.ready()
    taskline_clock.advance(24 * 3600 + 1)
    assert tomorrow.get(timeout=10) == "Good morning, Ann"
