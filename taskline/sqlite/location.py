"""Where the file is and how it is opened: `sqlite:///file.db?durability=full&busy_timeout=5&shared=true`."""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import unquote

from taskline.errors import ConfigurationError
from taskline.registry import Spec, options_of

DURABILITIES = ("normal", "full")


class Location(NamedTuple):
    """Which file, and how it is used."""

    path: str
    """Absolute, without symbolic links: two locations of one file are equal in it."""
    durability: str = "normal"
    """`normal` survives the death of every process, `full` a power cut too."""
    busy_timeout: float = 30.0
    """Seconds to wait for other writers before an error."""
    shared: bool = False
    """Whether tables of another application may be in the file before ours are."""


def locate(spec: Spec) -> Location:
    """The location that a URL or a connector mapping names; raises `ConfigurationError`.

    `sqlite:///relative.db`, `sqlite:////absolute.db`, or a mapping with `path`
    (Sergeant's `file_path` is understood), `durability`, `busy_timeout` and `shared`.
    """
    options = options_of(
        spec, rest="path", file_path=str, durability=str, busy_timeout=float, shared=_flag
    )
    path = options.get("file_path") or options.get("path") or ""
    if isinstance(spec, str):
        if path and not path.startswith("/"):
            raise ConfigurationError(
                f"sqlite URL {spec!r} needs three slashes before a relative path and four before "
                f"an absolute one: sqlite:///{path}"
            )
        path = unquote(path[1:])
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigurationError(
            f"sqlite needs the path of a file, got {path!r}: sqlite:///file.db"
        )
    if path == ":memory:":
        raise ConfigurationError("sqlite needs a file, not :memory:: use memory:// instead")
    durability = options.get("durability", "normal")
    if durability not in DURABILITIES:
        raise ConfigurationError(f"sqlite option durability={durability!r}: use normal or full")
    busy_timeout = options.get("busy_timeout", 30.0)
    if not isinstance(busy_timeout, int | float) or not 0 <= busy_timeout < float("inf"):
        raise ConfigurationError(
            f"sqlite option busy_timeout={busy_timeout!r}: give a number of seconds"
        )
    shared = options.get("shared", False)
    if not isinstance(shared, bool):
        raise ConfigurationError(f"sqlite option shared={shared!r}: use true or false")
    full_path = os.path.realpath(os.path.expanduser(os.fspath(path)))
    return Location(full_path, durability, float(busy_timeout), shared)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("use true or false")
    return text == "true"
