# /// script
# dependencies = ["redis==8.1.0"]
# ///
"""The floor: redis-py as it comes, LPUSH one by one, and a loop around BRPOP. JSON for both.

Many at once go 1 000 to an LPUSH. A result is pushed to a list that the caller blocks on.
"""

from __future__ import annotations

import json
import sys
from itertools import count

import redis
from common import REDIS, RESULTS, Peer, marks

BATCH = 1000
client = redis.Redis.from_url(REDIS or "redis://127.0.0.1")
numbers = count()


def call(task: str, *args: object, reply: str = "") -> bytes:
    return json.dumps({"id": next(numbers), "task": task, "args": args, "reply": reply}).encode()


class BareRedis(Peer):
    def prepare(self) -> None:
        client.ping()

    def send_noop(self) -> object:
        return client.lpush("bench", call("noop"))

    def send_many(self, count: int) -> None:
        for start in range(0, count, BATCH):
            client.lpush("bench", *(call("noop") for _ in range(min(BATCH, count - start))))

    def send_late(self, sent: float) -> object:
        return client.lpush("bench", call("late", sent))

    def round_trip(self, number: int) -> int:
        reply = f"reply-{number}"
        client.lpush("bench", call("echo", number, reply=reply))
        return int(json.loads(client.brpop([reply])[1]))

    def empty(self) -> bool:
        return client.llen("bench") == 0

    def worker(self) -> list[str]:
        return [sys.executable, "-m", "bare_redis"]


def work() -> None:
    tasks = {"noop": marks.tick, "late": marks.late, "echo": lambda number: number}
    while True:
        message = json.loads(client.brpop(["bench"])[1])
        value = tasks[message["task"]](*message["args"])
        if message["reply"]:
            client.lpush(message["reply"], json.dumps(value))
        elif RESULTS:
            client.set(f"result-{message['id']}", json.dumps(value), ex=86400)


peer = BareRedis()
if __name__ == "__main__":
    work()
