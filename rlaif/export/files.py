"""Writing an export: the file's name says what kind of file it is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rlaif.errors import InputError
from rlaif.export import write_jsonl
from rlaif.export.formats import Format
from rlaif.export.parts import Row

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


def write(path: Path, rows: Iterable[Row], form: Format) -> int:
    """Writes the rows of format `form` as the name's ending says; returns their number.

    The file appears whole or not at all; equal rows give equal bytes; memory does not grow with their number. Raises
    InputError for a name with another ending, before any row is read, and whatever the rows raise.
    """
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{str(path)!r}: an export ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if path.suffix == ".parquet":
        from rlaif.export.parquet import write_parquet

        return write_parquet(path, rows, form.columns)
    return write_jsonl(path, rows)


def dataset(rows: Iterable[Row]) -> datasets.Dataset:
    """The rows as a Dataset, with every key of every message and `tools` where only some rows have them."""
    import datasets

    listed = list(rows)
    blank = dict.fromkeys(key for row in listed for key in row)
    if listed and listed[0].keys() != blank.keys():  # from_list takes the columns of the first row
        listed[0] = blank | listed[0]
    return datasets.Dataset.from_list(listed, on_mixed_types="use_json")  # structs of all keys would hold nulls
