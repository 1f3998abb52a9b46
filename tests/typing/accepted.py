"""Right uses of the public face: `mypy --strict` must accept every line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Generator
from datetime import datetime, timezone
from typing import Annotated, Any

from typing_extensions import assert_type

from taskline import (
    AsyncResult,
    AsyncTask,
    Depends,
    ResultSet,
    Task,
    Taskline,
    current_task,
    emit,
    step,
)
from taskline.lock import Lock
from taskline.workflows import (
    FlowResult,
    Results,
    Start,
    Step,
    TaskStep,
    chain,
    chord,
    chunks,
    each,
    group,
    starmap,
)

app = Taskline("shop", broker="sqlite:///shop.db", backend="memory://", queue="mail", lease=10)
nodes = Taskline("shop", broker=["redis://a", "redis://b"], backend=None)
connector = Taskline("shop", broker={"type": "redis", "nodes": [{"host": "a"}]})


@app.task
def bare(order: int, to: str = "x", *, copy: bool = False) -> str:
    return to * order


@app.task(queue="mail", retry=3, timeout=30, name="mail.send", ack="early", priority=9)
def declared(order: int, to: str = "x", *, copy: bool = False) -> str:
    return to * order


@app.task()
def empty() -> None: ...


def connect() -> Generator[Lock, None, None]:
    yield app.lock("db")


@app.task
def given(
    order: int, db: Lock = Depends(connect), again: Annotated[Lock, Depends(connect)] = Depends()
) -> Lock:
    return db


given.delay(1)
given(1, db=app.lock("other"))
with app.override(connect, lambda: app.lock("fake")):
    given(1)


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(retry={"max": 3, "for": [OSError]})
async def fetch_declared(url: str) -> bytes:
    return url.encode()


@app.task(bind=True)
def bound(self: Task[..., Any], order: int) -> list[str]:
    return [self.name, self.request.id, current_task.queue, str(order)]


@app.task(bind=True, queue="mail")
async def bound_async(self: Task[..., Any], order: int) -> float:
    return float(self.request.attempt * order)


@app.task
def many(*orders: int, **notes: str) -> int:
    return sum(orders)


class Shop:
    @app.task
    @staticmethod
    def close(hour: int) -> int:
        return hour


# What a task is, and what a call of it here gives
assert_type(bare(1, "x", copy=True), str)
assert_type(declared(1), str)
made: Coroutine[Any, Any, bytes] = fetch("u")
assert_type(bound(1), list[str])
assert_type(Shop.close(3), int)

# delay
assert_type(bare.delay(1), AsyncResult[str])
assert_type(bare.delay(1, "x", copy=True).get(timeout=10), str)
assert_type(declared.delay(order=1, to="x").get(), str)
assert_type(fetch.delay("u").get(), bytes)
assert_type(fetch_declared.delay("u").get(), bytes)
assert_type(bound.delay(1).get(), list[str])
assert_type(bound_async.delay(1).get(), float)
assert_type(many.delay(1, 2, 3, a="x").get(), int)
assert_type(Shop.close.delay(3).get(), int)
empty.delay().get()

# options
assert_type(bare.options(queue="slow", countdown=5, eta=None).delay(1, copy=True).get(), str)
assert_type(fetch.options(eta=datetime.now(timezone.utc), headers={"a": 1}).delay("u").get(), bytes)
assert_type(bound.options(retry=5).options(priority=1).delay(1).get(), list[str])

# apply_async takes its arguments loosely; its result is typed
assert_type(bare.apply_async([1], {"copy": True}, countdown=3, expires=60.0).get(), str)
assert_type(fetch.apply_async(("u",), task_id="mine").get(), bytes)

# map
assert_type(bare.map([1, 2]), ResultSet[str])
assert_type(bare.map([1, 2]).get(timeout=3), list[str])
assert_type(bare.options(queue="slow").map(range(3)).get(), list[str])
assert_type(fetch.map(url for url in ["a", "b"]).get(), list[bytes])
assert_type(bound.map({1, 2}).get(), list[list[str]])
assert_type(bare.starmap([(1, "x"), (2, "y")]).get(), list[str])
assert_type([each.get() for each in bare.map([1])], list[str])

# by name, and code that travels
assert_type(app.send_task("far.away", [1], {"a": 2}, queue="q").get(), Any)
assert_type(app.AsyncResult("id").get(), Any)
assert_type(app.submit(lambda number: number + 1, 1).get(), int)


async def coroutine(number: int) -> str:
    return str(number)


assert_type(app.submit(coroutine, 1).get(), str)

with app.batch() as results:
    bare.delay(1)
assert_type(results, ResultSet[Any])


async def main() -> None:
    assert_type(await fetch("u"), bytes)
    assert_type(await bare.adelay(1, copy=True), AsyncResult[str])
    result = await fetch.options(queue="q").adelay("u")
    assert_type(result, AsyncResult[bytes])
    assert_type(await result.aget(timeout=3), bytes)
    assert_type(await bare.map([1]).aget(), list[str])


# Locks and keys
with app.lock("stock", ttl=30, timeout=1.5) as lock:
    assert_type(lock, Lock)
    assert_type(lock.fence, int)
    assert_type(lock.get_ttl(), float | None)


async def locked() -> None:
    async with app.lock("stock") as lock:
        assert_type(lock, Lock)
        assert_type(await lock.aacquire(timeout=None), bool)


assert_type(app.kv.get("a"), Any)
assert_type(app.kv.get("a", type=int), int | None)
assert_type(app.kv.get("a", 0, type=int), int)
assert_type(app.kv.get("a", type=list[datetime]), list[datetime] | None)
assert_type(app.kv.set("a", [1], ttl=3, if_absent=True), bool)
assert_type(app.kv.increment("a", ttl=60), int)
assert_type(app.kv.get_ttl("a"), float | None)


# Workflows


@app.task
def number_of(text: str) -> int:
    return len(text)


@app.task
def sum_of(numbers: list[int]) -> float:
    return sum(numbers)


@app.task
def every(numbers: Results[int]) -> int:
    return len(numbers)


assert_type(bare.s(1, "x", copy=True), TaskStep[Start, str])
assert_type(bare.s(copy=True), TaskStep[int, str])
assert_type(bare.si(1), TaskStep[object, str])
assert_type(chain(bare.s(1), number_of.s()), Step[Start, int])
assert_type(bare.s(1) | number_of.s() | bare.s("y"), Step[Start, str])
assert_type((bare.s(1) | number_of.s()).delay(), FlowResult[int])
assert_type((bare.s(1) | number_of.s()).delay().get(timeout=3), int)
assert_type((bare.s() | number_of.s()).delay(3).get(), int)
assert_type(bare.s(1) | empty.si(), Step[Start, None])
assert_type(group(number_of.s("a"), number_of.s("b")), Step[Start, list[int]])
assert_type(group(number_of.s(text) for text in "ab") | sum_of.s(), Step[Start, float])
assert_type(chord([number_of.s("a")], sum_of.s()).delay().get(), float)
assert_type(bare.s(1) | group([number_of.s(), number_of.s()]) | sum_of.s(), Step[Start, float])
assert_type(bound.s(1) | each(number_of.s()) | sum_of.s(), Step[Start, float])
assert_type(starmap(bare, [(1, "x")]), Step[Start, list[str]])
assert_type(chunks(bare, [(1, "x")], 2).delay().get(), list[list[str]])
assert_type(bare.options(queue="slow").s(1) | number_of.s(), Step[Start, int])
assert_type(fetch.s("u"), TaskStep[Start, bytes])
bare.s(1).undo(number_of.s())
chain(bare.s(1)).apply_async(expires=3, on_failure="stop", keep=60, task_id="mine")
flow = app.workflow(name="w", on_failure="continue")
flow.step("a", bare.s(1))
flow.step("b", number_of, takes="a")
assert_type(flow.delay().get(), Any)


# Either kind of task can be handed to whoever sends it
def send(task: Task[[str], bytes], plain: Task[[int], str]) -> None:
    task.delay("u")


send(fetch, bare)
wider: AsyncResult[object] = bare.delay(1)
widest: ResultSet[object] = bare.map([1])
kept: AsyncTask[[str], bytes] = fetch
assert_type(bare.delay(1).get(propagate=False), str | Exception)


def emitting(order: int) -> int:
    return emit(bare.si(order), empty.si(), result=order)


def emitting_nothing() -> None:
    return emit(bare.si(1))


assert_type(app.task(emitting).delay(1), AsyncResult[int])
assert_type(app.task(emitting_nothing).delay(), AsyncResult[None])


# Batches: the function has a list, a call one item
@app.task(batch=100, batch_wait=0.5)
def index(documents: list[str]) -> list[int]:
    return [len(each) for each in documents]


@app.task(batch=10)
async def drop(numbers: list[int]) -> None: ...


assert_type(index, Task[[str], int])
assert_type(index.delay("a").get(), int)
assert_type(drop, AsyncTask[[int], None])


# Generators: what they return is the result, what they yield is streamed
@app.task
def rows(count: int) -> Generator[str, None, int]:
    yield "row"
    return count


@app.task
async def words(text: str) -> AsyncIterator[str]:
    yield text


assert_type(rows.delay(count=1).get(), int)
assert_type(words.delay("a"), AsyncResult[None])


# Schedules keep the task's type
@app.periodic(every=60)
@app.task
def tick(number: int = 1) -> str:
    return str(number)


@app.periodic(cron="@daily")
async def nightly() -> int:
    return 1


assert_type(tick.delay(number=1), AsyncResult[str])
assert_type(nightly, AsyncTask[[], int])


# Steps
@app.task(durable=True)
def order(number: int) -> str:
    paid = step("pay", len, "xxx")
    assert_type(paid, int)
    return str(paid)
