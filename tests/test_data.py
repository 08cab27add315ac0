"""Reading prompts and candidates: every row is used as it stands, or the first wrong one is named."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from helpers import write_rows
from hypothesis import given
from hypothesis import strategies as st

from rlaif.data import read_candidates, read_prompts
from rlaif.errors import InputError
from rlaif.keys import digest, plain
from rlaif.types import Prompt

GOOD = b'{"prompt": "Why?"}\n'
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def read(path: Path | Any, **more: Any) -> list[Prompt]:
    return list(read_prompts(str(path) if isinstance(path, Path) else path, **more))


def refusal(path: Path | Any, **more: Any) -> str:
    with pytest.raises(InputError) as refused:
        read(path, **more)
    return str(refused.value)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "JSON"),
        (b'"Why?"', "object"),
        (b'{"text": "Why?"}', "`prompt`"),
        (b'{"prompt": null}', "`prompt`"),
        (b'{"prompt": 7}', "`prompt`"),
        (b'{"prompt": []}', "empty list"),
        (b'{"prompt": ""}', "empty"),
        (b'{"prompt": " \\n\\t"}', "empty"),
        (b'{"prompt": [{"role": "user", "content": ""}]}', "empty"),
        (b'{"prompt": [{"role": "robot", "content": "Why?"}]}', "role"),
        (b'{"prompt": [{"role": "user"}]}', "content"),
        (b'{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}', "assistant"),
        (b'{"prompt": "a", "prompt": "b"}', "'prompt'"),
        (b'{"prompt" : "a", "prompt"\t: "b"}', "'prompt'"),
        (b'{"prompt": "a", "x": [{"k": 1, "k": 1}]}', "'k'"),
        (b'{"prompt": "a", "prom\\u0070t": "b"}', "'prompt'"),
        (b'{"prompt": "a", "x": ' + b"[" * 600 + b"]" * 600 + b"}", "nested"),
        (b'{"prompt": "Why?", "x": NaN}', "NaN"),
        (b'{"prompt": "Why?", "x": -Infinity}', "Infinity"),
        (b'{"prompt": "Why?", "x": ' + b"1" * 5000 + b"}", "digits"),
        (b'{"prompt": "Why?", "x": -1E400}', "larger than any number"),
        (b'{"prompt": "Why?", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested"),
        (b'{"prompt": "half a pair \\ud800"}', "surrogate"),
        (b'{"prompt": "Why?", "\\udc00": 1}', "surrogate"),
        (b'{"prompt": "Wh\xff?"}', "UTF-8"),
        (b'{"prompt": "Why?", "id": 1.5}', "`id`"),
        (b'{"prompt": "Why?", "id": ""}', "`id`"),
        (b'{"prompt": "Why?", "id": "first"}', "'first'"),
        (b'{"prompt": "' + b"x" * (16 * 2**20) + b'"}', "16"),
    ],
    ids=lambda value: value[:40].decode("ascii", "replace") if isinstance(value, bytes) else value,
)
def test_wrong_line_is_named_by_file_and_line(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "How?", "id": "first"}\n' + GOOD + line + b"\n" + GOOD)
    said = refusal(path)
    assert said.startswith(f"{path}:3: ") and why.lower() in said.lower()
    assert len(said) < 600 and "\n" not in said


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("gone.jsonl", None, "no file"),
        ("gone", None, "no file"),
        ("empty.jsonl", b"", "no prompts"),
        ("blank.jsonl", b"\n \n\r\n", "no prompts"),
        ("bom-only.jsonl", b"\xef\xbb\xbf", "no prompts"),
        ("utf16.jsonl", '{"prompt": "Why?"}\n'.encode("utf-16"), "UTF-16"),
        ("utf16le.jsonl", '{"prompt": "Why?"}\n'.encode("utf-16-le"), "utf16le.jsonl:1"),
        ("prompts.xml", GOOD, "kind"),
        ("list.json", b"[]", "no prompts"),
        ("object.json", b'{"prompt": ', "JSON"),
        ("table.csv", b"question\nWhy?\n", "`prompt`"),
        ("ragged.csv", b"prompt,id\nWhy?\n", "fields"),
        ("not.parquet", b"PAR1 no", "parquet"),
        ("not.jsonl.gz", GOOD, "not a gzip"),
        ("cut.jsonl.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab", "end-of-stream"),
        ("corrupt.jsonl.gz", gzip.compress(GOOD)[:10] + b"\xff" * 40, "cannot read"),
        ("changed.jsonl.gz", gzip.compress(GOOD)[:-8] + b"\0" * 8, "CRC"),
        ("folder.jsonl/", b"", "not a saved dataset"),
    ],
)
def test_wrong_file_is_named(tmp_path: Path, name: str, content: bytes | None, why: str) -> None:
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    said = refusal(path)
    assert name.rstrip("/") in said and why.lower() in said.lower() and "\n" not in said


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".jsonl", "why/" + "x" * 5000, "x/y/" * 2000])
def test_a_name_that_no_file_can_have_is_no_file(name: str) -> None:
    """A prompt itself, say, where its file should be named."""
    assert "\n" not in refusal(name)


def test_a_name_with_a_null_character_is_no_file() -> None:
    for name in ("prompts\0.jsonl", "\0", "owner/na\0me"):
        assert "null character" in refusal(name)


def test_a_path_into_a_folder_that_is_here_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("mine/promts", "./promts", "../promts", "/promts", "~/promts"):
        said = refusal(name)
        assert said.startswith("no file at") and "hub" not in said, said


def test_rows_before_a_wrong_one_are_the_only_ones_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(GOOD * 2 + b"wrong\n")
    found = read_prompts(str(path))
    assert [next(found).text, next(found).text] == ["Why?"] * 2
    with pytest.raises(InputError):
        next(found)
    assert len(read(path, limit=2)) == 2


ROWS = st.lists(
    st.fixed_dictionaries(
        {"prompt": TEXT.filter(str.strip)},
        optional={"id": st.uuids().map(str), "reference": TEXT, "x": st.lists(TEXT | st.integers() | st.none(), max_size=3)},
    ),
    min_size=1,
    max_size=5,
)


@given(ROWS, st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], plain: bool, end: str, bom: bool, packed: bool
) -> None:
    raw = end.join(json.dumps(row, ensure_ascii=plain) for row in rows).encode("utf-8-sig" if bom else "utf-8")
    path = tmp_path_factory.getbasetemp() / ("written.jsonl.gz" if packed else "written.jsonl")
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    found = read(path)
    assert [p.messages for p in found] == [tuple(user(row["prompt"])) for row in rows]
    assert [p.reference for p in found] == [row.get("reference") for row in rows]
    assert [dict(p.fields) for p in found] == [{"x": row["x"]} if "x" in row else {} for row in rows]
    assert all(p.id == row["id"] for p, row in zip(found, rows, strict=True) if "id" in row)
    assert len({p.id for p in found}) == len(rows)


SPACE = st.sampled_from(["", " ", "\t", "  "])
NUMBER = st.sampled_from(["0", "-0", "-0.0", "1e3", "1E300", "0.1", str(2**63), str(-(2**63) - 1), str(2**64), "9" * 40])
STRING = st.one_of(TEXT, st.sampled_from(["k", "k2", '":', '{"k":1}', ":", '" :'])).flatmap(
    lambda text: st.booleans().map(lambda plain: json.dumps(text, ensure_ascii=plain))
)


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(st.sampled_from(['"k"', '"k2"', '"\\u006b"', '":"']) | STRING, SPACE, SPACE, values), max_size=3)
    return pairs.map(lambda found: "{" + ",".join(f"{k}{a}:{b}{v}" for k, a, b, v in found) + "}")


VALUE = st.recursive(
    st.sampled_from(["null", "true"]) | NUMBER | STRING,
    lambda inner: objects(inner) | st.lists(inner, max_size=3).map(lambda found: f"[{','.join(found)}]"),
    max_leaves=6,
)


@given(objects(VALUE))
def test_a_row_s_columns_are_what_the_strict_reader_says_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Most rows are read by another parser, which takes repeated keys and rounds long numbers."""

    def once(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(found)) < len(found):
            raise KeyError
        return dict(found)

    path = tmp_path_factory.getbasetemp() / "strict.jsonl"
    path.write_text(f'{{"prompt": "Why?", "x": {text}}}\n', encoding="utf-8")
    try:
        expected = json.loads(text, object_pairs_hook=once)
    except KeyError:
        assert "stands twice" in refusal(path)
    else:
        (prompt,) = read(path)
        assert repr(prompt.fields["x"]) == repr(plain(expected))


