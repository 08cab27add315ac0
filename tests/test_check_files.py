"""`rlaif check`: files of all kinds, near-duplicates, test sets, the cleaned copy, and the command."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import subprocess
import sys
from itertools import chain
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from helpers import environment, read_rows, rlaif, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_check import WRONG, codes, pair, said, text_pair, user

import rlaif as library
from rlaif import results
from rlaif.check import columns, contamination, near
from rlaif.check.formats import Example, Format, shared, split
from rlaif.check.run import check
from rlaif.errors import InputError
from rlaif.export.formats import FORMATS

GOOD = json.dumps(text_pair(1)).encode() + b"\n"
OTHER = json.dumps(text_pair(2)).encode() + b"\n"


# Files


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{\n", "JSON"),
        (b"[1]\n", "a list"),
        (b"null\n", "nothing"),
        (b'{"prompt": "a", "prompt": "b"}\n', "twice"),
        (b'{"prompt": "Wh\xff?"}\n', "byte 15"),
        (b'{"prompt": "\\ud800"}\n', "surrogate"),
        (b'{"margin": NaN}\n', "NaN"),
        (b'{"n": ' + b"9" * 5000 + b"}\n", "thousands"),
        (b'{"n": [1e400]}\n', "larger than any number"),
        (b'{"prompt":' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", "deeply"),
        (b'{"prompt": "' + b"a" * 20_000_000 + b'"}\n', "longer than 16 MB"),
        (b'{"prompt": "' + b"a" * (32 * 2**20) + b'"}\n', "longer than 16 MB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_check_goes_on_behind_an_unreadable_line(tmp_path, line, why, suffix):
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes((gzip.compress if suffix else bytes)(GOOD + line + b"\n" + OTHER + GOOD))
    report = check(path)
    assert codes(report) == {"unreadable": 1, "duplicate": 1}
    (place, detail), *_ = report.findings[0].examples
    assert place == 2 and why in detail and "--replace" not in detail
    assert report.findings[1].examples == [(5, "repeats row 1")]  # lines are counted, empty ones too


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("empty.jsonl", b"", {"no_rows": 1}),
        ("blank.jsonl", b"\n \n", {"no_rows": 1}),
        ("utf16.jsonl", GOOD.decode().encode("utf-16"), {"unreadable": 1}),
        ("bom.jsonl", b"\xef\xbb\xbf" + GOOD, {}),
        ("binary.parquet", bytes(range(256)) * 20, {"unreadable": 1}),
        ("object.json", b'{"a": 1}', {"unreadable": 1}),
        ("plain.jsonl.gz", GOOD, {"unreadable": 1}),
        ("list.json", b"[" + GOOD + b"," + OTHER + b"]", {}),
    ],
)
def test_whole_files(tmp_path, name, content, found):
    path = tmp_path / name
    path.write_bytes(content)
    assert codes(check(path)) == found


def test_a_cut_gzip_is_read_as_far_as_it_goes(tmp_path):
    rows = [pair(n) for n in range(3000)]
    whole = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    report = check(path)
    assert list(codes(report)) == ["unreadable"] and 1000 < report.rows < 2000
    assert report.findings[0].examples[0][0] == report.rows


def test_parquet_is_checked_as_jsonl(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [pair(1, margin=0.5), pair(2, margin=float("nan")), pair(1, margin=None)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    report = check(tmp_path / "rows.parquet", fix=tmp_path / "fixed.jsonl")
    assert codes(report) == {"wrong_number": 1, "duplicate": 1}
    assert read_rows(tmp_path / "fixed.jsonl") == [rows[0]]


def test_tables_have_every_key_in_every_message(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [pair(1, logprobs=[0.5]), pair(2, logprobs=[float("nan")]), pair(3, chosen=[{"from": "gpt", "value": "So."}])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    report = check(tmp_path / "rows.parquet", fix=tmp_path / "fixed.jsonl")
    assert codes(report) == {"from_value": 1, "wrong_number": 1}  # from/value stand in all, and are null but in one
    copied = read_rows(tmp_path / "fixed.jsonl")
    assert len(copied) == 2 and copied[1]["chosen"] == said("So.")


@pytest.mark.parametrize("name", ["none.jsonl", "rows.txt", "folder"])
def test_what_is_no_file_of_rows_is_wrong_usage(tmp_path, name):
    (tmp_path / "rows.txt").write_text("a\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError):
        check(tmp_path / name)


# What lies on disk


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_groups_are_the_rows_with_equal_keys(tmp_path_factory, keys, at_once):
    folder = tmp_path_factory.mktemp("columns")
    column = columns.Column(folder, "keys", "u8")
    for value in keys:
        column.add(value * (2**60) // 12 * 13)
    before, columns._AT_ONCE = columns._AT_ONCE, at_once
    try:
        found = sorted(list(map(int, rows)) for rows in columns.groups(column))
    finally:
        columns._AT_ONCE = before
        column.close()
    wanted = [[n for n, value in enumerate(keys) if value == key] for key in set(keys) - {0}]
    assert found == sorted(rows for rows in wanted if len(rows) > 1)


@given(st.text(max_size=80), st.lists(st.text(max_size=60), max_size=3))
def test_shingles_do_not_depend_on_what_stands_beside(text, others):
    alone, _ = near.shingles([text])
    together, offsets = near.shingles([*others, text])
    ends = offsets.astype(int)
    assert np.array_equal(together[ends[-2] : ends[-1]], alone)
    assert len(offsets) == len(others) + 2 and ends[-1] == len(together)


def example(text: str) -> Example:
    return Example({}, Format("text", "text"), None, (("text", text),))


@pytest.mark.parametrize(
    "alphabet", ["abcdefghijklmnopqrstuvwxyz", "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年"]
)
def test_near_duplicates_are_those_of_a_high_jaccard_similarity(tmp_path, alphabet):
    pytest.importorskip("rensa")
    source = random.Random(3)
    wide = not alphabet.isascii()

    def word() -> str:
        return "".join(source.choices(alphabet, k=1 if wide else source.randint(3, 8)))

    found = near.NearDuplicates(tmp_path)
    shares = {}
    for place in range(0, 600, 2):
        words = [word() for _ in range(200)]
        other = list(words)
        for at in source.sample(range(200), source.choice((1, 2, 3, 20, 40))):
            other[at] = word()
        texts = [("" if wide else " ").join(some) for some in (words, other)]
        first, second = (set(near.shingles([text])[0].tolist()) for text in texts)
        shares[place + 1] = len(first & second) / len(first | second)
        for at, text in enumerate(texts):
            found.add(place + at, place + at + 1, example(text))
    hits = {place: other for place, other, _ in found.found()}
    found.close()
    assert all(other == place - 1 for place, other in hits.items())
    sure, far = [p for p, s in shares.items() if s > 0.9], [p for p, s in shares.items() if s < 0.65]
    assert len(sure) > 20 and len(far) > 20
    assert all(place in hits for place in sure) and not any(place in hits for place in far)


def test_repeats_are_not_near_ones_and_short_rows_are_neither(tmp_path):
    pytest.importorskip("rensa")
    long = " ".join(f"word{place}" for place in range(80))
    rows = [text_pair(1, chosen=long), text_pair(1, chosen=long + "!"), text_pair(1, chosen=long), text_pair(5), text_pair(6)]
    assert codes(check(write_rows(tmp_path / "rows.jsonl", rows))) == {"duplicate": 1, "near_duplicate": 1}


@pytest.mark.slow
def test_without_the_library_the_rest_is_checked(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [text_pair(1), text_pair(1)])
    code = (
        "import sys, importlib.util; real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'rensa' else real(name, *a)\n"
        f"from rlaif.cli import main; sys.argv = ['rlaif', 'check', {str(path)!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert "pip install 'rlaif[check]'" in done.stdout and "duplicate (1)" in done.stdout


# Test sets

ITEM = "A robe takes two bolts of blue fiber and half that much white fiber, so how many bolts does it take?"
SHORT = "Name three rivers that flow through the old town."
ZH = "小明有三个苹果和五个梨，他又买了两个橙子，请问他一共有多少个水果？"


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (text_pair(prompt="Well: a ROBE takes two bolts -- of blue fiber, and half that much white fiber. Why?"), True),
        (text_pair(prompt="A robe takes two bolts of blue fiber. And half that of the white fiber."), False),
        (text_pair(rejected=f"You ask: {SHORT}"), True),
        (text_pair(rejected="Three rivers that flow through the old town."), False),
        (pair(prompt=user("is the SKY blue?")), True),
        (text_pair(prompt="Why is the sky blue?"), False),
        (pair(chosen=said("Is the sky blue?")), False),
        (pair(chosen=said(f"问题是{ZH[:20]}吗？")), True),
        (pair(chosen=said(f"问题是{ZH[:9]}吗？")), False),
        ({"messages": user("Hello?") + said("Hi.") + user(ITEM) + said("Three.")}, True),
        ({"text": "four words of the answer: it is three bolts in all because half of two is one"}, True),
    ],
)
def test_texts_of_test_sets(tmp_path, row, found):
    tests = [
        {"id": "robe", "prompt": ITEM},
        {"turns": [SHORT]},
        {"question": ZH},
        {"prompt": "Too short"},
        {"prompt": "Is the sky blue?"},
    ]
    tests.append({"id": 7, "prompt": "How?", "answer": "It is three bolts in all, because half of two is one."})
    path = write_rows(tmp_path / "tests.jsonl", tests)
    report = check(write_rows(tmp_path / "rows.jsonl", [row]), against=[str(path)])
    assert ("contaminated" in codes(report)) == found
    assert codes(report, but=())["not_done"] == 1  # one item is too short
    if found:
        detail = next(f for f in report.findings if f.rule.code == "contaminated").examples[0][1]
        assert (
            "tests.jsonl: robe" in detail
            or "tests.jsonl:2" in detail
            or "tests.jsonl:3" in detail
            or "tests.jsonl:5" in detail
            or "tests.jsonl: 7" in detail
        )


def test_the_template_of_a_test_set_is_no_contamination(tmp_path):
    template = "Choose the one right answer out of the four that are given below, and give its letter alone. "
    tests = [{"prompt": f"{template}{n} {' '.join(f'w{n}x{k}' for k in range(20))}"} for n in range(contamination.SHARED + 1)]
    few, many = (write_rows(tmp_path / f"{n}.jsonl", tests[:n]) for n in (contamination.SHARED, contamination.SHARED + 1))
    rows = write_rows(tmp_path / "rows.jsonl", [text_pair(prompt=template + "Why is the sky blue?")])
    assert "contaminated" in codes(check(rows, against=[str(few)]))
    assert "contaminated" not in codes(check(rows, against=[str(many)]))
    assert "contaminated" in codes(
        check(write_rows(tmp_path / "hit.jsonl", [text_pair(prompt=tests[3]["prompt"])]), against=[str(many)])
    )


def test_wrong_test_sets_are_wrong_usage(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [text_pair()])
    for wrong in (tmp_path / "none.jsonl", write_rows(tmp_path / "empty.jsonl", [])):
        with pytest.raises(InputError):
            check(rows, against=[str(wrong)])


# The cleaned copy

ROWS = list(chain.from_iterable((wrong, right) for _, wrong, right in WRONG))
IMPLICIT: list[dict[str, Any]] = [
    {"chosen": f"\n\nHuman: Sky {n}?\n\nAssistant: It is {a}.", "rejected": f"\n\nHuman: Sky {n}?\n\nAssistant: It is {b}."}
    for n, (a, b) in enumerate([("blue", "green"), ("so", "so"), ("", "no"), ("grey", "red")])
]
PLAIN = [{"chosen": "The sky is blue.", "rejected": "The sky is black."}, {"chosen": "Why? Yes.", "rejected": "Why? No."}]


@given(st.lists(st.sampled_from([*ROWS, *IMPLICIT, *PLAIN, "broken"]), min_size=1, max_size=12), st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cleaned_copy_has_no_errors_and_accounts_for_every_row(tmp_path_factory, rows, implicit):
    folder = tmp_path_factory.mktemp("fix")
    rows = [row for row in rows if not implicit or row in IMPLICIT + PLAIN] or IMPLICIT
    source, out = write_rows(folder / "rows.jsonl", rows), folder / "out.jsonl"
    before = source.read_bytes()
    report = check(source, fix=out)
    assert source.read_bytes() == before
    assert report.fixed is not None
    if report.fixed["out"] is None:
        assert not out.exists() and report.count("error")
        return
    changes = read_rows(folder / "out.jsonl.changes.jsonl")
    removed = [change for change in changes if change["action"] == "removed"]
    assert len({change["line"] for change in removed}) == len(removed) == len(rows) - report.fixed["rows"]
    assert sum(change["rows"] for change in report.fixed["counts"]) == len(changes)
    again = check(out)
    assert again.count("error") == 0 and "duplicate" not in codes(again), again.findings
    changed, left_out = ({change["line"] for change in some} for some in (changes, removed))
    kept = [line for line in range(1, len(rows) + 1) if line not in left_out]
    for line, row in zip(kept, read_rows(out), strict=True):
        assert (json.dumps(row) == json.dumps(rows[line - 1])) == (line not in changed)


def test_what_is_repaired_says_the_same(tmp_path):
    talk = user("Why?") + said("So.") + user("Really?")
    rows = [
        {"prompt": "Really?", "chosen": talk + said("Yes."), "rejected": talk + said("No."), "id": 1},
        {"prompt": talk, "chosen": {"role": "assistant", "content": "Yes!"}, "rejected": said("No!"), "id": 2},
        {"prompt": [{"from": "human", "value": "Why?"}], "chosen": said("Yes?"), "rejected": said("No?"), "id": 3},
    ]
    report = check(write_rows(tmp_path / "rows.jsonl", rows), fix=tmp_path / "out.jsonl")
    assert codes(report) == {"prompt_repeated": 1, "object_answer": 1, "from_value": 1}
    assert read_rows(tmp_path / "out.jsonl") == [
        {"prompt": talk, "chosen": said("Yes."), "rejected": said("No."), "id": 1},
        {"prompt": talk, "chosen": said("Yes!"), "rejected": said("No!"), "id": 2},
        {"prompt": user("Why?"), "chosen": said("Yes?"), "rejected": said("No?"), "id": 3},
    ]


def test_leaking_prompts_are_written_apart_in_every_row(tmp_path):
    rows = [*IMPLICIT, {"chosen": "\n\nHuman: A\n\nAssistant: B", "rejected": "\n\nHuman: A\n\nAssistant: C"}]
    check(write_rows(tmp_path / "rows.jsonl", rows), fix=tmp_path / "out.jsonl")
    assert read_rows(tmp_path / "out.jsonl") == [
        {"prompt": "\n\nHuman: Sky 0?\n\nAssistant:", "chosen": " It is blue.", "rejected": " It is green."},
        {"prompt": "\n\nHuman: Sky 2?\n\nAssistant:", "chosen": " It is .", "rejected": " It is no."},
        {"prompt": "\n\nHuman: Sky 3?\n\nAssistant:", "chosen": " It is grey.", "rejected": " It is red."},
        {"prompt": "\n\nHuman: A\n\nAssistant:", "chosen": " B", "rejected": " C"},
    ]


def test_contradictions_lose_both_sides_and_repeats_keep_the_first(tmp_path):
    first, other = pair(1), pair(2)
    swapped = {**other, "chosen": other["rejected"], "rejected": other["chosen"]}
    check(write_rows(tmp_path / "rows.jsonl", [other, first, swapped, first, pair(4)]), fix=tmp_path / "out.jsonl")
    assert read_rows(tmp_path / "out.jsonl") == [first, pair(4)]
    reasons = [(change["line"], change["reason"]) for change in read_rows(tmp_path / "out.jsonl.changes.jsonl")]
    assert reasons == [(1, "contradiction"), (3, "contradiction"), (4, "duplicate")]


def test_the_copy_is_never_the_file_itself(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [text_pair()])
    (tmp_path / "link.jsonl").symlink_to(path)
    listed = write_rows(tmp_path / "a.jsonl.changes.jsonl", [text_pair()])
    wrong = [(path, path), (path, tmp_path / "link.jsonl"), (path, tmp_path / "out.parquet"), (listed, tmp_path / "a.jsonl")]
    for source, out in [*wrong, (path, tmp_path / "none" / "out.jsonl")]:
        before = hashlib.sha256(source.read_bytes()).digest()
        with pytest.raises(InputError):
            check(source, fix=out)
        assert hashlib.sha256(source.read_bytes()).digest() == before


# The command


@pytest.mark.slow
def test_the_command(tmp_path):
    good = write_rows(tmp_path / "good.jsonl", [pair(n) for n in range(4)])
    assert "0 errors, 0 warnings" in rlaif("check", good).stdout
    bad = write_rows(tmp_path / "bad.jsonl", [pair(1), pair(2, chosen=said(""))])
    done = rlaif("check", bad, "--fix", tmp_path / "out.jsonl", expect=1)
    assert f"{bad}:2: `chosen` is empty" in done.stdout
    assert f"{tmp_path / 'out.jsonl'}: 1 of 2 rows" in done.stdout
    report = json.loads(rlaif("check", bad, "--json", expect=1).stdout)
    assert (report["rows"], report["errors"], report["findings"][0]["code"]) == (2, 1, "empty")
    assert report["findings"][0]["examples"] == [{"row": 2, "detail": "`chosen` is empty"}]
    for wrong in (
        [tmp_path / "none.jsonl"],
        [good, "--fix", good],
        [good, "--max-length", 5],
        [good, "--against", "none.jsonl"],
    ):
        assert rlaif("check", *wrong, expect=2).stderr.startswith("error: ")


@pytest.mark.slow
def test_a_file_that_a_run_made_is_clean(tmp_path):
    run = library.generate("prompts/examples/demo.jsonl", policy="fake/oracle", out=tmp_path / "run", limit=20)
    run.wait()
    for name in FORMATS:
        out = tmp_path / f"{name}.parquet"
        results.export(tmp_path / "run", name, out)
        report = check(out)
        assert report.rows >= 20 and report.count("error") == 0, name
    assert "0 errors" in rlaif("check", tmp_path / "run" / "dpo.jsonl").stdout


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    def peak_mib(count: int) -> float:
        rows = ({**pair(n), "id": f"p{n}", "chosen": said(f"{n} is so " * 30 + str(n * 7919))} for n in range(count))
        path = write_rows(tmp_path / "rows.jsonl", rows)
        code = (
            "import sys, resource; from rlaif.check.run import check; check(sys.argv[1], fix=sys.argv[2])\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        command = [sys.executable, "-c", code, str(path), str(tmp_path / "out.jsonl")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
        return float(done.stdout)

    assert peak_mib(20_000) < peak_mib(2_000) + 30


# Laws of splitting


@given(st.text("ab ", max_size=12), st.text("ab ", max_size=12))
def test_shared_is_the_longest_common_beginning(first, second):
    length = shared(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]
    assert shared(list(first), list(second)) == length  # type: ignore[arg-type]


@given(st.text("ab \n", max_size=6), st.text("ab \n", min_size=1, max_size=6), st.text("ab \n", min_size=1, max_size=6))
def test_transcripts_split_at_their_mark(asked, chosen, rejected):
    before = f"\n\nHuman: {asked}\n\nAssistant:"
    assert split(before + chosen, before + rejected) == (before, chosen, rejected)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_rows_behind_one_that_is_too_short_are_checked_and_copied(tmp_path, suffix):
    path, gap = tmp_path / f"a{suffix}", "," if suffix == ".csv" else "\t"
    lines = [gap.join(("prompt", "chosen", "rejected")), *(gap.join((f"q {k}", f"yes {k}", f"no {k}")) for k in range(100))]
    lines[11] = "q 10"
    path.write_text("\n".join(lines) + "\n")
    report = check(path, fix=tmp_path / "clean.jsonl")
    (found,) = [f for f in report.findings if f.rule.severity == "error"]
    assert (found.rule.code, found.count, found.examples[0][0], report.rows) == ("unreadable", 1, 12, 100)
    assert "as many fields" in found.examples[0][1] and str(path) not in found.examples[0][1]
    assert len((tmp_path / "clean.jsonl").read_text().splitlines()) == 99


def test_rows_behind_invalid_utf8_in_parquet_are_checked_and_copied(tmp_path):
    texts = [f"yes {k}".encode() for k in range(100)]
    texts[10] = b"y\xff"
    chosen = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    table = {"prompt": [f"q {k}" for k in range(100)], "chosen": chosen, "rejected": [f"no {k}" for k in range(100)]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    report = check(tmp_path / "a.parquet", fix=tmp_path / "clean.jsonl")
    (found,) = [f for f in report.findings if f.rule.severity == "error"]
    assert (found.rule.code, found.examples[0][0], report.rows) == ("unreadable", 11, 100)
    assert "--replace" not in found.examples[0][1] and len((tmp_path / "clean.jsonl").read_text().splitlines()) == 99


def test_a_file_that_cannot_be_read_to_its_end_is_not_copied(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected\n" + "q,yes,no\n" * 5 + 'q,"yes"x,no\n' + "q,yes,no\n" * 50)
    report = check(path)
    (found,) = [f for f in report.findings if f.rule.code == "unreadable"]
    assert found.examples[0][0] == 7 and "nothing behind it can be read" in found.examples[0][1]
    with pytest.raises(InputError, match="a copy would lack it all"):
        check(path, fix=tmp_path / "clean.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_numbers_beyond_floats_and_repairs_in_two_columns_are_counted_by_row(tmp_path):
    one = {"role": "assistant", "content": "yes"}
    asked = [{"role": "user", "content": "q"}]
    rows = [{"prompt": asked, "chosen": one | {"content": f"y {k}"}, "rejected": one | {"content": f"n {k}"}} for k in range(5)]
    path = write_rows(tmp_path / "a.jsonl", [rows[0] | {"margin": 10**400}, *rows[1:]])
    report = check(path, fix=tmp_path / "clean.jsonl")
    counts = {f.rule.code: f.count for f in report.findings if f.rule.severity == "error"}
    assert counts == {"wrong_number": 1, "object_answer": 5}
    assert {(c["action"], c["reason"]): c["rows"] for c in report.fixed["counts"]}["repaired", "object_answer"] == 4
