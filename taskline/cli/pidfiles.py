"""The file that tells a supervisor of services which process is the worker."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from taskline.errors import ConfigurationError


@contextlib.contextmanager
def hold(name: str | None) -> Iterator[None]:
    """Hold a file with our process id; refuse when the process of an existing one still runs."""
    if name is None:
        yield
        return
    path = Path(name)
    _claim(path)
    try:
        yield
    finally:
        # A forked child must not take the file away.
        with contextlib.suppress(FileNotFoundError):
            if path.read_text().strip() == str(os.getpid()):
                path.unlink()


def _claim(path: Path) -> None:
    for _ in range(2):
        try:
            with path.open("x") as file:
                file.write(f"{os.getpid()}\n")
            return
        except FileExistsError:
            _remove_stale(path)
        except OSError as error:
            raise ConfigurationError(f"--pidfile {path}: {error.strerror}") from None
    raise ConfigurationError(f"--pidfile {path}: another worker is starting with it")


def _remove_stale(path: Path) -> None:
    """Delete the file of a process that is gone."""
    try:
        text = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"--pidfile {path}: {error.strerror}") from None
    if not re.fullmatch(r"[1-9]\d{0,9}", text, re.ASCII):
        raise ConfigurationError(f"--pidfile {path}: the file exists and holds no process id")
    from taskline.worker.parent.status import runs

    # In a container every worker may be process 1, and so was the one before.
    if int(text) != os.getpid() and runs(int(text)):
        raise ConfigurationError(f"--pidfile {path}: process {text} is running with it")
    path.unlink(missing_ok=True)
