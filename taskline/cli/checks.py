"""What `taskline doctor` looks at. Each check yields findings and changes nothing."""

from __future__ import annotations

import difflib
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.cli import output
from taskline.errors import SerializationError, TasklineError, TransportError

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.backends.base import Backend
    from taskline.transports.base import QueueStats, Transport

OK, WARN, FAIL = "ok", "warn", "fail"

NETWORK_FILE_SYSTEMS = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs",
    "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs",
    "vboxsf", "virtiofs",
})  # fmt: skip
LITTLE_SPACE = 100 * 2**20
SCARCE_SPACE = 2**30
GREATEST_SKEW = 2.0
"""Seconds between the broker's clock and ours that leases and delays can bear."""
SHORTEST_KEY = 16
PATIENCE = 60.0
"""Seconds after which a ready message that nobody takes is worth a word."""
SAMPLE = 20
"""How many ready messages of a queue are looked at."""


class Finding(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One thing that was looked at, and what to do about it."""

    check: str
    status: str
    message: str
    remedy: str = ""


def versions(packages: Mapping[str, str]) -> Iterator[Finding]:
    """Python and the packages that Taskline cannot do without."""
    import platform

    python = f"{platform.python_version()} ({sys.executable})"
    yield Finding(check="python", status=OK, message=python)
    required = ("click", "cloudpickle", "kombu", "msgspec", "rich", "tenacity")
    missing = [name for name in required if name not in packages]
    if missing:
        yield Finding(
            check="packages",
            status=FAIL,
            message=f"not installed: {', '.join(missing)}",
            remedy=f"pip install {' '.join(missing)}",
        )
    else:
        listed = ", ".join(f"{name} {version}" for name, version in packages.items())
        yield Finding(check="packages", status=OK, message=listed)


def environment(environ: Mapping[str, str]) -> Iterator[Finding]:
    """The TASKLINE_* variables: those in effect, and those that mean nothing."""
    from taskline.config import ENVIRONMENT_PREFIX, NAMES

    known = {ENVIRONMENT_PREFIX + name.upper() for name in NAMES} | {"TASKLINE_APP"}
    given = sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX))
    used = [
        f"{name}={output.address(output.masked(environ[name], name))}"
        for name in given
        if name in known
    ]
    if used:
        yield Finding(check="environment", status=OK, message=", ".join(used))
    for name in given:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        yield Finding(
            check="environment",
            status=WARN,
            message=f"{name} is set, but there is no such setting",
            remedy=f"did you mean {near[0]}?" if near else "remove it if it was meant for Taskline",
        )


def security(app: Taskline) -> Iterator[Finding]:
    """Whether those who can write to the broker could run code in the workers."""
    from taskline import serializers

    settings = app.settings
    keys = [key for key in (settings.signing_key, *settings.verify_keys) if key]
    unsafe = [name for name in settings.accept if not serializers.get(name).safe]
    if unsafe and (settings.accept_unsigned or not keys):
        yield Finding(
            check="serializers",
            status=WARN,
            message=f"unsigned {', '.join(unsafe)} is accepted: "
            "whoever can write to the broker can run code in your workers",
            remedy="set signing_key and leave accept_unsigned false",
        )
    else:
        signed = "signed" if keys else "unsigned"
        yield Finding(
            check="serializers", status=OK, message=f"{', '.join(settings.accept)}, {signed}"
        )
    if any(len(key) < SHORTEST_KEY for key in keys):
        yield Finding(
            check="signing",
            status=WARN,
            message=f"a signing key has fewer than {SHORTEST_KEY} characters and can be guessed",
            remedy="make one: python -c 'import secrets; print(secrets.token_hex(32))'",
        )


def server(name: str, opened: Transport | Backend) -> tuple[Finding, dict[str, Any] | None]:
    """Whether a broker or backend answers and can be written to; and what it says of itself."""
    start = opened.clock.monotonic()
    try:
        opened.ping()
        info = opened.info()
    except TasklineError as error:
        return unreachable(name, error), None
    took = output.span(opened.clock.monotonic() - start)
    version = f", {info['version']}" if info.get("version") else ""
    message = f"{info.get('address', '?')} answers in {took} and can be written to{version}"
    return Finding(check=name, status=OK, message=message), info


def unreachable(name: str, error: TasklineError) -> Finding:
    """What is wrong with a broker or backend. What is not passing says itself what to do."""
    passing = getattr(error, "retryable", False)
    remedy = "start it, or correct its address, and try again" if passing else ""
    return Finding(check=name, status=FAIL, message=str(error), remedy=remedy)


def durability(transport: Transport) -> Iterator[Finding]:
    """Whether messages live longer than the process that sends them."""
    if not transport.capabilities.durable:
        yield Finding(
            check="durability",
            status=WARN,
            message=f"{transport.scheme} keeps messages in this process: no worker sees them",
            remedy="name a broker that keeps them, such as sqlite:///shop.db",
        )


def clock(theirs: object, ours: float) -> Iterator[Finding]:
    """How far our clock is from the broker's, where the broker tells the time."""
    if not isinstance(theirs, int | float):
        return
    skew = theirs - ours
    if abs(skew) <= GREATEST_SKEW:
        yield Finding(check="clock", status=OK, message=f"{output.span(skew)} from the broker's")
        return
    yield Finding(
        check="clock",
        status=WARN,
        message=f"this machine's clock is {output.span(abs(skew))} "
        f"{'behind' if skew > 0 else 'ahead of'} the broker's",
        remedy="synchronise both with NTP",
    )


def sqlite_version() -> Iterator[Finding]:
    """Whether SQLite is new enough."""
    try:
        import sqlite3
    except ImportError:
        yield Finding(
            check="sqlite",
            status=WARN,
            message="this Python was built without SQLite",
            remedy="use another Python, unless your broker and backend are servers",
        )
        return
    if sqlite3.sqlite_version_info < (3, 35):
        yield Finding(
            check="sqlite",
            status=FAIL,
            message=f"SQLite {sqlite3.sqlite_version} is too old: 3.35 is needed",
            remedy="use a Python built with a newer SQLite",
        )
    else:
        yield Finding(check="sqlite", status=OK, message=sqlite3.sqlite_version)


def file(path: Path) -> Iterator[Finding]:
    """A database file's place: its file system, the space there, who may read and write it."""
    yield from _file_system(path)
    yield from _space(path)
    yield from _permissions(path)


def _file_system(path: Path) -> Iterator[Finding]:
    kind = file_system(path.resolve(), Path("/proc/self/mounts"))
    if kind is None:
        return
    if kind in NETWORK_FILE_SYSTEMS:
        yield Finding(
            check="file system",
            status=WARN,
            message=f"{path} is on {kind}: SQLite's WAL needs memory that all processes share, "
            "and may lose or damage data there",
            remedy="put the file on a local disk; for several machines use a server as broker",
        )
    else:
        yield Finding(check="file system", status=OK, message=f"{path} is on {kind}")


def file_system(path: Path, mounts: Path) -> str | None:
    """The type of the file system that holds `path`; None where the system does not tell."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    best, kind = -1, None
    for line in lines:
        _, point, found, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        # Of two mounts on one point the later one hides the earlier.
        if path.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), found
    return kind


def _space(path: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(path.parent).free
    message = f"{free / 2**30:.1f} GiB free at {path.parent}"
    if free < SCARCE_SPACE:
        yield Finding(
            check="disk",
            status=FAIL if free < LITTLE_SPACE else WARN,
            message=message,
            remedy="make room: a full disk refuses new tasks and results",
        )
    else:
        yield Finding(check="disk", status=OK, message=message)


def _permissions(path: Path) -> Iterator[Finding]:
    denied = [
        str(each)
        for each in (path.parent, path, *(Path(f"{path}{end}") for end in ("-wal", "-shm")))
        if each.exists() and not os.access(each, os.R_OK | os.W_OK)
    ]
    if denied:
        yield Finding(
            check="permissions",
            status=FAIL,
            message=f"not allowed to write: {', '.join(denied)}",
            remedy="give this user write permission to the file and its directory",
        )
    mode = path.stat().st_mode
    if mode & stat.S_IWOTH:
        yield Finding(
            check="permissions",
            status=WARN,
            message=f"every user of this machine may write {path}, and so run your tasks",
            remedy=f"chmod o-w {path}",
        )
    elif not denied:
        yield Finding(
            check="permissions", status=OK, message=f"{path} is {stat.filemode(mode)}, writable"
        )


def queues(app: Taskline, own: bool) -> Iterator[Finding]:
    """Messages that nobody will run. `own` tells that the app's tasks are known."""
    stats = app.transport.stats()
    paused: dict[str, float | None] = {}
    if own:
        with suppress(TransportError):  # what is wrong with the backend is a finding of its own
            paused = app.paused_queues()
    ready_in = {each.queue: each.ready for each in stats}
    for name, end in paused.items():
        until = "" if end is None else f" until {output.when(end)}"
        yield Finding(
            check="queues",
            status=WARN,
            message=f"{name} is paused{until}: workers take nothing of it, "
            f"{ready_in.get(name) or 0} ready",
            remedy=f"taskline queues resume {name}",
        )
    for each in stats:
        yield from _unknown_tasks(app, each) if own else ()
        waits = each.oldest or 0.0
        if each.ready and waits > PATIENCE and not each.leased and each.queue not in paused:
            from taskline.worker.process import served_queues

            served = not own or each.queue in served_queues(app)
            yield Finding(
                check="queues",
                status=WARN,
                message=f"{each.queue}: {each.ready} ready, the oldest for {output.span(waits)}, "
                "and no worker holds any",
                remedy=f"start a worker{'' if served else f' with -Q {each.queue}'}",
            )
    dead = sum(each.dead or 0 for each in stats)
    if dead:
        yield Finding(
            check="dead letters",
            status=WARN,
            message=f"{dead} messages will not be tried again by themselves",
            remedy="taskline dead list, then requeue or purge them",
        )
    ready = sum(each.ready or 0 for each in stats)
    yield Finding(
        check="queues",
        status=OK,
        message=f"{output.count(len(stats), 'queue')}, {output.count(ready, 'ready message')}",
    )


def _unknown_tasks(app: Taskline, stats: QueueStats) -> Iterator[Finding]:
    transport = app.transport
    if not stats.ready or not transport.capabilities.peek:
        return
    unknown = set()
    for stored in transport.peek(stats.queue, limit=SAMPLE):
        try:
            header, _ = app.codec.open(stored.frame)
        except SerializationError as error:
            yield Finding(
                check="queues",
                status=WARN,
                message=f"{stats.queue}: message {stored.id} cannot be read: {error}",
                remedy="the worker will move it to the dead letters",
            )
            continue
        if header.task not in app.tasks:
            unknown.add(header.task)
    for name in sorted(unknown):
        near = difflib.get_close_matches(name, app.tasks, n=1)
        yield Finding(
            check="queues",
            status=WARN,
            message=f"{stats.queue}: messages wait for task {name!r}, which this app has not got",
            remedy=f"did you rename {near[0]!r}?"
            if near
            else "import its module (setting include)",
        )


def new_files(app: Taskline) -> list[str]:
    """The SQLite files that the app names and that do not exist, though their directories do.

    To be asked before they are opened, which makes them.
    """
    from taskline.sqlite.location import locate

    found = []
    for spec in (app.settings.broker, app.settings.backend):
        kind = spec.get("type") if isinstance(spec, dict) else str(spec).partition("://")[0]
        if kind in ("sqlite", "local"):
            assert isinstance(spec, dict | str)
            path = Path(locate(spec).path)
            if path.parent.is_dir() and not path.exists():
                found.append(str(path))
    return list(dict.fromkeys(found))


def shown(finding: Finding) -> dict[str, Any]:
    """A finding for JSON."""
    return {
        "check": finding.check,
        "status": finding.status,
        "message": finding.message,
        "remedy": finding.remedy,
    }
