"""Pages that are made of files outside of docs/, with their links turned this way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MADE_OF = {"index.md": ROOT / "README.md", "changelog.md": ROOT / "CHANGELOG.md"}


def on_page_read_source(page: Any, config: Any) -> str | None:
    """The text of a page; None leaves it to MkDocs."""
    source = MADE_OF.get(page.file.src_uri)
    return source.read_text(encoding="utf-8").replace("](docs/", "](") if source else None
