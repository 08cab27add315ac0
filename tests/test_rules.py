"""Judges made of rules: what each says of real texts, when it abstains, and that no text keeps it from ending."""

from __future__ import annotations

import gzip
import json
import math
import re
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from helpers import read_rows, stored_records
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import rlaif
from rlaif.calls import Tally
from rlaif.errors import InputError
from rlaif.judges import rules
from rlaif.judges.code import CodeJudge
from rlaif.judges.rules import RulesSpec, digest_of, ifeval, judge_of
from rlaif.judges.rules.worker import OverLimit, Worker
from rlaif.judges.spec import load_spec
from rlaif.ledger import Ledger
from rlaif.templates import data_dir
from rlaif.types import Candidate, Prompt, Verdict

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no evaluation data at {DATA}")
SHIPPED = sorted((data_dir() / "judges").glob("rules-*.yaml"))
TIDES = (
    "The tides come from the pull of the moon, which is stronger on the near side of the earth than on the far side. As the"
    " earth turns below the two bulges of water, a place on the coast meets each of them about once a day."
)


def spec(*given: dict) -> RulesSpec:
    return RulesSpec.model_validate({"kind": "rules", "rules": list(given)})


def ask(text: str = "How do the tides come about, and why are there two of them a day?", **more) -> Prompt:
    return Prompt("p", ({"role": "user", "content": text},), **more)


def rate(rule: dict, *texts: str, prompt: Prompt | None = None) -> Verdict:
    return judge_of(spec(rule), "j")(prompt or ask(), [Candidate(f"p/{k}", text) for k, text in enumerate(texts)])


def value(rule: dict, text: str, prompt: Prompt | None = None) -> float:
    verdict = rate(rule, text, prompt=prompt)
    assert verdict.scores is not None, verdict.error
    return verdict.scores[0]


@pytest.fixture(scope="module")
def worker():
    one = Worker()
    yield one
    one.close()


# Single rules


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({"min": 3, "max": 5}, "one two three", 1.0),
        ({"min": 4}, "one two three", 0.75),
        ({"max": 2}, "one two three four", 0.5),
        ({"target": 4}, "one two", 0.5),
        ({"target": 4}, "one two three four five six seven eight", 0.5),
        ({"unit": "characters", "max": 5}, "  12345  ", 1.0),
        ({"unit": "characters", "min": 10}, "12345", 0.5),
        ({"min": 1}, "", 0.0),
        ({"prefer": "shorter"}, "word " * 150, 0.5),
        ({"prefer": "longer"}, "word " * 450, 0.75),
    ],
)
def test_length(options, text, expected):
    assert value({"rule": "length", **options}, text) == pytest.approx(expected)


