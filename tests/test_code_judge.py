"""A judge that is one's own function: what it may return, what its digest follows, and what harm it can do."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import environment, read_rows, rlaif, start, stored_records, summary, write_rows

import rlaif as library
from rlaif.calls import Tally
from rlaif.errors import InputError, StopRun
from rlaif.judges import resolve
from rlaif.judges.code import CodeJudge
from rlaif.ledger import Ledger
from rlaif.types import Candidate, Prompt, Verdict

PROMPT = Prompt("p", ({"role": "user", "content": "What is a good answer?"},))
GOOD, BAD = Candidate("p/0", "quality 0.9"), Candidate("p/1", "quality 0.2, and at some length")


@contextmanager
def judging(directory: Path, judge) -> Iterator[tuple]:
    """(the judge, the tally) on the ledger in `directory`, as a run builds them."""
    (plan,), tally = resolve(judge, model=None, constitution=None), Tally()
    ledger = Ledger.open(directory)
    try:
        yield plan.build(None, ledger, tally), tally
    finally:
        ledger.close()


def ask(directory: Path, judge, *shown: Candidate, prompt: Prompt = PROMPT) -> Verdict:
    with judging(directory, judge) as (made, _):
        return asyncio.run(made(prompt, list(shown), list(shown)))


# What it returns


def returning(value, arity=None):
    def judge(prompt, candidates):
        said = value(candidates) if callable(value) else value
        if isinstance(said, BaseException):
            raise said
        return said

    judge.arity = arity
    return judge


def reversed_verdict(candidates) -> Verdict:
    ids = tuple(c.id for c in candidates)[::-1]
    return Verdict("whatever", ids, (0.2, 0.8), "probability", reason="because")


@pytest.mark.parametrize("wrap", ["sync", "async", "object"])
def test_scores_may_be_any_numbers_in_the_order_shown(tmp_path, wrap):
    class Callable:
        def __call__(self, prompt, candidates):
            return (len(c.text) for c in candidates)

    async def awaited(prompt, candidates):
        await asyncio.sleep(0)
        return [len(c.text) for c in candidates]

    judge = {"sync": returning(lambda cs: tuple(len(c.text) for c in cs)), "async": awaited, "object": Callable()}[wrap]
    verdict = ask(tmp_path, judge, BAD, GOOD)
    assert verdict.scores == (float(len(BAD.text)), float(len(GOOD.text)))
    assert (verdict.shown, verdict.scale, verdict.error) == (("p/1", "p/0"), "rating", None)
    assert verdict.judge == {"sync": "judge", "async": "awaited", "object": "Callable"}[wrap]


def test_a_verdict_that_a_function_returns_is_read_by_id(tmp_path):
    for _ in range(2):  # the second comes from the ledger
        verdict = ask(tmp_path, returning(reversed_verdict), GOOD, BAD)
        assert (verdict.shown, verdict.scores) == (("p/0", "p/1"), (0.8, 0.2))
        assert (verdict.judge, verdict.scale, verdict.reason) == ("judge", "probability", "because")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (None, "None"),
        ([1.0], "1 scores for 2 candidates"),
        ([1.0, 2.0, 3.0], "3 scores for 2 candidates"),
        ([1.0, float("nan")], "no finite number"),
        ([1.0, float("inf")], "no finite number"),
        ([1.0, None], "NoneType"),
        ([1.0, "high"], "high"),
        ([[1.0], [2.0]], "list"),
        (3.0, "float"),
        ("12", "str"),
        ({"p/0": 1.0, "p/1": 2.0}, ""),
        (Verdict("j", ("p/0", "p/7"), (1.0, 0.0)), "p/7"),
        (Verdict("j", ("p/0",), (1.0,)), "shown were"),
        (Verdict("j", ("p/0", "p/1"), (1.0, float("nan"))), "no finite number"),
        (Verdict("j", ("p/0", "p/1"), None, error="I abstain"), "I abstain"),
        (Verdict("j", ("p/0", "p/1"), None), "gave no scores"),
        (Verdict("j", ("p/0", "p/1"), (-0.2, 1.2), "probability"), "must not be negative"),
        (Verdict("j", ("p/0", "p/1"), (0.5, 0.6), "probability"), "sum to 1"),
        (Verdict("j", ("p/0", "p/1"), (5.0, 4.0), "probability"), "sum to 1"),
        (Verdict("j", ("p/0", "p/1"), (0.9, 0.1), "percent"), "scale is 'percent'"),
        (ValueError("half \ud800 a pair"), "ValueError: half "),
        (ValueError("too hard"), "ValueError: too hard"),
        (KeyError("score"), "KeyError: 'score'"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_no_score_is_a_verdict_without_scores_that_says_why(tmp_path, said, error, asynchronous):
    judge = returning(said)

    async def awaited(prompt, candidates):
        return judge(prompt, candidates)

    for _ in range(2):  # the second comes from the ledger
        verdict = ask(tmp_path, awaited if asynchronous else judge, GOOD, BAD)
        assert verdict.scores is None and verdict.shown == ("p/0", "p/1")
        assert error in verdict.error


RAISED = {
    "bad luck": ("ValueError('bad luck')", "ValueError: bad luck"),
    "surrogate": ("ValueError('half \\ud800 a pair')", "ValueError: half ? a pair"),
    "end": ("next(iter([]))", "StopIteration"),
    "deep": ("RecursionError()", "RecursionError: "),
    "index": ("[][1]", "IndexError: list index out of range"),
    "exit": ("__import__('sys').exit('enough')", "SystemExit: enough"),
    "break": ("KeyboardInterrupt()", "KeyboardInterrupt: "),
    "speechless": ("Speechless()", "Speechless: (it has no message)"),
}


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_judge_that_raises_abstains_on_that_prompt_only_and_is_heard(tmp_path, kind):
    cases = "".join(f"    if prompt.text == {name!r}:\n        raise {raised}\n" for name, (raised, _) in RAISED.items())
    (tmp_path / "mine.py").write_text(
        "class Speechless(Exception):\n    def __str__(self):\n        raise ValueError\n"
        f"{kind} mine(prompt, candidates):\n{cases}"
        "    return [float(len(c.text)) for c in candidates]\n"
    )
    prompts = ["first", *RAISED, "last"]
    rows = write_rows(tmp_path / "rows.jsonl", ({"prompt": p, "candidates": ["a", "bb"]} for p in prompts))
    shown = rlaif("judge", rows, "--judge", f"{tmp_path / 'mine.py'}:mine", "--out", tmp_path / "out").stdout
    assert [row["prompt"][0]["content"] for row in read_rows(tmp_path / "out" / "dpo.jsonl")] == ["first", "last"]
    found = summary(tmp_path / "out")
    assert (found["prompts"], found["pairs"], found["dropped"]) == (len(prompts), 2, {"no_verdict": len(RAISED)})
    errors = {r.prompt.text: r.verdicts[0].error for r in stored_records(tmp_path / "out") if r.verdicts[0].error}
    assert errors.keys() == RAISED.keys() and all(said in errors[name] for name, (_, said) in RAISED.items())
    assert found["failures"] and all(f"{f['count']} times, judge: {f['error']}" in shown for f in found["failures"])


@pytest.mark.parametrize("arity", [0, -1, "2", 1.5, [2]])
def test_an_arity_that_is_no_positive_number_is_refused_at_once(arity):
    with pytest.raises(InputError, match="arity"):
        resolve(returning([1.0], arity), model=None, constitution=None)


def test_columns_of_the_input_reach_the_judge_whatever_they_hold(tmp_path):
    """A file of parquet or Python rows has dates, missing numbers and bytes; they are not the judge's business."""
    import datetime

    fields = {"when": datetime.date(2024, 1, 1), "weight": float("nan"), "raw": b"\x00"}
    prompt = Prompt("p", PROMPT.messages, None, fields)
    verdict = ask(tmp_path, returning(lambda cs: [1.0, 0.0]), GOOD, BAD, prompt=prompt)
    assert verdict.scores == (1.0, 0.0)


