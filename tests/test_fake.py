"""The scripted models: what their docstring promises."""

from __future__ import annotations

import asyncio
import math

import pytest
from helpers import Books

from rlaif.errors import CallFailed, InputError
from rlaif.models import fake
from rlaif.types import Request

TEXT = "Request: x\nA: quality {0}\nB: quality {1}\nEnd with [[A]], [[B]] or [[C]]."


def ask(name: str, text: str, **settings):
    model, books = fake.make(name), Books()
    reply = asyncio.run(model.send(Request(({"role": "user", "content": text},), **settings), books))
    assert books.begun == len(books.kept) == 1 and model.read(books.kept[0]) == reply
    return reply


def script(tmp_path, content: str) -> str:
    path = tmp_path / "script.yaml"
    path.write_text(content)
    return str(path)


@pytest.mark.parametrize("name", fake.NAMES)
def test_policies_are_deterministic_and_write_different_answers(name):
    first = ask(name, "What is new?", n=8, seed=5)
    assert first == ask(name, "What is new?", n=8, seed=5)
    texts = [choice.text for choice in first.choices]
    assert len(texts) == 8 and len(set(texts)) > 1
    assert all("quality 0." in text for text in texts)
    assert texts == [c.text for c in ask("oracle", "What is new?", n=8, seed=5).choices]
    assert texts != [c.text for c in ask(name, "What is new?", n=8, seed=6).choices]


@pytest.mark.parametrize(
    ("name", "word"), [("oracle", "[[B]]"), ("oracle-text", "[[B]]"), ("first", "[[A]]"), ("tie", "[[C]]")]
)
def test_verdicts_as_text(name, word):
    assert ask(name, TEXT.format(0.2, 0.9)).choices[0].text == word


def test_the_oracle_finds_equals_equal():
    assert ask("oracle", TEXT.format(0.5, 0.5)).choices[0].text == "[[C]]"


def test_the_oracle_gives_probabilities_that_swap_with_the_answers():
    one, other = (ask("oracle", TEXT.format(*q), logprobs=5).choices[0].first_token for q in ((0.2, 0.7), (0.7, 0.2)))
    assert one["A"] == pytest.approx(1 / (1 + math.exp(3.0))) and one["A"] + one["B"] == pytest.approx(1.0)
    assert one["A"] == pytest.approx(other["B"])


def test_the_text_oracle_gives_no_probabilities():
    assert ask("oracle-text", TEXT.format(0.2, 0.9), logprobs=5).choices[0].first_token is None


def test_the_unreadable_judge_names_no_option():
    assert "[[" not in ask("unreadable", TEXT.format(0.2, 0.9)).choices[0].text
    assert not {"A", "B"} & set(ask("unreadable", TEXT.format(0.2, 0.9), logprobs=5).choices[0].first_token)


def test_a_script_answers_with_the_first_entry_that_fits_round_and_round(tmp_path):
    name = script(tmp_path, "- {when: 'colou?r', say: [red, green]}\n- {when: '^Name', say: Tom}\n- {say: none}\n")
    assert [c.text for c in ask(name, "Name a color", n=5).choices] == ["red", "green", "red", "green", "red"]
    assert [c.text for c in ask(name, "Name a cat", n=2).choices] == ["Tom", "Tom"]
    assert ask(name, "?").choices[0].text == "none"


def test_a_script_gives_its_logprobs_when_asked(tmp_path):
    name = script(tmp_path, "- {say: A, logprobs: {A: 0.7, B: 0.3, C: 0.0}}\n")
    assert ask(name, "x", logprobs=5).choices[0].first_token == pytest.approx({"A": 0.7, "B": 0.3})
    assert ask(name, "x").choices[0].first_token is None


def test_a_script_without_a_fitting_entry_fails_the_call(tmp_path):
    with pytest.raises(CallFailed, match="no entry"):
        ask(script(tmp_path, "- {when: cat, say: meow}\n"), "dog")


def test_a_script_s_identity_follows_its_content(tmp_path):
    seen = set()
    for content in ("- say: a", "- say: b", "- {say: a, when: x}", "- {say: a, logprobs: {A: 0.5}}", "- say: [a, b]"):
        seen.add(fake.make(script(tmp_path, content)).identity["fake"])
    assert len(seen) == 5
    assert fake.make(script(tmp_path, "# again\n- say: a")).identity["fake"] in seen


@pytest.mark.parametrize(
    "content",
    [
        "",
        "- 3",
        "- {when: x}",
        "- {say: []}",
        "- {say: 3}",
        "- {say: a, when: '('}",
        "- {say: a, logprobs: [1]}",
        "- {say: a, logprobs: abc}",
        "- {say: a, logprobs: {A: likely}}",
    ],
)
def test_a_broken_script_is_refused_before_it_is_used(tmp_path, content):
    with pytest.raises(InputError, match=r"script\.yaml"):
        fake.make(script(tmp_path, content))


@pytest.mark.parametrize("name", ["oracel", "nowhere.yaml", "oracle.txt"])
def test_an_unknown_name_says_what_there_is(name):
    with pytest.raises(InputError, match=name):
        fake.make(name)
    if "." not in name:
        with pytest.raises(InputError, match=r"fake/oracle.*fake/FILE\.yaml"):
            fake.make(name)
