"""Wrong uses of the public face: `mypy --strict` must refuse each marked line, with that code."""

from __future__ import annotations

from typing import Any

from taskline import Task, Taskline
from taskline.workflows import chain, chord, each, group

app = Taskline("shop")


@app.task
def bare(order: int, to: str = "x", *, copy: bool = False) -> str:
    return to * order


@app.task(queue="mail", retry=3)
def declared(order: int) -> str:
    return str(order)


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(bind=True)
def bound(self: Task[..., Any], order: int) -> list[str]:
    return [str(order)]


@app.task(bind=True)
async def bound_async(self: Task[..., Any], order: int) -> float:
    return float(order)


@app.task
def two(order: int, to: str) -> None: ...


@app.task
def named(*, order: int) -> None: ...


# delay
bare.delay("1")  # E: arg-type
bare.delay()  # E: call-arg
bare.delay(1, "x", True)  # E: call-arg
bare.delay(1, nope=3)  # E: call-arg
bare.delay(1, copy="yes")  # E: arg-type
declared.delay("1")  # E: arg-type
fetch.delay(3)  # E: arg-type
bound.delay("1")  # E: arg-type
bound.delay(bound, 1)  # E: call-arg arg-type
bound_async.delay("1")  # E: arg-type

# a plain call
bare("1")  # E: arg-type
bound("1")  # E: arg-type

# options
bare.options(queue="q").delay("1")  # E: arg-type
bare.options(queue=3)  # E: arg-type
bare.options(queu="q")  # E: call-arg
bare.options(countdown="soon")  # E: arg-type
fetch.options(queue="q").delay()  # E: call-arg
app.task(ack="never")  # E: call-overload
app.task(queu="x")  # E: call-overload
bare.apply_async([1], countdwn=3)  # E: call-arg
app.send_task(3)  # E: arg-type

# map
bare.map(["x"])  # E: list-item
bare.map(3)  # E: arg-type
fetch.map([1])  # E: list-item
bound.map(["x"])  # E: list-item
two.map([1])  # E: misc arg-type
named.map([1])  # E: misc arg-type
bare.options(queue="q").map(["x"])  # E: list-item

# the result's type
number: int = bare.delay(1).get()  # E: assignment
other: int = fetch.delay("u").get()  # E: assignment
third: str = bound.delay(1).get()  # E: assignment
fourth: list[int] = bare.map([1]).get()  # E: assignment
fifth: str = bare.delay(1).get(propagate=False)  # E: assignment
sixth: int = bare.apply_async([1]).get()  # E: assignment
app.submit(len, 3)  # E: call-overload


async def main() -> None:
    await bare.adelay("1")  # E: arg-type
    await fetch.adelay(3)  # E: arg-type
    _text: str = await (await fetch.adelay("u")).aget()  # E: assignment
    _value: str = await fetch("u")  # E: assignment
    fetch("u")  # E: unused-coroutine
    bare.adelay(1)  # E: unused-coroutine


# locks and keys
app.lock(3)  # E: arg-type
app.lock("a", ttl="30")  # E: arg-type
app.lock("a", 30)  # E: call-arg
app.kv.set(3, 1)  # E: arg-type
app.kv.increment("a", 1.5)  # E: arg-type


# workflows: a step's result fits the next one's first argument
@app.task
def number_of(text: str) -> int:
    return len(text)


@app.task
def sum_of(numbers: list[int]) -> float:
    return sum(numbers)


bare.s(1, 2)  # E: call-overload
bare.s(1, nope=2)  # E: call-overload
bare.si("1")  # E: arg-type
bare.s(1) | declared.s()  # E: operator
chain(bare.s(1), declared.s())  # E: misc
chain(bare.s(1), number_of.s(), number_of.s())  # E: misc
bare.s(1) | number_of.s("text")  # E: operator
number_of.s("a") | sum_of.s()  # E: operator
chord([bare.s(1)], sum_of.s())  # E: misc
number_of.s("a") | each(bare.s())  # E: operator
chain(bare.s(), number_of.s()).delay()  # E: call-arg
chain(bare.s(), number_of.s()).delay("x")  # E: arg-type
group([number_of.s("a")]) | number_of.s()  # E: operator
seventh: str = (bare.s(1) | number_of.s()).delay().get()  # E: assignment
chain(bare.s(1)).apply_async(expire=3)  # E: call-arg
app.workflow(on_failur="stop")  # E: call-arg
