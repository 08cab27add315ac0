"""The prompts of a run on their way into the ledger: read once, compared with what is on file, refused where they differ."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from helpers import read_rows, stored_records, write_prompts, write_rows
from helpers import rlaif as command_line
from hypothesis import given, settings
from hypothesis import strategies as st

import rlaif
from rlaif import data
from rlaif.config import RunConfig
from rlaif.errors import InputError
from rlaif.ledger import Ledger, PromptRow
from rlaif.source import Source, changes


def run(source: Any, out: Path, **more: Any) -> dict[str, Any]:
    """A run with a scripted model; returns its summary."""
    return rlaif.generate(source, **{"policy": "fake/oracle", "n": 2, "out": out} | more).wait()


def bought(summary: dict[str, Any]) -> int:
    return int(summary["calls"]["policy"] + summary["calls"]["judge"])


def facts(out: Path) -> tuple[int, str | None]:
    """How many prompts the directory knows, and the fingerprint of what they were read from."""
    with closing(Ledger.read(out)) as ledger:
        return ledger.prompts(), ledger.meta("source")


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by a name whenever an input is read."""
    seen: list[str] = []

    def noting(name: str, real: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def read(*arguments: Any, **more: Any) -> Iterator[Any]:
            seen.append(name)
            return real(*arguments, **more)

        return read

    for name in ("read_prompts", "read_candidates"):
        monkeypatch.setattr(data, name, noting(name, getattr(data, name)))
    return seen


# A file


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, readings: list[str]) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "run"
    first = run(prompts, out)
    assert readings == ["read_prompts"]
    content = prompts.read_bytes()
    prompts.unlink()
    prompts.write_bytes(content)  # another file by its inode and its time
    moved = Path(shutil.copy(prompts, tmp_path / "moved.jsonl"))
    for same in (prompts, moved):
        again = run(same, out)
        assert (again["prompts"], bought(again), again["calls"]["reused"]) == (3, 0, bought(first))
    assert readings == ["read_prompts"]


def test_an_unchanged_file_goes_on_where_an_interrupted_run_left_it(tmp_path: Path, readings: list[str]) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 300), tmp_path / "run"
    for _ in rlaif.generate(prompts, policy="fake/oracle", n=2, out=out):
        break
    assert 0 < len(stored_records(out)) < 300
    assert run(prompts, out)["prompts"] == 300 and readings == ["read_prompts"]


def test_appended_prompts_are_read_and_only_they_are_bought(tmp_path: Path, readings: list[str]) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 2), tmp_path / "run"
    run(prompts, out)
    more = run(write_prompts(prompts, 5), out)
    assert (more["prompts"], bought(more), len(readings)) == (5, 3 * 3, 2)
    fresh = tmp_path / "fresh"
    run(prompts, fresh)
    assert (out / "dpo.jsonl").read_bytes() == (fresh / "dpo.jsonl").read_bytes()
    assert run(prompts, out)["calls"] == {"policy": 0, "judge": 0, "reused": 5 * 3} and len(readings) == 3


def test_a_changed_prompt_is_refused_and_a_file_that_is_set_back_goes_on_unread(tmp_path: Path, readings: list[str]) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "run"
    run(prompts, out)
    content, before = prompts.read_bytes(), facts(out)
    prompts.write_bytes(content.replace(b"Question 1: why?", b"Question 1: how?") + b'{"prompt": "New?"}\n')
    with pytest.raises(InputError, match=r"prompt 2 \('p1'\).*text was \"Question 1: why\?\", now \"Question 1: how\?\""):
        run(prompts, out)
    assert facts(out) == before and len(readings) == 2
    prompts.write_bytes(content)
    assert bought(run(prompts, out)) == 0 and len(readings) == 2


def test_a_wrong_row_at_the_end_leaves_the_directory_as_it_was(tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 300), tmp_path / "run"
    run(prompts, out, limit=2)
    before = facts(out)
    prompts.write_bytes(prompts.read_bytes() + b'{"prompt": ""}\n')
    with pytest.raises(InputError, match=r"p\.jsonl:301: the prompt is empty"):
        run(prompts, out)
    assert facts(out) == before


