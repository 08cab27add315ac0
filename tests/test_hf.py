"""What transformers models say in this process: tiny ones of three kinds in real folders, and the small real model.

Nothing is faked. Skipped where transformers is missing; the real model's tests also where its weights are.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from helpers import Books, read_rows
from tiny import PROMPTS, answers, ask, chat_of, judge_calls, make, said, texts, user

import rlaif
from rlaif.errors import CallFailed
from rlaif.models import Models, convert, smollm2
from rlaif.models.hf import prefixes
from rlaif.models.hf.chat_text import encode
from rlaif.types import Reply, Request

torch = pytest.importorskip("torch", reason="torch is missing: pip install 'rlaif[local]'")
transformers = pytest.importorskip("transformers", reason="transformers is missing: pip install 'rlaif[local]'")

from rlaif.models.hf import network, pick, reading  # noqa: E402 - they need torch

KINDS = ("llama", "mistral", "gpt2")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_chat(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def real() -> Path:
    """The small real model for transformers."""
    if smollm2.find() is None:
        pytest.skip("the weights are missing: rlaif models get smollm2")
    return convert.get()


def plain_logits(loaded: network.Network, ids: Sequence[int]) -> Any:
    """One forward pass of transformers alone."""
    with torch.inference_mode():
        return loaded.model(input_ids=torch.tensor([list(ids)])).logits[0, -1].float()


@pytest.mark.slow
def test_greedy_is_what_transformers_generates_token_by_token(folder: Path):
    loaded = network.load(folder, dtype=None)
    requests = [Request(prompt, temperature=0.0, max_tokens=30) for prompt in PROMPTS]
    found = answers(chat_of(loaded), requests[:3], late=requests[3:])
    for prompt, answered in zip(PROMPTS, found, strict=True):
        ids = encode(loaded.tokenizer, prompt, template=None, generation_prompt=True)
        settings = {"attention_mask": torch.ones(1, len(ids)), "max_new_tokens": 30, "do_sample": False, "pad_token_id": 258}
        made = loaded.model.generate(torch.tensor([ids]), **settings)[0, len(ids) :]
        assert said(answered) == [loaded.tokenizer.decode(made, skip_special_tokens=True)]
        assert answered.prompt_tokens == len(ids) and answered.completion_tokens == len(made)


def test_samples_are_the_same_alone_and_among_others_that_come_and_go(folder: Path):
    loaded = network.load(folder, dtype=None)
    wanted = Request(PROMPTS[1], n=4, temperature=1.0, max_tokens=40, seed=5)
    others = [Request(p, n=2, temperature=1.0, max_tokens=3 + 9 * i, seed=i) for i, p in enumerate(PROMPTS)]
    (alone,) = answers(chat_of(loaded), [wanted])
    (*_, last) = answers(chat_of(loaded), others, late=[wanted])
    first, *_ = answers(chat_of(loaded, rows=3), [wanted, *others], late=others)
    assert said(alone) == said(first) == said(last)
    assert len(set(said(alone))) == 4
    (other,) = answers(chat_of(loaded), [Request(PROMPTS[1], n=4, temperature=1.0, max_tokens=40, seed=6)])
    assert set(said(other)).isdisjoint(said(alone))


def test_a_token_is_drawn_as_often_as_it_is_likely(llama: Path):
    loaded = network.load(llama, dtype=None)
    prompt = user("Say")
    wanted = plain_logits(loaded, encode(loaded.tokenizer, prompt, template=None, generation_prompt=True))
    for temperature in (1.0, 2.5):
        p = (wanted / temperature).softmax(-1)
        seeds = range(400)
        drawn = [pick.draw(wanted[None], [temperature], [pick.Numbers(seed).at(0)], pick.Filters())[0] for seed in seeds]
        for token in p.topk(4).indices.tolist():
            share, deviation = drawn.count(token) / 400, math.sqrt(float(p[token]) * (1 - float(p[token])) / 400)
            assert abs(share - float(p[token])) < 4 * deviation + 1e-3


@pytest.mark.parametrize(
    ("filters", "warpers"),
    [
        (pick.Filters(top_k=7), lambda: transformers.TopKLogitsWarper(7)),
        (pick.Filters(top_p=0.6), lambda: transformers.TopPLogitsWarper(0.6)),
        (pick.Filters(min_p=0.1), lambda: transformers.MinPLogitsWarper(0.1)),
    ],
    ids=["top_k", "top_p", "min_p"],
)
def test_filters_leave_what_those_of_transformers_leave(filters: pick.Filters, warpers: Callable[[], Any]):
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(3)) * 3
    left = filters.apply(logits).isfinite()
    assert torch.equal(left, warpers()(None, logits.clone()).isfinite()) and not left.all()


def test_a_repetition_penalty_is_that_of_transformers():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(3))
    seen = [[1, 2, 2, 3], [4, 4, 5, 6]]
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor(seen), logits.clone())
    assert torch.allclose(pick.Filters(repetition_penalty=1.7).penalise(logits, seen), theirs)


# Verdicts


def test_verdicts_from_shared_prefixes_are_those_of_plain_forward_passes(folder: Path):
    loaded = network.load(folder, dtype=None)
    calls = judge_calls(random.Random(2), 3)
    chat = chat_of(loaded)
    read: list[int] = []
    forward = loaded.model

    class Counting:
        def __call__(self, **inputs: Any) -> Any:
            read.append(inputs["input_ids"].numel())
            return forward(**inputs)

    loaded.model = Counting()
    found = [*answers(chat, calls[::6]), *answers(chat, [c for i, c in enumerate(calls) if i % 6])]
    loaded.model = forward
    order = [*calls[::6], *(c for i, c in enumerate(calls) if i % 6)]
    lengths = []
    for call, answered in zip(order, found, strict=True):
        ids = encode(loaded.tokenizer, call.messages, template=None, generation_prompt=True)
        lengths.append(len(ids))
        wanted = plain_logits(loaded, ids).log_softmax(-1).topk(20)
        listed = answered.choices[0]["logprobs"]["content"][0]["top_logprobs"]
        assert [one["logprob"] for one in listed] == pytest.approx(wanted.values.tolist(), abs=1e-4)
        assert [one["token"] for one in listed[:3]] == [loaded.tokenizer.decode([i]) for i in wanted.indices[:3]]
    assert sum(read) < 0.55 * sum(lengths)
    assert 0 < chat._reader.held.bytes <= chat._reader.held.limit_bytes


def test_prefix_levels_name_every_shared_beginning_once():
    rng = random.Random(4)
    for _ in range(50):
        roots = [[rng.randrange(3) for _ in range(rng.randint(1, 60))] for _ in range(3)]
        rows = [prefixes.tokens_of([*rng.choice(roots), *rng.choices(range(3), k=rng.randint(1, 40))]) for _ in range(8)]
        levels = prefixes.shared(rows, [0] * len(rows))
        for level, nodes in enumerate(levels):
            for node in nodes:
                holders = [row for row in rows if len(row) > len(node) and prefixes.common(row, node) == len(node)]
                assert len(holders) >= 2
                assert level == 0 or any(prefixes.common(node, above) == len(above) for above in levels[level - 1])
        assert len({node.tobytes() for level in levels for node in level}) == sum(map(len, levels))
        known = [len(row) - 1 for row in rows]
        assert prefixes.shared(rows, known) == []


def test_what_is_held_has_a_limit_and_loses_the_oldest():
    held = prefixes.Held(3 * 2 * 10 * 4)

    def state(value: float) -> prefixes.State:
        return [(torch.full((1, 10, 1), value), torch.full((1, 10, 1), value))]

    rows = [prefixes.tokens_of([i] * 10) for i in range(4)]
    for i in range(3):
        held.put(rows[i], state(float(i)))
    assert held.longest(prefixes.tokens_of([0] * 7 + [9]))[1] == 7
    held.put(rows[3], state(3.0))
    assert [held.longest(row)[1] for row in rows] == [10, 0, 10, 10] and held.bytes == held.limit_bytes
    kept, _ = held.longest(rows[3])
    assert kept is not None and float(kept[0][0].mean()) == 3.0


def test_choices_leave_nothing_else_and_share_the_whole(llama: Path, tmp_path: Path):
    question = user("A or B?")
    bound = Request(question, temperature=1.0, max_tokens=1, logprobs=20, choices=("A", "B"))
    free = Request(question, temperature=1.0, max_tokens=1, logprobs=20)
    words = Request(question, n=8, temperature=1.0, max_tokens=20, seed=1, choices=("yes", "yesterday", "no"))
    alike = Request(question, max_tokens=1, choices=("yes", "yesterday"))
    one, two, many, refused = ask(make(llama, tmp_path), bound, free, words, alike)
    assert one.choices[0].text in ("A", "B") and set(one.choices[0].first_token) == {"A", "B"}
    assert sum(one.choices[0].first_token.values()) == pytest.approx(1.0)
    assert len(two.choices[0].first_token) > 2, "tokens that are written alike are one"
    assert {"yes", "yesterday", "no"} >= set(texts(many)) and {c.finish for c in many.choices} == {"stop"}
    assert isinstance(refused, CallFailed) and refused.kind == "bad_request"


def test_reading_without_reuse_says_the_same(llama: Path):
    loaded = network.load(llama, dtype=None)
    rows = [prefixes.tokens_of(encode(loaded.tokenizer, c.messages, template=None, generation_prompt=True))
            for c in judge_calls(random.Random(8), 2)]  # fmt: skip
    with torch.inference_mode():
        found = []
        for reuse in (True, False):
            reader = reading.Reader(loaded, reuse=reuse)
            read = {one.place: one.logits for one in reader.read(rows, ["m"] * len(rows)) if isinstance(one, reading.Read)}
            found.append(torch.stack([read[place] for place in range(len(rows))]))
    assert torch.allclose(*found, atol=1e-4)


# The small real model


@pytest.mark.slow
def test_the_real_model_talks_sense_and_follows_its_seed(real: Path, tmp_path: Path):
    capital = Request(user("What is the capital of France?"), temperature=0.0, max_tokens=40)
    fruits = Request(user("Name three fruits."), n=3, temperature=1.0, max_tokens=30, seed=7)
    again = Request(user("Name three fruits."), n=3, temperature=1.0, max_tokens=30, seed=7)
    one, two, three = ask(make(real, tmp_path), capital, fruits, again)
    assert "Paris" in one.choices[0].text and one.choices[0].finish == "stop" and "<|im_end|>" not in one.choices[0].text
    assert texts(two) == texts(three) and len(set(texts(two))) == 3
    assert 0 < two.completion_tokens <= 90


@pytest.mark.slow
def test_the_real_model_is_the_gguf_file(real: Path, tmp_path: Path):
    """llama.cpp, which rounds more, finds about the same tokens likely."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is missing: pip install 'rlaif[gguf]'")
    request = Request(user("What is the capital of France?"), temperature=1.0, max_tokens=1, logprobs=20)

    async def run() -> Reply:
        models = Models(concurrency=1, timeout_s=100)
        try:
            return await models.open("smollm2").send(request, Books())
        finally:
            await models.close()

    theirs = asyncio.run(run())
    (ours,) = ask(make(real, tmp_path), request)
    assert ours.prompt_tokens == theirs.prompt_tokens
    likely = dict(theirs.choices[0].first_token or {})
    assert {token: ours.choices[0].first_token.get(token, 0.0) for token in likely} == pytest.approx(likely, abs=0.03)


