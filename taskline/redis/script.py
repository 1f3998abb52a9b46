"""Lua scripts: each is what it includes, `common.lua` first, and its own file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib import resources

from taskline.redis.connection import Word, pack


class Script:
    """One script. Its text is read, and its hash made, when it is first used."""

    def __init__(
        self, name: str, *includes: str, when_full: bool = False, common: bool = True
    ) -> None:
        """`when_full`: it frees memory in the end, and so may run when there is none left.

        `common`: whether it needs the common words.
        """
        self.name = name
        self._flags = "flags=allow-oom" if when_full else ""
        self._parts = (*(("common",) if common else ()), *includes, name)
        self._source = b""
        self._sha = b""

    @property
    def source(self) -> bytes:
        """Its text, put together of the files in `lua`."""
        if not self._source:
            folder = resources.files("taskline.redis") / "lua"
            texts = [(folder / f"{part}.lua").read_text("utf-8") for part in self._parts]
            self._source = "\n".join([f"#!lua {self._flags}".rstrip(), *texts]).encode()
        return self._source

    @property
    def sha(self) -> bytes:
        """The hash by which the server knows it."""
        if not self._sha:
            self._sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()
        return self._sha

    def packed(self, tag: bytes, args: Iterable[Word]) -> bytes:
        """The command that runs it, for the store whose keys begin with `tag`."""
        return pack([b"EVALSHA", self.sha, 1, tag, *args])
