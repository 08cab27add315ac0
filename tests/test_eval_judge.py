"""`rlaif eval-judge`: judges whose accuracy is known, asked and asked again, killed and stopped; and what it refuses."""

from __future__ import annotations

import json
import signal
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import command, start, summary, write_rows

from rlaif.evaluation.table import lines

pytestmark = pytest.mark.slow


class Done(NamedTuple):
    """What a command said."""

    stdout: str
    stderr: str


def evaluate(*arguments: object, expect: int = 0) -> Done:
    """Runs `rlaif eval-judge` in this process."""
    return Done(*command("eval-judge", *arguments, expect=expect))


def gold_rows(count: int, *, flip: bool = False, **more: Any) -> list[dict[str, Any]]:
    """Pairs whose better answer the oracle knows; A and B in turn. With `flip`, gold says the opposite."""
    rows = []
    for k in range(count):
        better, worse = f"Answer {k} of quality 0.900.", f"Answer {k} of quality 0.100, which says more than the other."
        a, b = (better, worse) if k % 2 == 0 else (worse, better)
        gold = "AB"[(k % 2) ^ flip]
        rows.append({"id": f"g{k}", "prompt": f"Question {k // 2}?", "response_a": a, "response_b": b, "gold": gold, **more})
    return rows


def judged(out: Path, place: int = 0) -> dict[str, Any]:
    return dict(summary(out)["judges"][place])


def value(found: dict[str, Any], name: str) -> float | None:
    return None if found[name] is None else float(found[name]["value"])


def of(found: dict[str, Any], name: str) -> int:
    return int(found[name]["of"])


# Live


def test_judges_whose_accuracy_is_known(tmp_path):
    """Of an oracle, of one that always takes the first, of one that never says anything readable; and of the wrong gold."""
    gold = write_rows(tmp_path / "gold.jsonl", [*gold_rows(8), {**gold_rows(1)[0], "id": "t", "gold": "tie"}])
    wrong = write_rows(tmp_path / "wrong.jsonl", gold_rows(8, flip=True))
    for name, file, model in (("o", gold, "oracle"), ("w", wrong, "oracle"), ("f", gold, "first"), ("u", gold, "unreadable")):
        evaluate(file, "--judge", "pairwise", "--judge-model", f"fake/{model}", "--out", tmp_path / name)
    oracle, reverse, first, nothing = (judged(tmp_path / name) for name in "owfu")
    assert value(oracle, "accuracy") == value(oracle, "accuracy_labelled") == 1.0 and value(reverse, "accuracy") == 0.0
    assert (value(oracle, "flip_rate"), value(oracle, "consistent"), value(oracle, "first_shown")) == (0.0, 1.0, 0.5)
    assert (value(oracle, "longer_chosen"), value(oracle, "accuracy_gold_shorter")) == (0.0, 1.0)
    assert (of(oracle, "accuracy"), of(oracle, "accuracy_labelled"), oracle["accuracy"]["prompts"]) == (16, 8, 4)
    assert oracle["pairs"] == {"gold": 9, "gold_ties": 1, "without_verdicts": 0, "judged": 8, "prompts": 4}
    assert value(reverse, "brier") > 0.25 > value(oracle, "brier")
    assert value(reverse, "log_loss") > 0.7 > value(oracle, "log_loss")
    assert (value(first, "accuracy"), value(first, "flip_rate"), value(first, "first_shown")) == (0.5, 1.0, 1.0)
    assert first["labels"] == {"right": 0, "tie": 8, "none": 0, "wrong": 0} and value(first, "accuracy_labelled") == 0.0
    assert value(nothing, "no_verdict") == 1.0 and value(nothing, "accuracy") == 0.0 and nothing["brier"] is None
    assert sum(nothing["no_verdict_causes"].values()) == 16 and nothing["labels"]["none"] == 8
    longest, coin, shown = summary(tmp_path / "o")["baselines"]
    assert (value(longest, "accuracy"), value(coin, "accuracy"), value(shown, "accuracy")) == (0.0, 0.5, 0.5)


