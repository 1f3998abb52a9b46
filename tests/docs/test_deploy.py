"""The files of docs/deploy.md are well-formed, and their commands are ones that Taskline takes."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from taskline.cli.health import health
from taskline.cli.worker import worker
from taskline.worker.parent.probes import address
from taskline.worker.parent.server import Answers

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "deploy.md").read_text()
FILES = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', PAGE, re.M | re.S))
COMMANDS = {"worker": worker, "health": health}


def parse(words: list[str]) -> dict[str, Any]:
    """What a `taskline …` command was given; raises click's error when it is not right."""
    program, name, *arguments = words
    assert program.rpartition("/")[2] == "taskline"
    return COMMANDS[name].make_context(name, arguments, resilient_parsing=False).params


def docker(instruction: str) -> list[str]:
    [found] = re.findall(rf"{instruction} (\[.*\])", FILES["Dockerfile"])
    words: list[str] = yaml.safe_load(found)
    return words


def test_systemd_gives_more_time_than_the_worker_needs() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(FILES["taskline.service"])
    given = parse(shlex.split(unit["Service"]["ExecStart"]))
    assert float(unit["Service"]["TimeoutStopSec"]) > given["grace"] + 5
    assert unit["Service"]["KillMode"] == "mixed"


def test_docker_probes_the_file_that_the_worker_writes() -> None:
    assert parse(docker("HEALTHCHECK.*CMD"))["file"] == parse(docker("\nCMD"))["status_file"]


def test_compose_is_yaml_and_keeps_what_is_queued() -> None:
    services = yaml.safe_load(FILES["compose.yaml"])["services"]
    assert "noeviction" in services["redis"]["command"]
    assert services["worker"]["environment"].keys() == {"TASKLINE_BROKER", "TASKLINE_BACKEND"}


@pytest.mark.parametrize(
    ("probe", "path"), [("livenessProbe", "livez"), ("readinessProbe", "readyz")]
)
def test_kubernetes_probes_what_the_worker_answers(probe: str, path: str) -> None:
    spec = yaml.safe_load(FILES["worker-http.yaml"])["spec"]["template"]["spec"]
    [container] = spec["containers"]
    given = parse(container["command"])
    assert spec["terminationGracePeriodSeconds"] > given["grace"] + 5
    [port] = container["ports"]
    assert address(given["http"]) == ("", port["containerPort"])
    asked = container[probe]["httpGet"]
    assert asked == {"path": f"/{path}", "port": port["name"]}
    answers = Answers()
    assert answers.get(asked["path"])[0] == 503
    assert answers.get("/other")[0] == 404


@pytest.mark.parametrize(("probe", "ready"), [("livenessProbe", False), ("readinessProbe", True)])
def test_kubernetes_probes_the_file_that_the_worker_writes(probe: str, ready: bool) -> None:
    spec = yaml.safe_load(FILES["worker.yaml"])["spec"]["template"]["spec"]
    [container] = spec["containers"]
    given = parse(container["command"])
    assert spec["terminationGracePeriodSeconds"] > given["grace"] + 5
    asked = parse(container[probe]["exec"]["command"])
    assert (asked["file"], asked["ready"]) == (given["status_file"], ready)


def test_keda_scales_the_deployment_by_a_key_that_the_page_of_redis_names() -> None:
    scaler = yaml.safe_load(FILES["scaler.yaml"])["spec"]
    deployment = yaml.safe_load(FILES["worker.yaml"])
    assert scaler["scaleTargetRef"] == deployment["metadata"]
    [trigger] = scaler["triggers"]
    assert trigger["metadata"]["listName"] == "{taskline}r5:mail"
    page = (Path(__file__).resolve().parents[2] / "docs" / "transports" / "redis.md").read_text()
    assert "| `r5:mail`, `b5:mail` |" in page


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "taskline.service"
    # It looks whether the program is there.
    unit.write_text(FILES["taskline.service"].replace("/srv/shop/.venv/bin/taskline", "/bin/true"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0
    assert unit.name not in checked.stderr, "what it says of other units is not ours"
