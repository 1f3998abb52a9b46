"""Dead letters: jobs of the queue `taskline:dead:{queue}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from taskline.message import DeadLetter
from taskline_contrib.disque import jobs
from taskline_contrib.disque.nodes import Nodes


class Found(NamedTuple):
    """A dead letter, the job that it is, and the handings-over of its message."""

    job_id: str
    letter: DeadLetter
    deliveries: int


def read(queue: bytes, job_id: bytes, body: bytes) -> DeadLetter:
    """The dead letter in a job, as QPEEK gives it."""
    job, frame = jobs.read(body, job_id.decode())
    if job.letter is not None:
        return msgspec.structs.replace(job.letter, frame=frame)
    return DeadLetter(
        id=job.id,
        queue=queue.decode().removeprefix(jobs.DEAD),
        reason="put into the dead letters by another client of Disque",
        at=0.0,
        frame=frame,
    )


def queues(nodes: Nodes) -> list[str]:
    """The names of all queues of dead letters."""
    return [name for name in nodes.queues() if name.startswith(jobs.DEAD)]


def find(nodes: Nodes, ids: Sequence[str]) -> dict[str, list[Found]]:
    """The dead letters of these ids, the newest of an id first. Reads all there are."""
    wanted = set(ids)
    found: dict[str, list[Found]] = {}
    for name in queues(nodes) if wanted else ():
        for shown in nodes.jobs(name, "queued"):
            job, _ = jobs.read(shown.body, shown.job_id)
            if job.id in wanted:
                letter = read(name.encode(), shown.job_id.encode(), shown.body)
                found.setdefault(job.id, []).append(Found(shown.job_id, letter, job.deliveries))
    for each in found.values():
        each.sort(key=lambda one: one.letter.at, reverse=True)
    return found
