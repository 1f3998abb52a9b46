"""Frames in stores that keep text."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode

MARKER = b"taskline-base64:"
"""In front of a frame that is not text."""


def to_text(frame: bytes) -> str:
    """A frame as text: as it is when it is UTF-8, as JSON frames are, else marked and in base64."""
    if not frame.startswith(MARKER):
        try:
            return frame.decode()
        except UnicodeDecodeError:
            pass
    return (MARKER + b64encode(frame)).decode()


def from_text(body: bytes) -> bytes:
    """The frame that was stored so; a body that only looks marked is what it is."""
    if body.startswith(MARKER):
        try:
            return b64decode(body[len(MARKER) :], validate=True)
        except binascii.Error:
            return body
    return body
