"""`Secret`: what is never shown of the arguments of a call."""

from __future__ import annotations

import inspect
from typing import Any, get_args


class Secret:
    """Marks a parameter whose values are never shown: `password: Annotated[str, Secret]`.

    They still travel, and are stored, as all others.
    """


HIDDEN = "***"
"""What is shown in place of a secret."""


def is_secret(hint: Any) -> bool:
    """Whether a hint is `Annotated[..., Secret]`, or says so and cannot be resolved."""
    if isinstance(hint, str):
        return "Secret" in hint
    notes = getattr(hint, "__metadata__", ())
    return any(each is Secret or isinstance(each, Secret) for each in notes)


def as_written(annotation: Any) -> Any:
    """An annotation that `str(signature)` shows as the code has it."""
    if isinstance(annotation, str):
        return _Verbatim(annotation)  # a postponed one, without its quotes
    if is_secret(annotation):
        return _Verbatim(f"Annotated[{inspect.formatannotation(get_args(annotation)[0])}, Secret]")
    return annotation


class _Verbatim:
    """Shown as this text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text