def test_long_numbers_are_kept_to_the_last_digit(tmp_path: Path) -> None:
    (prompt,) = read(write_rows(tmp_path / "p.jsonl", [{"id": 10**20 + 1, "prompt": "Why?", "n": -(2**63) - 1}]))
    assert (prompt.id, prompt.fields) == ("100000000000000000001", {"n": -(2**63) - 1})


def test_separators_of_other_kinds_are_text(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei"
    assert read(write_rows(tmp_path / "p.jsonl", [{"prompt": odd}]))[0].text == odd
    (tmp_path / "p.txt").write_bytes(odd.encode() + b"\r\nsecond\n\n")
    assert [p.text for p in read(tmp_path / "p.txt")] == [odd, "second"]


def test_the_same_rows_in_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": str(k), "prompt": f'Say "{k}",\nnow', "reference": "r", "topic": "é"} for k in range(3)]
    write_rows(tmp_path / "p.jsonl", rows)
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    found = {path.suffix: read(path) for path in tmp_path.iterdir()}
    assert set(found) == {".jsonl", ".json", ".csv", ".parquet"}
    for prompts in found.values():
        assert prompts == [
            Prompt(r["id"], tuple(user(r["prompt"])), "r", {"topic": "é"}, ordinal=k) for k, r in enumerate(rows)
        ]
    for name in ("p.jsonl", "p.json", "p.csv", "p.parquet"):
        (tmp_path / (name + ".gz")).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        assert read(tmp_path / (name + ".gz")) == found[".jsonl"]


def test_a_saved_dataset_and_one_of_its_splits(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"prompt": user("Why?"), "id": 7, "reference": None}])
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "split"))
    assert read(tmp_path / "one") == [Prompt("7", tuple(user("Why?")))]
    assert "train" in refusal(tmp_path / "split")
    assert read(tmp_path / "split" / "train") == read(tmp_path / "one")


