"""Files by their names: every format in every kind of file loads as it was written, whole or not at all."""

from __future__ import annotations

import gzip
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exports
import pyarrow
import pytest
from exports import PROMPTS
from helpers import read_rows, rlaif

import rlaif as library
from rlaif.errors import InputError
from rlaif.export import files, number, write_jsonl
from rlaif.export.formats import FORMATS

NAMES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"]
DPO = FORMATS["dpo"]
QUICK = ("dpo", "kto")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exports.judged(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exports.judged(tmp_path_factory.mktemp("single"), ["plain", "unicode"])


def dpo_row(k: int, **more: Any) -> dict[str, Any]:
    said = {side: [{"role": "assistant", "content": f"{side} {k}"}] for side in ("chosen", "rejected")}
    row = {"id": str(k), "prompt": [{"role": "user", "content": f"question {k}"}], **said}
    row |= {"score_chosen": 1.0, "score_rejected": -1.0, "p_chosen": 0.88, "p_source": "judge", "judge": "j", "flip": None}
    return row | more


def shorn(value: Any) -> Any:
    """The value without keys that are null: a reader of JSON lines may put them where another row has something."""
    if isinstance(value, dict):
        return {k: shorn(v) for k, v in value.items() if v is not None}
    return [shorn(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMATS)
def test_what_is_loaded_is_what_was_written(run, single, tmp_path, form, name):
    source = single if form == "dpo-text" else run
    rows = exports.rows_of(source, form)
    loaded = exports.load(exports.write(source, form, tmp_path / name), tmp_path / "cache")
    found = list(loaded)
    assert [shorn(row) for row in found] == [shorn(row) for row in rows] and rows
    for column in ("prompt", "chosen", "rejected", "completion", "messages"):  # these to the last key: templates show them
        assert [row.get(column) for row in found] == [row.get(column) for row in rows]
    texts = json.dumps(found, ensure_ascii=False)
    assert json.dumps(exports.ODD, ensure_ascii=False)[1:-1] in texts
    tools = [(row["id"], json.loads(row["tools"])) for row in found if row.get("tools")]
    held = [(id, exports.tools_of(id)) for id in ("tools", "tools-text")]
    assert tools == ([] if form in ("dpo-text", "records") else [pair for pair in held for _ in range(1 + (form == "kto"))])
    if form == "records":
        assert [row["fields"].get("tools") is not None for row in found] == [tools is not None for _, tools in PROMPTS.values()]


@pytest.mark.parametrize("name", NAMES)
def test_equal_rows_give_equal_bytes_wherever_they_are_written(run, tmp_path, name):
    other = tmp_path / "other"
    other.mkdir()
    one = exports.write(run, "reward", tmp_path / name)
    assert one.read_bytes() == exports.write(run, "reward", other / f"b{name[1:]}").read_bytes()


def test_packed_lines_are_the_lines(run, tmp_path):
    plain = exports.write(run, "kto", tmp_path / "a.jsonl").read_bytes()
    assert gzip.decompress(exports.write(run, "kto", tmp_path / "a.jsonl.gz").read_bytes()) == plain
    packed = exports.write(run, "kto", tmp_path / "a.jsonl.zst")
    assert pyarrow.CompressedInputStream(str(packed), "zstd").read() == plain and packed.stat().st_size < len(plain)


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.gz", "a.parquet.gz", "a", "jsonl"])
def test_another_ending_is_refused_before_anything_is_read(tmp_path, name):
    def rows():
        pytest.fail("a row was read")
        yield

    with pytest.raises(InputError, match=r"\.jsonl, \.jsonl\.gz, \.jsonl\.zst or \.parquet"):
        files.write(tmp_path / name, rows(), DPO)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "bad",
    [lambda: dpo_row(1, p_chosen=number(math.nan)), lambda: dpo_row(1, judge="\ud800"), lambda: dpo_row(1, flip=object())],
)
def test_a_file_appears_whole_or_not_at_all(tmp_path, name, bad: Callable[[], Any]):
    path = tmp_path / name

    def rows():
        yield from map(dpo_row, range(3))
        yield bad()

    with pytest.raises((ValueError, TypeError)):
        files.write(path, rows(), DPO)
    assert not list(tmp_path.iterdir())
    assert files.write(path, map(dpo_row, range(2)), DPO) == 2
    before = path.read_bytes()
    with pytest.raises((ValueError, TypeError)):
        files.write(path, rows(), DPO)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


# Parquet


@pytest.mark.slow
def test_columns_are_declared_whatever_comes_first_and_groups_are_bounded(tmp_path):
    import pyarrow.parquet as parquet

    named = [{"role": "user", "content": "q", "name": "ann"}]
    late = [dpo_row(1, flip=True, tools="[{}]"), dpo_row(2, prompt=named, judge="界" * 3)]
    count = files.write(tmp_path / "a.parquet", [*map(dpo_row, range(25_000)), *late], DPO)
    stored = parquet.ParquetFile(tmp_path / "a.parquet")
    sizes = [stored.metadata.row_group(k).num_rows for k in range(stored.metadata.num_row_groups)]
    assert (count, sizes) == (25_002, [10_000, 10_000, 5_002])
    loaded = exports.load(tmp_path / "a.parquet", tmp_path / "cache")
    assert loaded[0] == dpo_row(0, tools=None) and loaded[25_000] == late[0] and loaded[25_001] == {**late[1], "tools": None}
    big = [dpo_row(k, judge="x" * 2**20) for k in range(40)]
    files.write(tmp_path / "b.parquet", big, DPO)
    stored = parquet.ParquetFile(tmp_path / "b.parquet")
    assert [stored.metadata.row_group(k).num_rows for k in range(stored.metadata.num_row_groups)] == [16, 16, 8]


def test_plain_messages_are_structs_that_any_reader_knows(single, tmp_path):
    import pyarrow.parquet as parquet

    for form in ("dpo", "sft-messages", "reward-implicit", "listwise"):
        schema = parquet.read_schema(exports.write(single, form, tmp_path / f"{form}.parquet"))
        for column, kind in FORMATS[form].columns.items():
            if kind == "messages":
                assert {field.name for field in schema.field(column).type.value_type} == {"role", "content"}
        assert "tools" not in schema.names


def test_a_file_without_rows_has_its_columns(tmp_path):
    import pyarrow.parquet as parquet

    for name, form in FORMATS.items():
        assert files.write(tmp_path / f"{name}.parquet", [], form) == 0
        assert set(parquet.read_schema(tmp_path / f"{name}.parquet").names) == form.columns.keys() - {"tools"}


def test_a_column_that_is_not_declared_is_not_lost_silently(tmp_path):
    with pytest.raises(ValueError, match=r"'1'.*'surprise'"):
        files.write(tmp_path / "a.parquet", [dpo_row(0), dpo_row(1, surprise=1)], DPO)
    assert not list(tmp_path.iterdir())


def test_a_dataset_in_memory_holds_what_the_file_holds(tmp_path):
    made = library.judge(exports.inputs(), judge="longest.py:longest", out=tmp_path).to_dataset()
    assert list(made) == [{**row, "tools": row.get("tools")} for row in exports.rows_of(tmp_path, "dpo")]


# The command


@pytest.mark.parametrize(
    "form", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in FORMATS if n != "dpo-text"]
)
def test_the_command_writes_each_format(run, tmp_path, form):
    rlaif("export", run, "--format", form, "--out", tmp_path / "a.jsonl")
    rows = read_rows(tmp_path / "a.jsonl")
    assert rows == exports.rows_of(run, form)
    assert [row["id"] for row in rows] == [id for id in PROMPTS for _ in range(1 + (form == "kto"))]


