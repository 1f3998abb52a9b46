"""The server of `--http`: a process that its supervisor starts. See `probes`.

The newest status comes through a pipe, a line each second; the pipe's end is this process's.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.worker.parent.status import Status

ANSWER_WITHIN = 5.0
"""Seconds for which a connection may say nothing."""

TEXT = "text/plain; charset=utf-8"
METRICS = "text/plain; version=0.0.4; charset=utf-8"
"""https://prometheus.io/docs/instrumenting/exposition_formats/"""


class Answers:
    """What the server answers: the newest status, which the thread that reads the pipe sets."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self.status: Status | None = None

    def get(self, path: str) -> tuple[int, str, str]:
        """The code, the type and the text for a path."""
        status = self.status
        if path == "/metrics" and status is not None:
            return 200, METRICS, "\n".join(metrics(status, self._clock.time())) + "\n"
        if path not in ("/livez", "/readyz", "/metrics"):
            return 404, TEXT, "there are /livez, /readyz and /metrics\n"
        if status is None:
            return 503, TEXT, "the worker has not said anything yet\n"
        trouble = status.trouble(self._clock.time(), ready=path == "/readyz")
        return (503, TEXT, f"{trouble}\n") if trouble else (200, TEXT, "ok\n")


def metrics(status: Status, now: float) -> Iterator[str]:
    """The status in Prometheus' text format."""
    ready = [process for process in status.processes if process.ready]
    label = "".join({'"': '\\"', "\\": "\\\\"}.get(each, each) for each in status.name)
    for name, kind, what, values in (
        ("up", "gauge", "Whether the worker lives.", {"": not status.trouble(now)}),
        (
            "ready",
            "gauge",
            "Whether all its processes take tasks.",
            {"": not status.trouble(now, ready=True)},
        ),
        ("processes", "gauge", "Processes that take tasks.", {"": len(ready)}),
        ("processes_wanted", "gauge", "Processes that it should have.", {"": status.wanted}),
        ("process_deaths_total", "counter", "Processes that crashed.", {"": status.deaths}),
        (
            "active_tasks",
            "gauge",
            "Tasks that run.",
            {"": sum(len(each.running) for each in status.processes)},
        ),
        (
            "oldest_task_seconds",
            "gauge",
            "For how long the longest of them has run.",
            {"": max(0.0, now - (status.oldest or now))},
        ),
        (
            "tasks_total",
            "counter",
            "Messages that ended, by how; retried is for each further attempt.",
            {f',outcome="{outcome}"': count for outcome, count in status.ended.items()},
        ),
        ("memory_bytes", "gauge", "Resident memory of its processes.", {"": status.memory}),
    ):
        yield f"# HELP taskline_{name} {what}"
        yield f"# TYPE taskline_{name} {kind}"
        for more, value in values.items():
            yield f'taskline_{name}{{worker="{label}"{more}}} {float(value):.15g}'


class _Handler(BaseHTTPRequestHandler):
    timeout = ANSWER_WITHIN
    answers: Answers
    server_version = "taskline"
    sys_version = ""

    def do_GET(self) -> None:
        code, kind, text = self.answers.get(self.path.partition("?")[0])
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Probes come each few seconds: they are not logged."""


def main(arguments: list[str]) -> None:
    """The server: `LISTENING-SOCKET PIPE`, two descriptors that it inherits."""
    listening, pipe = map(int, arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # They may go to the whole group; the worker answers until its supervisor ends.
        signal.signal(number, signal.SIG_IGN)
    answers = Answers()
    handler = type("Handler", (_Handler,), {"answers": answers})
    server = ThreadingHTTPServer(("", 0), handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=listening)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="taskline-http", daemon=True).start()
    with open(pipe, "rb") as lines:
        for line in lines:
            answers.status = msgspec.json.decode(line, type=Status)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
