"""The checker catches what it is there for: a flawless history with one flaw in each test."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration.chaos.checker import check
from integration.chaos.driver import plan_for
from integration.chaos.evidence import Evidence
from integration.chaos.history import History, Reader
from integration.chaos.plan import CALM_FAULTS
from integration.chaos.report import report
from integration.chaos.stores import NAMES, store_class

LEASE = 2.0


class World:
    """A history and a final state, made by hand. Times are monotonic; the wall shows 1000 more."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.tokens: dict[tuple[str, int], str] = {}
        """The result of each delivery that ended well."""
        self.final: dict[str, Any] = {
            "store": "sqlite",
            "lease": LEASE,
            "capabilities": {},
            "together": True,
            "batch": 0,
            "answers_lost": False,
            "drain": 0.0,
            "moves": [],
            "outcomes": {},
            "dead": {},
            "waiting": {},
            "integrity": "ok",
            "critical": [],
        }

    def note(self, kind: str, t: float, **fields: Any) -> None:
        self.records.append({"kind": kind, "t": t, **fields})

    def send(
        self,
        base: str,
        kinds: str,
        verdict: str = "sent",
        etas: dict[str, float] | None = None,
        expiries: dict[str, float] | None = None,
    ) -> None:
        self.note("sending", 0.0, base=base, kinds=kinds, etas=etas or {}, expiries=expiries or {})
        if verdict:
            self.note(verdict, 0.1, base=base)

    def join(self, base: str, first: str, key: int) -> None:
        """A call that got the result of another's task."""
        self.note("sending", 0.0, base=base, kinds="u", etas={}, expiries={}, key=key)
        self.note("sent", 0.1, base=base, joined=first)

    def as_store(self, **capabilities: bool) -> None:
        """Be a server, which is not the backend too, with these capabilities."""
        self.final.update(capabilities=capabilities, together=False, batch=1, answers_lost=True)

    def run(
        self,
        key: str,
        at: float,
        until: float | None = None,
        *,
        delivery: int = 1,
        attempt: int = 1,
        pid: int = 100,
        end: str = "ok",
    ) -> None:
        """One run of a task's code, cut off where it has no end."""
        run = f"{key}/{delivery}/{attempt}/{pid}/{at}"
        who = {"run": run, "id": key, "deliveries": delivery, "pid": pid, "group": pid // 100}
        self.note("start", at, **who, attempt=attempt, wall=at + 1000)
        if until is not None:
            self.note("finish", until, **who, end=end)
            if end == "ok":
                self.tokens[key, delivery] = run

    def end(self, key: str, state: str = "SUCCESS", *, delivery: int = 1, attempt: int = 1) -> None:
        """The stored outcome, and the dead letter of a failure."""
        token = self.tokens.get((key, delivery), "none") if state == "SUCCESS" else None
        known = {"state": state, "token": token, "attempt": attempt, "deliveries": delivery}
        self.final["outcomes"][key] = known
        if state == "FAILURE":
            self.final["dead"][key] = {"reason": "it failed", "deliveries": delivery}

    def kill(self, at: float, *pids: int, group: int | None = None) -> None:
        self.note(
            "kill", at, what="kill child", pids=list(pids), group=group, since=at, until=at + 0.01
        )

    def pause(self, since: float, until: float, *pids: int, locked: bool = False) -> None:
        self.note(
            "pause",
            until,
            what="pause child",
            pids=list(pids),
            since=since,
            until=until,
            locked=locked,
        )

    def link(self, what: str, since: float, until: float, who: str = "north") -> None:
        """Trouble with the connections of a site, whose processes are 900 and those beside it."""
        self.note("site", 0.0, name="north", group=9, skew=0.0)
        self.note("link", until, what=what, who=who, since=since, until=until)

    def violations(self) -> set[str]:
        return {violation.rule for violation in check(Evidence(self.records, self.final))}


@pytest.fixture
def world() -> World:
    """One task of every kind, with the ends and the repeats that faults explain."""
    world = World()
    world.send("a", "ssfrxdepc", etas={"5": 1003.0}, expiries={"6": 1004.0})
    for key in ("a-0", "a-1"):
        world.run(key, 1.0, 1.1)
        world.end(key)
    world.run("a-2", 1.0, 1.1, end="raised")
    world.run("a-2", 1.2, 1.3, end="raised", delivery=2, attempt=2)
    world.run("a-2", 1.4, 1.5, delivery=3, attempt=3)
    world.end("a-2", delivery=3, attempt=3)
    world.run("a-3", 1.0, 1.1, end="raised")
    world.end("a-3", "FAILURE")
    world.run("a-4", 1.0, 1.1, end="raised")
    world.run("a-4", 1.2, 1.3, end="raised", delivery=2, attempt=2)
    world.end("a-4", "FAILURE", delivery=2, attempt=2)
    world.run("a-5", 3.1, 3.2)
    world.end("a-5")
    world.end("a-6", "EXPIRED")
    for delivery, pid in ((1, 700), (2, 701), (3, 702)):
        world.run("a-7", float(delivery), delivery=delivery, pid=pid)
        world.note("crash", delivery + 0.01, id="a-7", pid=pid, deliveries=delivery)
    world.end("a-7", "FAILURE", delivery=4)
    world.run("a-8", 1.0, pid=800)
    world.note("crash", 1.01, id="a-8", pid=800, deliveries=1)
    world.run("a-8", 1.2, 1.3, pid=801, delivery=2)
    world.end("a-8", delivery=2)
    world.send("b", "ss", verdict="")
    world.send("c", "ss", verdict="raised")
    world.note("exit", 9.0, who="north", code=0, expected=True)
    return world


def test_a_flawless_history_has_no_violations(world: World) -> None:
    assert world.violations() == set()


def repeated(world: World, **second: Any) -> None:
    """A task that is run again although it had ended."""
    world.send("r", "s")
    world.run("r-0", 5.0, 5.1, pid=900)
    world.run("r-0", 6.0, 6.1, pid=901, delivery=2, **second)
    world.end("r-0", delivery=2)


EXPLAINED: dict[str, Callable[[World], None]] = {
    "killed before the result was stored": lambda world: world.kill(5.2, 900),
    "killed with its group": lambda world: world.kill(5.2, group=9),
    "paused beyond its lease": lambda world: world.pause(5.05, 8.0, 900),
    "paused between receiving and starting": lambda world: world.pause(3.0, 4.9, 900),
    "the file was locked": lambda world: world.pause(4.5, 6.5, 1, locked=True),
    "the machine stood still": lambda world: world.note("stall", 6.0, since=4.9, until=5.9),
    "told to stop at once": lambda world: world.note(
        "terminate", 5.05, what="terminate twice", again=True, group=9, since=5.05, until=5.06
    ),
    "its connections were refused": lambda world: world.link("refuse link", 4.5, 6.5),
    "killed while others kept the file": lambda world: (
        world.pause(5.0, 9.0, 1, locked=True),
        world.kill(5.9, 900),
    )[0],
}


@pytest.mark.parametrize("fault", EXPLAINED.values(), ids=EXPLAINED.keys())
def test_faults_that_explain_a_repeat(world: World, fault: Callable[[World], None]) -> None:
    repeated(world)
    fault(world)
    assert world.violations() == set()


UNEXPLAINED: dict[str, Callable[[World], None]] = {
    "nothing happened": lambda world: None,
    "another process was killed": lambda world: world.kill(5.05, 902),
    "another group was killed": lambda world: world.kill(5.05, group=8),
    "it was killed before it ran": lambda world: world.kill(4.0, 900),
    "it was killed when all was settled": lambda world: world.kill(5.1 + LEASE + 0.1, 900),
    "it was killed after the second run began": lambda world: world.kill(6.05, 900),
    "a pause shorter than any lease": lambda world: world.pause(5.05, 5.6, 900),
    "a pause long ago": lambda world: world.pause(0.5, 2.5, 900),
    "a pause of another process": lambda world: world.pause(4.0, 8.0, 901),
    "a clean stop": lambda world: world.note(
        "terminate", 5.05, what="terminate", again=False, group=9, since=5.05, until=5.06
    ),
    "its connections were cut for a moment": lambda world: world.link("cut link", 5.05, 5.06),
    "another site's connections were refused": lambda world: (
        world.note("site", 0.0, name="south", group=8, skew=0.0),
        world.link("refuse link", 4.5, 6.5, "south"),
    )[1],
    "the producers' connections were refused": lambda world: world.link(
        "refuse link", 4.5, 6.5, "producers"
    ),
    "its supervisor was killed": lambda world: world.kill(5.05, 9),
}


@pytest.mark.parametrize("fault", UNEXPLAINED.values(), ids=UNEXPLAINED.keys())
def test_what_does_not_explain_a_repeat(world: World, fault: Callable[[World], None]) -> None:
    repeated(world)
    fault(world)
    assert world.violations() == {"repeat"}


def forget(world: World, key: str) -> None:
    del world.final["outcomes"][key]


def change(world: World, key: str, **fields: Any) -> None:
    world.final["outcomes"][key].update(fields)


def see(world: World, key: str, **fields: Any) -> None:
    final = world.final["outcomes"][key]
    world.note("seen", 2.0, id=key, **{**final, **fields})


def overlap(world: World) -> None:
    """A paused process runs on, and its result replaces that of the run that replaced it."""
    world.send("o", "s")
    world.run("o-0", 5.0, 9.0, pid=900)
    world.run("o-0", 7.5, 7.6, pid=901, delivery=2)
    world.pause(5.1, 8.9, 900)
    world.end("o-0", delivery=1)


def many(world: World, kind: str, count: int, gap: float) -> None:
    """Tasks of one kind that begin one after the other, and run for 0.3 s."""
    world.send(kind, kind * count)
    for number in range(count):
        at = 5.0 + number * gap
        world.run(f"{kind}-{number}", at, at + 0.3, pid=900 + number)
        world.end(f"{kind}-{number}")


def test_limits_that_are_kept(world: World) -> None:
    many(world, "t", 40, 0.1)
    many(world, "n", 2, 0.01)
    assert world.violations() == set()


def test_a_process_that_was_paused_has_lost_its_place(world: World) -> None:
    many(world, "n", 3, 0.01)
    world.pause(3.0, 5.1, 900)
    assert world.violations() == set()


FLAWS: dict[str, tuple[str, Callable[[World], None]]] = {
    "no outcome": ("lost", lambda world: forget(world, "a-1")),
    "no trace at all": ("lost", lambda world: world.send("z", "s")),
    "still waiting": ("not final", lambda world: world.final["waiting"].update({"a-0": "leased"})),
    "only retried": ("wrong end", lambda world: change(world, "a-2", state="RETRY")),
    "failed for no reason": ("wrong end", lambda world: world.end("a-0", "FAILURE")),
    "a dead letter that should not be": (
        "dead letter",
        lambda world: world.final["dead"].update({"a-0": {"reason": "x", "deliveries": 1}}),
    ),
    "a failure without dead letter": ("two ends", lambda world: world.final["dead"].clear()),
    "poison that ended well": ("wrong end", lambda world: world.end("a-7", delivery=3)),
    "half a batch": ("half a batch", lambda world: (world.run("b-0", 1, 2), world.end("b-0"))[0]),
    "a send that raised": (
        "raised but sent",
        lambda world: [world.end(key) for key in ("c-0", "c-1")] and None,
    ),
    "a send that raised, half": (
        "raised but sent",
        lambda world: world.final["waiting"].update({"c-1": "ready"}),
    ),
    "from nowhere": ("invented", lambda world: world.run("q-1", 1.0, 1.1)),
    "one delivery, two runs": ("two runs", lambda world: world.run("a-0", 1.5, 1.6)),
    "begun at the second attempt": (
        "attempts",
        lambda world: (
            [
                record.update(attempt=2)
                for record in world.records
                if record["kind"] == "start" and record["id"] == "a-0"
            ]
            and None
        ),
    ),
    "an attempt left out": (
        "attempts",
        lambda world: world.run("a-4", 2, 3, end="raised", delivery=3, attempt=4),
    ),
    "tried again though it returned": (
        "attempts",
        lambda world: world.run("a-0", 2, 2.1, delivery=2, attempt=2),
    ),
    "a success that never ran": ("no run", lambda world: world.end("a-6")),
    "a result of no run": ("result", lambda world: change(world, "a-0", token="made up")),
    "a fenced run's result": ("result", overlap),
    "stored under another delivery": ("result", lambda world: change(world, "a-0", deliveries=7)),
    "a failure that never ran": (
        "no run",
        lambda world: (world.send("n", "r"), world.end("n-0", "FAILURE"))[0],
    ),
    "poison that was not cut off": (
        "no run",
        lambda world: world.run("a-7", 4.0, 4.1, end="raised", delivery=4, pid=703),
    ),
    "expired though it ran in peace": ("result", lambda world: world.run("a-6", 1.0, 1.1)),
    "an older failure over a newer run": (
        "result",
        lambda world: change(world, "a-4", deliveries=1),
    ),
    "started before its eta": ("early", lambda world: world.run("a-5", 2.9, 3.0)),
    "started when expired": ("expired", lambda world: world.run("a-6", 4.3)),
    "a final state that changed": ("changed", lambda world: see(world, "a-0", state="FAILURE")),
    "a result that changed": ("changed", lambda world: see(world, "a-0", token="another")),
    "a result that vanished": (
        "changed",
        lambda world: (see(world, "a-0"), forget(world, "a-0"))[0],
    ),
    "get() told another result": (
        "changed",
        lambda world: world.note("got", 2.0, id="a-0", state="SUCCESS", token="x", asked=1.0),
    ),
    "joined, and sent all the same": (
        "unique",
        lambda world: (world.join("j", "a-0", 1), world.run("j-0", 1.0, 1.1), world.end("j-0"))[0],
    ),
    "joined to what was never there": (
        "lost",
        lambda world: (world.send("k", "u", verdict=""), world.join("j", "k-0", 1))[0],
    ),
    "two of one key at a time": (
        "unique",
        lambda world: (
            [
                (
                    world.send(base, "u"),
                    world.run(f"{base}-0", at, at + 0.3, pid=pid),
                    world.end(f"{base}-0"),
                )
                for base, at, pid in (("k", 5.0, 900), ("l", 5.2, 901))
            ]
            and None
        ),
    ),
    "more begun than the rate allows": ("rate", lambda world: many(world, "t", 30, 0.01)),
    "more at a time than there are places": ("places", lambda world: many(world, "n", 3, 0.01)),
    "a supervisor that ended by itself": (
        "died",
        lambda world: world.note("exit", 5.0, who="north", code=1, expected=False),
    ),
    "a critical line in the log": ("log", lambda world: world.final["critical"].append("I/O")),
    "a damaged file": ("damaged", lambda world: world.final.update(integrity="row 7 missing")),
}


@pytest.mark.parametrize(("rule", "plant"), FLAWS.values(), ids=FLAWS.keys())
def test_every_planted_violation_is_caught(
    world: World, rule: str, plant: Callable[[World], None]
) -> None:
    plant(world)
    assert rule in world.violations()


COPIES = {"idempotent": False}
MOVED_IN_TWO_STEPS = {"idempotent": False, "leases": False}


def test_where_a_receipt_is_its_connections_a_cut_explains_a_repeat(world: World) -> None:
    repeated(world)
    world.link("cut link", 5.05, 5.06)
    world.as_store(leases=False)
    assert world.violations() == set()


@pytest.mark.parametrize(
    ("until", "moved", "explained"),
    [
        (9.0, (100, 7.0), True),
        (9.0, (100, 4.0), False),  # it had less time than it should have had
        (6.0, (100, 7.0), False),  # it was over
        (9.0, (200, 7.0), False),  # another process
        (9.0, (100, 8.9), False),  # after its successor had begun
    ],
)
def test_what_ran_long_when_its_partition_moved_is_run_again(
    world: World, until: float, moved: tuple[int, float], explained: bool
) -> None:
    world.as_store(idempotent=False)
    world.final.update(drain=5.0, moves=[moved])
    world.send("m", "s")
    world.run("m-0", 1.0, until)
    world.run("m-0", 7.1, 15.0, delivery=2, pid=300)
    world.end("m-0", delivery=2)
    assert world.violations() == (set() if explained else {"repeat"})


def sent_twice(world: World) -> None:
    """Two messages of one task, each of which is run by the rules."""
    world.send("t", "f")
    for pid, at in ((900, 15.0), (901, 15.05)):
        world.run("t-0", at, at + 0.01, end="raised", pid=pid)
        world.run("t-0", at + 1, at + 1.01, end="raised", pid=pid, delivery=2, attempt=2)
        world.run("t-0", at + 2, at + 2.01, pid=pid, delivery=3, attempt=3)
    world.end("t-0", delivery=3, attempt=3)


@pytest.mark.parametrize("capabilities", [COPIES, MOVED_IN_TWO_STEPS])
def test_a_send_whose_answer_was_lost_may_be_two_messages(
    world: World, capabilities: dict[str, bool]
) -> None:
    sent_twice(world)
    world.as_store(**capabilities)
    assert "two runs" in world.violations(), "nothing happened to the send"
    world.note("link", 0.2, what="cut link", who="producers", since=0.05, until=0.06)
    assert world.violations() == set()
    world.final["capabilities"] = {}
    assert "two runs" in world.violations(), "who can tell the second send of an id must"


def test_a_move_that_was_broken_off_may_leave_two_messages(world: World) -> None:
    sent_twice(world)
    world.kill(14.9, 555)
    world.as_store(**COPIES)
    assert "two runs" in world.violations()
    world.as_store(**MOVED_IN_TWO_STEPS)
    assert world.violations() == set()


def test_two_messages_of_a_task_do_not_excuse_everything(world: World) -> None:
    sent_twice(world)
    world.kill(14.9, 555)
    world.as_store(**MOVED_IN_TWO_STEPS)
    world.run("t-0", 15.001, 15.002, delivery=9, attempt=3)
    assert world.violations() == {"attempts"}
    change(world, "t-0", token="made up")
    assert world.violations() == {"attempts", "result"}


def test_a_clock_that_is_behind_starts_what_is_just_over(world: World) -> None:
    world.send("k", "e", expiries={"0": 1005.0})
    world.run("k-0", 5.7, 5.8, pid=900)
    world.end("k-0")
    assert world.violations() == {"expired"}
    world.note("site", 0.0, name="south", group=9, skew=-0.4)
    assert world.violations() == {"expired"}
    world.note("site", 0.0, name="south", group=9, skew=-0.6)
    assert world.violations() == set()


def test_every_rule_has_a_test_that_breaks_it() -> None:
    source = (Path(__file__).parent / "checker.py").read_text()
    rules = set(re.findall(r'yield Violation\(\s*"([^"]+)"', source))
    assert len(rules) > 12
    assert rules <= {rule for rule, _ in FLAWS.values()} | {"repeat"}


def test_the_report_counts_what_was_lost_and_repeated(world: World) -> None:
    repeated(world)
    world.kill(5.2, 900)
    forget(world, "a-1")
    evidence = Evidence(world.records, world.final)
    text = report(evidence, check(evidence), seed=7)
    assert "seed 7" in text
    assert "lost: 1" in text
    assert "from kill: kill child to the task's next start, s: median 0.800" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_comes_from_its_seed(name: str) -> None:
    pytest.importorskip({"mongodb": "pymongo", "kafka": "confluent_kafka"}.get(name, "taskline"))
    store = store_class(name)
    assert plan_for(store, 1, 60) == plan_for(store, 1, 60)
    assert plan_for(store, 1, 60) != plan_for(store, 2, 60)
    for seed in range(10):
        kinds = [fault.what for fault in plan_for(store, seed, 90 * store.gap)]
        assert {*CALM_FAULTS, *store.faults} <= set(kinds)
        assert kinds.count("kill child") > 80


def test_a_history_survives_its_writer_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    history = History(tmp_path, "worker")
    history.write("start", id="a")
    [file] = tmp_path.iterdir()
    reader = Reader(tmp_path)
    assert [record["id"] for record in reader.new()] == ["a"]
    with file.open("ab") as stream:
        stream.write(b'{"kind": "start", "id": "b", "t": 1}\n{"kind": "fin')
    assert [record["id"] for record in reader.new()] == ["b"]
    with file.open("ab") as stream:
        stream.write(b'ish", "id": "b", "t": 2}\n')
    assert [record["kind"] for record in reader.new("worker")] == ["finish"]
    assert list(reader.new("producer")) == []