def test_a_judge_may_use_the_reference_and_the_columns(tmp_path):
    def matches(prompt, candidates):
        return [float(prompt.reference in c.text) * prompt.fields["weight"] for c in candidates]

    for weight in (2.0, 3.0):
        prompt = Prompt("p", PROMPT.messages, "0.9", {"weight": weight})
        assert ask(tmp_path, matches, GOOD, BAD, prompt=prompt).scores == (weight, 0.0)


def counting(path: Path, body: str = "float(len(c.text))") -> str:
    """A judge file that notes each of its calls in a file beside it."""
    path.write_text(
        "from pathlib import Path\n"
        "def count(prompt, candidates):\n"
        "    with Path(__file__).with_suffix('.log').open('a') as log:\n        log.write('called\\n')\n"
        f"    return [{body} for c in candidates]\n"
    )
    return f"{path}:count"


def calls(path: Path) -> int:
    log = path.with_suffix(".log")
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_function_that_has_not_changed_is_not_run_twice(tmp_path):
    path = tmp_path / "count.py"
    first = ask(tmp_path / "run", counting(path), GOOD, BAD)
    assert ask(tmp_path / "run", counting(path), GOOD, BAD) == first and calls(path) == 1
    ask(tmp_path / "run", counting(path), BAD, GOOD)
    assert calls(path) == 2
    ask(tmp_path / "run", counting(path, "-float(len(c.text))"), GOOD, BAD)
    assert calls(path) == 3
    again = ask(tmp_path / "run", counting(path), GOOD, BAD)
    assert again == first and calls(path) == 3


