"""Exceptions that travel: from the worker into an outcome, and out of it at the caller.

An exception is described as JSON: its type by name, its message, its traceback
as text, and its arguments and attributes as far as JSON carries them. The
reader looks the type up among the modules it has imported (nobody can catch a
class that nobody imported), and never runs its `__init__`.
"""

from __future__ import annotations

import builtins
import os
import sys
from types import TracebackType
from typing import Any

import msgspec

from taskline.errors import TaskFailed

_MAX_TEXT = 16_384
_MAX_TRACEBACK = 65_536
_MAX_GROUP, _MAX_DEPTH = 20, 4
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())  # Python 3.11 and later
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class RemoteTraceback(Exception):
    """Shows the worker's traceback as the cause of the exception raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def encode_error(error: BaseException) -> dict[str, Any]:
    """Describe an exception for `OutcomeHeader.error`. Never raises."""
    described = _describe(error)
    described["traceback"] = traceback_text(error)
    return described


def error_line(error: BaseException) -> str:
    """An exception in one line, for the list of a message's failed attempts."""
    first = _message(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:200] if first else type(error).__name__


def rebuild_error(described: dict[str, Any]) -> Exception:
    """The exception that `encode_error` described, ready to be raised.

    Its `__cause__` shows the remote traceback. An exception whose type is not
    imported here, or that would end the caller's process (`SystemExit`),
    becomes a `TaskFailed`.
    """
    error = _rebuild(described)
    traceback = str(described.get("traceback") or "")
    if traceback:
        error.__cause__ = RemoteTraceback(traceback)
    return error


def _describe(error: BaseException, depth: int = 0) -> dict[str, Any]:
    kind = type(error)
    described: dict[str, Any] = {
        "type": f"{kind.__module__}.{kind.__qualname__}",
        "message": _cut(_message(error), _MAX_TEXT),
    }
    args = list(error.args)
    if isinstance(error, _GROUP):
        members = error.exceptions[:_MAX_GROUP] if depth < _MAX_DEPTH else ()
        described["exceptions"] = [_describe(each, depth + 1) for each in members]
        args = [_cut(str(error.message), _MAX_TEXT)]
    elif isinstance(error, OSError) and error.filename is not None:
        args = [error.errno, error.strerror, error.filename]  # its args have no filename
    if _is_small_json(args):
        described["args"] = args
    attrs = {name: value for name, value in vars(error).items() if _is_small_json(value)}
    if attrs:
        described["attrs"] = attrs
    return described


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # a __str__ of the user's that fails
        return f"<its __str__ raised {type(broken).__name__}>"


def _is_small_json(value: Any) -> bool:
    try:
        return _is_json(value) and len(msgspec.json.encode(value)) <= _MAX_TEXT
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return False


def _is_json(value: Any) -> bool:
    """Whether JSON gives back an equal value of the same type."""
    kind = type(value)
    if value is None or kind in (str, bool, int):
        return True
    if kind is float:
        return bool(value - value == 0)  # neither infinite nor NaN
    if kind is list:
        return all(map(_is_json, value))
    return kind is dict and all(type(key) is str and _is_json(each) for key, each in value.items())


def _cut(text: str, most: int) -> str:
    """The text with its middle cut out where it is too long, and fit for UTF-8."""
    if len(text) > most:
        head, tail = most // 4, most - most // 4
        left_out = f"… {len(text) - most} characters left out …"
        text = f"{text[:head]}\n{left_out}\n{text[-tail:]}"
    return text.encode("utf-8", "backslashreplace").decode()


def traceback_text(error: BaseException) -> str:
    """The traceback as Python prints it, without our own frames at its start. Never raises."""
    import traceback

    try:
        lines = traceback.format_exception(type(error), error, user_traceback(error.__traceback__))
    except Exception as broken:  # traceback calls the user's __str__ and __repr__
        return f"{_message(error)}\n<its traceback cannot be shown: {type(broken).__name__}>\n"
    return _cut("".join(lines), _MAX_TRACEBACK)


def user_traceback(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is not ours; the whole one when all are."""
    frame = traceback
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.tb_next
    return frame or traceback


def _rebuild(described: dict[str, Any]) -> Exception:
    name = str(described.get("type") or "an unknown exception")
    message = str(described.get("message") or "")
    kind = _imported(name)
    if kind is not None:
        error = _make(kind, described, message)
        if error is not None:
            return error
    return TaskFailed(
        f"{name}: {message}" if message else name,
        exception_type=name,
        remote_traceback=str(described.get("traceback") or ""),
    )


def _imported(name: str) -> type[Exception] | None:
    """The exception class of this dotted name, if its module is imported here."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        found: Any = _module(".".join(parts[:cut]))
        if found is None:
            continue
        for part in parts[cut:]:
            found = getattr(found, "__dict__", {}).get(part)  # never a module's __getattr__
        if isinstance(found, type) and issubclass(found, Exception):
            return found
    return None


def _module(name: str) -> Any:
    module = sys.modules.get(name)
    if module is None:
        # The program that was started as a script is the module `name` to the worker.
        main = sys.modules.get("__main__")
        path = getattr(main, "__file__", None) or ""
        if os.path.splitext(os.path.basename(path))[0] == name:
            return main
    return module


def _make(kind: type[Exception], described: dict[str, Any], message: str) -> Exception | None:
    args = described.get("args")
    members = described.get("exceptions")
    if not isinstance(args, list):
        args = [message]
    if isinstance(members, list):
        args = [*args, [_rebuild(each) for each in members if isinstance(each, dict)]]
    # The class's own __new__ and __init__ may want anything; those of Python are known.
    base = next(each for each in kind.__mro__ if each.__module__ == "builtins")
    try:
        error: Exception = base.__new__(kind, *args)
        vars(error).update(described.get("attrs") or {})
        if _message(error) != message:
            error = base.__new__(_saying(kind, message), *args)
            vars(error).update(described.get("attrs") or {})
    except (TypeError, ValueError, AttributeError):
        return None
    return error


def _saying(kind: type[Exception], message: str) -> type[Exception]:
    """A subclass whose text is `message`: its own needs attributes that did not travel."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), {**names, "__str__": lambda self: message})
