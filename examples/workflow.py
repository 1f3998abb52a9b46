"""Workflows: tasks that wait for others, carried on by the workers alone.

    taskline worker -A workflow
    python workflow.py

prints

    words: 9
    failed: FileNotFoundError
    mended: 12
    ✓ 0 workflow.chapters
    ✓ 1 each x workflow.words
    ✓ 2 workflow.total
"""

from pathlib import Path

from taskline import Taskline
from taskline.workflows import chord, each

app = Taskline("workflow", broker="sqlite:///workflow.db", backend="sqlite:///workflow.db")


@app.task
def chapters(book: str) -> list[str]:
    return Path(book).read_text().splitlines()


@app.task
def words(chapter: str) -> int:
    return len(Path(chapter).read_text().split())


@app.task
def total(counts: list[int]) -> int:
    return sum(counts)


if __name__ == "__main__":
    Path("one.txt").write_text("it was a dark and stormy night")
    Path("two.txt").write_text("the end")
    Path("book.txt").write_text("one.txt\ntwo.txt\nthree.txt")
    Path("three.txt").unlink(missing_ok=True)

    counted = chord([words.s("one.txt"), words.s("two.txt")], total.s())
    print("words:", counted.delay().get(timeout=30))

    # How many chapters there are is known when the first step has ended.
    result = (chapters.s("book.txt") | each(words.s()) | total.s()).delay()
    print("failed:", type(result.get(timeout=30, propagate=False)).__name__)

    Path("three.txt").write_text("well not quite")
    while not result.resume():  # the dead letter is written just after the result
        app.clock.sleep(0.01)
    print("mended:", result.get(timeout=30))
    for line in result.graph().splitlines()[1:]:
        print(line.strip())