def digest_of(function) -> str:
    return CodeJudge(function, None, None).digest


def test_the_digest_of_a_file_follows_its_content_and_nothing_else(tmp_path):
    def digest(path: Path, **changed) -> str:
        path.parent.mkdir(exist_ok=True)
        with judging(tmp_path / "ledger", counting(path, **changed)) as (judge, _):
            return judge.digest

    one = digest(tmp_path / "a" / "count.py")
    os.utime(tmp_path / "a" / "count.py", (0, 0))
    assert one == digest(tmp_path / "a" / "count.py") == digest(tmp_path / "b" / "count.py")
    assert one != digest(tmp_path / "a" / "count.py", body="2.0 * len(c.text)")


def test_the_digest_of_a_function_follows_its_source_or_its_code():
    one = "def judge(prompt, candidates):\n    return [1.0 for c in candidates]\n"
    assert digest_of(typed(one)) == digest_of(typed(one))
    assert digest_of(typed(one)) != digest_of(typed(one.replace("1.0", "2.0")))
    assert digest_of(returning(1)) != digest_of(test_the_digest_of_a_function_follows_its_source_or_its_code)


def test_functions_made_by_one_source_are_told_apart():
    """Closures, defaults, partial and objects with settings: what they would say differs, so must their digests."""

    def weighted(weight, prompt, candidates):
        return [weight * len(c.text) for c in candidates]

    def make(weight):
        return lambda prompt, candidates: weighted(weight, prompt, candidates)

    def default(weight):
        def judge(prompt, candidates, weight=weight):
            return weighted(weight, prompt, candidates)

        return judge

    class Weighing:
        def __init__(self, weight):
            self.weight = weight

        def __call__(self, prompt, candidates):
            return weighted(self.weight, prompt, candidates)

        def score(self, prompt, candidates):
            return weighted(self.weight, prompt, candidates)

    for family in (
        make,
        default,
        lambda weight: functools.partial(weighted, weight),
        Weighing,
        lambda weight: Weighing(weight).score,
    ):
        assert digest_of(family(1.0)) == digest_of(family(1.0))
        assert digest_of(family(1.0)) != digest_of(family(-1.0))


def typed(source: str, **known):
    """The function `judge` of a source, as at a prompt: without a file."""
    exec(source, known)
    return known["judge"]


def test_two_functions_on_one_line_are_told_apart():
    one, other = lambda prompt, candidates: [1.0, 2.0], lambda prompt, candidates: [2.0, 1.0]
    assert digest_of(one) != digest_of(other)
    same, name = lambda p, cs: [len(c.text) for c in cs], lambda p, cs: [id(c.text) for c in cs]
    assert digest_of(same) != digest_of(name)


def test_a_wrapped_function_is_what_its_wrapper_says():
    def judge(prompt, candidates):
        return [len(c.text) for c in candidates]

    def worst(function):
        return functools.wraps(function)(lambda prompt, candidates: [-x for x in function(prompt, candidates)])

    def twice(function):
        return functools.wraps(function)(lambda prompt, candidates: [2 * x for x in function(prompt, candidates)])

    assert len({digest_of(f) for f in (judge, worst(judge), twice(judge), worst(twice(judge)), twice(worst(judge)))}) == 5
    assert digest_of(worst(judge)) == digest_of(worst(judge))


