"""Unique calls of many processes on one file, some of which are killed at any moment."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from integration.unique import calls_that_do_not_meet
from taskline import Taskline
from taskline.message import SUCCESS
from taskline.testing.stepping import Hand

from .helpers import BOUND, Diary, fork, run, until

KEYS = 60
KILLS = 25


def shop(file: Path, ran: list[str] | None = None) -> tuple[Taskline, Any]:
    app = Taskline("shop", broker=f"sqlite:///{file}", backend=f"sqlite:///{file}")

    @app.task(name="work", unique="until_end", unique_by="key")
    def work(key: str, sender: str) -> None:
        if ran is not None:
            ran.append(key)

    return app, work


def send(file: Path, diary: Diary, name: str) -> None:
    """Call for each key, and tell what was answered."""
    app, work = shop(file)
    for number in range(KEYS):
        result = work.delay(f"key{number}", name)
        diary.write(name, f"key{number}", result.id, int(result.duplicate))
    app.close()


def check(file: Path, diary: Diary) -> list[list[str]]:
    """One task of each key, and all who were told of it can see its end."""
    told = diary.lines()
    of_key = defaultdict(set)
    for _, key, one, _ in told:
        of_key[key].add(one)
    assert {key: len(ids) for key, ids in of_key.items()} == {f"key{n}": 1 for n in range(KEYS)}
    ran: list[str] = []
    app, work = shop(file, ran)
    hand = Hand(app)
    hand.work(5000)
    hand.close()
    assert Counter(ran) == {f"key{number}": 1 for number in range(KEYS)}
    for (one,) in of_key.values():
        assert app.AsyncResult(one).state == SUCCESS
    assert not work.delay("key0", "after").duplicate
    app.close()
    return told


def test_one_of_many_processes_sends(tmp_path: Path) -> None:
    diary = Diary(tmp_path / "diary")
    names = ["a", "b", "c", "d"]
    run(*((send, (tmp_path / "shop.db", diary, name)) for name in names))
    told = check(tmp_path / "shop.db", diary)
    fresh = Counter(key for _, key, _, duplicate in told if duplicate == "0")
    assert fresh == {f"key{number}": 1 for number in range(KEYS)}
    diary.close()


def test_senders_are_killed(tmp_path: Path) -> None:
    file, diary, dice = tmp_path / "shop.db", Diary(tmp_path / "diary"), random.Random(7)
    for number in range(KILLS):
        victim = fork.Process(target=send, args=(file, diary, f"victim{number}"))
        victim.start()
        assert victim.pid is not None
        enough = dice.randrange(KEYS)
        until(lambda: len(mine(diary, f"victim{number}")) >= enough or not victim.is_alive())  # noqa: B023
        for _ in range(dice.randrange(2000)):  # some further steps, so that it dies anywhere
            pass
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(BOUND)
    run((send, (file, diary, "last")))
    check(file, diary)
    diary.close()


def mine(diary: Diary, name: str) -> list[list[str]]:
    return [words for words in diary.lines() if words[0] == name]


def test_calls_that_do_not_meet(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    with Taskline("shop", broker=url, backend=url) as app:
        calls_that_do_not_meet(app)
