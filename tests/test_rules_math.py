"""The rule of mathematics: which words of a text are its answer, and which answers are equal."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from rlaif.judges.rules import RulesSpec, answers, judge_of
from rlaif.types import Candidate, Prompt

pytestmark = pytest.mark.slow

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no evaluation data at {DATA}")


def spec(*given: dict) -> RulesSpec:
    return RulesSpec.model_validate({"kind": "rules", "rules": list(given)})


def ask(text: str = "How do the tides come about, and why are there two of them a day?", **more) -> Prompt:
    return Prompt("p", ({"role": "user", "content": text},), **more)


def value(rule: dict, text: str, prompt: Prompt | None = None) -> float:
    verdict = judge_of(spec(rule), "j")(prompt or ask(), [Candidate("p/0", text)])
    assert verdict.scores is not None, verdict.error
    return verdict.scores[0]


# Where the answer stands


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2 = 4\n#### 4", "4"),
        ("#### 4\nNo, I was wrong.\n#### 1,200\n", "1,200"),
        ("So it is $\\boxed{3}$, no, $\\boxed{\\frac{1}{2}}$.", "$\\frac{1}{2}$"),
        ("\\boxed{x = \\{1, 2\\}}", "$x = \\{1, 2\\}$"),
        ("Step 1: 5\nThe answer is 42.", "42"),
        ("The final answer is: $18 for 3 hours", "$18"),
        ("It takes 2/2=<<2/2=1>>1 bolt\nA: 3", "3"),
        ("**Answer:** -1.5 degrees", "-1.5"),
        ("<answer>7</answer>", "7"),
        ("The answer is 12/4.", "12/4."),
        ("17", "17"),
        ("  ", None),
    ],
)
def test_where_the_final_answer_stands(text, answer):
    assert answers.final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("$1,200.50", Fraction(2401, 2)), ("-3", Fraction(-3)), ("−3", Fraction(-3)), ("3.0", Fraction(3))),
        *(
            ("1,23", None),
            ("1e5", None),
            ("50%", None),
            ("9" * 41, None),
            ("", None),
            ("-", None),
            ("3 4", None),
            ("２", Fraction(2)),
        ),
    ],
)
def test_plain_numbers(text, number):
    assert answers.plain_number(text) == number


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("42", "It is 42.", 1.0),
        ("#### 42", "So \\boxed{42}", 1.0),
        ("42", "43", 0.0),
        ("1000", "A: 1,000", 1.0),
        ("3", "The answer is 3.0", 1.0),
        ("\\frac{1}{2}", "The answer is 0.5", 1.0),
        ("$\\frac{1}{2}$", "\\boxed{\\dfrac{2}{4}}", 1.0),
        ("0.5", "The answer is 1/2.", 1.0),
        ("$2\\sqrt{3}$", "\\boxed{\\sqrt{12}}", 1.0),
        ("$2\\sqrt{3}$", "\\boxed{\\sqrt{11}}", 0.0),
        ("$x^2+2x+1$", "\\boxed{(x+1)^2}", 1.0),
        ("Half of 8 is 4.\nTwice that is 8.\n#### 8", "8 it is, I think:\n\n\\boxed{8}", 1.0),
        ("7", "I do not know.", 0.0),
        ("7", "", 0.0),
        ("7", "\\boxed{", 0.0),
    ],
)
def test_final_answers_are_compared_by_value(reference, answer, expected):
    assert value({"rule": "math"}, answer, ask(reference=reference)) == expected


def test_the_reference_may_stand_in_another_field():
    prompt = ask(reference="1", fields={"solution": "#### 2"})
    assert value({"rule": "math", "field": "solution"}, "\\boxed{2}", prompt) == 1.0


@needs_data
def test_scores_of_real_solutions_are_those_of_their_source():
    """Every fourth question of GSM8K's example solutions, by four models: each verdict agrees with the recorded one."""
    judge = judge_of(spec({"rule": "math"}), "math")
    found: Counter[tuple[float, float | None]] = Counter()
    with gzip.open(DATA / "candidates" / "gsm8k.jsonl.gz", "rb") as file:
        for line in list(file)[::4]:
            row = json.loads(line)
            for c in row["candidates"]:
                verdict = judge(ask(row["prompt"], reference=row["ground_truth"]), [Candidate("c", c["response"])])
                found[float(c["score"]), verdict.scores and verdict.scores[0]] += 1
    assert found.keys() == {(0.0, 0.0), (1.0, 1.0)} and found.total() > 600


