"""A generator task: its items come while it runs, and it tells how far it is.

    taskline worker -A streams
    python streams.py

prints

    row 0, row 1, row 2, row 3, row 4
    5 rows
    5 of 5, done
    from the fourth: row 3, row 4
"""

from collections.abc import Generator

from taskline import Taskline, current_task

app = Taskline("streams", broker="sqlite:///streams.db", backend="sqlite:///streams.db")


@app.task
def rows(count: int) -> Generator[str, None, str]:
    for number in range(count):
        yield f"row {number}"
        current_task.progress(number + 1, count, "done" if number + 1 == count else "at work")
    return f"{count} rows"


if __name__ == "__main__":
    result = rows.delay(5)
    print(", ".join(result.stream(timeout=30)))
    print(result.get(timeout=30))
    told = result.progress()
    assert told is not None
    print(f"{told.done:g} of {told.total:g}, {told.message}")
    print("from the fourth:", ", ".join(app.AsyncResult(result.id).stream(start=3)))
