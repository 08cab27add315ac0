"""The map from a judge's probability to how often it is right: fitted on gold, and what a run does with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import command, read_rows, summary, write_rows
from hypothesis import given
from hypothesis import strategies as st

from rlaif.calibration import fit, load, mapped
from rlaif.errors import InputError


def drawn(count: int, slope: float) -> tuple[list[float], list[bool]]:
    rng = np.random.default_rng(5)
    odds = rng.normal(0, 2, count)
    return list(1 / (1 + np.exp(-odds))), list(rng.random(count) < 1 / (1 + np.exp(-slope * odds)))


@pytest.mark.parametrize("slope", [1.0, 0.4, -0.6])
def test_the_slope_is_found(slope):
    ps, right = drawn(3000, slope)
    found = fit(ps, right, range(3000))
    assert found.slope == pytest.approx(slope, abs=0.1) and found.interval[0] < slope < found.interval[1]
    mirrored = fit([1 - p for p in ps], [not y for y in right], range(3000))
    assert mirrored.slope == pytest.approx(found.slope)


def test_few_pairs_make_no_certainty():
    """Three of three right, each at 0.9: Platt's targets keep the slope from running off."""
    found = fit([0.9, 0.9, 0.1], [True, True, False], [0, 1, 2])
    assert mapped(0.9, found.slope) == pytest.approx(4 / 5, abs=1e-6)
    assert fit([0.5, 0.5], [True, False], [0, 1]) is None and fit([], [], []) is None


@given(st.floats(0.0, 1.0), st.floats(-5.0, 5.0))
def test_swapping_a_and_b_mirrors_the_map(p, slope):
    assert mapped(1.0 - p, slope) == pytest.approx(1.0 - mapped(p, slope), abs=1e-6)
    assert mapped(0.5, slope) == 0.5 and mapped(p, 1.0) == pytest.approx(p, abs=2e-6)


def gold(count, wrong):
    """Pairs of which every `wrong`th has a gold that the oracle does not share."""
    for k in range(count):
        texts = [f"Answer {k} of quality 0.700.", f"Answer {k} of quality 0.500."]
        yield {"id": f"g{k}", "prompt": f"Question {k}?", "response_a": texts[0], "response_b": texts[1]} | {
            "gold": "B" if k % wrong == 0 else "A"
        }


def test_a_run_maps_its_probabilities_and_drops_what_is_uncertain(tmp_path):
    oracle = ["--judge", "pairwise", "--judge-model", "fake/oracle"]
    for name, wrong in (("good", 4), ("bad", 1)):
        command("eval-judge", write_rows(tmp_path / f"{name}.jsonl", gold(40, wrong)), *oracle, "--out", tmp_path / name)
    good, bad = (tmp_path / name / "calibration.json" for name in ("good", "bad"))
    (one,) = json.loads(good.read_text())["maps"]
    assert one["judge"] == "pairwise:fake/oracle" and one["slope"] > 0.0 and one["pairs"] == 40
    assert load(str(bad)).slope("pairwise:fake/oracle") < 0.0
    answers = write_rows(tmp_path / "answers.jsonl", gold(3, 4))
    command("judge", answers, *oracle, "--calibration", good, "--out", tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "dpo.jsonl")
    # The oracle says 1 / (1 + exp(-6 * 0.2)), and three of four are right
    assert {row["p_source"] for row in rows} == {"calibrated"} and {row["judge"] for row in rows} == {one["judge"]}
    assert rows[0]["p_chosen"] == pytest.approx(0.75, abs=0.02)
    said = command("export", tmp_path / "run", "--format", "raw", "--calibration", good, "--out", tmp_path / "raw", expect=2)[1]
    assert "'raw'" in said and not (tmp_path / "raw").exists()
    command("export", tmp_path / "run", "--format", "dpo", "--calibration", bad, "--out", tmp_path / "dropped.jsonl")
    assert read_rows(tmp_path / "dropped.jsonl") == []
    assert json.loads((tmp_path / "dropped.jsonl.summary.json").read_text())["dropped"] == {"uncertain": 3}
    command("judge", answers, *oracle, "--out", tmp_path / "run")
    assert summary(tmp_path / "run")["calls"]["judge"] == 0  # nothing is bought for another map, or none
    plain = read_rows(tmp_path / "run" / "dpo.jsonl")
    assert plain[0]["p_source"] == "judge" and plain[0]["p_chosen"] == pytest.approx(1 / (1 + np.exp(-1.2)), abs=1e-2)
    said = command("judge", answers, "--judge", "rules-concise", "--calibration", good, "--out", tmp_path / "o", expect=2)[1]
    assert "'pairwise:fake/oracle'" in said and "'rules-concise'" in said and not (tmp_path / "o" / "run.sqlite").exists()


def test_a_map_is_of_one_constitution_and_one_way_to_ask(tmp_path):
    """Recorded verdicts tell nothing of these, and their maps go by the name alone."""
    oracle = ["--judge", "pairwise", "--judge-model", "fake/oracle"]
    pairs = write_rows(tmp_path / "gold.jsonl", gold(40, 4))
    command("eval-judge", pairs, *oracle, "--constitution", "helpful", "--out", tmp_path / "helpful")
    maps = tmp_path / "helpful" / "calibration.json"
    answers = write_rows(tmp_path / "answers.jsonl", gold(3, 4))
    for more in (["--constitution", "harmless"], ["--constitution", "helpful", "--principles", "sampled"], []):
        said = command("judge", answers, *oracle, *more, "--calibration", maps, "--out", tmp_path / "other", expect=2)[1]
        assert "another constitution" in said and not (tmp_path / "other" / "run.sqlite").exists(), more
    command("judge", answers, *oracle, "--out", tmp_path / "plain")
    said = command("export", tmp_path / "plain", "--calibration", maps, "--out", tmp_path / "rows.jsonl", expect=2)[1]
    assert "another constitution" in said and not (tmp_path / "rows.jsonl").exists()
    more = ["--constitution", "helpful", "--judge-calls", "2", "--calibration", maps]
    command("judge", answers, *oracle, *more, "--out", tmp_path / "same")
    assert {row["p_source"] for row in read_rows(tmp_path / "same" / "dpo.jsonl")} == {"calibrated"}
    known = json.loads(maps.read_text())
    for one in known["maps"]:
        del one["rubric"]
    maps.write_text(json.dumps(known))
    command("export", tmp_path / "plain", "--calibration", maps, "--out", tmp_path / "rows.jsonl")
    assert {row["p_source"] for row in read_rows(tmp_path / "rows.jsonl")} == {"calibrated"}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"maps": []}', '{"maps": [{"judge": "j", "slope": NaN}]}', '{"maps": [1]}', "[1]"]
)
def test_what_is_no_calibration_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match=r"c\.json"):
        load(str(tmp_path / "c.json"))
    with pytest.raises(InputError, match="cannot read"):
        load(str(tmp_path / "none.json"))
