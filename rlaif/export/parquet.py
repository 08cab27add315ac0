"""Parquet with declared columns, the same for whatever rows come first, in row groups of bounded size.

Messages are lists of {role, content}. Where any message of a column has more keys (tool calls, a name), all messages of that
column are JSON (Arrow's extension type): `datasets` reads them back as they were, other readers as JSON texts. Structs of all
keys would fill the gaps with nulls, which chat templates may print. So the rows are noted in a temporary file first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from rlaif.export import whole, write_lines
from rlaif.export.formats import Columns
from rlaif.export.parts import Row

_GROUP_ROWS = 10_000
_GROUP_BYTES = 2**24


def write_parquet(path: Path, rows: Iterable[Row], columns: Columns) -> int:
    """Writes rows with these columns and returns their number; the file appears whole or not at all.

    `tools` is a column where some row has it. Raises ValueError or TypeError for a row that is no JSON or has another column.
    """
    import pyarrow.parquet

    with whole(path) as file, TemporaryFile(dir=path.parent) as noted:
        used: set[str] = set()
        wide: set[str] = set()
        count = write_lines(noted, _watched(rows, columns, used, wide))
        noted.seek(0)
        fields = {name: kind for name, kind in columns.items() if name != "tools" or name in used}
        schema = _schema(fields, wide)
        with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for group in _groups(noted):
                writer.write_table(_table(group, fields, wide, schema))
    return count


def _watched(rows: Iterable[Row], columns: Columns, used: set[str], wide: set[str]) -> Iterator[Row]:
    """The rows; puts their keys into `used`, and into `wide` the columns of messages with more than a role and a content."""
    conversations = [name for name, kind in columns.items() if kind == "messages"]
    for row in rows:
        if not row.keys() <= used:
            used.update(row)
            if not used <= columns.keys():
                raise ValueError(f"row {row.get('id')!r} has columns that are not declared: {sorted(used - columns.keys())}")
        for name in conversations:
            if name not in wide and any(message.keys() != {"role", "content"} for message in row[name]):
                wide.add(name)
        yield row


def _groups(noted: IO[bytes]) -> Iterator[list[Row]]:
    group: list[Row] = []
    size = 0
    for line in noted:
        group.append(json.loads(line))
        size += len(line)
        if len(group) == _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _schema(columns: Columns, wide: set[str]) -> Any:
    import pyarrow as pa

    text, number, flag, texts = pa.string(), pa.float64(), pa.bool_(), pa.list_(pa.string())
    answer = {"answer": text, "model": text, "rank": pa.int64(), "score": number, "strength": number}
    answer |= {"eligible": flag, "truncated": flag, "degenerate": text, "error": text}
    candidate = {"id": text, "text": text, "model": text, "finish": text, "thinking": text, "error": text, "score": number}
    candidate |= {"degenerate": text}
    verdict = {"judge": text, "shown": texts, "scores": pa.list_(number), "scale": text, "error": text, "reason": text}
    verdict |= {"principle": text, "weight": number}
    kinds = {
        "text": text,
        "number": number,
        "count": pa.int64(),
        "flag": flag,
        "json": pa.json_(),
        "messages": pa.list_(pa.struct({"role": text, "content": text})),
        "answers": pa.list_(pa.struct(answer)),
        "candidates": pa.list_(pa.struct(candidate)),
        "verdicts": pa.list_(pa.struct(verdict)),
    }
    return pa.schema({name: pa.list_(pa.json_()) if name in wide else kinds[kind] for name, kind in columns.items()})


def _table(rows: list[Row], columns: Columns, wide: set[str], schema: Any) -> Any:
    import pyarrow as pa

    arrays = []
    for name, kind in columns.items():
        values = [row.get(name) for row in rows]
        if name in wide:
            texts = [[_json(message) for message in messages] for messages in values if messages is not None]
            arrays.append(pa.array(texts, pa.list_(pa.string())).cast(schema.field(name).type))
        elif kind == "json":
            arrays.append(pa.array(map(_json, values), pa.string()).cast(schema.field(name).type))
        else:
            arrays.append(pa.array(values, schema.field(name).type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