@pytest.mark.slow
def test_real_verdicts_are_those_of_a_plain_forward_pass(real: Path):
    loaded = network.load(real, dtype=None)
    calls = judge_calls(random.Random(5), 2)
    found = answers(chat_of(loaded), calls)
    for call, answered in zip(calls, found, strict=True):
        ids = encode(loaded.tokenizer, call.messages, template=None, generation_prompt=True)
        wanted = plain_logits(loaded, ids).log_softmax(-1).topk(20)
        listed = answered.choices[0]["logprobs"]["content"][0]["top_logprobs"]
        assert [one["logprob"] for one in listed] == pytest.approx(wanted.values.tolist(), abs=2e-3)


@pytest.mark.slow
def test_a_run_with_the_real_model_offline(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refuse(*_: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    prompts = ["Name a colour in one sentence.", "用一句话说一种水果。", "What is 2 + 2?"]
    settings: dict[str, Any] = {"policy": f"hf/{real}", "judge": "pairwise", "n": 3, "max_tokens": 60, "allow_truncated": True}
    summary = rlaif.generate(prompts, out=tmp_path / "run", **settings).wait()
    assert summary["state"] == "done" and summary["calls"] == {"policy": 3, "judge": 18, "reused": 0}
    assert summary["no_verdict_rate"] == 0.0 and summary["cost_usd"] == 0.0
    written = (tmp_path / "run" / "dpo.jsonl").read_bytes()
    assert len(read_rows(tmp_path / "run" / "dpo.jsonl")) == summary["pairs"] > 0
    again = rlaif.generate(prompts, out=tmp_path / "run", **settings)
    assert again.wait()["calls"] == {"policy": 0, "judge": 0, "reused": 21}
    assert (tmp_path / "run" / "dpo.jsonl").read_bytes() == written
