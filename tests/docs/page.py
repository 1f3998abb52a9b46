"""Runs one page of the documentation as the story it tells, in the current directory.

`python page.py README.md`. Read from top to bottom, a page's fenced blocks are its steps:

- ```python runs; all of a page's blocks share one namespace. With `title="shop.py"` it (or a
  block of any other language with a title) is written to that file instead.
- ```console runs each line that starts with `$ `. Where output follows, it must be what the
  command prints; `...` stands for anything, also within a line. The ids of tasks, durations and the
  width of columns need not be the same.
- ```bash runs as one script.

What readers need not see stands in comments, each before the block it is about:

- <!-- test: run ... -->         Python to run: the text up to the end of the comment.
- <!-- test: file NAME ... -->   a file to write.
- <!-- test: skip WHY -->        the next block is not run; say why.
- <!-- test: raises NAME -->     the next block ends with an exception of that class.
- <!-- test: fails CODE -->      the next block's commands exit with that code.
- <!-- test: eventually -->      the next block's command is run until it prints what is shown.
- <!-- test: background -->      the next block's command goes on running; its output, where
                                 given, is awaited. At the end it gets SIGTERM and must exit 0.
- <!-- test: stop -->            the end for what runs in the background comes here already.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

LANGUAGES_THAT_RUN = {"python", "console", "bash"}
PATIENCE = 60.0

STEP = re.compile(
    r"^<!-- test: (?P<verb>\w+)(?P<rest>.*?)-->$"
    r"|^(?P<indent>\s*)```(?P<language>\w+)(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


class Wrong(Exception):
    """The page does not do what it says."""


class Page:
    """One run of one page."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        self.namespace = types.ModuleType("__main__")
        sys.modules["__main__"] = self.namespace
        self.running: list[tuple[str, subprocess.Popen[str], Path]] = []
        self.started = 0

    def run(self) -> int:
        """Run all steps; returns how many blocks ran. Raises `Wrong`."""
        directives: dict[str, str] = {}
        count = 0
        with self._stopping():
            for match in STEP.finditer(self.text):
                line = self.text.count("\n", 0, match.start()) + 1
                verb, rest = match["verb"], (match["rest"] or "")
                try:
                    if verb == "run":
                        self._python(rest, line)
                    elif verb == "file":
                        name, _, content = rest.strip().partition("\n")
                        self._write(name.strip(), content + "\n")
                    elif verb == "stop":
                        self._stop()
                    elif verb:
                        directives[verb] = rest.strip()
                    else:
                        count += self._block(match, line, directives)
                        directives = {}
                except Wrong as error:
                    raise Wrong(f"{self.path.name}:{line}: {error}") from error.__cause__
        return count

    def _block(self, match: re.Match[str], line: int, directives: dict[str, str]) -> int:
        language, info, indent = match["language"], match["info"], match["indent"]
        code = "".join(text.removeprefix(indent) for text in match["code"].splitlines(True))
        unknown = set(directives) - {"skip", "raises", "fails", "background", "eventually"}
        if unknown:
            raise Wrong(f"unknown directive {unknown}")
        if "skip" in directives:
            if not directives["skip"]:
                raise Wrong("a skipped block needs a reason")
            return 0
        title = re.search(r'title="([^"]+)"', info)
        if title:
            self._write(title[1], code)
            return 1
        if language not in LANGUAGES_THAT_RUN:
            return 0
        if language == "python":
            self._python(code, line + 1, directives.get("raises"))
        elif language == "bash":
            self._command(code, "", int(directives.get("fails", 0)))
        else:
            for command, expected in commands(code):
                if "background" in directives:
                    self._start(command, expected)
                elif "eventually" in directives:
                    self._eventually(command, expected)
                else:
                    self._command(command, expected, int(directives.get("fails", 0)))
        return 1

    def _write(self, name: str, content: str) -> None:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def _python(self, code: str, line: int, raises: str | None = None) -> None:
        name = f"<{self.path.name}:{line}>"
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        try:
            exec(compile(code, name, "exec"), self.namespace.__dict__)
        except Exception as error:
            if raises in [kind.__name__ for kind in type(error).__mro__]:
                return
            raise Wrong(f"{type(error).__name__}: {error}") from error
        if raises:
            raise Wrong(f"nothing was raised, where the page says {raises}")

    def _command(self, command: str, expected: str, code: int) -> None:
        run = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=PATIENCE,
        )
        if run.returncode != code:
            raise Wrong(f"$ {command}\nexit code {run.returncode}, not {code}:\n{run.stdout}")
        if expected and not matches(expected, run.stdout):
            raise Wrong(f"$ {command}\nprints\n{run.stdout}\nwhere the page shows\n{expected}")

    def _eventually(self, command: str, expected: str) -> None:
        deadline = time.monotonic() + PATIENCE / 2
        while True:
            try:
                return self._command(command, expected, 0)
            except Wrong:
                if time.monotonic() > deadline:
                    raise

    def _start(self, command: str, expected: str) -> None:
        self.started += 1
        log = Path(f"background-{self.started}.log")
        with log.open("w") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        self.running.append((command, process, log))
        deadline = time.monotonic() + PATIENCE
        while expected and not matches(expected + "...", log.read_text()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Wrong(f"$ {command}\nprints\n{log.read_text()}\nand not\n{expected}")
            time.sleep(0.02)

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for command, process, log in self.running:
                process.kill()
                print(f"--- $ {command}\n{log.read_text()}", file=sys.stderr)
            raise
        self._stop()

    def _stop(self) -> None:
        while self.running:
            command, process, log = self.running.pop()
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise Wrong(f"$ {command}\ndid not stop:\n{log.read_text()}") from None
            if code != 0:
                raise Wrong(f"$ {command}\nended with {code}:\n{log.read_text()}")


def commands(code: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown."""
    command, expected = "", ""
    for line in code.splitlines(True):
        if line.startswith("$ "):
            if command:
                yield command, expected
            command, expected = line[2:].rstrip("\n"), ""
        elif command.endswith("\\"):
            command = command + "\n" + line.rstrip("\n")
        else:
            expected += line
    if not command:
        raise Wrong("a console block has lines with `$ `")
    yield command, expected


def matches(expected: str, printed: str) -> bool:
    """Whether the output is as shown: any id is every id, and any duration every duration."""
    pattern = ".*".join(re.escape(part) for part in _plain(expected).split("..."))
    return re.fullmatch(pattern, _plain(printed), re.DOTALL) is not None


def _plain(text: str) -> str:
    text = re.sub(r"\b[0-9a-f]{32}\b", "ID", text)
    text = re.sub(r"\b\d+(\.\d+)?(ms|s|m|h|d)\b", "DURATION", text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def main(path: str) -> int:
    sys.path[0] = os.getcwd()
    try:
        count = Page(Path(path)).run()
    except Wrong as error:
        import traceback

        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        print(error, file=sys.stderr)
        return 1
    print(f"{count} blocks ran")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
