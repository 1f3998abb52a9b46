"""Hostile messages in the queue of a running worker: each becomes a dead letter, it lives on."""

from __future__ import annotations

import os
import pickle
import random
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from integration.chaos.processes import Group
from integration.chaos.victim import LIMIT, make_app
from taskline import Taskline
from taskline.codec import Codec
from taskline.config import Settings
from taskline.message import FINAL_STATES, Header, Message, join

pytestmark = pytest.mark.serial

KEY = "a key"
SOUND = {"v": 1, "task": "whoami", "queue": "default", "sent": 1.0}


class Victim:
    """A worker process, and the file that its messages are in."""

    def __init__(self, directory: Path, key: str) -> None:
        self.path = directory / "victim.db"
        self.log = directory / "victim.log"
        self.key = key
        url = f"sqlite:///{self.path}"
        self.app: Taskline = make_app(url, key)
        self.group = Group("integration.chaos.victim", [url, key], self.log)
        self.pid = self.whoami()

    def whoami(self) -> int:
        """The worker's process, asked through a good task."""
        pid: int = self.app.tasks["whoami"].delay().get(timeout=30)
        return pid

    def put(self, id: str, frame: bytes, text: bool = False) -> None:
        """Put any bytes into the queue; with `text` not as bytes, but as what SQLite calls text."""
        eta = time.time() + 3600 if text else None
        header = Header(1, id, "", "default", 1.0, eta=eta)
        self.app.transport.send([Message(header, frame)])
        if text:
            change = "UPDATE messages SET frame = CAST(frame AS TEXT), at = 1 WHERE id = ?"
            connection = sqlite3.connect(self.path, timeout=30)
            with connection:
                assert connection.execute(change, (id,)).rowcount == 1
            connection.close()

    def put_all(self, frames: dict[str, bytes]) -> None:
        for id, frame in frames.items():  # noqa: A001
            self.put(id, frame)

    def settle(self) -> None:
        """Wait until the queue is empty."""
        stats = self.app.transport.stats
        self.wait_until(lambda: not any(s.ready or s.leased or s.delayed for s in stats()))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < until, self.app.transport.peek("default", limit=1000)
            time.sleep(0.02)

    def letters(self) -> dict[str, str]:
        """The reasons in the dead letters, by id."""
        found = self.app.transport.dead_letters(limit=100_000)
        return {letter.id: letter.reason for letter in found}

    def frame(self, key: str, body: bytes = b"[[],{}]", **header: Any) -> bytes:
        """A frame whose header may say anything, signed where the worker wants that."""
        return self.sign(msgspec.json.encode({**SOUND, "id": key, **header}) + b"\n" + body)

    def sign(self, frame: bytes, key: str | None = None) -> bytes:
        key = self.key if key is None else key
        if not key:
            return frame
        signer = Codec(Settings(signing_key=key, max_message_size=10 * LIMIT))
        signing = signer._signing
        assert signing is not None
        return signing.sign(frame) + frame

    def is_unharmed(self) -> None:
        """The same process works on, and nothing in its log speaks of its own failure."""
        assert self.whoami() == self.pid
        log = self.log.read_text()
        assert "CRITICAL" not in log
        assert "I/O thread" not in log


@pytest.fixture(params=["", KEY], ids=["open", "keyed"])
def victim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Victim]:
    victim = Victim(tmp_path, request.param)
    try:
        yield victim
    finally:
        victim.group.end()
        victim.app.close()


def check_letters(victim: Victim, ids: set[str]) -> None:
    """Exactly these are dead letters, each with a reason of one bounded line, and readable."""
    letters = victim.letters()
    assert set(letters) == ids
    for reason in letters.values():
        assert reason
        assert "\n" not in reason
        assert len(reason) < 500
    for letter in victim.app.dead.find():
        victim.app.dead.describe(letter)
    for id in ids:  # noqa: A001
        assert victim.app.AsyncResult(id).state == "FAILURE"


