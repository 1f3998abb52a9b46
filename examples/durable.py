"""Durable steps, and a batch task: what is paid once is paid once, and mails leave together.

    taskline worker -A durable
    python durable.py

prints

    order 7 in attempt 3: charged once
    mails in one run: 3
"""

from taskline import Taskline, current_task, step

app = Taskline("durable", broker="sqlite:///durable.db", backend="sqlite:///durable.db")


def charge(order: int) -> str:
    return f"charged in attempt {current_task.attempt}"


@app.task(durable=True, retry={"max": 5, "wait": 0.05})
def fulfil(order: int) -> str:
    paid = step("charge", charge, order)
    if current_task.attempt < 3:
        raise OSError("no van today")
    once = "once" if paid == "charged in attempt 1" else "again"
    return f"order {order} in attempt {current_task.attempt}: charged {once}"


@app.task(batch=3, batch_wait=30)
def mail(addresses: list[str]) -> list[int]:
    return [len(addresses)] * len(addresses)


if __name__ == "__main__":
    print(fulfil.delay(7).get(timeout=30))
    together = mail.map(["ann@example.org", "bob@example.org", "carl@example.org"])
    print("mails in one run:", max(together.get(timeout=60)))
