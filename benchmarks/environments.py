"""Each peer gets an environment of its own, made at its first use, under .venv-bench/."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"


class CannotInstall(Exception):
    """A peer's environment cannot be made; the message says which."""


def dependencies(peer: str) -> list[str]:
    """What a peer's module says it needs, in the manner of PEP 723."""
    source = (PEERS / f"{peer}.py").read_text()
    match = re.search(r"^# dependencies = (\[.*\])$", source, re.MULTILINE)
    if match is None:
        raise SystemExit(f"benchmarks/peers/{peer}.py does not say what it needs")
    needed: list[str] = ast.literal_eval(match[1])
    return needed


def python(peer: str) -> Path:
    """The interpreter of a peer's environment, which is made when it is missing or outdated.

    Raises `CannotInstall`.
    """
    needed = dependencies(peer)
    home = ROOT / ".venv-bench" / peer
    stamp = home / "dependencies.txt"
    ours = "taskline" in needed
    recipe = "\n".join(needed)
    if ours:
        recipe += "\n" + (ROOT / "setup.cfg").read_text() + (ROOT / "constraints.txt").read_text()
    interpreter = home / "bin" / "python"
    if stamp.exists() and stamp.read_text() == recipe:
        return interpreter
    print(f"making the environment of {peer}: {', '.join(needed)}", file=sys.stderr, flush=True)
    venv.create(home, clear=True, with_pip=True, symlinks=True)
    pip = [str(interpreter), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    if ours:
        needed = [name for name in needed if name != "taskline"]
        pip += ["--editable", str(ROOT)]
    constraints = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")} if ours else {}
    installed = subprocess.run(pip + needed, check=False, env=os.environ | constraints)
    if installed.returncode != 0:
        raise CannotInstall(f"{peer}: pip could not install {', '.join(needed)}")
    stamp.write_text(recipe)
    return interpreter
