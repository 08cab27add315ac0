"""Transformers models in this process: tiny ones of three kinds in real folders, and the small real model, converted once.

Nothing is faked but memory that runs out: a wrapper around the network raises torch's own error. Skipped where
transformers is missing; the real model's tests also where its weights are.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from helpers import Books, environment, read_rows

import rlaif
from rlaif.errors import CallFailed, InputError, StopRun
from rlaif.models import Models, catalog, convert, hf, smollm2
from rlaif.models.hf import files, prefixes
from rlaif.models.hf.chat_text import encode
from rlaif.models.hf.worker import Job
from rlaif.types import Reply, Request

torch = pytest.importorskip("torch", reason="torch is missing: pip install 'rlaif[local]'")
transformers = pytest.importorskip("transformers", reason="transformers is missing: pip install 'rlaif[local]'")

from rlaif.models.hf import network, pick, reading, running  # noqa: E402 - they need torch

KINDS = ("llama", "mistral", "gpt2")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other, where others use the cores, take a hundred times as long over tiny matrices."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_chat(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_chat(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def real() -> Path:
    """The small real model for transformers."""
    if smollm2.find() is None:
        pytest.skip("the weights are missing: rlaif models get smollm2")
    return convert.get()


def user(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": text},)


def make(folder: Path, tmp_path: Path, **extra_body: Any) -> hf.Hf:
    return hf.make(str(folder), cache=tmp_path / "digests.json", concurrency=64, extra_body=extra_body)


def ask(model: hf.Hf, *requests: Request) -> list[Any]:
    """The replies, or what was raised."""

    async def run() -> list[Any]:
        try:
            return await asyncio.gather(*(model.send(request, Books()) for request in requests), return_exceptions=True)
        finally:
            await model.close()

    return asyncio.run(run())


def texts(reply: Reply) -> list[str]:
    return [choice.text for choice in reply.choices]


# The engine without a loop: jobs that note what became of them


class Noted(Job):
    """A job whose outcome is kept."""

    __slots__ = ("gone", "outcome")

    def __init__(self, request: Request) -> None:
        self.work, self.begun, self.gone = request, False, False
        self.outcome: Any = None

    @property
    def dropped(self) -> bool:
        return self.gone

    def finish(self, result: Any) -> None:
        self.outcome = result

    def fail(self, error: BaseException) -> None:
        self.outcome = error


def chat_of(loaded: network.Network, **settings: Any) -> running.Chat:
    def tokenise(request: Request) -> list[int]:
        return encode(loaded.tokenizer, request.messages, template=None, generation_prompt=True)

    return running.Chat(loaded, tokenise, **settings)


def answers(chat: running.Chat, requests: Sequence[Request], *, late: Sequence[Request] = ()) -> list[Any]:
    """What each request came to; `late` ones join after three steps."""
    jobs, later = [Noted(request) for request in requests], [Noted(request) for request in late]
    chat.take(list(jobs))
    steps = 0
    while chat.step() or (later and steps < 3):
        steps += 1
        if steps == 3:
            chat.take(list(later))
    return [job.outcome for job in (*jobs, *later)]


def said(answered: running.Answered) -> list[str]:
    return [choice["message"]["content"] for choice in answered.choices]


def plain_logits(loaded: network.Network, ids: Sequence[int]) -> Any:
    """One forward pass of transformers alone."""
    with torch.inference_mode():
        return loaded.model(input_ids=torch.tensor([list(ids)])).logits[0, -1].float()


PROMPTS = [user(text) for text in ("Hi", "Say something about rivers, lakes and the sea.", "x" * 90, "Name a colour.", "?")]


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


def judge_calls(rng: random.Random, marks: int) -> list[Request]:
    """The calls of some prompts' pairwise judges: a common beginning, then the prompt, then two answers in both orders."""
    calls = []
    for number in range(marks):
        task = f"Which is better? Be fair and brief. Question {number}: " + "why " * rng.randint(5, 20)
        candidates = ["".join(rng.choices("abcdefgh ", k=rng.randint(1, 60))) for _ in range(3)]
        for a in candidates:
            for b in candidates:
                if a != b:
                    text = f"{task}\n{number:012d} A: {a}\n{number:012d} B: {b}\nAnswer:"
                    calls.append(Request(user(text), temperature=1.0, max_tokens=1, logprobs=20, mark=f"{number:012d}"))
    return calls


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


