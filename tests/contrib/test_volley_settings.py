"""Volley's queue configuration, in the forms that its documentation has, as Taskline's settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from contrib.volley_plugin import MyConsumer, MyProducer

from taskline import Taskline, emit
from taskline.errors import ConfigurationError
from taskline.worker import Worker, WorkerOptions
from taskline_contrib.volley import settings_of

AS_LIST = """
- name: input-topic
  value: input.kafka.topic
  profile: confluent
  data_model: my.models.Input
- name: output_topic
  value: output.kafka.topic
  profile: confluent-pydantic
  data_model: volley.data_models.GenericMessage
  config:
    bootstrap.servers: kafka_broker_host:9092
    group.id: mine
- name: redis-queue
  value: long_name_1
  profile: rsmq
- name: dead-letter-queue
  value: deadletter.kafka.topic
  profile: confluent-dlq
"""
SETTINGS = {
    "connectors": {
        "confluent": {"type": "kafka", "prefix": ""},
        "output_topic": {
            "type": "kafka",
            "prefix": "",
            "group": "mine",
            "config": {"bootstrap.servers": "kafka_broker_host:9092"},
        },
        "rsmq": {"type": "rsmq", "address": "redis-1"},
    },
    "profiles": {
        "confluent": {"broker": "confluent", "plain": True},
        "confluent-dlq": {"broker": "confluent"},
        "rsmq": {"broker": "rsmq", "plain": True},
    },
    "queues": {
        "input-topic": {
            "profile": "confluent",
            "name": "input.kafka.topic",
            "task": "input-topic",
            "model": "my.models.Input",
            "dead_letters": "dead-letter-queue",
        },
        "output_topic": {
            "profile": "confluent",
            "name": "output.kafka.topic",
            "broker": "output_topic",
            "task": "output_topic",
        },
        "redis-queue": {"profile": "rsmq", "name": "long_name_1", "task": "redis-queue"},
        "dead-letter-queue": {"profile": "confluent-dlq", "name": "deadletter.kafka.topic"},
    },
}


def test_a_list_of_queues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_HOST", "redis-1")
    monkeypatch.setenv("KAFKA_BROKERS", "kafka-1")
    file = tmp_path / "volley_config.yml"
    file.write_text(AS_LIST)
    assert settings_of(file, dead_letter_queue="dead-letter-queue") == SETTINGS
    app = Taskline.from_config(SETTINGS, name="etl", broker="memory://")
    assert app.queues.place("input-topic") == "confluent: input.kafka.topic"
    assert app.queues.place("output_topic") == "output_topic: output.kafka.topic"


@pytest.mark.parametrize("under", [True, False])
def test_a_mapping_of_queues(under: bool) -> None:
    entries = yaml.safe_load(AS_LIST)
    queues = {each["name"]: {k: each[k] for k in each if k != "name"} for each in entries}
    as_mapping = settings_of({"queues": queues} if under else queues)
    assert as_mapping == settings_of(entries) == settings_of({"queues": entries})


def test_the_command_prints_them(tmp_path: Path) -> None:
    file = tmp_path / "volley_config.yml"
    file.write_text(AS_LIST)
    command = [sys.executable, "-m", "taskline_contrib.volley"]
    run = subprocess.run([*command, str(file)], capture_output=True, text=True, check=True)
    assert yaml.safe_load(run.stdout) == settings_of(file)
    run = subprocess.run([*command, str(tmp_path / "no.yml")], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "no.yml cannot be read" in run.stderr


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "has neither a profile nor a consumer and a producer"),
        ({"profile": "confluence"}, "unknown profile 'confluence': did you mean 'confluent'"),
        ({"profile": "rsmq", "values": "x"}, "no option 'values': did you mean 'value'"),
        ({"consumer": "plugin.C"}, "give both its consumer and its producer"),
        ({"profile": "confluent-msgpack-pydantic"}, "plain messages as JSON only"),
        ({"profile": "rsmq", "config": {"qname": "x"}}, "'qname' has no counterpart"),
    ],
)
def test_what_has_no_counterpart_is_refused(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        settings_of({"a": entry})


@pytest.mark.parametrize("source", [[], {}, None, "- 1", [{"value": "x"}], {"queues": []}])
def test_what_is_no_configuration_is_refused(source: Any, tmp_path: Path) -> None:
    if isinstance(source, str):
        file = tmp_path / "x.yml"
        file.write_text(source)
        source = file
    with pytest.raises(ConfigurationError, match=r"no queues|has no name"):
        settings_of(source)


def test_unknown_dead_letter_queue() -> None:
    with pytest.raises(ConfigurationError, match="'dlq' is none of the queues"):
        settings_of({"a": {"profile": "rsmq"}}, dead_letter_queue="dlq")


def test_an_app_of_volleys_goes_on_with_its_own_connectors(tmp_path: Path) -> None:
    """Volley's programs before and behind it see plain JSON, as from one another."""
    plugin = {
        "producer": "contrib.volley_plugin.MyProducer",
        "consumer": "contrib.volley_plugin.MyConsumer",
        "config": {"file": str(tmp_path / "volley.db")},
    }
    settings = settings_of(
        [
            {"name": "orders", "value": "pg_orders", "serializer": "None", **plugin},
            {"name": "bills", "value": "pg_bills", "model_hander": "disabled", **plugin},
        ]
    )
    for connector in settings["connectors"].values():
        assert connector["type"] == "volley"
        connector["type"] = "taskline_contrib.volley.VolleyTransport"  # also if not installed
    app = Taskline.from_config(
        settings, name="shop", broker="memory://volley-shop", backend="memory://volley-shop"
    )

    @app.task(name="bills", queue="bills")
    def bill(order: dict[str, Any]) -> None: ...

    @app.task(name="orders", queue="orders")
    def order(found: dict[str, Any]) -> None:
        return emit(bill.si({"of": found["id"]}))

    config = plugin["config"]
    before, behind = MyProducer("pg_orders", config=config), MyConsumer("pg_bills", config=config)
    before.produce("pg_orders", b'{"id": 7}', None)
    worker = Worker(app, WorkerOptions(queues=["orders"]))
    worker.start()
    try:
        until = app.clock.monotonic() + 30
        while (found := behind.consume()) is None:
            assert app.clock.monotonic() < until
            app.clock.sleep(0.01)
        assert found.message == b'{"of":7}'
    finally:
        worker.stop(5)
        app.close()
        before.shutdown()
        behind.shutdown()
