"""Many processes on one file, some of which are killed at any moment."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskline.backends.sqlite import SQLiteBackend
from taskline.sqlite.location import Location
from taskline.transports.sqlite import SQLiteTransport

from .helpers import BOUND, Diary, fork, message, outcome, run, until

BATCH = 7
"""Messages in a batch that is stored as a whole or not at all."""
KILLS = 60


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def diary(tmp_path: Path) -> Iterator[Diary]:
    diary = Diary(tmp_path / "diary")
    yield diary
    diary.close()


def opened(file: Path) -> tuple[SQLiteTransport, SQLiteBackend]:
    location = Location(str(file))
    transport, backend = SQLiteTransport(location), SQLiteBackend(location)
    assert transport.shares(backend)
    return transport, backend


def produce(file: Path, diary: Diary, name: str, number: int) -> None:
    """Send batches and single messages; tell before and after each."""
    transport = SQLiteTransport(Location(str(file)))
    for batch in range(number):
        size = BATCH if batch % 2 else 1
        diary.write("sending", f"{name}.{batch}", size)
        transport.send([message(f"{name}.{batch}.{part}") for part in range(size)])
        diary.write("sent", f"{name}.{batch}", size)
    transport.close()


def consume(file: Path, diary: Diary, name: str, enough: int | None) -> None:
    """Run messages and store their outcomes with the acknowledgement, until there are enough."""
    transport, backend = opened(file)
    while enough is None or sum(words[0] == "done" for words in diary.lines()) < enough:
        taken = transport.receive(["q"], 5, 600, 0.1, name)
        for delivery in taken:
            diary.write("run", delivery.id, name, delivery.deliveries)
        transport.maintain()
        outcomes = [outcome(each.id, deliveries=each.deliveries) for each in taken]
        lost = {each.id for each in transport.ack(taken, outcomes)}
        for delivery in taken:
            if delivery.id not in lost:
                diary.write("done", delivery.id, name)
    transport.close()
    backend.close()


def check(file: Path, diary: Diary, killed: set[str]) -> None:
    """Nothing is lost, batches are whole, and only what a killed consumer held runs again."""
    transport, backend = opened(file)
    sending = {words[1]: int(words[2]) for words in diary.lines() if words[0] == "sending"}
    sent = {words[1] for words in diary.lines() if words[0] == "sent"}
    keys = {batch: [f"{batch}.{n}" for n in range(size)] for batch, size in sending.items()}
    final = backend.fetch([key for batch in keys.values() for key in batch])
    for batch, parts in keys.items():
        stored = [key for key in parts if key in final]
        assert len(stored) in (0, len(parts)), f"half of the batch {batch} is there"
        assert stored or batch not in sent, f"the batch {batch} was lost"
    runs: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for words in diary.lines():
        if words[0] == "run":
            runs[words[1]].append((words[2], int(words[3])))
    for key, of_key in runs.items():
        assert [count for _, count in of_key] == sorted({count for _, count in of_key}), key
        assert {name for name, _ in of_key[:-1]} <= killed, f"{key} ran again: {of_key}"
        assert final[key].deliveries == of_key[-1][1]
    assert runs.keys() == final.keys()
    (stats,) = transport.stats(["q"])
    assert (stats.ready, stats.delayed, stats.leased, stats.dead) == (0, 0, 0, 0)
    transport.close()
    backend.close()


def test_four_send_and_four_receive(file: Path, diary: Diary) -> None:
    per_producer = 60
    total = 4 * (per_producer // 2) * (1 + BATCH)
    run(
        *((produce, (file, diary, f"p{number}", per_producer)) for number in range(4)),
        *((consume, (file, diary, f"c{number}", total)) for number in range(4)),
    )
    check(file, diary, killed=set())
    done = Counter(words[1] for words in diary.lines() if words[0] == "done")
    assert len(done) == total
    assert set(done.values()) == {1}


class Victims:
    """Processes of one kind under names of their own, one at a time; each is killed."""

    def __init__(self, target: Callable[..., None], kind: str, *args: Any) -> None:
        self.target = target
        self.kind = kind
        self.args = args
        self.names: set[str] = set()
        self.process: Any = None
        self.name = ""

    def start(self) -> None:
        self.name = f"{self.kind}{len(self.names)}"
        self.names.add(self.name)
        file, diary, *rest = self.args
        self.process = fork.Process(target=self.target, args=(file, diary, self.name, *rest))
        self.process.start()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(BOUND)
        assert self.process.exitcode in (0, -signal.SIGKILL)


@pytest.mark.parametrize("seed", [1, 2])
def test_kills_at_random_moments_lose_nothing(file: Path, diary: Diary, seed: int) -> None:
    chance = random.Random(seed)
    supervisor = SQLiteTransport(Location(str(file)))
    producers = Victims(produce, "p", file, diary, 1_000_000)
    consumers = Victims(consume, "c", file, diary, None)
    for victims in (producers, consumers):
        victims.start()
    for _ in range(KILLS // 2):  # in each of two runs
        victims = chance.choice([producers, consumers])
        # At a random moment of its work: when the diary has grown, and a little later.
        size, more = diary.path.stat().st_size, chance.randrange(3000)
        until(lambda size=size, more=more: diary.path.stat().st_size > size + more)  # type: ignore[misc]
        for _ in range(chance.randrange(20_000)):
            pass
        victims.kill()
        if victims is consumers:
            supervisor.recover(victims.name, started=[])
        victims.start()
    producers.kill()
    consumers.kill()
    supervisor.recover(consumers.name, started=[])
    while taken := supervisor.receive(["q"], 100, 600, 0, "last"):
        for delivery in taken:
            diary.write("run", delivery.id, "last", delivery.deliveries)
        outcomes = [outcome(each.id, deliveries=each.deliveries) for each in taken]
        assert supervisor.ack(taken, outcomes) == []
    supervisor.close()
    check(file, diary, killed=consumers.names)


def test_a_stopped_consumer_is_fenced_when_it_goes_on(file: Path, diary: Diary) -> None:
    """SIGSTOP beyond its lease, then SIGCONT: its message has run elsewhere."""
    transport, backend = opened(file)
    transport.send([message("a")])
    go_on = os.pipe()

    def hold() -> None:
        own, _ = opened(file)
        (delivery,) = own.receive(["q"], 1, 0.2, 10, "stopped")
        diary.write("holds")
        os.read(go_on[0], 1)
        lost = own.ack([delivery], [outcome("a", "FAILURE", deliveries=delivery.deliveries)])
        assert lost == [delivery]
        assert own.extend([delivery], 60) == [delivery]
        assert own.release([delivery]) == [delivery]

    process = fork.Process(target=hold)
    process.start()
    until(diary.lines)
    assert process.pid
    os.kill(process.pid, signal.SIGSTOP)
    (again,) = transport.receive(["q"], 1, 60, BOUND, "other")
    assert (again.id, again.deliveries, again.lost) == ("a", 2, 1)
    os.write(go_on[1], b"!")
    os.kill(process.pid, signal.SIGCONT)
    process.join(BOUND)
    assert process.exitcode == 0
    assert transport.ack([again], [outcome("a", "SUCCESS", deliveries=2)]) == []
    assert backend.fetch(["a"])["a"].state == "SUCCESS"
    transport.close()
    backend.close()
    for fd in go_on:
        os.close(fd)


def test_a_kill_in_a_transaction_undoes_it(file: Path) -> None:
    """All statements of a batch were done and the process is killed before the commit."""
    transport = SQLiteTransport(Location(str(file)))
    transport.send([message("before")])

    def send() -> None:
        own = SQLiteTransport(Location(str(file)))

        def half(db: Any) -> None:
            from taskline.sqlite import messages as rows

            rows.add(db, [rows.row(message(str(number)), 0.0) for number in range(500)])
            os.kill(os.getpid(), signal.SIGKILL)

        own._database.write(half)

    process = fork.Process(target=send)
    process.start()
    process.join(BOUND)
    assert process.exitcode == -signal.SIGKILL
    assert transport.stats(["q"])[0].ready == 1
    transport.send([message("after")])
    taken = transport.receive(["q"], 1000, 30, 0, "w")
    assert [delivery.id for delivery in taken] == ["before", "after"]
    transport.close()