def test_another_limit_reads_anew_and_buys_what_is_new(tmp_path: Path, readings: list[str]) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 6), tmp_path / "run"
    told = [run(prompts, out, **limit) for limit in ({"limit": 2}, {"limit": 4}, {}, {"limit": 3}, {"limit": 3}, {"limit": 9})]
    assert [summary["prompts"] for summary in told] == [2, 4, 6, 3, 3, 6]
    assert [bought(summary) // 3 for summary in told] == [2, 2, 2, 0, 0, 0]
    assert [summary["calls"]["reused"] // 3 for summary in told] == [0, 2, 4, 3, 3, 6]
    assert len(readings) == 5 and facts(out)[0] == 6
    assert [row["id"] for row in read_rows(out / "dpo.jsonl")] == [f"p{k}" for k in range(6)]


@pytest.mark.parametrize(("limit", "refused"), [(None, True), (5, True), (4, True), (3, False), (1, False)])
def test_a_prompt_that_is_gone_is_missed_up_to_the_limit(tmp_path: Path, limit: int | None, refused: bool) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 6), tmp_path / "run"
    run(prompts, out)
    write_prompts(prompts, 3)
    if not refused:
        assert run(prompts, out, limit=limit)["prompts"] == limit
        return
    with pytest.raises(InputError, match=r"prompt 4 \('p3'\) .* is gone from the input"):
        run(prompts, out, limit=limit)


def test_another_system_message_is_refused(tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 2), tmp_path / "run"
    run(prompts, out)
    with pytest.raises(InputError, match=r'system was null, now "Be brief\."'):
        run(prompts, out, system="Be brief.")
    rows = write_rows(tmp_path / "c.jsonl", [{"prompt": "Why?", "candidates": ["a", "bb"]}])
    rlaif.judge(rows, judge="longest.py:longest", out=tmp_path / "judged", system="Be brief.").wait()
    with pytest.raises(InputError, match=r'system was "Be brief\.", now null'):
        rlaif.judge(rows, judge="longest.py:longest", out=tmp_path / "judged").wait()


def test_the_same_rows_in_another_kind_of_file_are_read_and_found_equal(tmp_path: Path, readings: list[str]) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "run"
    run(prompts, out)
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress(prompts.read_bytes()))
    listed = tmp_path / "p.json"
    listed.write_text("[" + ",".join(prompts.read_text().splitlines()) + "]")
    for number, other in enumerate((packed, listed, prompts), 2):
        assert bought(run(other, out)) == 0 and len(readings) == number


def test_a_name_that_means_another_kind_of_file_is_read_as_that(tmp_path: Path) -> None:
    """The same bytes as .txt are other prompts."""
    prompts, out = write_prompts(tmp_path / "p.jsonl", 2), tmp_path / "run"
    run(prompts, out)
    with pytest.raises(InputError, match="prompt 1"):
        run(shutil.copy(prompts, tmp_path / "p.txt"), out)


def test_shipped_prompts_are_read_once(tmp_path: Path, readings: list[str]) -> None:
    for _ in range(2):
        assert run("demo", tmp_path / "run", limit=2)["prompts"] == 2
    assert len(readings) == 1


# Candidates


def test_unchanged_candidates_are_not_read_again_and_changed_ones_are_refused(tmp_path: Path, readings: list[str]) -> None:
    def judge(given: list[Any]) -> dict[str, Any]:
        path = write_rows(tmp_path / "c.jsonl", [{"prompt": "How?", "candidates": ["x", "yy"]}, {"prompt": "Why?"} | given[0]])
        return rlaif.judge(path, judge="longest.py:longest", out=tmp_path / "run").wait()

    given = [{"candidates": ["a", {"response": "bbb", "model": "m", "score": 1}]}]
    assert (judge(given)["pairs"], judge(given)["calls"]["judge"], readings) == (2, 0, ["read_candidates"])
    for other in (
        ["a", {"response": "bbb", "model": "m", "score": 2}],
        ["a", {"response": "bbb", "model": "other", "score": 1}],
        ["a", {"response": "bbc", "model": "m", "score": 1}],
        [{"response": "bbb", "model": "m", "score": 1}, "a"],
        ["a"],
        ["a", {"response": "bbb", "model": "m", "score": 1}, "c"],
    ):
        with pytest.raises(InputError, match=r"prompt 2 .*: candidates changed\."):
            judge([{"candidates": other}])
    same = [{"candidates": [{"text": "a"}, {"text": "bbb", "model": "m", "score": 1.0}]}]  # spelled otherwise
    assert judge(same)["calls"]["judge"] == 0


# Python values