def test_random_and_truncated_bytes(victim: Victim) -> None:
    rng = random.Random(7)
    sound = victim.frame("sound")
    frames = {f"random-{n}": rng.randbytes(rng.choice([0, 1, 10, 300, 6000])) for n in range(60)}
    frames |= {f"head-{n}": sound[:n] for n in range(0, len(sound), 9)}
    frames |= {f"tail-{n}": sound[n:] for n in range(1, len(sound), 9)}
    frames |= {
        "newline": b"\n",
        "null": b"null\n[[],{}]",
        "list": b"[]\n[[],{}]",
        "nested": b"[" * 50_000,
        "not-utf8": b'{"v":1,"id":"\xff"}\n[[],{}]',
        "tilde": b"~" * 76,
    }
    victim.put_all(frames)
    victim.settle()
    check_letters(victim, set(frames))
    victim.is_unharmed()


def test_oversized_messages_and_bombs(victim: Victim) -> None:
    frames = {
        "large": victim.frame("large", b'[["' + b"x" * 2 * LIMIT + b'"],{}]'),
        "huge": os.urandom(20 * LIMIT),
        "bomb": victim.frame("bomb", zlib.compress(bytes(1000 * LIMIT)), compression="zlib"),
        "not-zlib": victim.frame("not-zlib", b"[[],{}]", compression="zlib"),
        "unknown-compression": victim.frame("unknown-compression", compression="rar"),
        "deep": victim.frame("deep", b"[[" + b"[" * 40_000 + b"]" * 40_000 + b"],{}]"),
    }
    victim.put_all(frames)
    victim.settle()
    check_letters(victim, set(frames))
    letters = victim.letters()
    assert "max_message_size" in letters["large"]
    assert "max_message_size" in letters["huge"]
    victim.is_unharmed()


def test_what_this_worker_does_not_know(victim: Victim) -> None:
    frames = {
        "task": victim.frame("task", task="no.such.task"),
        "no-task": victim.frame("no-task", task=""),
        "serializer": victim.frame("serializer", serializer="carrier-pigeon"),
        "yaml": victim.frame(
            "yaml", b"!!python/object/apply:os.system ['true']", serializer="yaml"
        ),
        "version": victim.frame("version", v=99),
        "arguments": victim.frame("arguments", b'[[1,2,3],{"x":1}]'),
        "type": victim.frame("type", b'[["not a number"],{}]'),
        "body": victim.frame("body", b'{"a":1}'),
        "no-body": victim.frame("no-body", b""),
    }
    victim.put_all(frames)
    victim.settle()
    check_letters(victim, set(frames))
    letters = victim.letters()
    assert "no.such.task" in letters["task"]
    assert "carrier-pigeon" in letters["serializer"]
    assert "version 99" in letters["version"]
    victim.is_unharmed()


