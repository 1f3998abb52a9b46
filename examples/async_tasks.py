"""A thousand coroutines, a hundred at a time, in one worker process.

    taskline worker -A async_tasks
    python async_tasks.py

prints

    1000 pages, 9890 characters
"""

import asyncio

from taskline import Taskline

app = Taskline("async_tasks", broker="sqlite:///async.db", backend="sqlite:///async.db")


@app.task
async def fetch(page: int) -> str:
    await asyncio.sleep(0.05)  # as an HTTP client would
    return f"<page {page}>"


async def main() -> None:
    with app.batch() as results:
        for page in range(1000):
            fetch.delay(page)
    pages = await results.aget(timeout=60)
    print(f"{len(pages)} pages, {sum(map(len, pages))} characters")


if __name__ == "__main__":
    asyncio.run(main())
