"""Files as streams of bytes: as they are, or unpacked from gzip (.gz) and Zstandard (.zst), any number of members in a row.

Memory stays flat, whatever a file claims to hold. What unpacks to far more than any text does is refused on the way. A packed
file that ends too early is an error, never a shorter input.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from rlaif.errors import InputError

PACKED = (".gz", ".zst")
RATIO = 500
"""Texts pack 3 to 10 times; rows that share a system message of 20 kB 120 times with gzip and 400 times with Zstandard. What
is made to burst packs 1032 times with gzip, 10,000 times and more with Zstandard."""
FLOOR_BYTES = 256 * 2**20
"""So much is unpacked before the ratio counts: small files of one repeated row are harmless."""
WHOLE_FLOOR_BYTES = 64 * 2**20
"""The same where the file is read whole."""
WHOLE_BYTES = 2**30
"""The most of a file that has to be in memory, or in a temporary file, as a whole."""
_BUFFER_BYTES = 2**18


@contextmanager
def opened(path: Path, *, is_whole: bool = False) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked by its suffix. Reading raises InputError where they are too many, OSError if it is broken.

    `is_whole`: they will be in memory together.
    """
    with path.open("rb") as file:
        if path.suffix not in PACKED:
            yield file
            return
        stream = io.BufferedReader(
            _Unpacked(str(path), file, path.suffix, WHOLE_FLOOR_BYTES if is_whole else FLOOR_BYTES), _BUFFER_BYTES
        )
        with stream:
            yield cast(BinaryIO, stream)


class _Unpacked(io.RawIOBase):
    """What a packed file holds; counts what comes out against what went in."""

    def __init__(self, name: str, file: BinaryIO, suffix: str, floor: int) -> None:
        self._name, self._file, self._floor, self._out = name, file, floor, 0
        self._stream: Any = gzip.GzipFile(fileobj=file) if suffix == ".gz" else _zstandard(file)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` and returns how much of it; 0 at the end. Raises InputError beyond the ratio."""
        piece = self._stream.read(min(len(buffer), _BUFFER_BYTES))
        buffer[: len(piece)] = piece
        self._out += len(piece)
        if self._out > self._floor and self._out > self._floor + RATIO * self._file.tell():
            raise InputError(
                f"{self._name}: it unpacks to more than {RATIO} times its size ({self._out >> 20} MB so far), which text"
                " does not; if that is meant, unpack it first and give the unpacked file"
            )
        return len(piece)

    def close(self) -> None:
        """Frees the decompressor."""
        self._stream.close()
        super().close()


def _zstandard(file: BinaryIO) -> Any:
    """Unpacked by Arrow, which is there for Parquet anyway and knows a frame that was cut from one that has ended."""
    import pyarrow

    return pyarrow.CompressedInputStream(file, "zstd")


def whole(name: str, file: BinaryIO, instead: str) -> bytes:
    """All of the file. Raises InputError beyond WHOLE_BYTES, saying what to do `instead`."""
    read = bytearray()
    while piece := file.read(_BUFFER_BYTES):
        read += piece
        if len(read) > WHOLE_BYTES:
            raise InputError(f"{name}: the file is larger than {WHOLE_BYTES >> 20} MB, and this kind is read whole: {instead}")
    return bytes(read)


@contextmanager
def seekable(name: str, file: BinaryIO) -> Iterator[BinaryIO]:
    """The file itself where one can go back in it, else a temporary copy. Raises InputError beyond WHOLE_BYTES."""
    if file.seekable():
        yield file
        return
    with TemporaryFile() as copy:
        while piece := file.read(_BUFFER_BYTES):
            copy.write(piece)
            if copy.tell() > WHOLE_BYTES:
                raise InputError(f"{name}: it unpacks to more than {WHOLE_BYTES >> 20} MB: unpack it first")
        copy.seek(0)
        yield cast(BinaryIO, copy)
