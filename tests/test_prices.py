"""Prices by model, what responses say they used, guesses where they do not, and the sums a budget is held against."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import astuple
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from rlaif import prices
from rlaif.data import read_prompts
from rlaif.errors import InputError
from rlaif.models import gguf, openai, smollm2
from rlaif.prices import FREE, Budget, Price, Prices, SpendRow, Usage, guess_message_tokens, guess_tokens, spent, usage_of
from rlaif.templates import example as shipped_example

OPENAI = "https://api.openai.com/v1"
LOCAL = "http://127.0.0.1:8000/v1"
MINI = Price(0.15, 0.6, 0.075)


@pytest.fixture(autouse=True)
def no_file_of_the_user(monkeypatch):
    monkeypatch.delenv("RLAIF_PRICES", raising=False)


def own(tmp_path: Path, text: str) -> Prices:
    path = tmp_path / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return Prices(str(path))


# Prices


def test_a_call_costs_its_tokens():
    assert MINI.cost_usd(1_000_000, 0, 0) == pytest.approx(0.15)
    assert MINI.cost_usd(1_000_000, 400_000, 1_000_000) == pytest.approx(0.6 * 0.15 + 0.4 * 0.075 + 0.6)
    assert Price(1.0, 2.0).cost_usd(1_000_000, 400_000, 0) == pytest.approx(1.0), "no price for cached input: as other input"
    assert Price(1.0, 2.0, 0.5).cost_usd(10, 99, 0) == pytest.approx(5e-6), "no more cached tokens than there are"
    assert FREE.cost_usd(10**9, 0, 10**9) == 0.0


def test_the_shipped_prices_hold_at_the_provider_s_own_address_alone():
    table = Prices()
    assert table.of("gpt-4o-mini", OPENAI) == MINI
    for url in (
        LOCAL,
        "https://openrouter.ai/api/v1",
        "https://eu.api.openai.com/v1",
        "http://api.openai.com/v1",
        "",
        "http://[",
    ):
        assert table.of("gpt-4o-mini", url) is None, url
    for name in ("gpt-4o-mini-2099-01-01", "GPT-4o-mini", "openai/gpt-4o-mini", "ft:gpt-4o-mini:me", ""):
        assert table.of(name, OPENAI) is None, name


@pytest.mark.parametrize(
    "url",
    ["https://api.openai.com/v1/", "https://API.OpenAI.com:443/v1", "https://api.openai.com/v1/chat/completions", OPENAI + " "],
)
def test_one_address_has_several_spellings(url):
    assert Prices().of("gpt-4o-mini", url) == MINI


def test_the_shipped_file_names_every_snapshot_and_the_day_it_was_looked_up():
    table = Prices()
    for provider in yaml.safe_load(prices.SHIPPED.read_text(encoding="utf-8")):
        assert provider["url"].startswith("https://") and provider["looked_up"].year >= 2026
        for name, entry in provider["models"].items():
            price = table.of(name, provider["url"])
            assert price is not None and 0.0 < price.input < price.output, name
            assert price.cached_input is None or 0.0 < price.cached_input < price.input, name
            for snapshot in entry.get("snapshots", ()):
                assert snapshot.startswith(f"{name}-20") and table.of(snapshot, provider["url"]) == price


def test_the_user_s_price_at_an_address_wins_over_the_name_and_that_over_the_shipped_one(tmp_path):
    table = own(
        tmp_path, f"gpt-4o-mini: {{input: 1, output: 2}}\ngpt-4o-mini@{LOCAL}/: {{input: 3, output: 4, cached_input: 0}}\n"
    )
    assert table.of("gpt-4o-mini", OPENAI) == Price(1.0, 2.0)
    assert table.of("gpt-4o-mini", LOCAL) == Price(3.0, 4.0, 0.0)
    assert table.of("gpt-4o-mini", "http://elsewhere/v1") == Price(1.0, 2.0)
    assert table.of("gpt-4o-mini-2024-07-18", OPENAI) == MINI, "another name keeps its own price"
    assert table.of("gpt-4o", OPENAI) == Price(2.5, 10.0, 1.25)


def test_a_name_may_be_written_as_on_the_command_line(tmp_path):
    table = own(
        tmp_path, f"openai/a: {{input: 1, output: 2}}\nopenai/b@{LOCAL}: {{input: 3, output: 4}}\nb: {{input: 5, output: 6}}\n"
    )
    assert table.of("a", LOCAL) == Price(1.0, 2.0) == table.of("openai/a", LOCAL)
    assert table.of("b", LOCAL) == Price(3.0, 4.0), "an address wins, however the name is spelled"
    assert table.of("b", OPENAI) == Price(5.0, 6.0)


def test_the_variable_names_the_user_s_file_and_an_argument_wins(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("m: {input: 1, output: 1}")
    (tmp_path / "b.yaml").write_text("m: {input: 2, output: 2}")
    monkeypatch.setenv("RLAIF_PRICES", str(tmp_path / "a.yaml"))
    assert Prices().of("m", LOCAL) == Price(1.0, 1.0)
    assert Prices(str(tmp_path / "b.yaml")).of("m", LOCAL) == Price(2.0, 2.0)
    monkeypatch.setenv("RLAIF_PRICES", " ")
    assert Prices().of("m", LOCAL) is None
    monkeypatch.setenv("RLAIF_PRICES", "nowhere.yaml")
    with pytest.raises(InputError, match=r"'nowhere\.yaml', which RLAIF_PRICES names"):
        Prices()


@pytest.mark.parametrize("text", ["", "# m: {input: 1, output: 2}\n", "{}"])
def test_a_file_without_prices_adds_none(tmp_path, text):
    assert own(tmp_path, text).of("gpt-4o-mini", OPENAI) == MINI


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("m: {input: -1, output: 2}", "'m': input = -1"),
        ("m: {input: .nan, output: 2}", "'m': input = nan"),
        ("m: {input: 1, output: .inf}", "'m': output = inf"),
        ("m: {input: '1', output: 2}", "'m': input = '1'"),
        ("m: {input: 0,15, output: 2}", "'m': "),
        ("m: {input: true, output: 2}", "'m': input = True"),
        ("m: {input: null, output: 2}", "'m': input = None"),
        ("m: {input: [1], output: 2}", r"'m': input = \[1\]"),
        (f"m: {{input: {'9' * 400}, output: 2}}", "'m': input = 999"),
        ("m: {input: 1}", "'m': `output` is missing"),
        ("m: {input: 1, output: 2, cached: 0.1}", "'m': 'cached' is unknown; there are input, output, cached_input"),
        ("m: {input: 1, output: 2, cached_input: -0.1}", "'m': cached_input = -0.1"),
        ("m: 3", "'m' = 3 should be"),
        ("m:", "'m' = None should be"),
        ("4: {input: 1, output: 2}", "4 should be the name of a model"),
        ("'': {input: 1, output: 2}", "'' should be the name of a model"),
        ("m@localhost:8000/v1: {input: 1, output: 2}", "an address begins with http"),
        ("'@http://a/v1': {input: 1, output: 2}", "should read NAME"),
        ("m@http://: {input: 1, output: 2}", "should read NAME"),
        ("m: {input: 1, output: 2}\nm: {input: 2, output: 2}", "'m' is named twice"),
        ("m@http://a/v1: {input: 1, output: 2}\nm@http://A:80/v1/: {input: 1, output: 2}", "named twice, in two spellings"),
        ("- m", "the file must hold prices"),
        ("m: {", "not valid YAML"),
    ],
)
def test_a_wrong_price_is_named_with_its_file(tmp_path, text, said):
    with pytest.raises(InputError, match=rf"prices\.yaml.*{said}"):
        own(tmp_path, text)


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"no price file at 'nowhere\.yaml'"):
        Prices("nowhere.yaml")


# What a response says


def body(usage: object, content: object = "Hi") -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}], "usage": usage}).encode()


def test_usage_is_read():
    assert usage_of(body({"prompt_tokens": 7, "completion_tokens": 5})) == Usage(7, 0, 5)
    assert usage_of(body({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12})) == Usage(7, 0, 5)
    details = {"prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0}}
    assert usage_of(body({"prompt_tokens": 7, "completion_tokens": 5} | details)) == Usage(7, 4, 5)
    for nothing in (
        {"prompt_tokens_details": None},
        {"prompt_tokens_details": {"cached_tokens": None}},
        {"total_tokens": None},
    ):
        assert usage_of(body({"prompt_tokens": 7, "completion_tokens": 5} | nothing)) == Usage(7, 0, 5)


def test_thinking_that_is_counted_in_the_total_alone_is_paid_for():
    said = {"prompt_tokens": 20, "completion_tokens": 424, "total_tokens": 1016}
    assert usage_of(body(said)) == Usage(20, 0, 996)
    assert usage_of(body({"prompt_tokens": 21, "completion_tokens": 0, "total_tokens": 81})) == Usage(21, 0, 60)


def test_no_text_needs_no_tokens():
    assert usage_of(body({"prompt_tokens": 7, "completion_tokens": 0}, content="")) == Usage(7, 0, 0)
    assert usage_of(body({"prompt_tokens": 7, "completion_tokens": 0}, content="Hi")) is None
    thought = {
        "choices": [{"message": {"content": None, "reasoning": "Hm"}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 0},
    }
    assert usage_of(json.dumps(thought).encode()) is None


WRONG = [-1, 1.0, "7", None, True, [7], 2**53, 10**30]


@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens"])
@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_count_that_is_none_makes_the_call_uncounted(name, wrong):
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 2}}
    if name == "cached_tokens":
        usage["prompt_tokens_details"] = {"cached_tokens": wrong}
    else:
        usage[name] = wrong
    left_out = wrong is None and name in ("total_tokens", "cached_tokens")
    assert (usage_of(body(usage)) is None) is not left_out


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        "12",
        {},
        {"prompt_tokens": 7},
        {"input_tokens": 7, "output_tokens": 5},
        {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 11},
        {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}},
    ],
    ids=repr,
)
def test_usage_that_is_missing_or_contradicts_itself_is_none(usage):
    assert usage_of(body(usage)) is None


@pytest.mark.parametrize("token", ["NaN", "-Infinity", '"\\ud800"', "1" * 100])
def test_what_only_a_lax_reader_takes_is_counted_all_the_same(token):
    said = body({"prompt_tokens": 7, "completion_tokens": 5})
    assert usage_of(said[:-1] + b', "logprob": ' + token.encode() + b"}") == Usage(7, 0, 5)


NESTED = b'{"usage": ' + b"[" * 200_000
COUNT = st.one_of(st.integers(), st.integers(0, 100), st.sampled_from(WRONG), st.floats(), st.text(max_size=2))
DETAILS = st.one_of(st.none(), st.dictionaries(st.just("cached_tokens"), COUNT), COUNT)
USAGE = st.fixed_dictionaries(
    {}, optional={"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT, "prompt_tokens_details": DETAILS}
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["message", "content", "usage"]), inner),
    max_leaves=8,
)
BODIES = st.one_of(
    st.binary(),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.builds(lambda usage, choices: json.dumps({"usage": usage, "choices": choices}).encode(), USAGE, JSON),
    st.builds(lambda usage, cut: json.dumps({"usage": usage}).encode()[:cut], USAGE, st.integers(0, 60)),
)


@given(BODIES)
@example(b"")
@example(NESTED)
@example(b'{"usage": ' + b"9" * 5000 + b"}")
@example("{}".encode("utf-16"))
@example(b"\xef\xbb\xbf{}")
def test_no_body_whatever_it_is_raises_and_what_is_read_makes_sense(said):
    usage = usage_of(said)
    if usage is not None:
        assert 0 <= usage.cached_tokens <= usage.prompt_tokens < 2**53 and 0 <= usage.completion_tokens < 2**53
        assert all(type(count) is int for count in astuple(usage))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6), st.integers(0, 10**6))
def test_a_usage_that_makes_sense_is_read_as_it_is(cached, more, completion, thinking):
    prompt = cached + more
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion + thinking}
    said = body(usage | {"prompt_tokens_details": {"cached_tokens": cached}})
    assert usage_of(said) == Usage(prompt, cached, completion + thinking)


# Guesses

COUNTED = {  # by OpenAI's cl100k tokenizer
    "Prefer the answer that does what was actually asked, dealing with every part of the request without wandering into"
    " things nobody wanted.": 25,
    "优先选择真正按要求作答的回答：不遗漏任何一部分，并遵守对格式、篇幅、语言和语气的限定。": 49,
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)\n": 19,
    "Natalia sold 48/2 = 24 clips in May. Altogether she sold 48 + 24 = 72 clips in April and May.": 33,
    "Сегодня хорошая погода, мы идём гулять в парк, а потом домой.": 33,
    "今日は天気がいいので公園に散歩に行きます。": 23,
    "Der Bundesgerichtshof entschied gestern über die Haftpflichtversicherung der Gesellschaft.": 23,
    "| model | input | output |\n|---|---|---|\n| a | 0.15 | 0.60 |\n": 27,
    "नमस्ते, आज मौसम अच्छा है।": 28,
    "Great idea! 😀🎉 Let's do it.": 12,
}


@pytest.mark.parametrize(("text", "tokens"), COUNTED.items(), ids=[text[:12] for text in COUNTED])
def test_a_guess_is_near_a_real_tokenizer_s_count(text, tokens):
    assert 0.8 * tokens <= guess_tokens(text) <= 1.5 * tokens


def test_the_guesses_of_many_kinds_of_text_even_out():
    assert sum(map(guess_tokens, COUNTED)) == pytest.approx(sum(COUNTED.values()), rel=0.1)


def test_a_long_word_is_no_single_token():
    assert guess_tokens("a" * 900) == 200
    assert guess_tokens("") == 0


TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)


@given(TEXT, TEXT)
@example("\ud83d", "\ude00")
def test_more_text_is_never_guessed_to_be_less(text, more):
    assert 0 <= guess_tokens(text) <= guess_tokens(text + more) <= 4 * len(text + more)


def test_messages_have_an_overhead():
    one = {"role": "user", "content": "How are you?"}
    assert guess_message_tokens([one]) == guess_tokens("How are you?") + 4 + 3
    assert guess_message_tokens([one, one]) == 2 * (guess_tokens("How are you?") + 4) + 3
    parts = [
        {"type": "text", "text": "How are"},
        {"type": "image_url", "image_url": {"url": "..."}},
        {"type": "text", "text": "you?"},
    ]
    assert guess_message_tokens([{"role": "user", "content": parts}]) == guess_message_tokens([one])
    assert guess_message_tokens([{"role": "assistant", "content": None}]) == 7


@pytest.mark.slow
def test_the_guess_for_the_demo_prompts_is_near_the_small_model_s_own_count():
    pytest.importorskip("xllamacpp", reason="llama.cpp is missing: pip install 'rlaif[gguf]'")
    if smollm2.find() is None:
        pytest.skip("the weights are missing: rlaif models get smollm2")
    texts = [str(prompt.messages[-1]["content"]) for prompt in read_prompts(str(shipped_example("demo")))]

    async def count() -> int:
        server, key = gguf._serve(smollm2.path())
        transport = openai.AiohttpTransport(server.listening_address + "/v1", api_key=key, timeout_s=60)
        try:
            asked = [await transport.post_json(server.listening_address + "/tokenize", {"content": text}) for text in texts]
        finally:
            await transport.close()
        return sum(len(answer["tokens"]) for answer in asked)

    assert sum(map(guess_tokens, texts)) == pytest.approx(asyncio.run(count()), rel=0.15)


# Sums


def row(
    model: str = "m",
    *,
    free: bool = False,
    calls: int = 1,
    uncounted: int = 0,
    guessed: tuple[int, int] = (0, 0),
    **tokens: int,
):
    prompt, cached, said = (tokens.get(name, 0) for name in ("prompt", "cached", "said"))
    return SpendRow(model, "policy", free, calls, uncounted, prompt, cached, said, *guessed)


MILLION = 1_000_000
TABLE = {"m": Price(1.0, 2.0, 0.5), "k": Price(10.0, 20.0)}


def test_what_was_counted_is_summed_at_its_price():
    found = spent([row(prompt=MILLION, cached=MILLION, said=MILLION), row("k", prompt=MILLION)], TABLE.get)
    assert found.cost_usd == pytest.approx(0.5 + 2.0 + 10.0) == found.cost_usd_guessed == found.budget_usd()
    assert (found.prompt_tokens, found.completion_tokens, found.uncounted) == (2 * MILLION, MILLION, 0)
    assert found.budget_tokens() == 3 * MILLION and found.unpriced_models == []


def test_a_model_without_a_price_makes_the_cost_unknown_and_never_zero():
    found = spent([row(prompt=MILLION), row("x", prompt=5), row("x", said=5), row("a", prompt=1)], TABLE.get)
    assert found.cost_usd is None and found.budget_usd() is None
    assert found.unpriced_models == ["x", "a"]
    assert found.budget_tokens() == MILLION + 11


def test_an_uncounted_call_makes_the_cost_unknown_but_not_the_budget():
    found = spent([row(prompt=MILLION, calls=3, uncounted=2, guessed=(MILLION, MILLION))], TABLE.get)
    assert found.cost_usd is None and found.uncounted == 2
    assert found.budget_usd() == pytest.approx(1.0 + 1.0 + 2.0)
    assert found.budget_tokens() == 3 * MILLION


def test_free_models_cost_nothing_whatever_is_unknown_of_them():
    found = spent([row("x", free=True, prompt=9, uncounted=1, guessed=(4, 5)), row(prompt=MILLION)], TABLE.get)
    assert found.cost_usd == pytest.approx(1.0) and found.unpriced_models == []
    assert (found.uncounted, found.guessed_prompt_tokens, found.guessed_completion_tokens) == (1, 4, 5)
    assert found.budget_tokens() == MILLION + 9 + 9


def test_nothing_bought_costs_nothing():
    assert spent([], TABLE.get).cost_usd == 0.0
    assert spent([row("x", calls=0)], TABLE.get).cost_usd == 0.0


def test_a_row_of_the_ledger_is_a_row():
    assert SpendRow(*("m", "judge", 0, 2, 1, 10, 4, 3, 2, 1)).guessed_completion_tokens == 1


def test_a_budget_in_usd_names_each_model_without_a_price_once(tmp_path):
    budget = Budget(list, TABLE.get, usd=1.0, tokens=None, where=str(tmp_path))
    budget.check_prices(["m", "k", "m"])
    with pytest.raises(InputError, match=r"the price of 'x', 'y': give --prices"):
        budget.check_prices(["x", "m", "x", "y"])


COUNTS = st.integers(0, 10**9)
ROWS = st.builds(
    SpendRow,
    st.sampled_from(["m", "k", "x"]),
    st.just("judge"),
    st.booleans(),
    st.integers(0, 9),
    st.integers(0, 9),
    *[COUNTS] * 5,
)


@given(st.lists(ROWS, max_size=6))
def test_the_budget_is_never_below_what_is_known(rows):
    found = spent(rows, TABLE.get)
    if found.cost_usd is not None:
        assert found.budget_usd() is not None and found.budget_usd() >= found.cost_usd >= 0.0
    assert (found.budget_usd() is None) == bool(found.unpriced_models)
    assert found.budget_tokens() >= found.prompt_tokens + found.completion_tokens
    assert found.cost_usd is None or math.isfinite(found.cost_usd)