SOURCE = """
WORDS = {"good": 1.0, "bad": -1.0}
def weigh(text):
    return sum(WORDS.get(word, DEFAULT) for word in text.split())
DEFAULT = 0.0
def judge(prompt, candidates):
    'Prefers good words.'
    return [weigh(c.text) for c in candidates]
"""


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ("-1.0", "-2.0", True),
        ("DEFAULT = 0.0", "DEFAULT = 0.5", True),
        ("DEFAULT = 0.0", "DEFAULT = {0.5, 0.25}", True),
        ("text.split()", "text.split(' ')", True),
        ("text.split()", "text.strip()", True),
        ("sum(WORDS", "max(WORDS", True),
        ("[weigh(c.text)", "[-weigh(c.text)", True),
        ("\ndef", "\n# a word\n\n\ndef", False),
        ("    return", "    # a word\n\n    return", False),
        ("candidates]", "candidates]  # all of them", False),
        ("'Prefers good words.'", "'Prefers very good words.'", False),
        ("WORDS = ", "UNUSED = 7\nWORDS = ", False),
    ],
)
def test_the_digest_of_a_function_follows_what_it_uses(old, new, differs):
    assert old in SOURCE
    assert (digest_of(typed(SOURCE)) != digest_of(typed(SOURCE.replace(old, new)))) is differs


@pytest.mark.parametrize(
    ("helper", "parts"),
    [
        ("from math import {} as f", ("sqrt", "exp")),
        ("import functools\n@functools.lru_cache\ndef f(n):\n    return {}n", ("", "-")),
        ("import re\nP = re.compile('{}')\ndef f(n):\n    return bool(P.search(str(n)))", ("1", "2")),
    ],
    ids=["built-in", "cached", "pattern"],
)
def test_the_digest_of_a_function_follows_helpers_of_other_kinds(helper, parts):
    judge = "\ndef judge(prompt, candidates):\n    return [f(len(c.text)) for c in candidates]\n"
    one, again, other = (digest_of(typed(helper.format(part) + judge)) for part in (parts[0], *parts))
    assert one == again != other


