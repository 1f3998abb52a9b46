"""Failures are kept: look at them, mend the cause, requeue.

    taskline worker -A dead_letters
    python dead_letters.py

prints

    sold out: tea
    dead: dead_letters.order ['tea'] OutOfStock: tea
    restocked, requeued: 1
    ordered tea
    left: 0
"""

import time
from pathlib import Path

from taskline import Taskline

app = Taskline("dead_letters", broker="sqlite:///letters.db", backend="sqlite:///letters.db")
STOCK = Path("stock.txt")


class OutOfStock(Exception):
    pass


@app.task
def order(item: str) -> str:
    if item not in STOCK.read_text().split():
        raise OutOfStock(item)
    return f"ordered {item}"


if __name__ == "__main__":
    STOCK.write_text("cake coffee")
    result = order.delay("tea")
    error = result.get(timeout=30, propagate=False)
    print("sold out:", error)

    # The letter is written just after the result.
    while not (letters := list(app.dead.find(task="dead_letters.order"))):
        time.sleep(0.01)
    for letter in letters:
        print("dead:", letter.task, app.dead.describe(letter)["args"], letter.reason)

    STOCK.write_text("cake coffee tea")
    print("restocked, requeued:", len(app.dead.requeue(letters)))
    print(app.AsyncResult(result.id).get(timeout=30))
    print("left:", len(list(app.dead.find())))
