"""A schedule that the worker sends by itself, and one that is stored while it runs.

    taskline worker -A schedules
    python schedules.py

prints

    beat: declared in the code, sent
    stored: greet said hello ann, 2 times
"""

from taskline import Taskline

app = Taskline("schedules", broker="sqlite:///schedules.db", backend="sqlite:///schedules.db")


@app.periodic(name="beat", every=1, expires=30)
def beat() -> None: ...


@app.task
def greet(name: str) -> str:
    return f"hello {name}"


if __name__ == "__main__":
    app.schedules.add("stored", greet, args=["ann"], every=1, repeats=2)
    done = False
    while not done:
        app.clock.sleep(0.1)
        known = {each.name: each for each in app.schedules.list()}
        done = known["stored"].state == "finished" and known["beat"].sent > 0
    print("beat: declared in the code, sent")
    stored = known["stored"]
    said = app.AsyncResult(stored.last_id).get(timeout=30)
    print(f"stored: greet said {said}, {stored.sent} times")
