"""The worker: a supervisor and its processes. `docs/architecture.md` has the picture."""

from taskline.worker.options import WorkerOptions as WorkerOptions
from taskline.worker.parent.supervisor import Supervisor as Supervisor
from taskline.worker.process import Worker as Worker