def test_asked_again_nothing_is_bought_and_tokens_are_counted(tmp_path, room):
    gold = write_rows(tmp_path / "gold.jsonl", gold_rows(6))
    prices = tmp_path / "prices.yaml"
    prices.write_text("m: {input: 1.0, output: 2.0}\n")
    asked = [gold, "--judge", "pairwise", "--judge", "pointwise", "--judge-model", room.model()]
    asked += ["--prices", prices, "--out", tmp_path / "out"]
    evaluate(*asked)
    bought, page = room.count(), (tmp_path / "out" / "report.html").read_bytes()
    before = summary(tmp_path / "out")
    again = evaluate(*asked)
    assert (bought, room.count(), room.repeats()) == (bought, bought, 0) and bought >= 12
    assert summary(tmp_path / "out") == before and (tmp_path / "out" / "report.html").read_bytes() == page
    pairwise = next(row for row in before["judges"] if row["judge"].startswith("pairwise"))
    spent = pairwise["spend"]
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    assert spent["right_labels"] == 6 and spent["tokens_per_right_label"] == pytest.approx(tokens / 6, abs=0.1)
    cost = (spent["prompt_tokens"] + 2 * spent["completion_tokens"]) / 1e6
    assert spent["cost_usd_per_right_label"] == pytest.approx(cost / 6)
    assert "tokens/right" in again.stdout and "USD/right" in again.stdout and "pointwise" in again.stdout
    evaluate(write_rows(tmp_path / "more.jsonl", gold_rows(7)), *asked[1:])
    assert room.count() == bought * 7 // 6  # what six pairs took, and one more


def test_killed_it_goes_on(tmp_path, room):
    gold = write_rows(tmp_path / "gold.jsonl", gold_rows(40))
    room.set(latency_s=0.1)
    asked = [gold, "--judge", "pairwise", "--judge-model", room.model(), "--concurrency", 4]
    asked += ["--out", tmp_path / "out"]
    with start("eval-judge", *asked) as process:
        while room.count() < 20:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    room.set()
    evaluate(*asked)
    assert value(judged(tmp_path / "out"), "accuracy") == 1.0 and of(judged(tmp_path / "out"), "accuracy") == 80
    assert room.count() <= 80 + 4  # what was in flight may be bought twice, and no more


def test_a_budget_is_of_all_judges_together(tmp_path, room):
    gold = write_rows(tmp_path / "gold.jsonl", gold_rows(6))
    asked = [gold, "--judge", "pairwise", "--judge", "pointwise", "--judge-model", room.model()]
    asked += ["--out", tmp_path / "out", "--concurrency", 1]
    evaluate(*asked[:3], *asked[5:])
    first = summary(tmp_path / "out")["judges"][0]["spend"]
    used = first["prompt_tokens"] + first["completion_tokens"]
    done = evaluate(*asked, "--budget-tokens", used + 1, expect=3)
    assert "budget" in done.stderr
    stopped = summary(tmp_path / "out")
    assert (stopped["state"], stopped["stopped"]["kind"]) == ("stopped", "budget")
    assert {row["judge"].partition(":")[0]: row["pairs"]["judged"] for row in stopped["judges"]}["pairwise"] == 6
    evaluate(*asked)
    assert summary(tmp_path / "out")["state"] == "done" and room.repeats() == 0


def test_pairs_that_no_judge_is_shown_are_no_verdicts_with_their_cause(tmp_path):
    rows = gold_rows(2)
    rows.append({**rows[0], "id": "empty", "response_b": " "})
    rows.append({**rows[0], "id": "same", "response_b": rows[0]["response_a"]})
    gold = write_rows(tmp_path / "gold.jsonl", rows)
    evaluate(gold, "--judge", "pairwise", "--judge-model", "fake/oracle", "--out", tmp_path / "out")
    found = judged(tmp_path / "out")
    assert found["no_verdict_causes"] == {"empty": 1, "identical": 1} and found["no_verdict"]["of"] == 6
    assert (found["accuracy"]["count"], found["accuracy"]["of"]) == (4, 6)
    assert (found["labels"]["none"], found["brier"]["of"]) == (2, 2)


def test_a_judge_is_shown_neither_gold_nor_category(tmp_path):
    (tmp_path / "nosy.py").write_text(
        "def nosy(prompt, candidates):\n"
        "    assert not {'gold', 'category'} & set(prompt.fields) and prompt.fields['kept'] == 1, prompt.fields\n"
        "    assert all(c.score is None for c in candidates) and prompt.reference == '42'\n"
        "    return [float(len(c.text)) for c in candidates]\n"
    )
    rows = gold_rows(4, category="c", kept=1, reference="42")
    gold = write_rows(tmp_path / "gold.jsonl", rows)
    evaluate(gold, "--judge", f"{tmp_path / 'nosy.py'}:nosy", "--judge", "rules-concise", "--out", tmp_path / "out")
    found = {row["judge"]: row for row in summary(tmp_path / "out")["judges"]}
    assert value(found["nosy"], "accuracy") == 0.0 and found["nosy"]["no_verdict_causes"] == {}
    assert found["nosy"]["by_category"]["c"]["pairs"] == 4
    best, longest = summary(tmp_path / "out")["paired"]
    assert (best["reference"], best["differences"][0]["value"]) == ("rules-concise", -1.0)
    assert longest["differences"][1] == longest["differences"][1] | {"judge": "nosy", "value": 0.0, "of": 4, "interval": None}