@dataclass
class Setting:
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Slotted:
    weight: float = 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a", "b"}, {"a", "c"}),
        (frozenset("ab"), frozenset("abc")),
        (b"a", b"b"),
        (Path("a"), Path("b")),
        (Setting(1.0), Setting(2.0)),
        (Slotted(1.0), Slotted(2.0)),
        ([Setting(1.0)], [Setting(2.0)]),
        ({"k": ({1},)}, {"k": ({2},)}),
        (1, 1.0),
        ("1", 1),
        (None, "None"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_a_judge_holds_counts(one, other):
    class Holding:
        def __init__(self, held):
            self.held = held

        def __call__(self, prompt, candidates):
            return [1.0 for _ in candidates]

    def closing_over(held):
        return lambda prompt, candidates: [held for _ in candidates]

    def known_to(held):
        return typed("def judge(prompt, candidates):\n    return held\n", held=held)

    for family in (Holding, closing_over, known_to, lambda held: functools.partial(closing_over(held), held)):
        assert digest_of(family(one)) == digest_of(family(copy.deepcopy(one)))
        assert digest_of(family(one)) != digest_of(family(other))


@pytest.mark.slow
def test_a_set_s_order_is_nothing():
    """It differs from one process to the next."""
    words = [f"word{k}" for k in range(50)]
    backwards = words[::-1]
    source = "def judge(prompt, candidates):\n    return [c.text in words for c in candidates]\n"
    assert digest_of(typed(source, words=set(words))) == digest_of(typed(source, words=set(backwards)))
    literal = "def judge(p, cs):\n    return [c.text in {'a', 'b', 'c', 'd', 'e', 'f'} for c in cs]\nprint(digest_of(judge))"
    code = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_code_judge import digest_of\n{literal}"
    assert (
        len(
            {
                subprocess.run(
                    [sys.executable, "-c", code],
                    env=environment(PYTHONHASHSEED=seed),
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
                for seed in ("1", "2")
            }
        )
        == 1
    )


@pytest.mark.timeout(60)
def test_functions_that_call_each_other_and_things_that_hold_themselves_have_a_digest():
    source = (
        "def even(k):\n    return k == 0 or odd(k - 1)\n"
        "def odd(k):\n    return k != 0 and even(k - 1)\n"
        "held = [1]\nheld.append(held)\nnames = {}\nnames['me'] = names\n"
        "def judge(prompt, candidates):\n"
        "    return [even(len(c.text)) for c in candidates] if candidates else judge(held, names)\n"
    )
    assert digest_of(typed(source)) == digest_of(typed(source))
    assert digest_of(typed(source)) != digest_of(typed(source.replace("k != 0", "k != 1")))


def test_a_function_or_object_that_refers_to_itself_has_a_digest():
    def make():
        def depth(text, so_far=0):
            return float(so_far) if not text else depth(text[1:], so_far + 1)

        return lambda prompt, candidates: [depth(c.text) for c in candidates]

    class Loop:
        def __init__(self):
            self.me = self

        def __call__(self, prompt, candidates):
            return [1.0 for _ in candidates]

    assert digest_of(make()) == digest_of(make())
    assert digest_of(Loop()) == digest_of(Loop())


@pytest.mark.slow
def test_two_judges_of_one_name_are_two_judges(tmp_path):
    """A jury of two files that both call their function `score`, on different scales."""

    def write(path: Path, name: str, *scores: float) -> str:
        path.parent.mkdir(exist_ok=True)
        said = dict(zip(("x", "yy", "zzz"), scores, strict=True))
        path.write_text(f"def {name}(prompt, candidates):\n    return [{said}[c.text] for c in candidates]\n{name}.arity = 1\n")
        return f"{path}:{name}"

    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "q", "candidates": ["x", "yy", "zzz"]}])
    found = []
    for second in ("score", "other"):
        out = tmp_path / second
        jury = write(out / "a.py", "score", 1.0, 2.0, 3.0), write(out / "b.py", second, 30.0, 10.0, 20.0)
        rlaif("judge", rows, "--judge", jury[0], "--judge", jury[1], "--out", out / "run")
        (row,) = read_rows(out / "run" / "dpo.jsonl")
        found.append((row["chosen"], row["rejected"], row["p_chosen"]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [("def broken(:\n", "SyntaxError"), ("import no_such_module\n", "no_such_module"), ("judge = 3\n", "none")],
)
def test_a_judge_file_that_cannot_be_used_says_why(tmp_path, content, said):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(InputError, match=said):
        resolve(f"{tmp_path / 'mine.py'}:judge", model=None, constitution=None)


# The same failure again and again


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{k}", ({"role": "user", "content": f"Question {k}"},), ordinal=k) for k in range(count)]


def ask_all(directory: Path, judge, asked: list[Prompt]) -> list[Verdict | StopRun]:
    """What came of each prompt, all of them at once."""

    async def run(made):
        return await asyncio.gather(*(made(p, [GOOD, BAD], [GOOD, BAD]) for p in asked), return_exceptions=True)

    with judging(directory, judge) as (made, _):
        return asyncio.run(run(made))


def written(path: Path, body: str, kind: str = "def") -> str:
    path.write_text(f"import asyncio, threading, time\n{kind} mine(prompt, candidates):\n{body}")
    return f"{path}:mine"


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    ("body", "said", "line"),
    [
        ("    return [lenn(c.text) for c in candidates]\n", "NameError: name 'lenn' is not defined", 3),
        ("    import json\n    return json.loads(prompt.text)\n", "JSONDecodeError: Expecting value", 4),
        ("    raise KeyError(prompt.text)\n", "KeyError: 'Question", 3),
        ("    return [1.0, float('nan')]\n", "no finite number", 2),
        ("    return asyncio.sleep(0)\n", "returned a coroutine", 2),
    ],
)
def test_a_judge_that_fails_from_the_start_stops_the_run_and_says_where(tmp_path, kind, body, said, line):
    came = ask_all(tmp_path / "run", written(tmp_path / "mine.py", body, kind), prompts(20))
    assert [type(c) for c in came] == [Verdict] * 4 + [StopRun] * 16
    assert all(said in verdict.error for verdict in came[:4])
    reason = came[-1]
    assert reason.kind == "judge" and all(c is reason for c in came[4:])
    assert "'mine' failed in the same way on each of its first 5 calls: " in str(reason)
    assert said in str(reason) and f"({tmp_path / 'mine.py'}:{line})" in str(reason)


