"""Packed files: what they hold is read as if it were not packed, and what they only claim to hold costs no memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import python, write_rows

from rlaif.data import read_prompts
from rlaif.errors import InputError
from rlaif.rows import rows
from rlaif.rows.sets import hub_name

ROWS = [{"id": str(k), "prompt": f"Question {k}:\u2028 why?"} for k in range(50)]
Pack = Callable[[bytes], bytes]


def zstandard(raw: bytes) -> bytes:
    return bytes(pa.compress(raw, codec="zstd", asbytes=True))


PACKS = [pytest.param(".gz", gzip.compress, id="gz"), pytest.param(".zst", zstandard, id="zst")]
MARKED = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
"""A frame of Zstandard's that says nothing."""


def texts(path: Path) -> list[str]:
    return [p.text for p in read_prompts(str(path))]


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as refused:
        list(read_prompts(str(path)))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def write(path: Path) -> Path:
    """ROWS in the kind of file that the name says."""
    kind = path.suffix
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind in (".csv", ".tsv"):
        cells = [["id", "prompt"], *([row["id"], f'"{row["prompt"]}"'] for row in ROWS)]
        path.write_text("".join({".csv": ",", ".tsv": "\t"}[kind].join(row) + "\n" for row in cells), encoding="utf-8")
    elif kind == ".json":
        path.write_text(json.dumps(ROWS))
    elif kind == ".txt":
        path.write_text("".join(row["prompt"] + "\n" for row in ROWS), encoding="utf-8")
    else:
        write_rows(path, ROWS)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt"])
def test_every_kind_is_read_alike_however_it_is_packed(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"p{kind}")
    assert texts(path) == [row["prompt"] for row in ROWS]
    for suffix, pack in ((".gz", gzip.compress), (".zst", zstandard)):
        packed = tmp_path / f"p{kind}{suffix}"
        packed.write_bytes(pack(path.read_bytes()))
        assert list(read_prompts(str(packed))) == list(read_prompts(str(path)))


@pytest.mark.parametrize(("suffix", "pack"), PACKS)
def test_members_in_a_row_are_one_file(tmp_path: Path, suffix: str, pack: Pack) -> None:
    raw = write(tmp_path / "p.jsonl").read_bytes()
    cuts = [raw[:1], raw[1:700], b"", raw[700:]]  # within lines, too
    path = tmp_path / f"p.jsonl{suffix}"
    path.write_bytes(b"".join(map(pack, cuts)) + (MARKED if suffix == ".zst" else b""))
    assert texts(path) == [row["prompt"] for row in ROWS]


