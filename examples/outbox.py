"""An order and its receipt in one transaction: both are committed, or neither is.

    taskline worker -A outbox
    python outbox.py

prints

    order 1: receipt for 3 pieces
    order 2: an order of nothing
    orders in the database: [1]
"""

import sqlite3
from contextlib import closing

from taskline import Taskline

STORE = "sqlite:///outbox.db?shared=true"
app = Taskline("outbox", broker=STORE, backend=STORE)


@app.task
def send_receipt(order: int, pieces: int) -> str:
    return f"receipt for {pieces} pieces"


def place(connection: sqlite3.Connection, order: int, pieces: int) -> str:
    # The connection commits at the end of the block, or rolls back when something raises.
    with connection, app.batch(connection=connection) as results:
        connection.execute("INSERT INTO orders VALUES (?, ?)", (order, pieces))
        send_receipt.delay(order, pieces)
        if pieces < 1:
            raise ValueError("an order of nothing")
    return results.get(timeout=30)[0]


if __name__ == "__main__":
    with closing(sqlite3.connect("outbox.db")) as connection:
        connection.execute("CREATE TABLE orders (number INTEGER, pieces INTEGER)")
        print("order 1:", place(connection, 1, 3))
        try:
            place(connection, 2, 0)
        except ValueError as error:
            print("order 2:", error)
        numbers = [number for (number,) in connection.execute("SELECT number FROM orders")]
        print("orders in the database:", numbers)
