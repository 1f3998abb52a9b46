from __future__ import annotations

from pathlib import Path

from integration.durable import kill_between_steps


def test_a_worker_that_is_killed_between_steps(redis_url: str, tmp_path: Path) -> None:
    kill_between_steps(redis_url, tmp_path, 3)