def test_python_values_are_compared_row_by_row(tmp_path: Path, readings: list[str]) -> None:
    rows: list[Any] = ["One?", {"prompt": "Two?", "id": 2}, [{"role": "user", "content": "Three?"}]]
    first = run(rows, tmp_path)
    assert run(iter(rows), tmp_path)["calls"] == {"policy": 0, "judge": 0, "reused": bought(first)}
    assert len(readings) == 2, "there is no file that could be known to be the same"
    more = run([*rows, "Four?"], tmp_path)
    assert (more["prompts"], bought(more)) == (4, 3)
    with pytest.raises(InputError, match=r"prompt 4 .* is gone"):
        run(rows, tmp_path)
    with pytest.raises(InputError, match=r'prompt 2 \(.2.\).*text was "Two\?", now "Zwei\?"'):
        run([rows[0], {"prompt": "Zwei?", "id": 2}, rows[2], "Four?"], tmp_path)
    with pytest.raises(InputError, match=r'prompt 2 .*id was "2", now "3"'):
        run([rows[0], {"prompt": "Two?", "id": 3}, rows[2], "Four?"], tmp_path)


def test_a_file_may_follow_on_python_values(tmp_path: Path) -> None:
    run([{"id": f"p{k}", "prompt": f"Question {k}: why?"} for k in range(2)], tmp_path / "run")
    assert bought(run(write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "run")) == 3


# Other columns


def test_changed_fields_make_the_record_again_and_buy_nothing(tmp_path: Path) -> None:
    rows = [{"id": f"p{k}", "prompt": f"Question {k}?", "topic": "old"} for k in range(4)]
    first = run(rows, tmp_path)
    rows[1]["topic"] = "new"
    rows[3] |= {"more": [1, {"x": None}]}
    again = run(rows, tmp_path)
    assert (again["pairs"], again["calls"]) == (first["pairs"], {"policy": 0, "judge": 0, "reused": bought(first)})
    assert [dict(r.prompt.fields) for r in stored_records(tmp_path)] == [
        {"topic": "old"}, {"topic": "new"}, {"topic": "old"}, {"topic": "old", "more": [1, {"x": None}]},
    ]  # fmt: skip


def test_a_judge_that_sees_the_fields_is_asked_again_where_they_changed(tmp_path: Path) -> None:
    def by_topic(prompt: rlaif.Prompt, candidates: list[rlaif.Candidate]) -> list[float]:
        longer = prompt.fields["prefers"] == "long"
        return [float(len(c.text)) * (1 if longer else -1) for c in candidates]

    rows = [{"prompt": f"{k}?", "candidates": ["a", "bb"], "prefers": "long"} for k in range(3)]
    rlaif.judge(rows, judge=by_topic, out=tmp_path).wait()
    rows[1]["prefers"] = "short"
    assert rlaif.judge(rows, judge=by_topic, out=tmp_path).wait()["calls"] == {"policy": 0, "judge": 1, "reused": 2}
    assert [row["chosen"][0]["content"] for row in read_rows(tmp_path / "dpo.jsonl")] == ["bb", "a", "bb"]


def test_a_changed_reference_is_refused(tmp_path: Path) -> None:
    run([{"prompt": "2 + 2?", "reference": "4"}], tmp_path)
    with pytest.raises(InputError, match="reference changed"):
        run([{"prompt": "2 + 2?", "reference": "5"}], tmp_path)


# Laws

ROW = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["Why?", "How?"])},
    optional={"reference": st.sampled_from(["1", "2"]), "topic": st.sampled_from("ab")},
)


def begin(rows: list[dict[str, Any]], out: Path, limit: int | None) -> list[PromptRow]:
    """Puts rows into the ledger as a run does; returns what is on file then."""
    source = Source(RunConfig(prompts="(Python)", out=str(out), policy=["fake/oracle"], limit=limit), rows)

    async def work() -> list[PromptRow]:
        with closing(Ledger.open(out)) as ledger:
            await ledger.begin({}, source.rows, plan="plan", changed=source.changed)
            return list(ledger.unfinished())

    return asyncio.run(work())


def marks(rows: list[dict[str, Any]], limit: int | None = None) -> list[Any]:
    """What of the rows may not change: their ids, texts and references."""
    return [(p.id, p.messages, p.reference) for p in data.read_prompts(rows, limit=limit)]


