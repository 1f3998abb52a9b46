"""Retry policies: a mapping, and `Retry` raised by hand.

    taskline worker -A retries
    python retries.py

prints

    flaky: done in attempt 3
    its failed attempts: ['ConnectionError: attempt 1', 'ConnectionError: attempt 2']
    poll: done in attempt 4
    hopeless: ValueError after attempt 1
"""

from taskline import Retry, Taskline, current_task

app = Taskline("retries", broker="sqlite:///retries.db", backend="sqlite:///retries.db")


@app.task(retry={"max": 5, "wait": 0.05, "for": [ConnectionError]})
def flaky() -> str:
    if current_task.attempt < 3:
        raise ConnectionError(f"attempt {current_task.attempt}")
    return f"done in attempt {current_task.attempt}"


@app.task(retry=10)
def poll() -> str:
    if current_task.attempt < 4:
        raise Retry("not ready yet", after=0.05)
    return f"done in attempt {current_task.attempt}"


@app.task(retry={"max": 5, "never": [ValueError]})
def hopeless() -> None:
    raise ValueError("no attempt will mend this")


if __name__ == "__main__":
    result = flaky.delay()
    print("flaky:", result.get(timeout=30))
    print("its failed attempts:", result.info["errors"])
    print("poll:", poll.delay().get(timeout=30))
    bad = hopeless.delay()
    error = bad.get(timeout=30, propagate=False)
    print(f"hopeless: {type(error).__name__} after attempt {bad.info['attempt']}")