# What is said last


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("6", "The total is 12. Half of them is 6, so the answer is 6.", 1.0),
        ("12", "The total is 12. Half of them is 6, so the answer is 6.", 0.0),
        ("6", "First, the total is 12 eggs. She gives half away. Therefore the answer is 6.", 1.0),
        ("6", "The result is 12, then we halve it: the final answer is 6", 1.0),
        ("12", "The result is 12, then we halve it: the final answer is 6", 0.0),
        ("6", "The answer is 5. But wait, actually, the answer is 6.", 1.0),
        ("5", "The answer is 5. But wait, actually, the answer is 6.", 0.0),
        ("6", "\\boxed{5}. Wait, that is wrong: the answer is 6.", 1.0),
        ("$\\frac{9}{4}$", "The answer is:\n\\[\n\\boxed{\\frac{9}{4}}=DDDDD", 1.0),
        ("6", "Answer: She has $\\boxed{6}$ of 8.", 1.0),
        ("6", "The total is 12. She gives half away and has 6 left.", 1.0),
        ("6", "The answer is 6. The sum is 12.", 1.0),
        ("12", "The total is $12, of which $5 is tax.", 1.0),
        ("6", "#### Step 3: add\nso 5 + 1 = 6\nThe answer is 6", 1.0),
        ("6", "#### 2. Add them\nShe has 6", 1.0),
        ("6", "The answer is:\n\n6\n\nI used 3 steps.", 1.0),
        ("6", "The answer to the question is clearly 6 since there are 3 rows.", 1.0),
        ("6", "The answer is **6** (5 + 1).", 1.0),
        ("150", "Her total is 60 birds + 90 birds = <<60+90=150>>150 birds.", 1.0),
        ("$\\frac{1}{2}$", "The answer is \\[\n\\frac{1}{2}\n\\]", 1.0),
    ],
)
def test_what_is_said_last_counts_and_an_answer_before_a_total(reference, text, expected):
    assert value({"rule": "math"}, text, ask(reference=reference)) == expected


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("3", "A: 3 or 4", 0.0),
        ("4", "A: 3 or 4", 0.0),
        ("3", "The answer is 3, 4", 0.0),
        ("4", "It is 3 or 4.", 0.0),
        ("4", "Either $\\boxed{3}$ or $\\boxed{4}$.", 0.0),
        ("3 or 4", "The answer is x = 4 or x = 3.", 1.0),
        ("0.5", "The answer is 1/2 or 0.5.", 1.0),
        ("6", "The answer is 6 because 2 + 4 = 6 and 3 is less.", 1.0),
        ("(1,2)", "The answer is (1, 2)", 1.0),
        ("(1,2)", "\\boxed{(1, 2)}", 1.0),
        ("(1,2)", "The answer is (2, 1)", 0.0),
        ("2", "The answer is (1, 2)", 0.0),
    ],
)
def test_several_values_are_no_single_answer(reference, text, expected):
    assert value({"rule": "math"}, text, ask(reference=reference)) == expected


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("7", "The answer isn't 7", 0.0),
        ("7", "The answer can't be 7.", 0.0),
        ("7", "The answer is definitely not 7", 0.0),
        ("7", "7 is not the answer.", 0.0),
        ("7", "It is not 7, but 8.", 0.0),
        ("8", "The answer is not 7 but 8.", 1.0),
        ("1200", "The answer isn't 1,300, it's 1,200.", 1.0),
        ("6", "It's not hard: the answer is 6", 1.0),
    ],
)
def test_what_is_said_not_to_be_the_answer_is_none(reference, text, expected):
    assert value({"rule": "math"}, text, ask(reference=reference)) == expected


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("2000000", "The answer is 2 million", 1.0),
        ("2", "The answer is 2 million", 0.0),
        ("2 million", "2,000,000", 1.0),
        ("2500000", "\\boxed{2.5 \\text{ million}}", 1.0),
        ("100", "The answer is 1e2", 1.0),
        ("0.001", "A: 1e-3", 1.0),
    ],
)
def test_numbers_in_words_and_with_exponents(reference, text, expected):
    assert value({"rule": "math"}, text, ask(reference=reference)) == expected


# Hostile texts

BOMBS = [
    "\\boxed{9^{9^{9^{9}}}}",
    "The answer is 9^9^9^9",
    "\\boxed{9!!!!!!!!}",
    "\\boxed{\\binom{10^9}{10^8}}",
    "2**2**2**2**2**9",
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_arithmetic_that_does_not_end_is_ended_by_its_limit(bomb):
    judge, began = judge_of(spec({"rule": "math", "timeout_s": 1}), "math"), time.monotonic()
    judge(ask(reference="7.5"), [Candidate("c", bomb)])
    assert time.monotonic() - began < 10.0
    assert judge(ask(reference="$\\sqrt{12}$"), [Candidate("c", "\\boxed{2\\sqrt{3}}")]).scores == (1.0,), "and it goes on"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "answer" + " " * 10**6,
            "it not" + " " * 10**6,
            "it not " * 140_000,
            "#" * 10**6,
            "#### " * 200_000,
            "A" + "*" * 10**6,
        ),
        *("1 or " * 200_000, "1, " * 300_000, "answer to " * 100_000, "\\boxed{1} or " * 70_000, "$" * 10**6, "1e9" * 300_000),
        *("A" + "*" * 10**6, "answer is " + "1 or " * 200_000, "the sum is 1" * 80_000),
    ],
    ids=range(15),
)
def test_a_megabyte_is_searched_for_its_answer_in_a_second(text):
    began = time.process_time()
    answers.final_answer(text)
    assert time.process_time() - began < 2.0