@pytest.mark.parametrize(("suffix", "pack"), PACKS)
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_file_that_was_cut_is_refused_wherever_it_was_cut(tmp_path: Path, suffix: str, pack: Pack, kind: str) -> None:
    """Also within its last bytes, where all rows can be read."""
    whole = pack(write(tmp_path / f"p{kind}").read_bytes())
    path = tmp_path / f"p{kind}{suffix}"
    for end in (1, 4, 20, len(whole) // 2, len(whole) - 3, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert str(path) in refusal(path)
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert str(path) in refusal(path)


@pytest.mark.parametrize(("suffix", "pack"), PACKS)
def test_a_file_that_is_damaged_or_of_another_kind_is_refused(tmp_path: Path, suffix: str, pack: Pack) -> None:
    raw = write(tmp_path / "p.jsonl").read_bytes()
    whole, path = pack(raw), tmp_path / f"q.jsonl{suffix}"
    for content in (raw, whole[:30] + b"\xff" * 20 + whole[50:], whole + b"and more"):
        path.write_bytes(content)
        assert str(path) in refusal(path)
    path.write_bytes(b"")
    assert "no prompts" in refusal(path)


BOMB = """
import resource, sys
from rlaif.data import read_prompts
from rlaif.errors import InputError
import pyarrow
resource.setrlimit(resource.RLIMIT_DATA, (600 << 20, 600 << 20))
try:
    for _ in read_prompts(sys.argv[1]): pass
except InputError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "unit", "why"),
    [
        ("b.jsonl.gz", b"\0", "longer than 16 MB"),
        ("b.txt.zst", b"x", "longer than 16 MB"),
        ("b.csv.zst", b'"\n",', "quotation mark"),
        ("b.csv.gz", b"\n", "blank lines"),
        ("b.jsonl.zst", b"\n", "blank lines"),
        ("b.json.gz", b" ", "500 times"),
        ("b.json.zst", b" ", "500 times"),
        ("b.parquet.zst", b"\0", "500 times"),
        ("b.jsonl.zst", b'{"prompt": "%s"}\n' % (b"x" * 2**20), "500 times"),
    ],
    ids=lambda value: value[:6] if isinstance(value, bytes) else value,
)
def test_a_bomb_is_refused_in_little_memory(tmp_path: Path, name: str, unit: bytes, why: str) -> None:
    """10 GB in 10 MB or less, in a process that may have 600 MB."""
    path, piece = tmp_path / name, unit * (2**26 // len(unit))
    pack = gzip.compress if name.endswith(".gz") else zstandard
    path.write_bytes((pack(b"prompt\n") if ".csv" in name else b"") + pack(piece) * 160)
    assert path.stat().st_size < 11 * 2**20
    done = subprocess.run(python(BOMB, path), capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert str(path) in done.stdout and why in done.stdout, done.stdout


def test_rows_that_repeat_are_no_bomb_in_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.zst"
    path.write_bytes(zstandard(b'{"prompt": "Why?"}\n' * 20_000))
    assert len(texts(path)) == 20_000 and path.stat().st_size * 200 < 20_000 * 19


# CSV is read as it comes


def test_a_table_as_other_systems_write_it(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    for end in (b"\n", b"\r\n", b"\r"):
        path.write_bytes(b"\xef\xbb\xbf" + end + end.join([b"prompt,x", b'"a, ""b""' + end + b'c",1', b"", b"d\xe2\x80\xa8e,"]))
        found = list(read_prompts(str(path)))
        assert [(p.text, p.fields) for p in found] == [(f'a, "b"{end.decode()}c', {"x": "1"}), ("d\u2028e", {})]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"prompt,x,prompt\na,b,c\n", "'prompt' stands twice"),
        (b"prompt\n\nfine\n\n\xff\n", ":5: invalid UTF-8 at byte 1"),
        (b'prompt\n"a\nb\xff"\n', ":3: invalid UTF-8 at byte 2"),
        (b'prompt\n\n"a"b\n', ":3: not valid CSV"),
        (b'prompt\n"never closed\n', "not valid CSV"),
        (b"prompt,x\n\na,b\nc\n", ":4: the row does not have as many fields"),
        (b"prompt\n" + b"x" * (2**24 + 1), ":2: the line is longer"),
        (b"", "no prompts"),
        (b"prompt\n", "no prompts"),
    ],
)
def test_a_wrong_table_is_named_by_line(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    assert why in refusal(path)


# Folders and names


def test_a_folder_of_files_of_one_kind_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, part in (("b.jsonl", ROWS[20:30]), ("a.jsonl", ROWS[:20])):
        write_rows(folder / name, part)
    (folder / "c.ndjson.zst").write_bytes(b"")
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / ".hidden.csv").write_bytes(b"")
    assert "several kinds (.jsonl, .ndjson)" in refusal(folder)
    (folder / "c.ndjson.zst").unlink()
    write_rows(tmp_path / "rest", ROWS[30:])
    (folder / "c.jsonl.zst").write_bytes(zstandard((tmp_path / "rest").read_bytes()))
    assert texts(folder) == [row["prompt"] for row in ROWS]
    (folder / "b.jsonl").write_text("{")
    assert refusal(folder).startswith(f"{folder / 'b.jsonl'}:1: not valid JSON")
    (folder / "README.md").write_text("About.")
    assert "not a saved dataset" in refusal(folder)


def test_a_saved_dataset_of_splits_names_them(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_list([{"prompt": "Why?"}])
    datasets.DatasetDict({"train": one, "test_sft": one}).save_to_disk(str(tmp_path / "d"))
    said = refusal(tmp_path / "d")
    assert "train, test_sft" in said and str(tmp_path / "d" / "train") in said
    assert texts(tmp_path / "d" / "test_sft") == ["Why?"]
    (tmp_path / "d" / "test_sft" / "state.json").write_text("{")
    assert "test_sft" in refusal(tmp_path / "d" / "test_sft")


def test_datasets_as_python_values(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_list(ROWS)
    assert [p.text for p in read_prompts(one)] == [row["prompt"] for row in ROWS]
    assert [p.text for p in read_prompts(one.to_iterable_dataset(), limit=2)] == [row["prompt"] for row in ROWS[:2]]
    with pytest.raises(InputError, match="mapping of train, test"):
        list(read_prompts(datasets.DatasetDict({"train": one, "test": one})))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("owner/name", ("owner/name", None, "train")),
        ("owner/name:test", ("owner/name", None, "test")),
        ("owner/name:main:test", ("owner/name", "main", "test")),
        ("owner/name:main:", ("owner/name", "main", "train")),
    ],
)
def test_names_on_the_hub(name: str, meant: tuple[str, str | None, str]) -> None:
    assert hub_name(name) == meant


def test_a_name_on_the_hub_with_too_many_parts_is_refused() -> None:
    with pytest.raises(InputError, match="CONFIGURATION:SPLIT"):
        list(rows("owner/name:a:b:c", lossy=False))


def test_unpacking_is_heavy_only_where_it_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom rlaif.data import read_prompts\nlist(read_prompts(sys.argv[1]))\nassert 'pyarrow' not in sys.modules"
    )
    path = write(tmp_path / "p.jsonl")
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=60)