def test_ids_are_hashes_of_the_messages_counted_for_repeats() -> None:
    first, other, second, third = (p.id for p in read(["Why?", "How?", {"prompt": user("Why?")}, "Why?"]))
    assert (second, third) == (f"{first}-2", f"{first}-3") and other not in (first, second, third)
    assert [p.id for p in read(["How?", "Why?"])] == [other, first]
    assert read([{"prompt": "Why?", "topic": "x"}], system="Be brief.")[0].id == first


@given(st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": TEXT.filter(str.strip)}, optional={"name": TEXT})))
def test_an_id_is_the_digest_of_the_messages_as_read(messages: list[dict[str, str]]) -> None:
    for row in (messages, messages[:1]):
        if row:
            assert read([{"prompt": row}])[0].id == digest(row, 8)


def test_repeats_are_counted_past_the_names_that_are_taken() -> None:
    first = read(["Why?"])[0].id
    rows = [*["Why?"] * 3, {"prompt": "How?", "id": f"{first}-5"}, *["Why?"] * 3]
    assert [p.id for p in read(rows)] == [first, *(f"{first}-{k}" for k in (2, 3, 5, 4, 6, 7))]


def test_a_prompt_knows_its_place(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{k}", "candidates": []} for k in range(5)]
    path = write_rows(tmp_path / "p.jsonl", rows)
    path.write_text("\n\n" + path.read_text().replace("\n", "\n\n"))
    for source in (str(path), rows):
        assert [p.ordinal for p in read_prompts(source, limit=4)] == [0, 1, 2, 3]
        assert [p.ordinal for p, _ in read_candidates(source)] == [0, 1, 2, 3, 4]


def test_reading_keeps_nothing_of_the_rows_that_were_read() -> None:
    found = read_prompts(row for k in range(10**9) for row in (f"Question {k}", {"prompt": "Why?", "id": f"own {k}"}))
    tracemalloc.start()
    try:
        for _ in range(4000):
            next(found)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(12_000):
            next(found)
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
        found.close()  # type: ignore[attr-defined]


def test_a_given_id_may_not_stand_twice_nor_be_taken_for_a_hash() -> None:
    assert "item 2" in refusal([{"prompt": "a", "id": 1}, {"prompt": "b", "id": "1"}])
    taken = read(["Why?"])[0].id
    for rows in ([{"prompt": "x", "id": taken}, "Why?"], ["Why?", {"prompt": "x", "id": taken}]):
        try:
            ids = [p.id for p in read(rows)]
        except InputError:
            continue
        assert len(set(ids)) == 2


def test_the_system_message_goes_where_there_is_none() -> None:
    own = [{"role": "system", "content": "Own."}, *user("Why?")]
    plain, kept = read(["Why?", {"prompt": own}], system="Be brief.")
    assert plain.messages == ({"role": "system", "content": "Be brief."}, *user("Why?"))
    assert kept.messages == tuple(own)
    assert (plain.text, kept.text) == ("[system]\nBe brief.\n\n[user]\nWhy?", "[system]\nOwn.\n\n[user]\nWhy?")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "no prompts"),
        ([7], "item 1"),
        ([""], "item 1"),
        (["Why?", {"prompt": None}], "item 2"),
        ([{"prompt": "a\ud800"}], "surrogate"),
        ([[*user("Why?"), {"role": "assistant", "content": "So."}]], "assistant"),
        ([{"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}], "image_url"),
    ],
)
def test_wrong_python_values_are_named(rows: list[Any], why: str) -> None:
    assert why in refusal(rows)


def test_python_values_of_every_kind_are_read() -> None:
    found = read(iter(["Why?", user("Why?"), tuple(user("Why?")), {"prompt": "Why?", "reference": 4}]))
    assert [p.messages for p in found] == [tuple(user("Why?"))] * 4
    assert found[3].reference == "4"


def test_fields_with_odd_values_do_not_break_the_run() -> None:
    (prompt,) = read([{"prompt": "Why?", "when": object, "n": float("nan"), 3: {4: (1, 2)}}])
    endless: list[Any] = []
    endless.append(endless)
    assert "nested" in refusal([{"prompt": "Why?", "x": endless}])
    assert json.loads(json.dumps(dict(prompt.fields), allow_nan=False))["3"] == {"4": [1, 2]}


def test_limit_reads_no_further(tmp_path: Path) -> None:
    def rows() -> Any:
        yield "one"
        raise AssertionError("read too far")

    assert [p.text for p in read_prompts(rows(), limit=1)] == ["one"]


def test_candidates_of_every_kind(tmp_path: Path) -> None:
    rows = [
        {
            "id": "x",
            "prompt": "Why?",
            "candidates": ["a", {"response": None, "text": "b", "model": "m"}, {"response": "c", "score": 2}],
            "k": 1,
        },
        {"prompt": "How?", "candidates": []},
    ]
    (prompt, given), (_, none) = read_candidates(str(write_rows(tmp_path / "c.jsonl", rows)))
    assert (prompt.id, prompt.text, prompt.fields, none) == ("x", "Why?", {"k": 1}, [])
    assert [(c.id, c.text, c.model, c.score) for c in given] == [
        ("x/0", "a", "", None),
        ("x/1", "b", "m", None),
        ("x/2", "c", "", 2.0),
    ]


@pytest.mark.parametrize(
    "candidates",
    [None, "a", {"a": 1}, [1], [None], [{}], [{"text": 3}], [{"text": "a", "score": "x"}], [{"text": "a", "score": True}]],
)
def test_wrong_candidates_are_named(candidates: Any) -> None:
    with pytest.raises(InputError, match="item 2"):
        list(read_candidates([{"prompt": "Why?", "candidates": ["a"]}, {"prompt": "How?", "candidates": candidates}]))


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 10**400, -(10**400)])
def test_a_score_that_is_no_finite_number_is_refused(score: float) -> None:
    with pytest.raises(InputError, match="score"):
        list(read_candidates([{"prompt": "Why?", "candidates": [{"text": "a", "score": score}]}]))


