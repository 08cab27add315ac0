"""Reading and writing chat-completion bodies."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.endpoint import ErrorInside
from rlaif.errors import CallFailed
from rlaif.models import chat
from rlaif.types import Request

FIELDS = st.sampled_from(
    [
        "choices",
        "error",
        "code",
        "usage",
        "message",
        "content",
        "index",
        "logprobs",
        "top_logprobs",
        "token",
        "logprob",
        "prob",
        "finish_reason",
        "reasoning_content",
        "refusal",
        "prompt_tokens",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | FIELDS, inner, max_size=4),
    max_leaves=20,
)


def body(*choices: Any, **more: Any) -> bytes:
    return json.dumps({"choices": list(choices)} | more).encode()


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"} | more


def only(raw: bytes) -> Any:
    (choice,) = chat.read(raw).choices
    return choice


@given(JSON)
def test_any_json_is_an_answer_or_a_failed_call(value: Any) -> None:
    try:
        reply = chat.read(json.dumps(value).encode())
    except CallFailed:
        return
    assert reply.choices
    for choice in reply.choices:
        (choice.text + (choice.thinking or "")).encode("utf-8")
        assert all(0 <= p <= 1.001 for p in (choice.first_token or {}).values())


@given(st.lists(st.dictionaries(FIELDS, JSON, max_size=6), min_size=1, max_size=3))
def test_any_choice_is_an_answer_or_a_failed_call(choices: list[dict[str, Any]]) -> None:
    test_any_json_is_an_answer_or_a_failed_call.hypothesis.inner_test({"choices": choices})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"\n\n \n", b"<html>502</html>", b'{"choices": [', b"[]", b"7", b'"text"', b"\xff\xfe", b"{}"),
        *(b'{"choices": [1]}', b'{"choices": {}}', b'{"choices": null}', b"[" * 100_000),
    ],
)
def test_what_is_no_completion_is_a_bad_body(raw: bytes) -> None:
    with pytest.raises(CallFailed) as failed:
        chat.read(raw)
    assert failed.value.kind == "bad_body"


def test_no_choices_is_empty() -> None:
    with pytest.raises(CallFailed) as failed:
        chat.read(body())
    assert failed.value.kind == "empty"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 429}, 429),
        ({"code": "429"}, 429),
        ({"code": "rate_limit_exceeded", "type": "requests"}, 429),
        ({"code": None, "type": "insufficient_quota"}, 402),
        ({"code": "invalid_api_key", "type": "invalid_request_error"}, 401),
        ({"code": "context_length_exceeded"}, 400),
        ({"code": "x", "type": "invalid_request_error"}, 400),
        ({"code": "x"}, 502),
        ({"code": "²"}, 502),
        ({"code": [429]}, 502),
        ({"code": True}, 502),
        ({"code": 7}, 502),
        ("down", 502),
    ],
)
@pytest.mark.parametrize("more", [{}, {"choices": None}, {"choices": []}])
def test_an_error_inside_is_classified_by_its_code(error: Any, status: int, more: dict[str, Any]) -> None:
    with pytest.raises(ErrorInside) as inside:
        chat.read(json.dumps({"error": error} | more).encode())
    assert inside.value.status == status


def test_choices_are_ordered_by_index_and_repeated_indices_kept() -> None:
    raw = body(said("c", index=2), said("a", index=0), said("b", index=1), said("b2", index=1))
    assert [c.text for c in chat.read(raw).choices] == ["a", "b", "b2", "c"]


@pytest.mark.parametrize(
    ("content", "text", "thinking"),
    [
        ("plain", "plain", None),
        ("<think>so [[A]]</think>\n\nText", "Text", "so [[A]]"),
        ("\n <think>\nso\n</think>Text", "Text", "so"),
        ("so\n</think>\nText", "Text", "so"),
        ("<think>never closed [[A]]", "", "never closed [[A]]"),
        ("Use <think> as a tag", "Use <think> as a tag", None),
        ("Write <think>x</think> here", "Write <think>x</think> here", None),
    ],
)
def test_thinking_is_split_off(content: str, text: str, thinking: str | None) -> None:
    choice = only(body(said(content)))
    assert (choice.text, choice.thinking) == (text, thinking)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_in_a_field_of_its_own(name: str) -> None:
    choice = only(body({"message": {"content": "Text", name: "so"}}))
    assert (choice.text, choice.thinking, choice.error) == ("Text", "so", None)


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": None, "reasoning_content": "so"}},
        {"message": {"content": None, "refusal": "I will not."}},
        {"message": {"content": None, "tool_calls": []}},
        {"message": {}},
        {"message": None},
        {},
        said("half", finish_reason="content_filter"),
    ],
)
def test_choice_without_an_answer_has_an_error(choice: dict[str, Any]) -> None:
    assert only(body(choice)).error


def test_finish_reasons_pass_through() -> None:
    assert [only(body(said("x", finish_reason=f))).finish for f in ("length", "odd", None, 3)] == ["length", "odd", None, None]


def test_lone_surrogates_are_replaced() -> None:
    assert only(b'{"choices": [{"message": {"content": "a\\ud800b"}}]}').text == "a?b"


def token(*alternatives: tuple[str, float]) -> dict[str, Any]:
    listed = [{"token": t, "logprob": p} for t, p in alternatives]
    return {"content": [listed[0] | {"top_logprobs": listed}]}


def test_probabilities_of_the_first_token() -> None:
    found = only(body(said("A", logprobs=token(("A", math.log(0.7)), ("B", math.log(0.2)), ("C", -9999.0))))).first_token
    assert found == pytest.approx({"A": 0.7, "B": 0.2, "C": 0.0})


def test_minus_infinity_is_below_the_floor_and_no_fault() -> None:
    raw = b'{"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": [' + (
        b'{"token": "A", "logprob": 0.0}, {"token": "B", "logprob": -Infinity}]}]}}]}'
    )
    assert only(raw).first_token == {"A": 1.0, "B": 0.0}


@pytest.mark.parametrize("value", [float("nan"), 0.5, 1e308, float("inf"), "x", None])
def test_probabilities_that_are_none_drop_the_signal(value: Any) -> None:
    choice = only(body(said("A", logprobs=token(("A", -0.1), ("B", value)))))
    assert (choice.text, choice.first_token) == ("A", None)


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": []}, {"content": [{}]}, [], "x"])
def test_missing_probabilities_are_none(logprobs: Any) -> None:
    assert only(body(said("A", logprobs=logprobs))).first_token is None


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 0}, (3, 0)),
        ({"prompt_tokens": -3, "completion_tokens": 2.5}, (None, None)),
        ({"prompt_tokens": "3", "completion_tokens": True}, (None, None)),
        ({"prompt_tokens": 10**30, "completion_tokens": 2**63}, (None, None)),
        (None, (None, None)),
        ([], (None, None)),
    ],
)
def test_usage_is_read_or_unknown(usage: Any, counts: tuple[int | None, int | None]) -> None:
    reply = chat.read(body(said("x"), usage=usage))
    assert (reply.prompt_tokens, reply.completion_tokens) == counts


@given(st.lists(st.text(), min_size=1, max_size=4), st.integers(0, 99) | st.none())
def test_write_is_read_back(texts: list[str], tokens: int | None) -> None:
    choices = [{"message": {"role": "assistant", "content": t}, "finish_reason": "stop"} for t in texts]
    reply = chat.read(chat.write("m", choices, prompt_tokens=tokens, completion_tokens=tokens))
    assert [c.text for c in reply.choices] == [chat.split_thinking(t)[0] for t in texts]
    assert (reply.prompt_tokens, reply.completion_tokens) == (tokens, tokens)


def test_request_leaves_defaults_out_and_extra_wins() -> None:
    messages = ({"role": "user", "content": "Why?"},)
    plain = chat.request_body("m", Request(messages, mark="x"), {})
    assert plain == {"model": "m", "messages": list(messages)}
    request = Request(messages, n=2, temperature=0.0, max_tokens=5, seed=0, logprobs=20)
    full = chat.request_body("m", request, {"top_p": 0.5, "temperature": 0.9})
    settings = {"n": 2, "temperature": 0.9, "max_tokens": 5, "seed": 0, "logprobs": True, "top_logprobs": 20, "top_p": 0.5}
    assert full == plain | settings
