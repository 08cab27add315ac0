"""What is odd about answers that are taken all the same."""

from __future__ import annotations

import logging

import pytest

from rlaif.models.odd import Oddities
from rlaif.types import Choice, Reply


def answer(**of: str | None) -> Reply:
    return Reply((Choice("a", "stop"),), **of)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "named", "own"),
    [
        ("m", "m", True),
        ("m", None, True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o-0613", True),
        ("claude", "claude@20250101", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False),
        ("gpt-4o-2024-08-06", "gpt-4o", False),
        ("m", "M", False),
        (None, "anything", True),
    ],
)
def test_a_dated_version_is_the_model_and_another_is_not(asked: str | None, named: str | None, own: bool) -> None:
    found = Oddities("openai/m", asked)
    found.note(answer(model=named))
    assert dict(found.counts) == ({} if own else {"other_model": 1})


def test_each_oddity_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    found = Oddities("openai/m", "m")
    with caplog.at_level(logging.WARNING, "rlaif"):
        for _ in range(3):
            found.note(answer(id="same", model="other\x1b[2J"))
            found.note(Reply((Choice("a", "eos"), Choice("b", None), Choice("c", "length"), Choice("", None, error="none"))))
    assert dict(found.counts) == {"repeated_id": 2, "other_model": 3, "unknown_finish": 6}
    assert len(caplog.messages) == 4 and all(m.isprintable() for m in caplog.messages)


def test_an_endpoint_that_names_ever_new_models_is_told_of_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    found = Oddities("openai/m", "m")
    for k in range(30_000):
        found.note(answer(id=str(k), model=f"x{k}"))
    assert found.counts["other_model"] == 30_000 and len(caplog.messages) < 10 and len(found._ids) <= 10_000