@settings(database=None, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500))
def test_a_preference_for_length_never_turns_round(one, other):
    for prefer, sign in (("shorter", -1), ("longer", 1)):
        a, b = (value({"rule": "length", "prefer": prefer}, "w " * size) for size in (one, other))
        assert (a > b) == (sign * (one - other) > 0) and 0.0 <= a <= 1.0


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ({"rule": "regex", "must": r"\bmoon\b"}, TIDES, 1.0),
        ({"rule": "regex", "must": r"\bMoon\b"}, TIDES, 0.0),
        ({"rule": "regex", "must": r"\bMoon\b", "ignore_case": True}, TIDES, 1.0),
        ({"rule": "regex", "must_not": "^As"}, "First.\nAs it is.", 1.0),
        ({"rule": "regex", "must_not": "^As", "multiline": True}, "First.\nAs it is.", 0.0),
        ({"rule": "regex", "must": "月"}, "潮汐来自月亮\u2028\ud800", 1.0),
        ({"rule": "repetition"}, TIDES, 1.0),
        ({"rule": "repetition"}, TIDES + " pls" * 9, 0.0),
        ({"rule": "repetition"}, "the tide " * 50, 0.0),
        ({"rule": "refusal"}, "I'm sorry, but I can't help with that.", 0.0),
        ({"rule": "refusal"}, TIDES, 1.0),
        ({"rule": "language"}, TIDES, 1.0),
        ({"rule": "language", "language": "en"}, "潮汐主要是由月亮的引力引起的，地球自转使海岸每天经过两次隆起的海水。", 0.0),
        ({"rule": "json"}, '{"a": 1}', 1.0),
        ({"rule": "json"}, 'Here it is:\n```json\n{"a": [1, 2]}\n```\nDone.', 1.0),
        ({"rule": "json", "fenced": False}, '```json\n{"a": 1}\n```', 0.0),
        ({"rule": "json", "type": "array"}, '{"a": 1}', 0.0),
        ({"rule": "json", "keys": {"a": "integer", "b": None}}, '{"a": 1, "b": null}', 1.0),
        ({"rule": "json", "keys": {"a": "integer", "b": "string"}}, '{"a": 1, "b": 2}', 0.5),
        ({"rule": "json", "keys": {"a": "integer"}}, '{"a": true}', 0.0),
        ({"rule": "json", "keys": {"a": None}}, "[1]", 0.0),
        ({"rule": "json"}, '{"a": NaN}', 0.0),
        ({"rule": "json"}, "[" * 100_000, 0.0),
        ({"rule": "json"}, "", 0.0),
    ],
)
def test_rules_about_the_text_alone(rule, text, expected):
    assert value(rule, text) == expected


def test_a_refusal_counts_always_or_only_where_nothing_called_for_it():
    harmful, refusal = ask("How do I build a bomb?"), "I'm sorry, but I can't help with that."
    assert value({"rule": "refusal"}, refusal, harmful) == 1.0
    assert value({"rule": "refusal", "unasked": False}, refusal, harmful) == 0.0


# Constraints on form

GERMAN = "Das ist nicht so, wie man es sich mit dem Mond denkt: es ist die Erde, die sich dreht, und das Wasser bleibt dort."
NTH = {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "another"}
PARAGRAPHS = "The first.\n\nAnother one.\n\nMoon and sun."
KEPT = [
    ("keywords:existence", {"keywords": ["moon", "EARTH"]}, TIDES, "The sun alone."),
    ("keywords:frequency", {"keyword": "of", "frequency": 4, "relation": "at least"}, TIDES, "of of of"),
    ("keywords:frequency", {"keyword": "of", "frequency": 4, "relation": "less than"}, "of of of", TIDES),
    ("keywords:forbidden_words", {"forbidden_words": ["sun", "tid"]}, TIDES, "The Sun, too."),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "# a\n# b", "# a"),
    ("language:response_language", {"language": "en"}, TIDES, GERMAN),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, TIDES, "One. Two! Three?"),
    (
        "length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"},
        "I met Dr. Moon at 3.5 m. He left! Why?", TIDES,
    ),
    ("length_constraints:number_words", {"num_words": 5, "relation": "less than"}, "Four words are here.", TIDES),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\nTwo.", "One.\n\nTwo."),
    ("length_constraints:nth_paragraph_first_word", NTH, PARAGRAPHS, TIDES),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name], at [address]", "Dear [name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Yours.\n\nP.S. Bring [food].", "Yours. PS"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Yours.\n**P.P.S.** Bring food.", "P.S. food"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "Two:\n* one\n  - two\n---\n**bold**", "* one"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and ** **"),
    (
        "detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\n**SECTION 2**\nb", "SECTION 1",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<Tides>>\nThey come.", "<< >>\nThey come."),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    ("combination:two_responses", {}, "******\nOne.\n******\nTwo.\n******", "One.\n******\nTwo.\n******\nThree."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, "say it.\nIt.", "It."),
    ("startend:end_checker", {"end_phrase": "Is that all?"}, "It is. Is that all?\n", "Is that all? Yes."),
    ("startend:quotation", {}, ' "All of it." ', '"All" of it.'),
    (
        "change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
        "NOW or NEVER", "Now or NEVER",
    ),
    ("change_case:english_capital", {}, "ALL OF IT, 42.", "All OF IT"),
    ("change_case:english_lowercase", {}, "all of it, 42.", "All of it"),
    ("punctuation:no_comma", {}, "None at all.", "One, at least."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), KEPT)
def test_a_constraint_is_kept_or_broken(name, kwargs, good, bad):
    rule = {"rule": "format", "constraints": [{"id": name, "kwargs": kwargs}]}
    assert (value(rule, good), value(rule, bad), value(rule, "")) == (1.0, 0.0, 0.0)


def test_every_constraint_is_tried():
    assert {name for name, *_ in KEPT} == set(ifeval.NAMES)


def test_the_constraints_of_the_prompt_count_with_those_of_the_rule():
    fields = {"instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"], "kwargs": [{}, {"x": None}]}
    prompt, own = ask(fields=fields), [{"id": "startend:quotation"}, {"id": "detectable_format:title"}]
    assert value({"rule": "format"}, "all low, with one", prompt) == 0.5
    assert value({"rule": "format", "constraints": own}, "all low and none", prompt) == 0.5
    assert [value({"rule": "format", "every": True}, t, prompt) for t in ("all low", "ALL UP")] == [1.0, 0.0]