# Limits


def test_lengths_ends_and_what_does_not_fit_the_window(llama: Path, tmp_path: Path):
    short = Request(user("Hi"), n=2, temperature=1.0, max_tokens=5, seed=1)
    endless = Request(user("Hi"), temperature=0.0)
    long = Request(user("a" * 600), max_tokens=3)
    tool = Request(({"role": "tool", "content": "x"},), max_tokens=3)
    five, whole, too_long, refused = ask(make(llama, tmp_path), short, endless, long, tool)
    assert five.completion_tokens <= 10 and {c.finish for c in five.choices} <= {"length", "stop"}
    assert whole.prompt_tokens + whole.completion_tokens <= 512
    assert isinstance(too_long, CallFailed) and too_long.kind == "too_long" and "512" in str(too_long)
    assert isinstance(refused, CallFailed) and refused.kind == "bad_request" and "no tools here" in str(refused)


class Limited:
    """A network for which memory runs out, as torch says it, when so many numbers of states go in at once."""

    def __init__(self, model: Any, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.model, self.most, self.error, self.refused = model, most, error, 0

    def __call__(self, **inputs: Any) -> Any:
        if inputs["attention_mask"].numel() > self.most:
            self.refused += 1
            raise self.error("CUDA out of memory. Tried to allocate more than there is")
        return self.model(**inputs)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_when_memory_runs_out_less_is_done_at_once_and_nothing_else_changes(llama: Path, error: type[Exception]):
    loaded = network.load(llama, dtype=None)
    requests = [Request(p, n=3, temperature=1.0, max_tokens=40, seed=i) for i, p in enumerate(PROMPTS)]
    requests += judge_calls(random.Random(1), 1)
    wanted = answers(chat_of(loaded), requests)
    loaded.model = Limited(loaded.model, 420, error)
    chat = chat_of(loaded)
    found = answers(chat, requests)
    for ours, theirs, request in zip(found, wanted, requests, strict=True):
        assert request.logprobs or said(ours) == said(theirs)
        if request.logprobs:
            ours, theirs = (one.choices[0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] for one in (ours, theirs))
            assert ours == pytest.approx(theirs, abs=1e-4)
    refused = loaded.model.refused
    assert 0 < refused < 12 and chat.most_rows < running.CPU_ROWS
    answers(chat, requests[:5])
    assert loaded.model.refused - refused <= 2, "the size that worked is remembered"


def test_one_that_does_not_fit_alone_fails_alone(llama: Path):
    loaded = network.load(llama, dtype=None)
    loaded.model = Limited(loaded.model, 80)
    big = Request(user("b" * 100), n=2, temperature=0.0, max_tokens=5)
    grows = Request(user("c"), temperature=0.0, max_tokens=200)
    small = Request(user("d"), n=2, temperature=1.0, max_tokens=20, seed=1)
    first, second, third = answers(chat_of(loaded), [big, grows, small])
    assert isinstance(first, CallFailed) and "memory" in str(first)
    assert isinstance(second, CallFailed) or second.choices[0]["finish_reason"] == "stop"
    assert isinstance(third, running.Answered) and len(third.choices) == 2


def test_another_error_of_the_network_is_not_taken_for_memory(llama: Path):
    loaded = network.load(llama, dtype=None)
    loaded.model = Limited(loaded.model, 0, ValueError)
    with pytest.raises(ValueError, match="out of memory"):
        answers(chat_of(loaded), [Request(user("Hi"), max_tokens=3)])


def test_a_short_answer_does_not_wait_for_long_ones(llama: Path):
    loaded = network.load(llama, dtype=None)
    chat = chat_of(loaded)
    long = [Noted(Request(p, n=2, temperature=1.0, max_tokens=300, seed=i)) for i, p in enumerate(PROMPTS)]
    short, verdict = Noted(Request(user("Hi"), max_tokens=3, seed=1)), Noted(judge_calls(random.Random(1), 1)[0])
    chat.take(list(long))
    for _ in range(5):
        chat.step()
    chat.take([short, verdict])
    for _ in range(3):
        chat.step()
    assert short.outcome is not None and verdict.outcome is not None
    assert sum(job.outcome is None for job in long) >= 3
    for job in long:
        job.gone = True
    assert chat.step() is False, "what nobody waits for is dropped"


def test_stopping_ends_what_waits_and_lets_what_runs_end(llama: Path, tmp_path: Path):
    async def run() -> list[Any]:
        model = make(llama, tmp_path)
        running_ = [asyncio.ensure_future(model.send(Request(p, n=30, max_tokens=60, seed=1), Books())) for p in PROMPTS]
        while model.state()["in_flight"] == 0:
            await asyncio.sleep(0.001)
        model.stop(StopRun("budget", "no more"))
        with pytest.raises(StopRun, match="no more"):
            await model.send(Request(user("late")), Books())
        found = await asyncio.gather(*running_, return_exceptions=True)
        await model.close()
        return found

    found = asyncio.run(run())
    ended = [one for one in found if isinstance(one, Reply)]
    stopped = [one for one in found if isinstance(one, StopRun) and one.kind == "budget"]
    assert ended and stopped and len(ended) + len(stopped) == len(PROMPTS)


def test_closing_ends_every_call_and_the_loop_goes_on_meanwhile(llama: Path, tmp_path: Path):
    async def run() -> tuple[list[Any], float]:
        model = make(llama, tmp_path)
        calls = [asyncio.ensure_future(model.send(Request(p, n=8, max_tokens=400, seed=1), Books())) for p in PROMPTS]
        calls[0].cancel()
        longest, last = 0.0, time.monotonic()
        while model.state()["in_flight"] == 0:
            await asyncio.sleep(0.001)
        for _ in range(100):
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await model.close()
        return await asyncio.gather(*calls, return_exceptions=True), longest

    found, _ = asyncio.run(run())
    assert isinstance(found[0], asyncio.CancelledError)
    assert {one.kind for one in found[1:] if isinstance(one, StopRun)} <= {"closed"}
    assert all(isinstance(one, (StopRun, Reply)) for one in found[1:])


# Files


def test_a_folder_is_known_by_what_is_in_it(llama: Path, tmp_path: Path):
    cache = tmp_path / "digests.json"
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    (copy / "README.md").write_text("other words")
    assert files.digest_of(llama, cache) == files.digest_of(copy, cache) == files.digest_of(copy, tmp_path / "none" / "d.json")
    config = copy / "generation_config.json"
    config.write_text(config.read_text().replace("257", "256"))
    assert files.digest_of(llama, cache) != files.digest_of(copy, cache)
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    named = [make(llama, tmp_path, **extra).identity for extra in ({}, {"top_p": 0.9}, {"chat_template": str(template)})]
    assert len({json.dumps(identity, sort_keys=True) for identity in named}) == 3
    (before,) = ask(make(llama, tmp_path, chat_template=str(template)), Request(user("12345"), max_tokens=1))
    assert before.prompt_tokens == 5


def damaged(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "header":
        weights.write_bytes(weights.read_bytes()[:8] + b"#" * (weights.stat().st_size - 8))
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "no weights":
        weights.unlink()
    elif how == "shard":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    elif how == "config":
        (folder / "config.json").write_text("{")
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "base":
        (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("cut", "model.safetensors' has .* bytes and should have"),
        ("header", "model.safetensors'"),
        ("empty", "model.safetensors' is cut"),
        ("no weights", "there are no weights"),
        ("shard", "model-00001-of-00002.safetensors', which .* lists, is missing"),
        ("config", "'config.json' is no JSON"),
        ("no config", "'config.json' is missing"),
        ("no tokenizer", "there is no tokenizer"),
        ("base", """has no chat template.* --extra-body '{"chat_template": "FILE"}'"""),
    ],
)
def test_a_damaged_folder_is_refused_before_it_is_loaded(llama: Path, tmp_path: Path, how: str, names: str):
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    damaged(copy, how)
    with pytest.raises(InputError, match=names):
        make(copy, tmp_path)


@pytest.mark.parametrize("how", ["a weight is missing", "the tokenizer is broken"])
def test_what_only_loading_finds_stops_the_run_with_the_folder_named(llama: Path, tmp_path: Path, how: str):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    if how == "a weight is missing":
        weights = load_file(copy / "model.safetensors")
        weights.pop("model.norm.weight")
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    else:
        (copy / "tokenizer.json").write_text('{"model": 1}')
    first, second = ask(make(copy, tmp_path), Request(user("Hi")), Request(user("Ho")))
    for found in (first, second):
        assert isinstance(found, StopRun) and found.kind == "model" and str(copy) in str(found)
    assert how != "a weight is missing" or "model.norm.weight" in str(first)


def test_names_that_mean_no_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, why in (
        ("./nowhere", "there is no folder"),
        ("a/b/c", "no folder"),
        ("own er/na me", "neither a folder nor an ID"),
    ):
        with pytest.raises(InputError, match=why):
            hf.make(name, cache=tmp_path / "d.json", concurrency=1, extra_body=None)
    with pytest.raises(InputError, match="a transformers model takes top_k"):
        hf.make(".", cache=tmp_path / "d.json", concurrency=1, extra_body={"frequency_penalty": 1})
    with pytest.raises(InputError, match="cannot be fetched"):
        catalog.get("hf/other")


OFFLINE = """
import socket, sys
def refuse(*_): raise OSError("no network in this test")
socket.socket.connect = refuse
import asyncio
from pathlib import Path
from rlaif.errors import InputError
from rlaif.models import Models
models = Models(concurrency=4, timeout_s=9)
model = models.open("hf/owner/tiny")
print(model.name, model.identity["hf"])
try:
    models.open("hf/owner/other")
except InputError as error:
    print(error)
"""


def test_a_hub_id_is_taken_from_the_local_cache_without_the_network(llama: Path, tmp_path: Path):
    snapshot = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(llama, snapshot)
    (tmp_path / "hub" / "models--owner--tiny" / "refs").mkdir()
    (tmp_path / "hub" / "models--owner--tiny" / "refs" / "main").write_text("0" * 40)
    env = environment(HF_HUB_CACHE=str(tmp_path / "hub"), RLAIF_CACHE=str(tmp_path / "cache"))
    command = [sys.executable, "-W", "error", "-c", OFFLINE]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    name, other = done.stdout.strip().split("\n")
    assert name == f"hf/owner/tiny {files.digest_of(llama, tmp_path / 'd.json')}"
    assert "'hf/owner/other' is neither a folder nor in the local hub cache, and cannot be fetched" in other


def test_without_the_extra_the_line_to_install_it_is_named(llama: Path, tmp_path: Path):
    code = (
        "import sys, importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name in ('torch', 'transformers') else find(name, *more)\n"
        "from rlaif.models import Models, catalog\nfrom rlaif.errors import InputError\n"
        "try:\n    Models(concurrency=1, timeout_s=1).open(sys.argv[1])\nexcept InputError as error:\n    print(error)\n"
        "print(dict(catalog.known())['hf/ID_OR_DIR'])"
    )
    command = [sys.executable, "-c", code, f"hf/{llama}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["transformers models need torch, transformers: pip install 'rlaif[local]'"] * 2


def test_precision_is_set_by_name(llama: Path, tmp_path: Path):
    one, two = (network.load(llama, dtype=kind) for kind in (None, "bfloat16"))
    assert (one.model.dtype, two.model.dtype) == (torch.float32, torch.bfloat16)
    assert two.token_bytes * 2 == one.token_bytes == 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, size, bytes
    (reply,) = ask(make(llama, tmp_path, dtype="bfloat16"), Request(user("Hi"), max_tokens=4, temperature=0.0))
    assert reply.completion_tokens in range(1, 5)


def test_a_model_with_other_states_than_keys_and_values_is_refused(tmp_path: Path):
    config = transformers.MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=1, state_size=4, eos_token_id=257)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mamba")
    tiny.save_tokenizer(tmp_path / "mamba")
    (found,) = ask(make(tmp_path / "mamba", tmp_path), Request(user("Hi")))
    assert isinstance(found, StopRun) and "openai/NAME@URL" in str(found)


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
