"""Rows of what the user names: files of JSON Lines, JSON, CSV, TSV, Parquet or text, packed ones, folders of these, datasets.

A row that cannot be read is refused by file and line, and memory stays flat, whatever a file unpacks to (a .json file alone is
read whole). How each kind is read stands in a module of its own.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rlaif.errors import InputError
from rlaif.rows.lines import Row, json_rows, jsonl_rows, kind_of, txt_rows
from rlaif.rows.mend import MENDABLE, Mender
from rlaif.rows.sets import hub_rows, is_saved, saved_rows
from rlaif.rows.tables import Empty, Unread, csv_rows, parquet_rows, refuse, tsv_rows
from rlaif.rows.unpack import PACKED, opened
from rlaif.templates import example

__all__ = ["MENDABLE", "Mender", "Row", "kind_of", "rows"]

_LINED: dict[str, Callable[[str, BinaryIO, bool], Iterator[Row]]] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".txt": txt_rows,
}
_TABLES: dict[str, Callable[[str, BinaryIO, bool, Empty, Unread], Iterator[Row]]] = {
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".parquet": parquet_rows,
}
_KINDS = (*_LINED, *_TABLES)
_EMPTY: Empty = {"prompt": ""}


def rows(source: str | Iterable[Any], *, lossy: bool, empty: Empty = _EMPTY, unread: Unread = refuse) -> Iterator[Row]:
    """The rows of any source. `lossy`: what is no text in them may be lone surrogates, and is mended by the caller.

    Empty cells of tables are left out of their rows but in the columns of `empty`: there they stand for its value. `unread` is
    told of rows of a table that cannot be read and behind which others can.
    """
    if not isinstance(source, (str, Path)):
        yield from _values(source)
        return
    name = str(source)
    if "\0" in name:
        raise InputError(f"no file at {name[:200]!r}: no file's name holds a null character")
    path = example(name)
    if os.path.isdir(path):
        yield from _folder_rows(path, lossy, empty, unread)
    elif not os.path.exists(path) and _kind(path) not in _KINDS and _may_be_on_hub(name):
        yield from hub_rows(name, empty)
    else:
        yield from _file_rows(name, path, lossy, empty, unread)


def _values(source: Iterable[Any]) -> Iterator[Row]:
    """Python values: rows, or prompts alone."""
    if isinstance(source, Mapping):
        raise InputError(f"the input must be rows, got a mapping of {', '.join(map(str, source))}: give one of them")
    for place, item in enumerate(source, 1):
        is_row = isinstance(item, Mapping)
        yield f"item {place}", item if is_row else {"prompt": list(item) if isinstance(item, tuple) else item}


def _kind(path: Path) -> str:
    """The suffix that tells the kind, without that of the packing."""
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix


def _file_rows(name: str, path: Path, lossy: bool, empty: Empty, unread: Unread) -> Iterator[Row]:
    kind = _kind(path)
    if kind not in _KINDS:
        if not os.path.exists(path):
            raise InputError(f"no file at {name[:200]!r}")
        raise InputError(
            f"{name!r}: cannot tell its kind; the name should end in {', '.join(_KINDS)}, or these with {' or '.join(PACKED)}"
        )
    try:
        with opened(path, is_whole=kind == ".json") as file:
            if kind in _LINED:
                yield from _LINED[kind](str(path), file, lossy)
            else:
                yield from _TABLES[kind](str(path), file, lossy, empty, unread)
    except FileNotFoundError:
        raise InputError(f"no file at {name!r}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {name!r}: {error}") from None


def _folder_rows(path: Path, lossy: bool, empty: Empty, unread: Unread) -> Iterator[Row]:
    """A saved dataset, or files of one kind in the order of their names; hidden ones are passed over."""
    shards = [shard for shard in sorted(path.iterdir()) if not shard.name.startswith((".", "_"))]
    if is_saved(path) or not shards or not all(shard.is_file() and _kind(shard) in _KINDS for shard in shards):
        yield from saved_rows(path, empty)
        return
    if len(kinds := {_kind(shard) for shard in shards}) > 1:
        raise InputError(
            f"{str(path)!r} holds files of several kinds ({', '.join(sorted(kinds))}): name one file, or keep one kind"
        )
    for shard in shards:
        yield from _file_rows(str(shard), shard, lossy, empty, unread)


def _may_be_on_hub(name: str) -> bool:
    """Whether it looks like OWNER/NAME: a path into a folder that is here was meant as a path."""
    owner, _, rest = name.partition("/")
    return bool(owner) and rest.count("/") == 0 and rest != "" and owner != "~" and not os.path.isdir(owner)