def test_a_candidate_with_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InputError, match="surrogate"):
        list(read_candidates([{"prompt": "Why?", "candidates": ["a\udfff"]}]))


def test_a_number_beyond_floats_is_refused_as_a_score(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    for number in ("1e999", "1" + "0" * 400):
        path.write_text(f'{{"prompt": "Why?", "candidates": ["a", {{"text": "b", "score": {number}}}]}}\n')
        with pytest.raises(InputError, match=r"score|larger than any number"):
            list(read_candidates(str(path)))


# --dedupe and --replace


def said_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelname == "WARNING" and record.name == "rlaif" for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


def test_repeats_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = ["Why?", "How?", {"prompt": user("Why?"), "id": "own", "reference": "r"}, "why?", "How?", {"prompt": "Why? "}]
    kept = read(rows, dedupe=True)
    assert [p.text for p in kept] == ["Why?", "How?", "why?", "Why? "]
    assert [p.ordinal for p in kept] == [0, 1, 2, 3]
    assert [p.id for p in kept] == [read([text])[0].id for text in ("Why?", "How?", "why?", "Why? ")]
    assert kept[0].reference is None  # the first stays as it is
    assert said_of(caplog) == ["rows left out, as they only repeat an earlier one (--dedupe): 2"]


def test_without_a_repeat_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = ["Why?", "How?", {"prompt": [{"role": "system", "content": "Be brief."}, *user("Why?")]}]
    assert read(rows, dedupe=True, replace=True) == read(rows)
    assert not caplog.records


def test_what_the_model_sees_is_compared() -> None:
    own = {"prompt": [{"role": "system", "content": "Be brief."}, *user("Why?")]}
    assert len(read(["Why?", own], dedupe=True)) == 2
    assert len(read(["Why?", own], dedupe=True, system="Be brief.")) == 1
    named = {"prompt": [{"role": "user", "content": "Why?", "name": "Ann"}]}
    assert len(read(["Why?", named, named], dedupe=True)) == 2


def test_an_id_that_stands_twice_is_refused_of_repeats_too() -> None:
    rows = [{"id": "a", "prompt": "Why?"}, {"id": "b", "prompt": "Why?"}, {"id": "b", "prompt": "How?"}]
    assert "item 3" in refusal(rows, dedupe=True) and "'b'" in refusal(rows, dedupe=True)
    assert "item 2" in refusal([rows[0], rows[0]], dedupe=True)
    assert [p.id for p in read(rows[:2], dedupe=True)] == ["a"]


def test_limit_counts_the_prompts_that_stay(caplog: pytest.LogCaptureFixture) -> None:
    def rows() -> Any:
        yield from ["one", "one", "two", "one"]
        yield "three"
        raise AssertionError("read too far")

    assert [p.text for p in read(rows(), limit=3, dedupe=True)] == ["one", "two", "three"]
    assert said_of(caplog)[0].endswith(": 2")


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=12))
def test_those_that_stay_are_the_first_of_their_kind(texts: list[str]) -> None:
    assert [p.text for p in read(texts, dedupe=True)] == list(dict.fromkeys(texts))


