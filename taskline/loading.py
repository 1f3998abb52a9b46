"""Loads the user's own code: the modules with their app and tasks."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

from taskline.errors import ConfigurationError, TasklineError

if TYPE_CHECKING:
    from taskline.app import Taskline

_OURS = str(Path(__file__).parent) + "/"


class AppNotFound(ConfigurationError):
    """A path does not lead to exactly one app."""


class BrokenModule(ConfigurationError):
    """The user's module raised while it was imported. `trace` is their traceback."""

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message)
        self.trace = trace


def in_full(error: TasklineError) -> str:
    """What a log is told of it: of a module that raised, where it did so too."""
    if isinstance(error, BrokenModule) and error.trace:
        return f"{error}\n{error.trace.rstrip()}"
    return str(error)


def find_app(path: str) -> Taskline:
    """The app at `module:name`, with the modules that its setting `include` names imported.

    The working directory is put on Python's path. Raises `AppNotFound`, or
    `BrokenModule` when the user's own code fails.
    """
    use_working_directory()
    module_name, _, name = path.partition(":")
    app = named_app(import_user_module(module_name), name)
    import_included(app)
    return app


def use_working_directory() -> None:
    """Look for modules in the working directory first, as `python -m` does."""
    cwd = str(Path.cwd())
    if cwd not in sys.path:
        sys.path.insert(0, cwd)


def named_app(module: ModuleType, name: str) -> Taskline:
    """The app called `name` (which may hold dots) in a module; raises `AppNotFound`."""
    from taskline.app import Taskline

    value: object = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise AppNotFound(f"there is no {name!r} in {where(module)}{_near(name, module)}")
        value = getattr(value, part)
    if not isinstance(value, Taskline):
        raise AppNotFound(f"{module.__name__}:{name} is {_kind(value)}, not a Taskline app")
    return value


def import_included(app: Taskline) -> None:
    """Import the modules that the app's setting `include` names."""
    for name in app.settings.include:
        import_user_module(name)


def import_user_module(name: str) -> ModuleType:
    """Import a module of the user's; what it prints goes to standard error.

    Raises `BrokenModule` with the user's own frames when its code fails, and
    Taskline's errors as they are, with the place in the user's code.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(name)
    except TasklineError as error:
        place = _place(error.__traceback__)
        if place and error.args:
            error.args = (f"{error.args[0]} ({place})", *error.args[1:])
        raise
    except SystemExit as error:
        raise BrokenModule(
            f"importing {name} ended the program (exit code {error.code}): "
            "put what it runs under `if __name__ == '__main__':`",
            _user_traceback(error),
        ) from error
    except Exception as error:
        kind = type(error).__name__
        raise BrokenModule(
            f"importing {name} failed: {kind}: {error}", _user_traceback(error)
        ) from error


def _user_traceback(error: BaseException) -> str:
    whole = traceback.TracebackException.from_exception(error)
    pending: list[traceback.TracebackException | None] = [whole]
    while pending:
        part = pending.pop()
        if part is None:
            continue
        part.stack[:] = [frame for frame in part.stack if not _is_ours(frame.filename)]
        pending += [part.__cause__, part.__context__]
    if not whole.stack and not isinstance(error, SyntaxError):
        return ""
    return "".join(whole.format())


def _place(trace: TracebackType | None) -> str:
    frames = [f for f in traceback.extract_tb(trace) if not _is_ours(f.filename)]
    return f"{_short(frames[-1].filename)}, line {frames[-1].lineno}" if frames else ""


def _is_ours(filename: str) -> bool:
    return filename.startswith((_OURS, "<frozen importlib")) or filename == importlib.__file__


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def where(module: ModuleType) -> str:
    """A module with its file, which tells when it is not the one the user meant."""
    file = getattr(module, "__file__", None)
    return f"{module.__name__} ({_short(file)})" if file else module.__name__


def _near(name: str, module: ModuleType) -> str:
    from taskline.app import Taskline

    public = [each for each in vars(module) if not each.startswith("_")]
    apps = [each for each in public if isinstance(getattr(module, each), Taskline)]
    return did_you_mean(name, apps) or did_you_mean(name, public)


def _kind(value: object) -> str:
    if isinstance(value, ModuleType):
        return "a module"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"of type {type(value).__module__}.{type(value).__qualname__}"


def did_you_mean(name: str, known: list[str], prefix: str = "", suffix: str = "") -> str:
    """The end of an error: the known name that is most like this one; empty if none is."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}{suffix}?" if near else ""