class Bomb:
    """Writes a file where it is unpickled, and ends the process."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        code = f"import os; open({str(self.marker)!r}, 'w').close(); os._exit(3)"
        return (exec, (code,))


class Sour:
    """Raises where it is unpickled."""

    def __reduce__(self) -> Any:
        return (int, ("not a number",))


def test_hostile_pickles_are_never_loaded(victim: Victim, tmp_path: Path) -> None:
    marker = tmp_path / "exploded"
    bomb = pickle.dumps([[Bomb(marker)], {}])
    bare = msgspec.json.encode({**SOUND, "id": "x", "serializer": "pickle"}) + b"\n" + bomb
    sound = victim.sign(bare, key=KEY)
    flipped = bytearray(sound)
    flipped[-3] ^= 1
    frames = {
        "unsigned": bare,
        "other-key": victim.sign(bare, key="another key"),
        "altered": bytes(flipped),
        "signature-of-another": sound[:75] + bare.replace(b'"x"', b'"y"'),
        "json-by-name": victim.frame("json-by-name", bomb),
        "pickle-alone": bomb,
    }
    if victim.key:
        frames["sour"] = victim.frame("sour", pickle.dumps([[Sour()], {}]), serializer="pickle")
        frames["class"] = victim.frame("class", b"cno.such.module\nthing\n.", serializer="pickle")
        frames["cut"] = victim.frame("cut", pickle.dumps([[1], {}])[:-5], serializer="pickle")
    else:
        frames["signed"] = sound
    victim.put_all(frames)
    victim.settle()
    check_letters(victim, set(frames))
    assert not marker.exists()
    victim.is_unharmed()


def test_wrong_signatures(victim: Victim) -> None:
    if not victim.key:
        pytest.skip("this worker asks for none")
    rng = random.Random(3)
    sound = victim.frame("sound")
    frames = {}
    for n in range(60):
        altered = bytearray(sound)
        altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
        frames[f"altered-{n}"] = bytes(altered)
    frames["none"] = sound[75:]
    frames["other"] = victim.sign(sound[75:], key="another key")
    frames["twice"] = victim.sign(sound)
    victim.put_all(frames)
    victim.settle()
    check_letters(victim, set(frames))
    victim.is_unharmed()


STRANGE: dict[str, Any] = {
    "attempt": [-5, 0, 2**62],
    "priority": [-(2**40), 2**40],
    "eta": [-1e308, 1e308],
    "expires": [-1e308, 1e308],
    "timeout": [-1.0, 0.0, 1e-9, 1e308],
    "soft_timeout": [-1.0, 0.0, 1e-9, 1e308],
    "result_ttl": [-1.0, 1e-9, 1e308],
    "retry": [
        {},
        {"max": "many"},
        {"max": -1},
        {"max": 2**70},
        {"no": 1},
        {"wait": []},
        {"wait": {"exponential": {"max": -1, "factor": 1e308}}},
        {"wait": 1e308, "max": 1},
        {"for": ["os.system"]},
        {"for": [1]},
        {"within": -1},
        {"stop": {"type": "x"}},
    ],
    "first_run": [-1e308, 1e308],
    "waited": [-1e308, 1e308],
    "sent": [-1e308, 0.0, 1e308],
    "errors": [["e" * 1000] * 50, [""] * 5000],
    "deliveries": [-1, 2**62],
    "parent": ["p" * 50_000],
    "headers": [{"a": [[[[]]]]}],
    "trace": [{"traceparent": "\x00"}],
    "queue": ["", "other", "q" * 10_000],
    "id": ["", "another", "i" * 50_000],
}


def test_strange_values_in_headers(victim: Victim) -> None:
    """Each ends, well or as a dead letter; only who may be tried again for ever is."""
    ids = []
    for task in ("whoami", "fail", "whoami_async"):
        for field, values in STRANGE.items():
            for n, value in enumerate(values):
                key = f"{task}-{field}-{n}"
                victim.put(key, victim.frame(key, **{"task": task, field: value}))
                ids.append(key)
    # What is kept for no time at all cannot be seen.
    results = [victim.app.AsyncResult(key) for key in ids if "result_ttl" not in key]
    victim.wait_until(lambda: all(r.state in {*FINAL_STATES, "RETRY"} for r in results))
    assert {r.id.rpartition("-")[0] for r in results if r.state == "RETRY"} <= {"fail-retry"}
    assert set(victim.letters()) <= set(ids)
    victim.is_unharmed()


def test_frames_that_were_inserted_as_text(victim: Victim) -> None:
    """By hand, with the sqlite3 program for instance."""
    victim.put("short", victim.frame("short"), text=True)
    victim.put("long", victim.frame("long", b'[[],{"number": 1}]' + b" " * 5000), text=True)
    victim.settle()
    assert victim.app.AsyncResult("short").get(timeout=30) == victim.pid
    assert victim.app.AsyncResult("long").get(timeout=30) == victim.pid
    victim.is_unharmed()


def test_a_flood_of_rubbish_does_not_hold_up_good_tasks(victim: Victim) -> None:
    rng = random.Random(5)
    whoami = victim.app.tasks["whoami"]
    good = []
    for n in range(400):
        victim.put(f"rubbish-{n}", rng.randbytes(200))
        if n % 20 == 0:
            good.append(whoami.delay(n))
    assert [result.get(timeout=30) for result in good] == [victim.pid] * len(good)
    victim.settle()
    check_letters(victim, {f"rubbish-{n}" for n in range(400)})
    victim.is_unharmed()


def test_dead_letters_that_cannot_be_read_are_not_sent_again(victim: Victim) -> None:
    victim.put("rubbish", b"rubbish")
    victim.settle()
    assert victim.app.dead.requeue(["rubbish"]) == []
    assert set(victim.letters()) == {"rubbish"}
    assert victim.app.dead.purge(["rubbish"]) == 1
    header = Header(1, "again", "no.such.task", "default", 1.0)
    victim.app.send([Message(header, victim.sign(join(header, b"[[],{}]")))])
    victim.settle()
    assert victim.app.dead.requeue(["again"]) == ["again"]
    victim.settle()
    check_letters(victim, {"again"})
    victim.is_unharmed()