@pytest.mark.slow
def test_a_corrected_judge_is_asked_about_what_failed_before(tmp_path):
    wrong, right = "    return [lenn(c.text) for c in candidates]\n", "    return [len(c.text) for c in candidates]\n"
    rows = write_rows(tmp_path / "rows.jsonl", ({"prompt": f"q{k}", "candidates": ["a", "bb"]} for k in range(20)))
    command = ("judge", rows, "--judge", written(tmp_path / "mine.py", wrong), "--out", tmp_path / "out")
    said = rlaif(*command, expect=3).stderr
    assert "stopped (judge): the judge 'mine' failed in the same way" in said and f"{tmp_path / 'mine.py'}:3" in said
    written(tmp_path / "mine.py", right)
    rlaif(*command)
    assert len(read_rows(tmp_path / "out" / "dpo.jsonl")) == 20
    known = {name: typed(f"def judge(prompt, candidates):\n{body}") for name, body in (("w", wrong), ("r", right))}
    assert digest_of(known["w"]) != digest_of(known["r"])
    assert isinstance(ask_all(tmp_path / "typed", known["w"], prompts(5))[-1], StopRun)
    assert [v.error for v in ask_all(tmp_path / "typed", known["r"], prompts(5))] == [None] * 5


FAILS_LATER = "    if int(prompt.text.split()[1]) in {good}:\n        return [1.0, 2.0]\n    raise ValueError('no')\n"


@pytest.mark.parametrize(
    "body",
    [
        FAILS_LATER.format(good=[0]),
        FAILS_LATER.format(good=[4]),
        "    raise [ValueError, KeyError][prompt.text == 'Question 3']('no')\n",
        "    import string\n    raise ValueError(string.ascii_letters[int(prompt.text.split()[1])])\n",
    ],
    ids=["first works", "fifth works", "another kind", "other messages"],
)
def test_a_judge_that_fails_now_and_then_or_differently_harms_those_items_only(tmp_path, body):
    came = ask_all(tmp_path / "run", written(tmp_path / "mine.py", body), prompts(12))
    assert all(isinstance(c, Verdict) for c in came)
    assert sum(c.error is not None for c in came) >= 11


def test_a_judge_that_worked_in_an_earlier_run_may_fail_at_first_in_this_one(tmp_path):
    judge = written(tmp_path / "mine.py", FAILS_LATER.format(good=[0]))
    (first,) = ask_all(tmp_path / "run", judge, prompts(1))
    came = ask_all(tmp_path / "run", judge, prompts(10))
    assert came[0] == first and all(isinstance(c, Verdict) and c.error for c in came[1:])


def test_a_failure_that_a_verdict_reports_is_open_again_on_request(tmp_path):
    """A time limit, or memory that was short, are no property of the answer."""
    busy = tmp_path / "busy"
    busy.touch()

    def judge(prompt, candidates):
        ids = tuple(c.id for c in candidates)
        if busy.exists():
            return Verdict("busy", ids, None, error="too_long: no memory for it")
        return [float(len(c.text)) for c in candidates]

    rows = [{"prompt": "q", "candidates": ["one", "three"]}]
    settings = {"judge": judge, "out": tmp_path / "out"}
    assert list(library.judge(rows, **settings).pairs()) == []
    busy.unlink()
    said_of = library.judge(rows, **settings).wait()
    assert said_of["pairs"] == 0 and said_of["failures"][0]["error"].startswith("too_long: no memory")
    assert library.judge(rows, **settings, retry_failed=True).wait()["pairs"] == 1


@pytest.mark.parametrize("said", [{1.0, 2.0}, frozenset({1.0, 2.0})])
def test_scores_without_an_order_are_refused(tmp_path, said):
    said_of = library.judge([{"prompt": "q", "candidates": ["a", "b"]}], judge=lambda p, c: said, out=tmp_path).wait()
    assert said_of["pairs"] == 0 and "set" in said_of["failures"][0]["error"]


