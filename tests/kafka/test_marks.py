from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskline.kafka.marks import METADATA_BYTES, Counts, Marks, decode, encode

counts = st.builds(Counts, st.integers(0, 300), st.integers(0, 40))


@st.composite
def some_marks(draw: st.DrawFn) -> Marks:
    unfinished = draw(st.dictionaries(st.integers(0, 400), counts, max_size=200))
    offset = min(unfinished, default=0)
    upper = max(unfinished, default=-1) + 1 + draw(st.integers(0, 50))
    return Marks(offset, offset + draw(st.integers(0, 500)), max(upper, offset), unfinished)


@given(some_marks())
def test_what_is_written_is_read(marks: Marks) -> None:
    text, told = encode(marks)
    assert told == marks.upper
    assert decode(marks.offset, text) == marks
    assert len(text) <= METADATA_BYTES


@given(some_marks(), st.integers(60, 400))
def test_what_is_too_long_tells_less_and_nothing_wrong(marks: Marks, limit: int) -> None:
    text, told = encode(marks, limit)
    assert len(text) <= limit
    found = decode(marks.offset, text)
    assert (found.upper, found.reach) == (told, marks.reach)
    assert found.unfinished == {o: c for o, c in marks.unfinished.items() if o < told}


@pytest.mark.parametrize(
    "text", ["", None, "by somebody else", "1???", "2AAAA", "1/////w==", "3AA"]
)
def test_what_others_wrote_says_nothing(text: str | None) -> None:
    assert decode(7, text) == Marks(7, 7, 7, {})


@given(st.text(max_size=60))
def test_no_text_does_harm(text: str) -> None:
    assert decode(7, text).offset == 7