def test_a_dry_run_spends_nothing(tmp_path, room):
    gold = write_rows(tmp_path / "gold.jsonl", gold_rows(5))
    done = evaluate(gold, "--judge", "pairwise", "--judge-model", room.model(), "--out", tmp_path / "o", "--dry-run")
    assert "judge_calls: 10" in done.stdout and room.count() == 0 and not (tmp_path / "o").exists()


# Recorded


def verdict(pair: str, order: str | None, said: str | None, **more: Any) -> dict[str, Any]:
    return {"pair_id": pair, "judge": "j", "order": order, "verdict": said, **more}


def test_recorded_verdicts_of_every_kind(tmp_path):
    gold = write_rows(tmp_path / "gold.jsonl", gold_rows(8))
    rows = [
        *(verdict("g0", "AB", "A"), verdict("g0", "BA", "A")),
        *(verdict("g1", "AB", "A"), verdict("g1", "BA", "B")),  # a flip
        *(verdict("g2", "AB", "tie"), verdict("g2", "BA", "tie")),  # two ties are not consistent
        *(verdict("g3", "AB", None, finish="length"), verdict("g3", "BA", "B")),
        verdict("g4", None, "A"),  # an order that nobody wrote down
        verdict("elsewhere", "AB", "A"),
        {"pair_id": "g5", "judge": "soft", "order": "BA", "p_b": 0.8, "verdict": "B"},
        {"pair_id": "g6", "judge": "rated", "order": "pointwise", "verdict": "A", "scores": [7, 3]},
        {"pair_id": "g7", "judge": "rated", "order": "pointwise", "verdict": None, "scores": [7, None]},
    ]
    recorded = write_rows(tmp_path / "verdicts.jsonl", rows)
    done = evaluate(gold, "--verdicts", recorded, "--out", tmp_path / "out")
    assert "recorded verdicts on 1 pairs" in done.stdout and summary(tmp_path / "out")["verdicts_without_gold"] == 1
    found = {row["judge"]: row for row in summary(tmp_path / "out")["judges"]}
    j = found["j"]
    assert (j["pairs"]["judged"], j["pairs"]["without_verdicts"]) == (5, 3)
    assert (j["accuracy"]["count"], j["accuracy"]["of"]) == (5, 9)
    assert (j["consistent"]["count"], j["consistent"]["of"], j["flip_rate"]["count"], j["flip_rate"]["of"]) == (1, 4, 1, 3)
    assert (j["first_shown"]["count"], j["first_shown"]["of"]) == (4, 5)
    assert j["no_verdict_causes"] == {"truncated": 1} and (j["both_right"]["count"], j["both_right"]["of"]) == (1, 4)
    assert found["soft"]["brier"]["value"] == pytest.approx(0.0825, abs=1e-3) and value(found["soft"], "first_shown") == 1.0
    assert (found["rated"]["accuracy"]["count"], found["rated"]["accuracy"]["of"]) == (1, 2)
    assert found["rated"]["first_shown"] is None and found["rated"]["spend"]["tokens_per_right_label"] is None
    evaluate(gold, "--verdicts", recorded, "--only", "so", "--only", "rat", "--out", tmp_path / "few")
    assert {row["judge"] for row in summary(tmp_path / "few")["judges"]} == {"soft", "rated"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].update(gold="C"), "gold.jsonl:2: `gold` must be A, B or tie, got 'C'"),
        (lambda rows: rows[1].pop("gold"), "gold.jsonl:2: a gold pair needs `gold`"),
        (lambda rows: rows[1].pop("response_b"), "gold.jsonl:2: a gold pair needs `response_b`"),
        (lambda rows: rows[1].update(id="g0"), "gold.jsonl:2: the id 'g0' stands in an earlier row"),
        (lambda rows: rows.clear(), "holds no"),
    ],
)
def test_wrong_gold_is_refused_by_line(tmp_path, change, message):
    rows = gold_rows(3)
    change(rows)
    gold = write_rows(tmp_path / "gold.jsonl", rows)
    assert message in evaluate(gold, "--judge", "rules-concise", "--out", tmp_path / "o", expect=2).stderr


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([verdict("g0", "AB", "A"), verdict("g0", "AB", "A")], "verdicts.jsonl:2: a second verdict on 'g0'"),
        ([verdict("x", "AB", "A")], "no verdict joins a gold pair"),
        ([], "holds no verdicts"),
        ([verdict("g0", "AB", "C")], "verdicts.jsonl:1: `verdict` must be A, B, tie or null, got 'C'"),
        ([verdict("g0", "AB", "A", scores=[1, float("nan")])], "verdicts.jsonl:1"),
    ],
)
def test_wrong_verdicts_are_refused_by_line(tmp_path, rows, message):
    gold, recorded = write_rows(tmp_path / "gold.jsonl", gold_rows(2)), write_rows(tmp_path / "verdicts.jsonl", rows)
    assert message in evaluate(gold, "--verdicts", recorded, "--out", tmp_path / "o", expect=2).stderr


