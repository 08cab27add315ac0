"""Degenerate answers: what the rules mark, and above all what they leave alone.

The generated faults are planted in real prose, as benchmarks/degenerate.py does on whole files.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest
from helpers import read_rows, rlaif, summary, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from importlib import import_module

from rlaif import degenerate
from rlaif.degenerate.language import language_of
from rlaif.types import Candidate, Prompt

bench = import_module("degenerate")  # the benchmark of the same name, which plants faults
DATA = Path(__file__).parent.parent.parent / "shared" / "data"

QUESTION = "Explain how the tides come about, and why there are two of them on most days of the month."
PROSE = (
    "The tides come from the difference between the pull of the moon on the near side of the earth and its pull on the far"
    " side. Where the pull is stronger than at the centre, the water is drawn towards the moon; where it is weaker, the earth"
    " is drawn away from the water, and a second bulge is left behind. As the earth turns below the two bulges, a place on the"
    " coast meets each of them about once a day. The sun does the same with a little less than half of the strength, so that"
    " the range is greatest at new and full moon, when both work together, and smallest in between. Bays and shelves change"
    " all of this: some coasts have a single tide a day, and in narrow inlets the water rises by more than ten metres."
)


def ask(text: str, *more: str, role: str = "user") -> Prompt:
    messages = [{"role": "user", "content": m} for m in (*more, text)]
    messages[0]["role"] = role if more else "user"
    return Prompt("p", tuple(messages))


def kind(answer: str, asked: str = QUESTION) -> str | None:
    return degenerate.kind_of(*degenerate.marked(ask(asked), [Candidate("p/0", answer)]))


# What is marked


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("the the the", "tail"),
        ("the " * 60, "looping"),
        ("Because the moon pulls the water. " * 12, "looping"),
        (PROSE[:300] + " and so on" * 40 + PROSE[300:], "looping"),
        (PROSE[:300] + "a" * 400 + PROSE[300:], "looping"),
        (PROSE + "\n\n" + "\n\n".join([PROSE] * 3), "looping"),
        ("潮汐是由月亮引起的，" * 12, "looping"),
        ("潮汐来自月亮。" + "溶解" * 60, "looping"),
        ("I do not know???????", "tail"),
        ("Yes!!!!!!!!", "tail"),
        (PROSE + " pls pls pls", "tail"),
        (PROSE + " Please. Please. Please. Please. Please.", "tail"),
        (PROSE + " hope it helps you, hope it helps you, hope it helps you, hope it helps you, hope it helps you,", "tail"),
        (PROSE + " I am soooooooooooooooooo", "tail"),
        (PROSE + " 好好好好好好好好", "tail"),
        (PROSE + " \U0001f389\U0001f389\U0001f389\U0001f389\U0001f389\U0001f389\U0001f389\U0001f389\U0001f389", "tail"),
        (QUESTION, "echo"),
        (QUESTION.upper().replace(",", " ").replace(".", "?"), "echo"),
        (QUESTION + "\n\nAnswer:", "echo"),
        (f"Question: {QUESTION}\nAnswer:", "echo"),
        (QUESTION + "<|assistant|>", "echo"),
        (f"Human: {QUESTION}", "echo"),
        ("It is very very very", "tail"),
        ("tide " * 5, "tail"),
        (PROSE + " good good good", "tail"),
        ("I'm sorry, but I can't assist with that.", "refusal"),
        ("As an AI language model, I'm unable to provide an answer.", "refusal"),
        ("很抱歉，我无法回答这个问题。", "refusal"),
        (bench.FOREIGN[0], "wrong_language"),
        (bench.FOREIGN[7], "wrong_language"),
    ],
)
def test_what_is_degenerate(answer, found):
    assert kind(answer) == found


PLANTED = {
    "loop": {"looping", "tail"},
    "tail": {"looping", "tail"},
    "echo": {"echo"},
    "refusal": {"refusal"},
    "wrong language": {"wrong_language"},
}


@pytest.mark.parametrize("name", bench.PLANTS)
@settings(database=None, deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), start=st.integers(0, 400))
def test_a_planted_fault_is_found(name, seed, start):
    text = bench.PLANTS[name](QUESTION, PROSE[start:], random.Random(seed))
    assert kind(text) in PLANTED[name.partition(":")[0]]


# What is left alone

POEM = "\n\n".join(
    f"{verse}\nRow on, row on, the tide is coming,\nRow on, row on, the tide is here." for verse in PROSE.split(". ")
)
TABLE = "| port | high water | low water |\n| --- | --- | --- |\n" + "".join(
    f"| {port} | 6:{k:02d} | 12:{k:02d} |\n"
    for k, port in enumerate(("Brest", "Cork", "Hull", "Leith", "Dover", "Saint-Malo", "Vigo"))
)
CODE = """```python
def rise(hours):
    if hours < 1:
        return 1
    elif hours < 2:
        return 2
    elif hours < 3:
        return 3
    elif hours < 4:
        return 3
    return 0


grid = [
    [0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
]
```"""
ART = "```\n" + "\n".join(["~" * 60, "^" * 60, "  /\\  " * 10, "====" * 15] * 3) + "\n```"


@pytest.mark.parametrize(
    "answer",
    [
        PROSE,
        "Yes.",
        "42",
        "Ha ha ha! That is a good one.",
        "Ha ha ha",
        "Knock knock knock!",
        "A duck goes quack quack quack",
        "The gulls say mine mine mine.",
        PROSE + " And the gulls go mine mine mine",
        "Never, never, never!",
        "Location, location, location.",
        "Wow!!! It is the moon!!!",
        "Is it the moon? Or the sun? Or both???",
        "To be continued......",
        "Zzzzzzzzz",
        POEM,
        TABLE,
        CODE,
        ART,
        PROSE + "\n\n" + "-" * 200,
        PROSE + "\n\n" + "=" * 80 + "\n\n" + PROSE[::-1],
        "\n".join(f"{k}. The {k}th tide of the month." for k in range(1, 60)),
        "1/3 = 0." + "3" * 60 + ", about a third of it.",
        "    end\n  end\nend\n",
        "<div><div><div><p>" + PROSE + "</p></div></div></div></div></div></div></div></div></div>",
        PROSE + " " + PROSE[:200],
        "\n".join(["0 0 0 0 0 0 0 0"] * 4),
        "Here is what they say in Paris: « c'est la lune qui fait les marées ». " + PROSE,
        "I'm sorry to hear that the tide took your boat. " + PROSE[:200],
        "No, I do not think so: the sun has a part in it, and the coast, too.",
    ],
)
def test_what_is_no_fault(answer):
    assert kind(answer) is None


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("Write the word tide 100 times.", "tide " * 100),
        ("Print a list of 300 zeros.", "0, " * 300),
        ("Write a song about the sea with a chorus.", "La la la, the sea, the sea. " * 12),
        ("把“潮汐”这个词写一百遍。", "潮汐" * 100),
        ("Scream like a seagull, please.", "A" * 300),
        ("Who shouted 'tides tides tides tides tides'?", "It was the man on the pier: tides tides tides tides tides"),
        ("What does CAGCAGCAGCAG stand for?", "It goes on like this: " + "CAG" * 40),
        ("Give an example of a repeat DNA sequence.", "CAG" * 40),
        ("Give me a tandem sequence of three bases.", "CAG" * 40),
        ("The capital of France is", "The capital of France is Paris."),
        ("The largest planet in our solar system is", "The largest planet in our solar system is Jupiter."),
        ("Water boils at sea level at a temperature of", "Water boils at sea level at a temperature of 100 °C."),
        ("12 + 34 * 56 - 78 / 9 + 10 =", "12 + 34 * 56 - 78 / 9 + 10 = 1905.33"),
        ("Is the water higher in Brest or in Cork?", "Is the water higher in Brest or in Cork? Cork"),
        ("法国的首都是哪一座城市呢", "法国的首都是哪一座城市呢：巴黎"),
        (f"Fill the gap: {QUESTION[:40]} ____ {QUESTION[40:]}", f"Fill the gap: {QUESTION[:40]} always {QUESTION[40:]}"),
        (f"Repeat the following sentence: {QUESTION}", f"Repeat the following sentence: {QUESTION}"),
        (f"Correct the spelling: {QUESTION}", f"Correct the spelling: {QUESTION}"),
        ("Good morning to you!", "Good morning to you!"),
        (f"Translate into German: {PROSE}", bench.FOREIGN[0]),
        ("Explain the tides to me in French, in the words that a child of ten years would use in a letter.", bench.FOREIGN[1]),
        (f"What does this text say? {bench.FOREIGN[7]} {PROSE[:60]}", bench.FOREIGN[7]),
        ("Hi", bench.FOREIGN[1]),
        *(
            (f"answer in {name}: {QUESTION}", bench.FOREIGN[k])
            for name, k in {"Castilian": 2, "castellano": 2, "Brazilian": 3, "Flemish": 5, "Mandarin": 7, "Farsi": 10}.items()
        ),
        ("How do I build a bomb?", "I'm sorry, but I can't assist with that."),
        ("Why are these people so stupid?", "I apologize, but I cannot respond to this."),
        ("What is the weather like in Brest today?", "I'm sorry, I am unable to provide that."),
        ("Summarise the file that I sent.", "Sorry, I can't do that."),
        ("Do you love me?", "As an AI language model, I cannot answer that."),
        ("请用日语介绍一下这个地方，并说明为什么值得在秋天去那里旅行和居住。", bench.FOREIGN[8]),
    ],
)
def test_what_the_prompt_asks_for_is_no_fault(asked, answer):
    assert kind(answer, asked) is None


def test_a_refusal_has_its_reason_in_the_system_message_or_in_its_own_words():
    refusal = "I'm sorry, but I can't help with that."
    assert degenerate.kind_of_text(ask(QUESTION), refusal) == "refusal"
    assert degenerate.kind_of_text(ask(QUESTION, "Answer questions about cooking only.", role="system"), refusal) is None
    assert kind("I'm sorry, but I can't help with that, as it would be illegal.") is None
    assert kind(f"I'm sorry, but I can't help with all of that. {PROSE}") is None


def test_a_loop_that_was_cut_stays_degenerate_when_cut_answers_are_let_in():
    cut = Candidate("p/0", "the " * 100, finish="length")
    assert degenerate.kind_of(cut) == "truncated"
    assert degenerate.marked(ask(QUESTION), [cut])[0].degenerate == "looping"
    assert degenerate.kind_of(Candidate("p/0", PROSE, finish="length")) == "truncated"


def test_failed_candidates_are_no_degenerate_ones_and_marks_are_made_anew():
    lost = Candidate("p/0", "", error="timeout")
    marked = Candidate("p/1", PROSE, degenerate="looping")
    assert [c.degenerate for c in degenerate.marked(ask(QUESTION), [lost, marked])] == [None, None]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        *zip(bench.FOREIGN, ["de", "fr", "es", "pt", "it", "nl", "ru", "zh", "ja", "ko", "ar", "hi"], strict=True),
        (PROSE, "en"),
        (CODE, None),
        ("Paris, Lyon, Marseille, Nice, Bordeaux", None),
        ("", None),
        ("\ud800 " * 50, None),
    ],
)
def test_languages_are_told_by_their_commonest_words(text, language):
    assert language_of(text) == language


@pytest.mark.slow
def test_a_run_keeps_degenerate_answers_out_and_counts_them_unless_it_is_told_otherwise(tmp_path):
    """The longest answer of each prompt is a loop: it is chosen only on request."""
    loop = "the tide comes and goes, " * 40
    rows = [
        {"id": "some", "prompt": QUESTION, "candidates": [loop, PROSE, "Gravity."]},
        {"id": "all", "prompt": QUESTION, "candidates": [loop, QUESTION, "I'm sorry, but I can't assist with that."]},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    command = "judge", path, "--judge", "judges/longest.py:longest", "--out", tmp_path / "run"
    rlaif(*command)
    said = summary(tmp_path / "run")
    assert said["degenerate"] == {"looping": 2, "echo": 1, "refusal": 1} and said["dropped"] == {"ineligible": 1}
    (row,) = read_rows(tmp_path / "run" / "dpo.jsonl")
    assert (row["id"], row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("some", PROSE, "Gravity.")
    rlaif(*command, "--allow-degenerate")
    assert {row["id"]: row["chosen"][0]["content"] for row in read_rows(tmp_path / "run" / "dpo.jsonl")} == {
        "some": loop,
        "all": loop,
    }
    assert summary(tmp_path / "run")["degenerate"] == said["degenerate"] and summary(tmp_path / "run")["dropped"] == {}


# What it costs, and what it bears


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        PROSE * 1500,
        "a" * 10**6,
        "ab " * 333_333,
        "-" * 10**6,
        "".join(f"{k} " for k in range(150_000)),
        "".join("ab" * (k % 40) + chr(97 + k % 26) for k in range(25_000)),
        ("a" * 99 + "b") * 10_000,
        "\U0001f600" * 10**6,
        "我" * 10**6,
        "?" * 10**6,
        "((" * 500_000,
        "\ud800x" * 500_000,
        "I can't " * 125_000,
    ],
    ids=range(13),
)
def test_a_megabyte_takes_less_than_a_second(text):
    prompts = [ask(QUESTION), ask(text), ask(text[: len(text) // 2] + " ")]
    began = time.process_time()
    for prompt in prompts:
        degenerate.kind_of_text(prompt, text)
    assert time.process_time() - began < 3.0


@settings(database=None, deadline=None)
@given(st.text(), st.text())
def test_any_text_gives_a_kind_or_none_and_the_same_again(asked, answer):
    found = kind(answer, asked)
    assert found is None or found in degenerate.KINDS
    assert kind(answer, asked) == found


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no evaluation data at {DATA}")
def test_good_answers_raise_no_alarm_and_real_faults_do():
    """Over answers that are the best of their prompt; the faults were read one by one."""
    found = {name: bench.alarms(name, rows, None) for name, rows in bench.files(DATA)}
    for name, line in found.items():
        if name not in ("pairs/pandalm", "pairs/llmbar"):  # where all answers of a prompt are looping
            assert float(line[-1].rstrip("%")) < 0.5, line
    assert sum(int(line[4].partition(" ")[0] or 0) for line in found.values()) >= 20, "loops"
