"""Compression of bodies, and its undoing within a bound.

A decompressor never yields more than it is asked for, so a small body that
would unfold to gigabytes costs no more than the limit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from taskline.errors import ConfigurationError, MessageRefused, SerializationError

MEMORY = 128 * 1024 * 1024
"""What the lzma and zstd headers of a body may ask for; our own ask for a tenth."""


class Compression(NamedTuple):
    """`compress(data)`, and `decompress(data, limit)` which raises for more than `limit` bytes."""

    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes, int], bytes]


def find(name: str) -> Compression | None:
    """The compression of this name; None when there is none of that name.

    Raises `ConfigurationError` when what it needs is not installed.
    """
    make = _MAKERS.get(name)
    return make() if make else None


def names() -> list[str]:
    """The known compressions."""
    return sorted(_MAKERS)


def _bounded(new: Callable[[], Any]) -> Callable[[bytes, int], bytes]:
    """Decompression by objects as zlib, bz2, lzma and compression.zstd have them."""

    def decompress(data: bytes, limit: int) -> bytes:
        decompressor = new()
        body: bytes = decompressor.decompress(data, limit + 1)
        if len(body) > limit:
            raise _too_large(limit)
        if not decompressor.eof:
            raise SerializationError("the compressed body is truncated")
        if decompressor.unused_data:
            raise SerializationError("there are bytes after the end of the compressed body")
        return body

    return decompress


def _too_large(limit: int) -> MessageRefused:
    return MessageRefused(f"the body decompresses to more than max_message_size = {limit} bytes")


def _zlib() -> Compression:
    import zlib

    return Compression(zlib.compress, _bounded(zlib.decompressobj))


def _gzip() -> Compression:
    import zlib

    def compress(data: bytes) -> bytes:
        # Not gzip.compress: it writes the time of day, and equal values would differ.
        packer = zlib.compressobj(wbits=31)
        return packer.compress(data) + packer.flush()

    return Compression(compress, _bounded(lambda: zlib.decompressobj(wbits=31)))


def _bz2() -> Compression:
    import bz2

    return Compression(bz2.compress, _bounded(bz2.BZ2Decompressor))


def _lzma() -> Compression:
    import lzma

    def new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)

    return Compression(lzma.compress, _bounded(new))


def _zstd() -> Compression:
    if sys.version_info >= (3, 14):
        from compression import zstd

        options = {zstd.DecompressionParameter.window_log_max: MEMORY.bit_length() - 1}
        return Compression(zstd.compress, _bounded(lambda: zstd.ZstdDecompressor(options=options)))
    try:
        import zstandard
    except ImportError:
        raise ConfigurationError(
            "compression zstd needs the package zstandard: pip install 'taskline[zstd]'"
        ) from None

    def decompress(data: bytes, limit: int) -> bytes:
        # One-shot decompression never writes beyond the size that the frame claims, but
        # allocates it at once; a frame that claims none gets the limit.
        size = zstandard.get_frame_parameters(data).content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN:
            size = limit
        elif size > limit:
            raise _too_large(limit)
        unpacker = zstandard.ZstdDecompressor(max_window_size=MEMORY)
        body: bytes = unpacker.decompress(data, max_output_size=size, allow_extra_data=False)
        return body

    # Its objects must not be shared between threads, as a codec is.
    return Compression(lambda data: zstandard.ZstdCompressor().compress(data), decompress)


_MAKERS: dict[str, Callable[[], Compression]] = {
    "zlib": _zlib,
    "gzip": _gzip,
    "bz2": _bz2,
    "lzma": _lzma,
    "zstd": _zstd,
}