@settings(max_examples=25, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=5), st.integers(0, 5), st.lists(ROW, max_size=3), st.none() | st.integers(1, 6))
def test_what_is_on_file_is_what_was_given_or_the_change_is_refused(
    before: list[dict[str, Any]], same: int, tail: list[dict[str, Any]], limit: int | None
) -> None:
    after = [*before[:same], *tail] or before
    with TemporaryDirectory() as folder:
        first = begin(before, Path(folder), None)
        kept, now = marks(before), marks(after, limit)
        seen = len(kept) if limit is None else min(limit, len(kept))
        if now[:seen] != kept[:seen]:
            with pytest.raises(InputError, match=r"since the earlier run|is gone"):
                begin(after, Path(folder), limit)
            assert begin(before, Path(folder), None) == first
        else:
            new = Source(RunConfig(prompts="-", out="-", policy=["-"], limit=limit), after).rows()
            assert begin(after, Path(folder), limit) == [*new, *first[len(now) :]]


def test_fingerprints_tell_what_is_read_and_how(tmp_path: Path) -> None:
    one, other = write_prompts(tmp_path / "p.jsonl", 2), write_prompts(tmp_path / "q.jsonl", 3)
    given = {"out": "x", "policy": ["fake/oracle"]}
    configs = [
        RunConfig(prompts=str(one), **given),
        RunConfig(prompts=str(other), **given),
        RunConfig(prompts=str(one), limit=1, **given),
        RunConfig(prompts=str(one), system="s", **given),
        RunConfig(prompts=str(one), command="judge", **given),
    ]
    found = [Source(config).fingerprint() for config in configs]
    assert len({*found}) == len(configs) and None not in found
    assert Source(configs[0].model_copy(update={"concurrency": 3, "n": 9})).fingerprint() == found[0]
    assert Source(configs[0], ["a"]).fingerprint() is None
    assert Source(RunConfig(prompts=str(tmp_path), **given)).fingerprint() is None
    assert Source(RunConfig(prompts="nowhere.jsonl", **given)).fingerprint() is None


def test_differences_are_said_where_they_are() -> None:
    before = {"policy": [{"openai": "m", "extra": {"top_p": 1}}], "seed": 0}
    after = {"policy": [{"openai": "m", "extra": {"top_p": 2}}], "seed": 0}
    assert list(changes("", before, after)) == ["policy extra top_p was 1, now 2"]
    assert list(changes("", {"candidates": "ab"}, {"candidates": "cd"})) == ["candidates changed"]
    (long,) = changes("text", "a" * 999, "b")
    assert long.startswith('text was "aaa') and long.endswith('..., now "b"') and len(long) < 350


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("tools", [[TOOL], pytest.param(json.dumps([TOOL]), marks=pytest.mark.slow)])
def test_prompts_with_tools_are_judged_and_not_sampled(tmp_path, tools):
    """No policy is shown the tools, and a trainer would be: such rows would be of another conversation."""
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "x"}, {"id": "b", "prompt": "y", "tools": tools}])
    said = command_line("generate", path, "--policy", "fake/oracle", "--out", tmp_path / "run", expect=2).stderr
    assert "prompt 2 ('b') has `tools`" in said and not (tmp_path / "run").exists()
    rows = [{"id": "b", "prompt": "y", "tools": tools, "candidates": ["1", "22"]}]
    path = write_rows(tmp_path / "b.jsonl", rows)
    command_line("judge", path, "--judge", "longest.py:longest", "--out", tmp_path / "judged")
    (row,) = read_rows(tmp_path / "judged" / "dpo.jsonl")
    assert json.loads(row["tools"]) == [TOOL]


@pytest.mark.parametrize("command", ["generate", pytest.param("judge", marks=pytest.mark.slow)])
def test_tools_that_no_export_could_hold_are_refused_before_anything_is_spent(tmp_path, command):
    path = write_rows(tmp_path / "a.jsonl", [{"id": "a", "prompt": "x", "candidates": ["1", "2"], "tools": "a hammer"}])
    how = ("--policy", "fake/oracle") if command == "generate" else ("--judge", "longest.py:longest")
    said = command_line(command, path, *how, "--out", tmp_path / "run", expect=2).stderr
    assert "`tools` must be a list of schemas" in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["generate", "judge"])
def test_prompts_about_pictures_are_refused(tmp_path, command):
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "What is on it?", "candidates": ["1", "22"], "images": ["a.png"]}])
    how = ("--policy", "fake/oracle") if command == "generate" else ("--judge", "longest.py:longest")
    said = command_line(command, path, *how, "--out", tmp_path / "run", expect=2).stderr
    assert "has a column `images`" in said and not (tmp_path / "run").exists()