def test_what_does_not_go_together_is_refused(tmp_path):
    gold = write_rows(tmp_path / "gold.jsonl", gold_rows(2, category="here"))
    recorded = write_rows(tmp_path / "v.jsonl", [verdict("g0", "AB", "A")])
    file = write_rows(tmp_path / "file", [])
    for arguments, message in [
        ([], "no judge"),
        (["--judge", "rules-concise", "--verdicts", recorded], "give one of them"),
        (["--verdicts", recorded, "--only", "nobody"], "there are j"),
        (["--verdicts", recorded, "--category", "there"], "there are 'here'"),
        (["--judge", "rules-concise", "--judge", "rules-concise"], "named twice"),
        (["--judge", "no-such-judge"], "no-such-judge"),
    ]:
        assert message in evaluate(gold, *arguments, "--out", tmp_path / "o", expect=2).stderr
    said = evaluate(gold, "--verdicts", recorded, "--out", file, expect=2).stderr
    assert "it is a file" in said
    assert "--out DIR" in evaluate(gold, "--verdicts", recorded, expect=2).stderr


class Page(HTMLParser):
    """What a page holds: its elements, where they lead, and whether all are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("href", "xlink:href", "src") and v]
        self.ids += [v for k, v in attrs if k == "id" and v]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_names_are_texts_in_it(tmp_path):
    hostile = "<script>alert(1)</script>$x^{$&\x1b[31m\u202e評価"
    pairs = [row | {"category": f"{hostile}{k}"} for k, row in enumerate(gold_rows(200))]
    for row in pairs[:50]:
        row["response_a"] *= 3
    gold = write_rows(tmp_path / "gold.jsonl", pairs)
    rows = [verdict(f"g{k}", order, "AB"[k % 3 == 0]) | {"judge": hostile} for k in range(200) for order in ("AB", "BA")]
    rows += [verdict(f"g{k}", "AB", "A") for k in range(200)]
    done = evaluate(gold, "--verdicts", write_rows(tmp_path / "v.jsonl", rows), "--out", tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert "script" not in page.tags and page.tags.count("svg") == 5 and not page.open
    assert all(link.startswith("#") for link in page.links) and len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert "&lt;script&gt;" in text and "\x1b" not in text + done.stdout and "more categories" in text
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())["judges"][0]["by_category"]) == 200


def test_a_narrow_terminal_is_shown_the_columns_below_each_other(tmp_path):
    gold = write_rows(tmp_path / "gold.jsonl", gold_rows(4))
    recorded = write_rows(tmp_path / "v.jsonl", [verdict(f"g{k}", "AB", "A") for k in range(4)])
    evaluate(gold, "--verdicts", recorded, "--out", tmp_path / "out")
    found = summary(tmp_path / "out")
    wide, narrow = lines(found), lines(found, 60)
    table = narrow[: narrow.index(next(line for line in narrow if line.startswith("accuracy:")))]
    assert max(map(len, table[2:])) <= 60 < max(map(len, wide[2:8]))
    heads = [line for line in table if line.startswith("judge ")]
    assert len(heads) > 1 and " ".join(heads).split()[-1] == wide[wide.index("") + 1].split()[-1]


def test_categories_restrict_the_pairs(tmp_path):
    rows = [row | {"category": f"{'xy'[k % 2]}{k}"} for k, row in enumerate(gold_rows(6))]
    gold = write_rows(tmp_path / "gold.jsonl", rows)
    recorded = write_rows(tmp_path / "v.jsonl", [verdict(f"g{k}", "AB", "A") for k in range(7)])
    evaluate(gold, "--verdicts", recorded, "--category", "x", "--out", tmp_path / "out")
    found = summary(tmp_path / "out")
    assert (found["pairs"], list(found["judges"][0]["by_category"])) == (3, ["x0", "x2", "x4"])
    assert found["verdicts_without_gold"] == 1  # the pairs of other categories are left aside on purpose


def test_the_summary_of_a_run_is_not_lost(tmp_path):
    gold = write_rows(tmp_path / "gold.jsonl", gold_rows(2))
    command("judge", gold, "--judge", "rules-concise", "--out", tmp_path / "run")
    before = (tmp_path / "run" / "summary.json").read_bytes()
    assert "is a run directory" in evaluate(gold, "--judge", "rules-concise", "--out", tmp_path / "run", expect=2).stderr
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_in_json_every_line_is_an_object(tmp_path):
    gold = write_rows(tmp_path / "gold.jsonl", gold_rows(2))
    options = ["--judge", "rules-concise", "--log-format", "json", "--out", tmp_path / "out"]
    said = [json.loads(line) for line in evaluate(gold, *options).stdout.splitlines()]
    assert said[-1]["event"] == "done" and said[-1]["judges"][0]["judge"] == "rules-concise"
