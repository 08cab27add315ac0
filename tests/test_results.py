"""Records as bytes and back, and from any number of them to rows in the memory of a few."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif import records, results
from rlaif.audit import Audit
from rlaif.config import RunConfig
from rlaif.export.formats import Format
from rlaif.selection import parse
from rlaif.types import Candidate, Prompt, Record, Verdict


def pairs_from(stored, config=None, audit=None):
    """The pairs that become rows, one list a prompt."""
    found = []
    export = results._Export(Format("test", "pairs", lambda pairs: found.extend(pairs) or ()), parse("best-worst"))
    assert list(export.rows(stored, config or CONFIG, audit)) == []
    return found


CONFIG = RunConfig(command="generate", prompts="prompts.jsonl", out="out", policy=["fake/oracle"], judge=["pairwise"])

TEXT = st.text(max_size=12)  # whole characters only
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
MAYBE = st.none() | TEXT
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CANDIDATES = st.lists(
    st.builds(
        Candidate, TEXT, TEXT, TEXT, finish=MAYBE, thinking=MAYBE, error=MAYBE, score=st.none() | NUMBER, degenerate=MAYBE
    ),
    max_size=3,
)
VERDICTS = st.lists(
    st.builds(
        Verdict,
        TEXT,
        st.tuples(TEXT, TEXT),
        st.none() | st.tuples(NUMBER, NUMBER),
        st.sampled_from(["probability", "vote", "rating"]),
        error=MAYBE,
        reason=MAYBE,
    ),
    max_size=3,
)
MESSAGE = st.fixed_dictionaries({"role": TEXT, "content": TEXT}, optional={"name": TEXT, "a_list": VALUE})
PROMPTS = st.builds(
    Prompt,
    TEXT,
    st.lists(MESSAGE, min_size=1, max_size=3).map(tuple),
    MAYBE,
    st.dictionaries(TEXT, VALUE, max_size=3),
    st.integers(0, 2**40),
)


@settings(database=None, deadline=None)
@given(PROMPTS, CANDIDATES, VERDICTS)
def test_a_record_reads_back_as_it_was(prompt, candidates, verdicts):
    record = Record(prompt, tuple(candidates), tuple(verdicts))
    found = records.load(prompt, records.dump(record))
    assert found == record and found.ordinal == prompt.ordinal
    assert all(type(score) is float for verdict in found.verdicts for score in verdict.scores or ())


@settings(database=None, deadline=None)
@given(PROMPTS, CANDIDATES)
def test_a_prompt_reads_back_as_it_was_with_the_candidates_that_came_with_it(prompt, candidates):
    found, given = records.load_prompt(prompt.ordinal, prompt.id, records.dump_prompt(prompt, candidates))
    assert found == prompt
    assert given == [Candidate(f"{prompt.id}/{k}", c.text, c.model, score=c.score) for k, c in enumerate(candidates)]
    assert all(list(message)[:2] == ["role", "content"] for message in found.messages)


LOOP = "the tide " * 40


@pytest.mark.parametrize("before", [b"", b'"rules":0,', b'"rules":99,'])
def test_records_made_before_these_rules_are_marked_when_they_are_read(before):
    """A directory of an older version exports what today's rules let through, without a run."""
    prompt = Prompt("p", ({"role": "user", "content": "What makes the tides come and go?"},))
    candidates = tuple(Candidate(f"p/{k}", text, degenerate="echo") for k, text in enumerate((LOOP, "Gravity.", "The moon.")))
    said = [Verdict("j", (f"p/{i}", f"p/{j}"), (float(i < j), float(i > j)), "vote") for i, j in permutations(range(3), 2)]
    new = records.dump(Record(prompt, candidates, tuple(said)))
    old = b"{" + before + new.partition(b",")[2]
    assert records.is_marked(new) and not records.is_marked(old)
    assert [c.degenerate for c in records.load(prompt, old).candidates] == ["looping", None, None]
    row, audit = (0, "p", records.dump_prompt(prompt), old), Audit()
    (pair,) = pairs_from(lambda: [row], audit=audit)
    assert (pair.chosen.id, pair.rejected.id, audit.degenerate()) == ("p/1", "p/2", {"looping": 1})
    (pair,) = pairs_from(lambda: [row], CONFIG.model_copy(update={"allow_degenerate": True}))
    assert pair.chosen.id == "p/0"


