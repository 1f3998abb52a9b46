"""Finds the app that `-A` names."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from taskline.loading import (
    AppNotFound,
    did_you_mean,
    import_included,
    import_user_module,
    named_app,
    use_working_directory,
    where,
)

if TYPE_CHECKING:
    from taskline.app import Taskline

SUBMODULES = ("app", "tasks", "taskline", "celery", "worker")
"""Where the app of a package is looked for when the package itself has none."""


def find(target: str) -> tuple[Taskline, str]:
    """The app that `target` names, and its full path `module:name`.

    `target` is `module:name`, or a module or package in which exactly one app is
    to be found: in itself, or else in its submodule `app`, `tasks`, `taskline`,
    `celery` or `worker`. Modules are looked for in the working directory first.
    Raises `AppNotFound`, or `BrokenModule` when the user's own code fails.
    """
    use_working_directory()
    module_name, colon, name = target.partition(":")
    _refuse_paths(target, module_name)
    if colon and not name:
        raise AppNotFound(f"-A {target!r} names nothing after the colon")
    app, path = _named(_load(module_name), name) if colon else _search(module_name)
    import_included(app)
    return app, path


def _named(module: ModuleType, name: str) -> tuple[Taskline, str]:
    return named_app(module, name), f"{module.__name__}:{name}"


def _refuse_paths(target: str, module_name: str) -> None:
    if module_name.endswith(".py") or "/" in module_name or os.sep in module_name:
        dotted = ".".join(Path(module_name.removesuffix(".py")).parts).strip("./")
        raise AppNotFound(f"-A takes a module, not a file: try -A {dotted} instead of {target!r}")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise AppNotFound(f"-A {target!r} is not a module's name: write it like -A proj.app:app")


def _search(module_name: str) -> tuple[Taskline, str]:
    try:
        module = _load(module_name)
    except AppNotFound:
        # `proj.shop` may also mean the name `shop` in the module `proj`.
        parent, dot, name = module_name.rpartition(".")
        if dot and hasattr(sys.modules.get(parent), name):
            return _named(sys.modules[parent], name)
        raise
    looked = [module]
    found = _only(module)
    for name in SUBMODULES if found is None and hasattr(module, "__path__") else ():
        if importlib.util.find_spec(f"{module_name}.{name}") is not None:
            submodule = _load(f"{module_name}.{name}")
            looked.append(submodule)
            found = _only(submodule)
            if found is not None:
                break
    if found is not None:
        return found
    places = ", ".join(where(each) for each in looked)
    raise AppNotFound(f"no Taskline app in {places}: name it with -A module:name")


def _only(module: ModuleType) -> tuple[Taskline, str] | None:
    """The one app of a module: the one called `app`, or else the only one."""
    apps = _apps(module)
    called_app = [found for found in apps if found[0] == "app"]
    distinct = {id(app): (name, app) for name, app in reversed(apps)}
    candidates = called_app or list(distinct.values())
    if len(candidates) > 1:
        paths = ", ".join(sorted(f"{module.__name__}:{name}" for name, _ in candidates))
        raise AppNotFound(f"several apps in {where(module)}: choose one with -A, of {paths}")
    if not candidates:
        return None
    name, app = candidates[0]
    return app, f"{module.__name__}:{name}"


def _apps(module: ModuleType) -> list[tuple[str, Taskline]]:
    from taskline.app import Taskline

    return [(name, value) for name, value in vars(module).items() if isinstance(value, Taskline)]


def _load(module_name: str) -> ModuleType:
    """Import a module, its parents first, to tell what is missing from what is broken."""
    parts = module_name.split(".")
    module: ModuleType | None = None
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        if name not in sys.modules and not _exists(name, module):
            raise _missing(name, module_name, module)
        module = import_user_module(name)
    assert module is not None
    return module


def _exists(name: str, parent: ModuleType | None) -> bool:
    if parent is not None and not hasattr(parent, "__path__"):
        return False
    return importlib.util.find_spec(name) is not None


def _missing(name: str, target: str, parent: ModuleType | None) -> AppNotFound:
    last = name.rpartition(".")[2]
    if parent is None:
        near = [each.name for each in pkgutil.iter_modules([str(Path.cwd())])]
        place = f"in {Path.cwd()} or on Python's path"
    else:
        near = [each.name for each in pkgutil.iter_modules(getattr(parent, "__path__", []))]
        near += _public(parent)
        place = f"in {where(parent)}"
    rest = target[len(name) :]
    hint = did_you_mean(last, near, prefix=name[: -len(last)], suffix=rest)
    return AppNotFound(f"no module {last!r} {place}{hint}")


def _public(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]
