"""Functions that are no tasks travel by cloudpickle, signed.

    taskline worker -A submit_functions
    python submit_functions.py

prints

    a closure: 42
    a lambda: [1, 4, 9]
"""

import os
from collections.abc import Callable

from taskline import Taskline

app = Taskline(
    "submit_functions",
    broker="sqlite:///submit.db",
    backend="sqlite:///submit.db",
    accept=["json", "cloudpickle"],
    # Whoever has this key can run code in the workers. Keep a real one out of the code.
    signing_key=os.environ.get("EXAMPLE_KEY", "not a secret, it is an example"),
)


def times(factor: int) -> Callable[[int], int]:
    def multiply(number: int) -> int:
        return number * factor

    return multiply


if __name__ == "__main__":
    print("a closure:", app.submit(times(3), 14).get(timeout=30))
    print("a lambda:", app.submit(lambda ns: [n * n for n in ns], [1, 2, 3]).get(timeout=30))
