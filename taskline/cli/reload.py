"""`taskline worker --reload`: the worker again, each time that the code changes. For development.

The watcher is the parent of a whole worker, which it starts with the same arguments. It
looks at the files' times and sizes, since that needs no further package; it imports none
of the user's code, so what is wrong there ends the worker only, and the watcher waits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from taskline.cli import output

LOOK_EVERY = 0.5
"""Seconds between two looks at the files."""
QUIET = 0.2
"""Seconds without a further change after which the changes are complete."""
SUFFIXES = (".py", ".toml", ".yaml", ".yml")
LEFT_OUT = frozenset({"node_modules", "site-packages", "__pycache__", "venv"})

WATCHED = "TASKLINE_WATCHED"
"""Set for the worker, which is not to watch in its turn."""

Files = dict[str, tuple[int, int]]


def watch(directory: Path) -> int:
    """Run this command again and again; returns the exit code of the worker that was stopped."""
    return _Watcher(directory).run()


class _Watcher:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._worker: subprocess.Popen[bytes] | None = None
        self._told = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        files = dict(look(self._directory))
        output.note(
            f"reload    {len(files)} files below {self._directory} are watched: for development"
        )
        while True:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "taskline", *sys.argv[1:]],
                # Bytecode is told from its source's by second and size: too coarse for two
                # changes in a second.
                env={**os.environ, WATCHED: "1", "PYTHONDONTWRITEBYTECODE": "1"},
            )
            while self._worker.poll() is None and not self._is_told():
                if changed := self._changed(files):
                    output.note(f"reload    {changed} changed: the worker is started again")
                    self._worker.terminate()
                    self._wait(files)
                    break
                time.sleep(LOOK_EVERY)
            else:
                code = self._worker.wait()
                if not code or self._is_told():
                    return code
                output.note(
                    f"reload    the worker ended (exit code {code}): waiting for the next change"
                )
                while not (changed := self._changed(files)):
                    if self._is_told():
                        return code
                    time.sleep(LOOK_EVERY)
                output.note(f"reload    {changed} changed: the worker is started again")
            if self._is_told():
                return self._worker.returncode

    def _changed(self, files: Files) -> str:
        """The name of a file that changed, once all of them have been written; else nothing."""
        now = dict(look(self._directory))
        if now == files:
            return ""
        names = sorted(name for name, _ in now.items() ^ files.items())
        while True:
            time.sleep(QUIET)
            before, now = now, dict(look(self._directory))
            if now == before:
                break
        files.clear()
        files.update(now)
        return os.path.relpath(names[0], self._directory)

    def _wait(self, files: Files) -> None:
        """Give the worker its grace; a further change hands back at once what it still runs."""
        assert self._worker is not None
        while self._worker.poll() is None:
            if self._changed(files):
                self._worker.terminate()
            try:
                self._worker.wait(timeout=LOOK_EVERY)
            except subprocess.TimeoutExpired:
                continue

    def _is_told(self) -> bool:
        """Whether this is to end."""
        return self._told

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._told = True
        # A terminal's Ctrl-C comes to the worker too.
        if self._worker is not None and (signum == signal.SIGTERM or not sys.stdin.isatty()):
            self._worker.terminate()


def look(directory: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """The files of code and configuration below a directory, each with its time and size."""
    pending = [str(directory)]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:  # gone since, or not for us
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith(".") and entry.name not in LEFT_OUT:
                        pending.append(entry.path)
                elif entry.name.endswith(SUFFIXES):
                    found = entry.stat()
                    yield entry.path, (found.st_mtime_ns, found.st_size)
            except OSError:
                continue