def test_a_judge_may_abstain_from_the_start(tmp_path):
    def abstains(prompt, candidates):
        return Verdict("me", tuple(c.id for c in candidates), None, error="not my field")

    assert [v.error for v in ask_all(tmp_path, abstains, prompts(9))] == ["abstained: not my field"] * 9


# One that does not return

HANGS = {
    "event": "threading.Event().wait()",
    "sleeps": "while True:\n            time.sleep(0.01)",
    "spins": "while True:\n            pass",
    "prints": "while True:\n            print('still at it')",
    "lazily": "return (threading.Event().wait() for c in candidates)",
}
COROUTINES = {
    "awaits": "await asyncio.Event().wait()",
    "stubborn": "while True:\n            try:\n                await asyncio.sleep(60)\n"
    "            except asyncio.CancelledError:\n                pass",
}


def hanging(path: Path, how: str, *on: str, timeout_s: float = 0.3) -> str:
    """A judge that hangs on the prompts named, and prefers the longer answer to others."""
    kind = "async def" if how in COROUTINES else "def"
    judge = written(
        path,
        f"    if prompt.text in {on}:\n        {(HANGS | COROUTINES)[how]}\n    return [len(c.text) for c in candidates]\n",
        kind,
    )
    path.write_text(path.read_text() + f"mine.timeout_s = {timeout_s}\n")
    return judge


def judge_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "judge-mine"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", [*HANGS, *COROUTINES])
def test_a_call_that_hangs_is_a_failed_verdict_and_the_others_go_on(tmp_path, how):
    judge, before = hanging(tmp_path / "mine.py", how, "Question 1"), judge_threads()
    for _ in range(2):  # the second time from the ledger
        began = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            came = ask_all(tmp_path / "run", judge, prompts(6))
        assert [v.error for v in came] == [None, "judge_hung: it did not return within 0.3 s", *[None] * 4]
        assert all(v.scores == (11.0, 31.0) for v in came if v.error is None)
        assert time.monotonic() - began < 5
    if how in ("sleeps", "spins", "prints"):  # a loop in Python does not go on for nobody
        deadline = time.monotonic() + 5
        while len(judge_threads() - before) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(judge_threads() - before) <= 1


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["event", "stubborn"])
def test_the_fourth_call_that_runs_on_without_an_end_stops_the_run(tmp_path, how):
    asked = prompts(30)
    judge = hanging(tmp_path / "mine.py", how, *(p.text for p in asked[3:]), timeout_s=0.25)
    came = ask_all(tmp_path / "run", judge, asked)
    assert all(v.error is None for v in came[:3])
    assert [v.error.split(":")[0] for v in came[3:6]] == ["judge_hung"] * 3
    stopped = [c for c in came if isinstance(c, StopRun)]
    assert stopped and stopped[0].kind == "judge" and "'mine' did not return within 0.25 s for 4 calls" in str(stopped[0])
    assert "mine.timeout_s" in str(stopped[0]) and "--retry-failed" in str(stopped[0])
    if how == "event":  # one at a time: those that waited were not begun
        assert len(stopped) == len(asked) - 6
    assert "judge_hung" in ask_all(tmp_path / "run", judge, [asked[6]])[0].error  # the fourth is on file too


