"""Files that trainers read: whole or not at all, the same bytes for the same rows."""

from __future__ import annotations

import gzip
import json
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
from helpers import start
from hypothesis import given, settings
from hypothesis import strategies as st

import rlaif
from rlaif import results
from rlaif.export import dpo, number, sft, write_jsonl
from rlaif.pairs import Best, judge_name
from rlaif.types import Candidate, PreferencePair, Prompt, Record, Verdict

PROMPT = Prompt("p", ({"role": "system", "content": "s"}, {"role": "user", "content": "q"}))
PAIR = PreferencePair(PROMPT, Candidate("p/0", "good"), Candidate("p/1", "bad"), 1.25, -1.25, 0.9241418, "j:m", True)
DPO_KEYS = ["id", "prompt", "chosen", "rejected", "score_chosen", "score_rejected", "p_chosen", "p_source", "judge", "flip"]


def test_a_dpo_row_is_messages_with_how_sure_the_label_is():
    row = dpo.row(PAIR)
    assert list(row) == DPO_KEYS
    assert row == {
        "id": "p",
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
        "score_chosen": 1.25,
        "score_rejected": -1.25,
        "p_chosen": 0.924142,
        "p_source": "judge",
        "judge": "j:m",
        "flip": True,
    }


@pytest.mark.parametrize(("chosen", "rejected"), [("same", "same"), ("", "bad"), ("good", ""), (" \n", "bad"), ("good", "\t")])
def test_a_pair_that_is_none_is_refused(chosen, rejected):
    with pytest.raises(ValueError, match="'p'"):
        dpo.row(replace(PAIR, chosen=Candidate("p/0", chosen), rejected=Candidate("p/1", rejected)))


def test_an_sft_row_is_a_completion_with_where_it_comes_from():
    record = Record(PROMPT, (), (Verdict("one", ("p/0", "p/1"), (1.0, 0.0)), Verdict("two", ("p/0",), None, error="x")))
    row = sft.row(Best(record, Candidate("p/0", "good", "m"), 2.5, 0.75, 4, judge_name(record)))
    assert list(row) == ["id", "prompt", "completion", "score", "p_win", "n", "model", "judge"]
    assert row["completion"] == [{"role": "assistant", "content": "good"}]
    assert (row["score"], row["p_win"], row["n"], row["model"], row["judge"]) == (2.5, 0.75, 4, "m", "one+two")


@pytest.mark.parametrize(("value", "shown"), [(-0.0, "0.0"), (-1e-9, "0.0"), (1 / 3, "0.333333"), (1e9, "1000000000.0")])
def test_numbers_are_shown_in_one_way(value, shown):
    assert json.dumps(number(value)) == shown