@needs_data
def test_every_real_constraint_can_be_checked():
    """On an answer of some length, whatever the prompt: only languages without a table abstain."""
    unclear = Counter[str]()
    with gzip.open(DATA / "prompts" / "ifeval.jsonl.gz", "rb") as file:
        for row in map(json.loads, file):
            for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
                try:
                    ifeval.holds(name, kwargs, TIDES)
                except ifeval.Unclear as error:
                    unclear[str(error)] += 1
    assert not unclear


# Abstaining


@pytest.mark.parametrize(
    ("rule", "prompt", "why"),
    [
        ({"rule": "math"}, ask(), "no reference"),
        ({"rule": "math"}, ask(reference="  "), "no reference"),
        ({"rule": "math"}, ask(reference="nobody knows"), "no number or formula"),
        ({"rule": "math", "field": "solution"}, ask(reference="1"), "'solution'"),
        ({"rule": "format"}, ask(), "no constraints"),
        ({"rule": "format"}, ask(fields={"instruction_id_list": ["a:b"], "kwargs": [{}]}), "no constraint 'a:b'"),
        ({"rule": "format"}, ask(fields={"instruction_id_list": ["a:b"], "kwargs": []}), "one length"),
        ({"rule": "format"}, ask(fields={"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}), "lacks 'keywords'"),
        ({"rule": "format"}, ask(fields={"instruction_id_list": "x", "kwargs": "y"}), "two lists"),
        ({"rule": "language"}, ask("Hm?"), "the prompt's language"),
        ({"rule": "regex", "must": "(a+)+$", "timeout_s": 0.2}, ask(), "within 0.2 s"),
    ],
)
def test_a_rule_that_cannot_say_anything_abstains_and_is_no_zero(rule, prompt, why):
    verdict = rate(rule, "a" * 60 + "!", prompt=prompt)
    assert verdict.scores is None and verdict.error is not None and why in verdict.error


def test_an_answer_too_short_to_tell_its_language_is_not_in_the_wrong_one():
    assert "answer's language" in str(rate({"rule": "language"}, "Oui.").error)


# The whole judge


def test_the_score_is_the_weighted_sum_and_the_reason_says_what_each_gave():
    rules_ = [{"rule": "length", "max": 2, "weight": 2.0}, {"rule": "json", "weight": -1.0}, {"rule": "repetition"}]
    verdict = judge_of(spec(*rules_), "mine")(ask(), [Candidate("p/0", "1 2 3 4"), Candidate("p/1", "12")])
    assert verdict.scores == (2.0, 2.0) and (verdict.judge, verdict.scale) == ("mine", "rating")
    assert verdict.reason == (
        "length 0.5 (4 words), json 0 (no JSON: Extra data: line 1 column 3 (char 2)), repetition 1 (none);"
        " length 1 (1 words), json 1 (JSON), repetition 1 (none)"
    )


TEXT = st.sampled_from([TIDES, "42", "{}", "", "I'm sorry, I can't help with that.", "the " * 99, "A: 7"]) | st.text(
    max_size=40
)


@pytest.mark.slow
@settings(database=None, deadline=None, max_examples=60)
@given(st.lists(TEXT, min_size=1, max_size=4), st.sampled_from([p.stem for p in SHIPPED]))
def test_candidates_are_rated_each_by_itself(texts, name):
    judge = judge_of(RulesSpec.model_validate(yaml.safe_load((data_dir() / "judges" / f"{name}.yaml").read_text())), name)
    prompt = ask(reference="7", fields={"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})
    shown = [Candidate(f"p/{k}", text) for k, text in enumerate(texts)]
    whole, swapped = judge(prompt, shown), judge(prompt, shown[::-1])
    alone = [judge(prompt, [c]).scores for c in shown]
    assert whole.scores == tuple(s[0] for s in alone if s) and whole.scores == swapped.scores[::-1]
    assert all(math.isfinite(s) for s in whole.scores)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_spec_judges_a_run(path, tmp_path):
    judge = judge_of(RulesSpec.model_validate(yaml.safe_load(path.read_text())), path.stem)
    rows = [
        {
            "prompt": f"Say in JSON how many tides there are in {k} days.",
            "reference": str(2 * k),
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
            "candidates": [f'{{"tides": {2 * k}}}', f"Well, for {k} days we have, all in all, {2 * k + 1} of these tides."],
        }
        for k in range(2, 8)
    ]
    for _ in range(2):
        summary = rlaif.judge(rows, judge=judge, out=tmp_path).wait()
        assert (summary["pairs"], summary["no_verdict_rate"], summary["judges"]) == (6, 0.0, [path.stem])
    assert summary["calls"]["judge"] == 0, "the second run has every verdict from the first"
    chosen = {row["chosen"][0]["content"][:1] for row in read_rows(tmp_path / "dpo.jsonl")}
    assert chosen == ({"W"} if path.stem == "rules-concise" else {"{"}), "an answer of two words is too concise"
    assert all(v.reason for record in stored_records(tmp_path) for v in record.verdicts)


def test_prompts_that_a_rule_cannot_judge_have_no_verdict_and_the_others_a_pair(tmp_path):
    rows = [{"prompt": f"{k} + 1?", "candidates": [str(k + 1), "no"], **({"reference": k + 1} if k else {})} for k in range(8)]
    summary = rlaif.judge(rows[:1] * 7 + rows, judge=judge_of(spec({"rule": "math"}), "math"), out=tmp_path).wait()
    assert (summary["pairs"], summary["dropped"]) == (7, {"no_verdict": 8})


def test_the_digest_follows_the_spec_and_is_the_source_of_a_judge(tmp_path, monkeypatch):
    one, same, other = spec({"rule": "json"}), spec({"rule": "json", "weight": 1.0}), spec({"rule": "json", "fenced": False})
    assert digest_of(one) == digest_of(same) != digest_of(other)
    ledger = Ledger.open(tmp_path)
    try:
        given = [CodeJudge(judge_of(s, "j"), ledger, Tally(), source=digest_of(s)) for s in (one, same, other)]
        own = [CodeJudge(judge_of(s, "j"), ledger, Tally()) for s in (one, same, other)]
    finally:
        ledger.close()
    for judges in (given, own):
        assert judges[0].digest == judges[1].digest != judges[2].digest
        assert judges[0].arity == 1 and judges[0].name == "j"
    before = digest_of(spec({"rule": "math"}))
    monkeypatch.setattr(rules, "_version", lambda package: "another version")
    assert digest_of(spec({"rule": "math"})) != before and digest_of(one) == digest_of(same)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"rule": "length"}, "give `min`"),
        ({"rule": "length", "min": 5, "max": 3}, "above"),
        ({"rule": "regex"}, "one of `must`"),
        ({"rule": "regex", "must": "("}, "no regular expression"),
        ({"rule": "json", "keys": {"a": "text"}}, "keys"),
        ({"rule": "format", "constraints": [{"id": "no:such"}]}, "no_comma"),
        ({"rule": "beauty"}, "beauty"),
        ({"rule": "math", "weigth": 2}, "weigth"),
        ({"rule": "math", "weight": math.nan}, "finite"),
        ({"rule": "math", "timeout_s": 0}, "greater"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(given, place):
    with pytest.raises(ValidationError, match=re.escape(place)):
        spec(given)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("kind: rules\nrules: []", "rules: List should have"),
        ("kind: rules\nrules: [{rule: length}]", "rules.0.length"),
        ("kind: rules\nrule: x\nrules: [{rule: math}]", "rule: Extra"),
        ("kind: ruless", "kind: "),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_the_place(tmp_path, content, place):
    """The place of an error in `rules` is `rules`, though the kind has the same name."""
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(f"({path}): {place}")):
        load_spec("mine", path)


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape("pip install 'rlaif[math]'")):
        judge_of(spec({"rule": "math"}), "math")
    judge_of(spec({"rule": "json"}), "json")


# Hostile texts

LONG = 10**6
HOSTILE = {
    "prose": TIDES * (LONG // len(TIDES)),
    "letters": "a" * LONG,
    "lines": "\n" * LONG,
    "spaces": " " * LONG + "x",
    "stars": "*" * LONG,
    "pairs of stars": "*a" * (LONG // 2),
    "brackets": "[" * LONG,
    "angles": "<<" + "a" * LONG,
    "boxes": "\\boxed{" * (LONG // 7),
    "tags": "<answer>" * (LONG // 8),
    "answers": "answer is " * (LONG // 10),
    "digits": "9" * LONG,
    "groups": "1," * (LONG // 2),
    "marks": ".!?" * (LONG // 3),
    "quotes": "." + '"' * LONG,
    "surrogates": "\ud800" * LONG,
    "hashes": "####" * (LONG // 4),
    "sections": "SECTION " * (LONG // 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_of_anything_is_rated_soon(name):
    everything = [{"id": n, "kwargs": k} for n, k, *_ in KEPT if n != "language:response_language"]
    judge = judge_of(
        spec(
            {"rule": "length", "max": 100},
            {"rule": "regex", "must_not": "(x+x+)+y", "timeout_s": 1},
            {"rule": "repetition"},
            {"rule": "refusal"},
            {"rule": "json"},
            {"rule": "math", "timeout_s": 1},
            {"rule": "format", "constraints": everything},
        ),
        "all",
    )
    began = time.process_time()
    judge(ask(reference="7"), [Candidate("c", HOSTILE[name])])
    assert time.process_time() - began < 4.0


def test_an_expression_that_backtracks_for_ever_harms_its_own_item_only(tmp_path):
    judge = judge_of(spec({"rule": "regex", "must": "^(a|aa)+$", "timeout_s": 0.3}), "pattern")
    rows = [{"prompt": str(k), "candidates": ["aaa", "b", *(["a" * 60 + "!"] if k == 3 else [])]} for k in range(6)]
    summary = rlaif.judge(rows, judge=judge, out=tmp_path).wait()
    assert summary["pairs"] == 6 and summary["failures"][0]["count"] == 1


def test_a_process_is_shared_by_threads_and_replaced_when_it_ends(worker):
    found: list[bool] = []

    def search(k: int) -> None:
        found.append(worker.do("search", 5.0, pattern=f"^{k}$", flags=0, text=str(k)))

    threads = [threading.Thread(target=search, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8
    with pytest.raises(OverLimit, match=r"within 0\.1 s"):
        worker.do("search", 0.1, pattern="(a+)+$", flags=0, text="a" * 60 + "!")
    with pytest.raises(ValueError, match="error"):
        worker.do("search", 1.0, pattern="(", flags=0, text="")
    assert worker.do("search", 1.0, pattern="b$", flags=0, text="ab") is True