def test_coroutines_that_can_be_cancelled_never_stop_the_run(tmp_path):
    asked = prompts(12)
    came = ask_all(tmp_path / "run", hanging(tmp_path / "mine.py", "awaits", *(p.text for p in asked), timeout_s=0.1), asked)
    assert [v.error.split(":")[0] for v in came] == ["judge_hung"] * 12


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["event", "prints", "stubborn"])
def test_the_command_ends_in_time_with_all_others_judged_and_asks_again_when_told(tmp_path, how):
    texts = [f"q{k}" for k in range(8)]
    rows = write_rows(tmp_path / "rows.jsonl", ({"prompt": t, "candidates": ["a", "bb"]} for t in texts))
    judge = hanging(tmp_path / "mine.py", how, "q2", "q5")
    began = time.monotonic()
    rlaif("judge", rows, "--judge", judge, "--out", tmp_path / "out")
    assert time.monotonic() - began < 10
    judged = {row["prompt"][0]["content"] for row in read_rows(tmp_path / "out" / "dpo.jsonl")}
    assert judged == {*texts} - {"q2", "q5"}
    found = summary(tmp_path / "out")
    assert (found["state"], found["dropped"]) == ("done", {"no_verdict": 2})
    assert found["failures"] == [{"of": "judge", "error": "judge_hung: it did not return within 0.3 s", "count": 2}]
    if how == "event":
        for more, bought in ((), 0), (("--retry-failed",), 2):
            began = time.monotonic()
            rlaif("judge", rows, "--judge", judge, "--out", tmp_path / "out", *more)
            assert (time.monotonic() - began > 0.3 * bought) and summary(tmp_path / "out")["calls"]["reused"] == 6


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["prints", "stubborn"])
def test_a_second_interrupt_ends_the_command_whatever_the_judge_does(tmp_path, how):
    rows = write_rows(tmp_path / "rows.jsonl", ({"prompt": f"q{k}", "candidates": ["a", "bb"]} for k in range(3)))
    judge = hanging(tmp_path / "mine.py", how, "q1", timeout_s=1 if how == "stubborn" else 300)
    judge_file = tmp_path / "mine.py"
    judge_file.write_text(
        judge_file.read_text().replace("    if prompt", "    open(__file__ + prompt.text, 'w').close()\n    if prompt")
    )
    with start("judge", rows, "--judge", judge, "--out", tmp_path / "out") as process:
        while not Path(f"{judge_file}q1").exists():
            time.sleep(0.01)
        reader = threading.Thread(target=process.communicate)
        reader.start()
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        reader.join(20)
        assert process.poll() == 130


def test_calls_that_wait_are_let_go_at_once_when_the_run_is_stopped(tmp_path):
    begun, go = threading.Event(), threading.Event()

    def slow(prompt, candidates):
        begun.set()
        go.wait()
        return [1.0, 2.0]

    async def run(made):
        calls = [asyncio.ensure_future(made(p, [GOOD, BAD], [GOOD, BAD])) for p in prompts(3)]
        await asyncio.to_thread(begun.wait)
        reason = StopRun("interrupted", "enough")
        made.stop(reason)
        done, running = await asyncio.wait(calls, timeout=0.2)
        assert done == {*calls[1:]} and all(call.exception() is reason for call in done)
        go.set()
        return await running.pop()

    with judging(tmp_path, slow) as (made, _):
        assert asyncio.run(run(made)).scores == (1.0, 2.0)


def test_a_function_that_is_not_async_runs_in_one_thread_that_stays(tmp_path):
    def where(prompt, candidates):
        return [threading.get_ident(), threading.get_ident() == threading.main_thread().ident]

    came = ask_all(tmp_path, where, prompts(20))
    assert len({v.scores for v in came}) == 1 and came[0].scores[1] == 0.0


def test_what_a_judge_prints_goes_where_the_program_s_output_goes(tmp_path):
    """The command turns its output away while judges run; a thread that keeps running must follow."""

    def prints(prompt, candidates):
        print(f"about {prompt.text}")
        return [1.0, 2.0]

    async def run(made):
        heard = []
        for prompt in prompts(2):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                await made(prompt, [GOOD, BAD], [GOOD, BAD])
            heard.append(out.getvalue())
        return heard

    with judging(tmp_path, prints) as (made, _):
        assert asyncio.run(run(made)) == ["about Question 0\n", "about Question 1\n"]


@pytest.mark.parametrize("timeout_s", [0, -1.0, "300", True, float("nan"), float("inf"), None])
def test_a_time_limit_that_is_no_positive_number_is_refused_at_once(timeout_s):
    judge = returning([1.0])
    judge.timeout_s = timeout_s
    with pytest.raises(InputError, match="timeout_s"):
        resolve(judge, model=None, constitution=None)


def test_a_time_limit_may_be_given_to_the_judge(tmp_path):
    ledger = Ledger.open(tmp_path)
    judge = CodeJudge(lambda prompt, candidates: threading.Event().wait(), ledger, Tally(), name="waits", timeout_s=0.05)
    assert asyncio.run(judge(PROMPT, [GOOD, BAD], [GOOD, BAD])).error == "judge_hung: it did not return within 0.05 s"
    ledger.close()
