"""Tables: CSV, TSV and Parquet, row by row.

A cell that is empty in CSV, or null in Parquet, is left out of its row; but for the columns named in `empty`, which stay with
the value given there (CSV) or None (Parquet).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from rlaif.errors import InputError
from rlaif.rows.lines import MAX_LINE_BYTES, Row, decode, raw_lines
from rlaif.rows.mend import MENDABLE
from rlaif.rows.unpack import seekable

_BATCH = 1024
_NOTHING = (b"\n", b"\r\n")
_LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")

Empty = Mapping[str, str | None]
"""What an empty cell of a column stands for, where it is to be kept."""
Unread = Callable[[InputError], object]
"""Is told of a row that cannot be read: it raises, or the reading goes on behind it."""


def refuse(error: InputError) -> None:
    """Ends the reading."""
    raise error


class _Lines:
    """A file's lines as texts, but for empty ones between rows, which are `skipped`.

    `held` counts the bytes of the row that is being put together; its reader sets it back.
    """

    def __init__(self, name: str, file: BinaryIO, lossy: bool) -> None:
        self.held, self.skipped, self._first = 0, 0, 1
        self._name, self._file, self._lossy = name, file, lossy

    def __iter__(self) -> Iterator[str]:
        for number, raw in raw_lines(self._name, self._file, blank=True):
            if not self.held:
                if raw in _NOTHING:
                    self.skipped += 1
                    continue
                self._first = number
            self.held += len(raw)
            if self.held > MAX_LINE_BYTES:
                raise InputError(
                    f"{self._name}:{self._first}: the row that begins here is longer than {MAX_LINE_BYTES >> 20} MB;"
                    " is a quotation mark not closed?"
                )
            text = decode(self._name, raw, self._lossy, number)
            if 0 <= text.find("\r") < len(text) - 2:  # ends of another system's lines
                yield from _LINES.findall(text)
            else:
                yield text


def csv_rows(
    name: str, file: BinaryIO, lossy: bool, empty: Empty, unread: Unread = refuse, *, delimiter: str = ","
) -> Iterator[Row]:
    """The rows below the header."""
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _Lines(name, file, lossy)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    try:
        header = next((cells for cells in reader if cells), [])
        if twice := [column for place, column in enumerate(header) if column in header[:place]]:
            raise InputError(f"{name}: the column {twice[0]!r} stands twice in the header")
        kept = {column: empty[column] for column in header if column in empty}
        lines.held = 0
        for cells in reader:
            lines.held = 0
            if not cells:
                continue
            where = f"{name}:{reader.line_num + lines.skipped}"
            if len(cells) != len(header):
                unread(InputError(f"{where}: the row does not have as many fields as the header"))
                continue
            yield where, kept | {column: cell for column, cell in zip(header, cells, strict=True) if cell}
    except csv.Error as error:
        raise InputError(f"{name}:{reader.line_num + lines.skipped}: not valid CSV: {error}") from None


def tsv_rows(name: str, file: BinaryIO, lossy: bool, empty: Empty, unread: Unread = refuse) -> Iterator[Row]:
    """The same between tabs."""
    return csv_rows(name, file, lossy, empty, unread, delimiter="\t")


def parquet_rows(name: str, file: BinaryIO, lossy: bool, empty: Empty, unread: Unread = refuse) -> Iterator[Row]:
    """The rows, a batch at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with seekable(name, file) as whole:
            place = 0
            for batch in pyarrow.parquet.ParquetFile(whole).iter_batches(batch_size=_BATCH):
                for at, row in _arrow_rows(name, batch, place, lossy, unread):
                    yield f"{name}: row {at}", without_nulls(row, empty)
                place += batch.num_rows
    except pyarrow.ArrowException as error:
        raise InputError(f"{name}: not valid parquet: {error}") from None


def without_nulls(row: Mapping[str, Any], empty: Empty) -> dict[str, Any]:
    """The row without the columns that hold nothing, but for those that are to be kept."""
    return {column: value for column, value in row.items() if value is not None or column in empty}


def _arrow_rows(name: str, batch: Any, before: int, lossy: bool, unread: Unread) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of a batch that follows on `before` others. Other programs put any bytes into Arrow's texts."""
    try:
        yield from enumerate(batch.to_pylist(), before + 1)
        return
    except UnicodeDecodeError:
        pass
    for at in range(batch.num_rows):
        row = {column: batch[column][at] for column in batch.schema.names}
        try:
            yield (
                before + at + 1,
                {column: _arrow_value(value, "surrogateescape" if lossy else "strict") for column, value in row.items()},
            )
        except UnicodeDecodeError as error:
            wrong = error.object[error.start : error.start + 4]
            unread(InputError(f"{name}: row {before + at + 1}: invalid UTF-8: {wrong!r}{MENDABLE}"))


def _arrow_value(value: Any, errors: str) -> Any:
    import pyarrow

    if not value.is_valid:
        return None
    if isinstance(value, pyarrow.StringScalar):
        return value.as_buffer().to_pybytes().decode("utf-8", errors)
    if isinstance(value, pyarrow.StructScalar):
        return {name: _arrow_value(item, errors) for name, item in value.items()}
    if isinstance(value, pyarrow.ListScalar):
        return [_arrow_value(item, errors) for item in value.values]
    return value.as_py()