@settings(database=None, deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.none(), st.booleans())), max_size=5))
def test_what_is_written_reads_back_a_line_each(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("x") / "rows.jsonl"
    assert write_jsonl(path, rows) == len(rows)
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b"" and [json.loads(line) for line in lines] == rows


def test_text_is_utf8_and_separators_within_it_break_no_line(tmp_path):
    text = "日本語 🙂 \u2028 \x85 \r\n \x00 end"
    write_jsonl(tmp_path / "a.jsonl", [{"t": text}, {"t": "é"}])
    raw = (tmp_path / "a.jsonl").read_bytes()
    assert raw.count(b"\n") == 2 and "日本語 🙂".encode() in raw and b"\\u" not in raw.split(b"\n")[1]
    assert json.loads(raw.split(b"\n")[0])["t"] == text


def test_gzip_by_name_with_equal_bytes_for_equal_rows(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_jsonl(tmp_path / name, ({"k": k} for k in range(100)))
    write_jsonl(tmp_path / "a.jsonl", ({"k": k} for k in range(100)))
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == (tmp_path / "a.jsonl").read_bytes()
    again = tmp_path / "other" / "a.jsonl.gz"
    again.parent.mkdir()
    write_jsonl(again, ({"k": k} for k in range(100)))
    assert again.read_bytes() == (tmp_path / "a.jsonl.gz").read_bytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=f"{value!r} is no number"):
        number(value)


@settings(database=None, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_the_nearest_one_with_six_decimals(value):
    shown = number(value)
    assert abs(shown - value) <= max(0.5000001e-6, abs(value) * 1e-15) and number(shown) == shown
    assert math.copysign(1.0, shown) == 1.0 or shown < 0
    assert abs(value) > 1e9 or len(f"{shown!r}".partition(".")[2]) <= 6 or "e-" in repr(shown)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("bad", [{"p": [10**40, math.nan]}, {"t": "\ud800"}, {"o": object()}])
def test_a_file_appears_whole_or_not_at_all(tmp_path, name, bad):
    path = tmp_path / name
    write_jsonl(path, [{"k": "before"}])
    before = path.read_bytes()
    with pytest.raises((ValueError, TypeError)):
        write_jsonl(path, [{"k": 1}, bad])
    assert path.read_bytes() == before
    fresh = tmp_path / f"fresh-{name}"
    with pytest.raises((ValueError, TypeError)):
        write_jsonl(fresh, [bad])
    assert not fresh.exists()


def test_rows_are_of_one_moment_whatever_is_stored_meanwhile(tmp_path, monkeypatch):
    rows = [{"prompt": f"{k}", "candidates": ["a", "bb"]} for k in range(3)]
    rlaif.judge(rows[:2], judge="longest.py:longest", out=tmp_path).wait()
    before = list(results.rows(tmp_path, "dpo"))
    fit = results.bradley_terry.fit

    @contextmanager
    def fit_meanwhile(ranked):
        with fit(ranked) as fitted:
            patched.undo()
            rlaif.judge(rows, judge="longest.py:longest", out=tmp_path).wait()
            yield fitted

    reading = results.rows(tmp_path, "dpo")
    with monkeypatch.context() as patched:
        patched.setattr(results.bradley_terry, "fit", fit_meanwhile)
        assert list(reading) == before and len(before) == 2
    assert len(list(results.rows(tmp_path, "dpo"))) == 3


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"k": "old"}])

    def rows():
        for k in range(1000):
            assert json.loads(path.read_text()) == {"k": "old"}
            yield {"k": k}

    assert write_jsonl(path, rows()) == 1000
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_two_writers_of_one_place_each_write_a_whole_file(tmp_path):
    """An export while a run writes its own file, say: whoever ends last has the place, and nobody's rows are torn."""
    path = tmp_path / "a.jsonl"

    def inner():
        for k in range(2000):
            if k == 1000:
                assert write_jsonl(path, ({"inner": j} for j in range(3000))) == 3000
                assert len(path.read_bytes().splitlines()) == 3000
            yield {"outer": k}

    assert write_jsonl(path, inner()) == 2000
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [{"outer": k} for k in range(2000)]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_what_a_killed_writer_left_is_taken_over(tmp_path):
    (tmp_path / ".a.jsonl.part").write_bytes(b"half a li" * 10_000)
    write_jsonl(tmp_path / "a.jsonl", [{"k": 1}])
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"k":1}\n' and [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.slow
def test_exports_at_the_same_time_are_whole(tmp_path):
    rows = [{"id": f"q{k}", "prompt": f"q {k}", "candidates": [f"one {k}", f"another one {k}"]} for k in range(3000)]
    rlaif.judge(rows, judge="longest.py:longest", out=tmp_path / "run").wait()
    expected = (tmp_path / "run" / "dpo.jsonl").read_bytes()
    commands = [start("export", tmp_path / "run") for _ in range(4)]
    for one in commands:
        said, wrong = one.communicate(timeout=120)
        assert one.returncode == 0 and "3,000 rows" in said, wrong
    assert (tmp_path / "run" / "dpo.jsonl").read_bytes() == expected
    assert not list((tmp_path / "run").glob(".*.part"))
