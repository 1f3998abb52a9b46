"""The app of the chaos run of workflows; the environment names its servers and its notes."""

from __future__ import annotations

import os

from taskline import Taskline

app = Taskline("chords", lease=2.0, max_deliveries=1000)


def note(*words: object) -> None:
    """Add a line to the notes, in one write."""
    file = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, (" ".join(map(str, words)) + "\n").encode())
    os.close(file)


@app.task
def member(chord: int, number: int) -> int:
    note("member", f"{chord}-{number}", os.getpid())
    return number


@app.task
def callback(numbers: list[int], chord: int) -> int:
    note("callback", chord, os.getpid())
    return sum(numbers)
