"""Workflows: chains, groups, chords and graphs of tasks that survive crashes.

`docs/workflows.md` is the guide.
"""

from __future__ import annotations

from taskline.workflows.compose import chain, chord, chunks, each, group, starmap
from taskline.workflows.inputs import Results
from taskline.workflows.result import FlowResult, GroupResult, Progress
from taskline.workflows.steps import Start, Step, TaskStep, from_dict

__all__ = [
    "FlowResult",
    "GroupResult",
    "Progress",
    "Results",
    "Start",
    "Step",
    "TaskStep",
    "chain",
    "chord",
    "chunks",
    "each",
    "from_dict",
    "group",
    "starmap",
]