def test_the_same_prompt_with_other_candidates_is_another_comparison() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Why?", "candidates": ["a", "b"]},
        {"prompt": "Why?", "candidates": ["a", {"response": "b"}]},
        {"prompt": user("Why?"), "candidates": ["b", "a"]},
        {"prompt": "Why?", "candidates": ["a", {"response": "b", "score": 1}]},
        {"prompt": "Why?", "candidates": ["a", "b", "c"]},
        {"prompt": "How?", "candidates": ["a", "b"]},
    ]
    found = list(read_candidates(rows, dedupe=True))
    assert [(p.text, [c.text for c in given]) for p, given in found] == [
        ("Why?", ["a", "b"]),
        ("Why?", ["b", "a"]),
        ("Why?", ["a", "b"]),
        ("Why?", ["a", "b", "c"]),
        ("How?", ["a", "b"]),
    ]
    assert [p.ordinal for p, _ in found] == [0, 1, 2, 3, 4]
    assert len(list(read_candidates(rows))) == 6
    assert len(read(rows, dedupe=True)) == 2  # as prompts to sample for


def test_left_out_rows_are_not_kept_in_memory() -> None:
    found = read_prompts((text for k in range(10**9) for text in ("Why?", f"Question {k}")), dedupe=True)
    tracemalloc.start()
    try:
        for _ in range(2000):
            next(found)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(6000):
            next(found)
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
        found.close()  # type: ignore[attr-defined]


