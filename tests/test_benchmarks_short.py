"""The benchmarks in short: what they measure is right, and what they promise of damage and memory holds."""

from __future__ import annotations

import os
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from helpers import Room, write_prompts

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import damage
import engine
import local
import memory
import rates

from rlaif import doctor
from rlaif.errors import InputError
from rlaif.ledger import Ledger
from rlaif.models import smollm2

pytestmark = pytest.mark.slow


def test_damaged_ledgers_are_read_whole_or_at_an_earlier_commit_or_said_to_be_damaged():
    trials = damage.run(40, seed=1, prompts=60, shares=(0.7,))
    assert [t for t in trials if t.failures] == []
    assert Counter(t.ledger for t in trials).keys() == {"whole", "earlier", "said"}
    assert {t.doctor for t in trials} == {"sound", "damaged"}
    (line,) = [line for line in damage.rows(trials) if line[0] == "all"]
    assert len(line) == len(damage.COLUMNS) and line[2] == "40"


@pytest.mark.parametrize("form", damage.FORMS)
def test_damage_changes_the_file(form, tmp_path):
    before = os.urandom(20_000)
    (tmp_path / "file").write_bytes(before)
    damage.damage(damage.random.Random(3), tmp_path, "file", form)
    after = (tmp_path / "file").read_bytes()
    assert after != before and (len(after) < len(before) if form == "cut off" else len(after) == len(before))


def test_a_long_run_that_is_resumed_takes_no_more_memory_than_a_short_one(room: Room, tmp_path: Path):
    for name in ("short", "long"):
        (tmp_path / name).mkdir()
    short = memory.fresh(100, room, tmp_path / "short")
    room.set(log="counts")
    long = memory.resumed(4000, 20, room, tmp_path / "long", base=100)
    short_mib, *long_mib = (float(row[memory.COLUMNS.index("peak MiB")]) for row in (short, *long))
    assert max(long_mib) < short_mib + 10, "of four thousand records that are held, each would take a few KiB"
    assert not doctor.examine(tmp_path / "long" / "run").damaged
    assert room.count() == 100 * 2 + 100 * 2 + 2 * 20 * 2


def test_what_a_killed_run_has_left_is_not_changed_by_reading(room: Room, tmp_path: Path):
    prompts = write_prompts(tmp_path / "prompts.jsonl", 60)
    room.set(latency_s=0.02)
    (tmp_path / "kept").mkdir()
    damage._run_until(prompts, room, 20, tmp_path / "run", tmp_path / "kept")
    for directory in (tmp_path / "run", tmp_path / "kept"):
        before = damage._digests(directory)
        assert before[damage.LOG] != "gone"
        with closing(Ledger.read(directory)) as ledger:
            assert ledger.finished()[0] >= 20
        assert damage._digests(directory) == before
    os.truncate(tmp_path / "kept" / damage.MAIN, 0)
    with pytest.raises(InputError, match="rlaif doctor"):
        Ledger.read(tmp_path / "kept")
    assert damage._digests(tmp_path / "kept")[damage.LOG] == before[damage.LOG]


def test_two_thousand_prompts_with_faults_give_the_file_of_a_run_without(tmp_path: Path):
    with engine.serving() as endpoint:
        bench, work = engine.Bench(endpoint, tmp_path), engine.Work(2000)
        slow = {"latency_s": 0.02, "service_s": 0.08}
        clean = bench.rlaif(work, **slow)
        faults = {"fault_share": engine.FAULT_SHARE, "faults": f"rate_limit,{engine.FAULTS}"}
        faulty = bench.rlaif(work, limit_s=200.0, **slow, **faults)
    assert len(clean.log) == 4000 and clean.ran.said["pairs"] > 1900
    assert faulty.pairs == clean.pairs
    assert len(faulty.log) <= 1.1 * 4000 / (1 - engine.FAULT_SHARE)
    assert engine.overlap(clean.log) > 0.5, "judging begins while there are samples to come"


def test_a_rate_is_measured_and_nothing_is_sent_too_early(room: Room, tmp_path: Path):
    prompts = write_prompts(tmp_path / "prompts.jsonl", 500)
    row = rates.limited(room, prompts, "bucket", "exact", "40:1.5,15:1.5", 16)
    kind, said, allowed, accepted, _refused, used, _share, early, _in_flight = row
    assert (kind, said, early) == ("bucket", "exact", "0")
    assert 0 < int(accepted) <= int(allowed) + 1 and used.endswith("%")


@pytest.mark.slow
def test_the_local_model_is_measured_against_a_bare_client():
    pytest.importorskip("xllamacpp", reason="llama.cpp is missing: pip install 'rlaif[gguf]'")
    if smollm2.find() is None:
        pytest.skip("the weights are missing: rlaif models get smollm2")
    rows = local.measure([{"id": "a", "prompt": "Name a colour."}], 1, 1)
    assert [row[:2] for row in rows] == [[w, by] for w in ("samples", "judge calls") for by in ("rlaif", "bare client")]
    counts = {tuple(row[:2]): int(row[2]) for row in rows}
    assert counts["samples", "rlaif"] == counts["samples", "bare client"] == 1
    assert counts["judge calls", "rlaif"] == counts["judge calls", "bare client"] >= 12