def test_a_marked_record_is_read_without_its_prompt():
    record = Record(Prompt("p", ()), (Candidate("p/0", "x", degenerate="echo"), Candidate("p/1", "\ud800", degenerate="tail")))
    big = Record(record.prompt, record.candidates, (Verdict("j", ("p/0",), (1.0,), reason="\ud800"),))
    for one in (record, big):
        body = records.dump(one)
        assert records.is_marked(body) and [c.degenerate for c in records.load(one.prompt, body).candidates] == ["echo", "tail"]


def turned(value):
    """The same JSON value, its keys the other way round."""
    if isinstance(value, dict):
        return {k: turned(v) for k, v in reversed(value.items())}
    return [turned(v) for v in value] if isinstance(value, list) else value


@settings(database=None, deadline=None)
@given(PROMPTS, CANDIDATES)
def test_equal_prompts_have_equal_bytes(prompt, candidates):
    messages, fields = tuple(turned(m) for m in prompt.messages), turned(dict(prompt.fields))
    other = Prompt("another id", messages, prompt.reference, fields, prompt.ordinal + 1)
    assert records.dump_prompt(other, candidates) == records.dump_prompt(prompt, candidates)


@pytest.mark.parametrize(
    "value", [10**40, -(2**63) - 1, 2**64 - 1, 5e-324, 1e308, "\u2028 \0 \x7f é 🙂", json.loads("[" * 400 + "]" * 400)]
)
def test_whatever_json_can_hold_is_kept(value):
    prompt = Prompt("p", ({"role": "user", "content": "q"},), None, {"value": value})
    assert records.load_prompt(0, "p", records.dump_prompt(prompt))[0] == prompt


def test_half_a_surrogate_pair_is_no_text_and_spoils_nothing_else():
    record = Record(Prompt("p", ()), (Candidate("p/0", "é \ud800!"),), (Verdict("j", ("p/0",), (1.0,), reason="\udfff"),))
    found = records.load(record.prompt, records.dump(record))
    assert (found.candidates[0].text, found.verdicts[0].reason) == ("é ?!", "?")


def rows(count: int) -> Iterator[results.Row]:
    """Finished records as a ledger yields them, made as they are asked for."""
    for k in range(count):
        prompt = Prompt(f"p{k}", ({"role": "user", "content": f"question {k}"},), ordinal=k)
        candidates = tuple(Candidate(f"p{k}/{c}", f"answer {c} to question {k}, " * 20) for c in range(2))
        p = (k % 89 + 1) / 100
        said = [
            Verdict("j", (f"p{k}/{i}", f"p{k}/{j}"), (p, 1 - p) if i == 0 else (1 - p / 2, p / 2), "probability")
            for i, j in permutations(range(2))
        ]
        yield k, prompt.id, records.dump_prompt(prompt), records.dump(Record(prompt, candidates, tuple(said)))


def selected(count: int) -> tuple[int, int]:
    """(pairs, most bytes held while selecting them)."""
    tracemalloc.start()
    try:
        export = results._Export.of("dpo", None).by(CONFIG)
        found = sum(1 for _ in export.rows(lambda: rows(count), CONFIG, Audit()))
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_many_records_take_the_memory_of_a_chunk():
    """What is held of a record are its games, some hundred bytes, and they are of one chunk: its objects take 2 kB."""
    found, one_chunk = selected(3000)
    assert found > 2900
    found, many = selected(6000)
    assert found > 5900 and many - one_chunk < 1.5e6


def test_each_record_gets_its_own_strengths_and_every_reading_gives_the_same():
    first, again = (pairs_from(lambda: rows(300)) for _ in range(2))
    assert first == again and [pair.prompt.ordinal for pair in first] == sorted({pair.prompt.ordinal for pair in first})
    for pair in first:
        k = pair.prompt.ordinal
        assert {pair.chosen.id, pair.rejected.id} == {f"p{k}/0", f"p{k}/1"}
        assert pair.prompt.text == f"question {k}" and pair.chosen.text.startswith(
            f"answer {pair.chosen.id[-1]} to question {k},"
        )
        p = (k % 89 + 1) / 100
        both = p + p / 2 - 1  # the mean of the two orders' preferences for the first, less one half, twice
        assert abs(both) < 0.1 or (pair.chosen.id == f"p{k}/0") == (both > 0)