BAD = [b"W\xe9?", b"fine", "\ufffd é 🙂".encode(), b"\xf0\x9f\x99", b"\xed\xa0\x80."]
MENDED = ["W\ufffd?", "fine", "\ufffd é 🙂", "\ufffd" * 3, "\ufffd" * 3 + "."]


def bad_file(path: Path) -> Path:
    """A file with BAD as its prompts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        offsets, texts = pa.array(BAD).buffers()[1:]
        table = pa.table({"prompt": pa.StringArray.from_buffers(len(BAD), offsets, texts)})
        pq.write_table(table, path)
        raw = path.read_bytes()
    elif kind == "csv":
        raw = b"prompt\n" + b"".join(b'"%s"\n' % text for text in BAD)
    elif kind == "txt":
        raw = b"".join(text + b"\n" for text in BAD)
    elif kind == "json":
        raw = b"[" + b",\n".join(b'{"prompt": "%s"}' % text for text in BAD) + b"]"
    else:
        raw = b"".join(b'{"prompt": "%s"}\n' % text for text in BAD)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


BAD_FILES = ["p.jsonl", "p.json", "p.csv", "p.txt", "p.parquet", "p.jsonl.gz", "p.csv.gz", "p.parquet.gz"]


@pytest.mark.parametrize("name", BAD_FILES)
def test_bytes_that_are_no_text_are_replaced_and_their_rows_counted(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = bad_file(tmp_path / name)
    found = read(path, replace=True)
    assert [p.text for p in found] == MENDED
    assert said_of(caplog) == ["rows in which U+FFFD stands for what is no text (--replace): 3"]


@pytest.mark.parametrize("name", BAD_FILES)
def test_bytes_that_are_no_text_are_refused_by_their_place(tmp_path: Path, name: str) -> None:
    said = refusal(bad_file(tmp_path / name))
    kind = name.removesuffix(".gz").rpartition(".")[2]
    where = {
        "jsonl": ":1: invalid UTF-8 at byte 14",
        "json": ":1: invalid UTF-8 at byte 15",
        "csv": ":2: invalid UTF-8 at byte 3",
        "txt": ":1: invalid UTF-8 at byte 2",
        "parquet": ": row 1: invalid UTF-8",
    }
    assert said.startswith(f"{tmp_path / name}{where[kind]}: ") and "--replace" in said, said


def test_rows_of_a_parquet_file_are_read_alike_beside_a_bad_one(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": user(f"q{k}"), "tags": ["a", None], "more": {"k": [{"x": 1.5}]}, "none": None} for k in range(3)]
    table = pa.Table.from_pylist(rows).append_column("coded", pa.array(["a", "b", "a"]).dictionary_encode())
    offsets, texts = pa.array([b"a", b"\xff", b"c"]).buffers()[1:]
    bad = table.append_column("kind", pa.StringArray.from_buffers(3, offsets, texts))
    pq.write_table(bad, tmp_path / "bad.parquet")
    pq.write_table(table.append_column("kind", pa.array(["a", "\ufffd", "c"])), tmp_path / "good.parquet")
    assert read(tmp_path / "bad.parquet", replace=True) == read(tmp_path / "good.parquet")
    assert "row 2" in refusal(tmp_path / "bad.parquet")


def test_a_saved_dataset_with_bytes_that_are_no_text_is_refused(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_parquet(str(bad_file(tmp_path / "p.parquet")), cache_dir=str(tmp_path)).save_to_disk(tmp_path / "d")
    for replace in (False, True):
        said = refusal(tmp_path / "d", replace=replace)
        assert "row 1: invalid UTF-8" in said and ".parquet" in said


@given(st.lists(st.text(st.characters()), min_size=1, max_size=4))
def test_halves_of_pairs_are_replaced_wherever_they_stand(texts: list[str]) -> None:
    """In files they can only be escapes, and next to each other two halves are a letter there."""

    def mended(text: str) -> str:
        return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)

    row = {
        "prompt": [{"role": "user", "content": "x" + t, "name": t} for t in texts],
        "f": {"k": [texts]},
        "reference": texts[0],
    }
    (found,) = read([row], replace=True)
    assert [(m["content"], m["name"]) for m in found.messages] == [("x" + mended(t), mended(t)) for t in texts]
    assert (found.fields, found.reference) == ({"f": {"k": [[mended(t) for t in texts]]}}, mended(texts[0]))


def test_escaped_halves_are_replaced_and_their_rows_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        b'{"prompt": "a\\ud800b\\\\ud800", "id": "\\udc00"}\n{"prompt": "\\ud83d\\ude42", "k\\udfff": "\xe9 \\uDEAD"}\n'
        b'{"prompt": "c"}\n'
    )
    one, two, _ = read(path, replace=True)
    assert (one.text, one.id, two.text, two.fields) == ("a\ufffdb\\ud800", "\ufffd", "🙂", {"k\ufffd": "\ufffd \ufffd"})
    assert said_of(caplog) == ["rows in which U+FFFD stands for what is no text (--replace): 2"]
    path.write_bytes(b'{"prompt": "a", "candidates": ["\\ud800", {"text": "b\xff", "model": "\xff"}]}\n')
    ((_, given),) = read_candidates(str(path), replace=True)
    assert [(c.text, c.model) for c in given] == [("\ufffd", ""), ("b\ufffd", "\ufffd")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"prompt": "Why?", "a\\ud800": 1, "a\\udc00": 2}', "stands twice"),
        (b'{"prompt": "Why?", "id": "\xff"}', "earlier row"),
        (b'{"prompt": "Why?"} \xff', "JSON"),
        (b'{"prompt": "Why?", "x": ' + b"[" * 600 + b'"\xff"' + b"]" * 600 + b"}", "nested"),
        ('{"prompt": "Why?"}'.encode("utf-16"), "JSON"),
    ],
    ids=["key", "id", "json", "deep", "utf-16"],
)
def test_what_replacing_does_not_repair_is_refused(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "How?", "id": "\xfe"}\n' + line + b"\n")
    said = refusal(path, replace=True)
    assert said.startswith(f"{path}:2: ") and why in said


def test_a_file_in_utf_16_is_not_replaced_away(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("Why?\n".encode("utf-16"))
    assert "UTF-16" in refusal(tmp_path / "p.txt", replace=True)