@pytest.mark.slow
def test_the_command_names_the_first_prompt_that_a_format_cannot_hold(run, tmp_path):
    for name in ("a.jsonl", "a.parquet"):
        done = rlaif("export", run, "--format", "dpo-text", "--out", tmp_path / name, expect=2)
        assert "'turns'" in done.stderr and "system, user, assistant, user with" in done.stderr
    done = rlaif("export", run, "--format", "reward", "--out", tmp_path / "a.csv", expect=2)
    assert ".parquet" in done.stderr and not list(tmp_path.iterdir())


def test_broken_tools_are_named(tmp_path):
    rows = [{"id": "odd", "prompt": "q", "candidates": ["a", "bb"], "tools": "hammer"}]
    with pytest.raises(InputError, match="'odd': `tools` must be a list of schemas"):
        library.judge(rows, judge="longest.py:longest", out=tmp_path).wait()


def test_two_that_write_to_one_place_do_not_mix(tmp_path):
    """As where a run ends, and writes dpo.jsonl, while it is exported to its default place."""
    path = tmp_path / "dpo.jsonl"

    def rows(who: str):
        for place in range(5000):
            if place % 500 == 0:
                time.sleep(0.005)
            yield {"who": who, "place": place}

    threads = [threading.Thread(target=write_jsonl, args=(path, rows(who))) for who in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [row["place"] for row in written] == list(range(5000)) and len({row["who"] for row in written}) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["dpo.jsonl"]


def test_what_a_killed_export_has_left_is_overwritten(tmp_path):
    (tmp_path / ".dpo.jsonl.part").write_bytes(b"x" * 100_000)
    write_jsonl(tmp_path / "dpo.jsonl", [{"a": 1}])
    assert (tmp_path / "dpo.jsonl").read_bytes() == b'{"a":1}\n' and len(list(tmp_path.iterdir())) == 1
