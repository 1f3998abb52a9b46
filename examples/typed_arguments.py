"""Dataclasses, datetimes and decimals arrive as declared, and so does the result.

    taskline worker -A typed_arguments
    python typed_arguments.py

prints

    Invoice(number=7, total=Decimal('11.00'), due=datetime.date(2030, 1, 31))
    invoice() argument 'lines': refused here, before it was sent
"""

from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, cast

from taskline import InvalidArguments, Taskline

app = Taskline("typed_arguments", broker="sqlite:///typed.db", backend="sqlite:///typed.db")


@dataclass
class Line:
    item: str
    price: Decimal
    count: int = 1


@dataclass
class Invoice:
    number: int
    total: Decimal
    due: date


@app.task
def invoice(number: int, lines: list[Line], *, on: date, days: int = 30) -> Invoice:
    total = sum((line.price * line.count for line in lines), Decimal(0))
    return Invoice(number, total, on + timedelta(days=days))


if __name__ == "__main__":
    lines = [Line("tea", Decimal("2.50"), count=2), Line("cake", Decimal("6.00"))]
    print(invoice.delay(7, lines, on=date(2030, 1, 1)).get(timeout=30))
    try:
        invoice.delay(7, cast(Any, "tea"), on=date(2030, 1, 1))
    except InvalidArguments:
        print("invoice() argument 'lines': refused here, before it was sent")
