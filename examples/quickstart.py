"""A task, its result, many calls at a time.

    taskline worker -A quickstart
    python quickstart.py

prints

    2 + 3 = 5
    the squares of 0 to 9: [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]
    1 / 0: ZeroDivisionError: division by zero
"""

from taskline import Taskline

app = Taskline("quickstart", broker="sqlite:///quickstart.db", backend="sqlite:///quickstart.db")


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task
def square(number: int) -> int:
    return number * number


@app.task
def divide(a: int, b: int) -> float:
    return a / b


if __name__ == "__main__":
    print("2 + 3 =", add.delay(2, 3).get(timeout=30))
    print("the squares of 0 to 9:", square.map(range(10)).get(timeout=30))
    try:
        divide.delay(1, 0).get(timeout=30)
    except ZeroDivisionError as error:
        print(f"1 / 0: {type(error).__name__}: {error}")
