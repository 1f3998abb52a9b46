"""What is measured on each store, and beside whom."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.runs import Scenario

OTHERS = {
    "sqlite": ["huey_sqlite"],
    "redis": [
        "bare_redis",
        "celery_redis",
        "dramatiq_redis",
        "huey_redis",
        "taskiq_stream_redis",
        "rq_redis",
        "saq_redis",
        "sergeant_redis",
    ],
    "rabbitmq": ["celery_rabbitmq"],
    "mongodb": ["celery_mongodb"],
    "kafka": ["bare_kafka", "celery_kafka", "taskiq_kafka"],
}
"""Who is measured beside us unless others are asked for."""


def ours(store: str) -> str:
    """The name of Taskline's own module."""
    return f"taskline_{store}"


def sqlite(n: Callable[[int], int]) -> list[Scenario]:
    """Durability decides most figures, so like is compared with like.

    `normal` survives the death of every process (Taskline as shipped, Huey with fsync=False),
    `full` a power cut too (Huey as shipped).
    """
    every: list[Scenario] = []
    for how in ("normal", "full"):
        every += [
            Scenario("enqueue", "enqueue", {"n": n(5000)}, durability=how),
            Scenario("bulk enqueue", "bulk", {"n": n(50000)}, durability=how, also={"bare_sqlite"}),
            Scenario("drain", "drain", {"n": n(20000)}, durability=how),
            Scenario("drain, results stored", "drain", {"n": n(20000)}, True, how),
        ]
    every += [
        Scenario("call to start", "latency", {"n": n(500), "every": 0.02}),
        Scenario("delay().get()", "roundtrip", {"n": n(300)}, results=True),
        Scenario("idle worker", "idle", {"seconds": max(3, n(1000) // 100)}),
    ]
    return every


def redis(n: Callable[[int], int]) -> list[Scenario]:
    """Each run has a server of its own on a loopback port, which saves nothing to the disk."""
    return [
        Scenario("enqueue", "enqueue", {"n": n(5000)}),
        Scenario("bulk enqueue", "bulk", {"n": n(50000)}),
        Scenario("drain", "drain", {"n": n(20000)}),
        Scenario("drain, results stored", "drain", {"n": n(20000)}, results=True),
        Scenario("scaling to two workers", "scaling", {"n": n(150000)}, alone=True),
        Scenario("scaling, tasks of 100 µs", "scaling", {"n": n(30000), "work": 100}, alone=True),
        Scenario("call to start", "latency", {"n": n(500), "every": 0.02}),
        Scenario("delay().get()", "roundtrip", {"n": n(500)}, results=True),
        Scenario("chord", "chord", {"n": n(1000), "rounds": 5}, results=True),
        Scenario("chain", "chain", {"n": n(100), "rounds": 5}, results=True),
        Scenario(
            "a million delayed",
            "delayed",
            {"n": n(1_000_000), "due": n(30_000), "per_second": 1000},
            alone=True,
        ),
        Scenario("counts", "counts", {"n": n(5000)}),
        Scenario("counts, results stored", "counts", {"n": n(5000)}, results=True),
    ]


def rabbitmq(n: Callable[[int], int]) -> list[Scenario]:
    """Each run has a server of its own; messages are persistent, sends confirmed."""
    return [
        Scenario("enqueue", "enqueue", {"n": n(3000)}),
        Scenario("bulk enqueue", "bulk", {"n": n(20000)}),
        Scenario("drain", "drain", {"n": n(10000)}),
        Scenario("call to start", "latency", {"n": n(300), "every": 0.02}),
    ]


def mongodb(n: Callable[[int], int]) -> list[Scenario]:
    """Each run has a server of its own, which is a stand-in: it takes far longer than MongoDB
    for what is looked for among many, so the line is short."""
    return [
        Scenario("enqueue", "enqueue", {"n": n(500)}),
        Scenario("bulk enqueue", "bulk", {"n": n(5000)}),
        Scenario("drain", "drain", {"n": n(1000)}),
        Scenario("drain, results stored", "drain", {"n": n(500)}, results=True),
        Scenario("call to start", "latency", {"n": n(100), "every": 0.05}),
    ]


def kafka(n: Callable[[int], int]) -> list[Scenario]:
    """Each run has a broker of its own, Apache Kafka in KRaft mode. `drain` ends when the last
    receipt is committed; it is long, since a broker that has just begun is slow for a second."""
    return [
        Scenario("enqueue", "enqueue", {"n": n(2000)}),
        Scenario("enqueue, 16 threads", "crowd", {"n": n(8000), "threads": 16}),
        Scenario("bulk enqueue", "bulk", {"n": n(100000)}),
        Scenario("drain", "drain", {"n": n(100000)}),
        Scenario("call to start", "latency", {"n": n(300), "every": 0.02}),
    ]


SCENARIOS = {
    "sqlite": sqlite,
    "redis": redis,
    "rabbitmq": rabbitmq,
    "mongodb": mongodb,
    "kafka": kafka,
}
