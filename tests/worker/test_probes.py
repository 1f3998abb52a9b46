"""What a worker says of itself over HTTP."""

from __future__ import annotations

import os
import re
import signal
import socket
import urllib.error
import urllib.request

import pytest
from stage import PATIENCE, Group, Stage, all_ways
from workbench import until

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.errors import ConfigurationError
from taskline.worker import Supervisor, WorkerOptions
from taskline.worker.parent.probes import Probes, address
from taskline.worker.parent.server import Answers
from taskline.worker.parent.status import ProcessStatus, Status


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:80", ("::1", 80)),
        (":9000", ("", 9000)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert address(text) == found


@pytest.mark.parametrize("text", ["8080", "localhost", "localhost:", "a:b", "a:65536", "a:-1", ""])
def test_what_is_no_address_is_refused_before_anything_starts(text: str) -> None:
    app = Taskline("bare", broker="memory://", backend=None)
    with pytest.raises(ConfigurationError, match="write HOST:PORT, such as"):
        Supervisor(app, WorkerOptions(http=text))


def test_an_address_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigurationError, match=rf"http='127.*{port}': Address already in use$"
        ):
            Probes(f"127.0.0.1:{port}", ManualClock())


def said(name: str = "shop", ready: bool = True, stopping: bool = False) -> Status:
    return Status(
        name,
        7,
        1000.0,
        1,
        stopping,
        [ProcessStatus(8, ready, 0.0, ["a", "b"])],
        {"done": 5, "retried": 2, "failed": 1},
        3,
        940.0,
        2**20,
    )


def test_answers() -> None:
    clock = ManualClock(1001.0)
    answers = Answers(clock)
    assert answers.get("/livez")[0] == 503, "nothing is known yet"
    answers.status = said()
    assert answers.get("/livez")[::2] == (200, "ok\n")
    assert answers.get("/readyz")[::2] == (200, "ok\n")
    assert answers.get("/")[0] == 404
    answers.status = said(ready=False)
    assert answers.get("/livez")[0] == 200
    assert answers.get("/readyz")[::2] == (503, "0 of 1 processes of worker shop are ready\n")
    answers.status = said(stopping=True)
    assert answers.get("/livez")[0] == 200
    assert answers.get("/readyz")[::2] == (503, "worker shop is stopping\n")
    clock.advance(60)
    assert answers.get("/livez")[::2] == (503, "worker shop has not said anything for 61 s\n")


def test_metrics_are_as_prometheus_reads_them() -> None:
    answers = Answers(ManualClock(1000.0))
    answers.status = said('a"b\\c')
    code, kind, text = answers.get("/metrics")
    assert (code, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert text.endswith("\n")
    values = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP taskline_\w+ .+|TYPE taskline_\w+ (gauge|counter))", line)
        else:
            name, _, rest = line.partition('{worker="a\\"b\\\\c"')
            labels, _, value = rest.rpartition("} ")
            values[name + labels] = float(value)
    assert values == {
        "taskline_up": 1,
        "taskline_ready": 1,
        "taskline_processes": 1,
        "taskline_processes_wanted": 1,
        "taskline_process_deaths_total": 3,
        "taskline_active_tasks": 2,
        "taskline_oldest_task_seconds": 60,
        'taskline_tasks_total,outcome="done"': 5,
        'taskline_tasks_total,outcome="retried"': 2,
        'taskline_tasks_total,outcome="failed"': 1,
        "taskline_memory_bytes": 2**20,
    }


# ---- real workers


def url(group: Group) -> str:
    found = until(lambda: re.search(r"says how it is at (http://\S+)/readyz", group.log), PATIENCE)
    return found[1]


def get(where: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(where, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def counted(where: str, what: str) -> float:
    found = re.search(rf"^{re.escape(what)}\S* (\S+)$", get(f"{where}/metrics")[1], re.M)
    return -1.0 if found is None else float(found[1])


@all_ways
def test_a_worker_lives_stops_and_ends(stage: Stage, way: dict[str, str]) -> None:
    group = stage.start(processes=2, http="127.0.0.1:0", grace=PATIENCE, **way)
    where = url(group)
    until(lambda: get(f"{where}/readyz") == (200, "ok\n"), PATIENCE)
    assert get(f"{where}/livez") == (200, "ok\n")
    assert get(f"{where}/nothing")[0] == 404
    held = stage.call("hold", "a")
    stage.begun("a")
    until(lambda: counted(where, "taskline_active_tasks") == 1, PATIENCE)
    group.signal_all(signal.SIGTERM)
    until(lambda: get(f"{where}/readyz")[0] == 503, PATIENCE)
    assert get(f"{where}/readyz")[1].endswith("is stopping\n")
    assert get(f"{where}/livez")[0] == 200
    stage.release("a")
    assert group.exit_code() == 0
    stage.get(held)
    assert not group.alive()


def test_counts_outlive_the_processes_that_counted(stage: Stage) -> None:
    group = stage.start(http="127.0.0.1:0")
    where = url(group)
    for pid in {stage.get(stage.call("quick")) for _ in range(3)}:
        until(lambda: counted(where, 'taskline_tasks_total{worker="') == 3, PATIENCE)
        os.kill(pid, signal.SIGKILL)
    stage.get(stage.call("quick"))
    until(lambda: counted(where, 'taskline_tasks_total{worker="') == 4, PATIENCE)
    assert counted(where, "taskline_process_deaths_total") == 1


def test_the_server_is_replaced_and_ends_with_its_worker(stage: Stage) -> None:
    group = stage.start(http="127.0.0.1:0")
    where = url(group)
    until(lambda: get(f"{where}/livez")[0] == 200, PATIENCE)
    worker = stage.get(stage.call("quick"))
    [server] = set(group.alive()) - {group.process.pid, worker}
    os.kill(server, signal.SIGKILL)
    until(lambda: "the server of probes ended" in group.log, PATIENCE)
    until(lambda: get(f"{where}/livez")[0] == 200, PATIENCE)
    group.signal(signal.SIGKILL)
    until(lambda: not group.alive(), PATIENCE)
