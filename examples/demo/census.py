"""The tasks of the demonstration: read one source file, tell what is in it."""

import ast
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from taskline import Taskline

BROKER = os.environ.get("CENSUS_BROKER", "sqlite:///census.db")
app = Taskline("census", broker=BROKER, backend=BROKER)


@dataclass
class Entry:
    path: str
    lines: int
    imports: dict[str, int]
    digest: str


@app.task
def read(path: Path) -> Entry:
    """Count the lines and imports of a file, and take its digest."""
    source = path.read_bytes()
    imports: Counter[str] = Counter()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # the library has files that test just that
        tree = ast.Module([], [])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports[node.module.partition(".")[0]] += 1
    return Entry(str(path), source.count(b"\n"), dict(imports), hashlib.sha256(source).hexdigest())
