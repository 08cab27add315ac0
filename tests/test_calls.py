"""Buying an answer once: a real ledger in front of a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import Room
from hypothesis import given
from hypothesis import strategies as st

from rlaif.calls import Client, Tally, _runs
from rlaif.errors import CallFailed, StopRun, Unsupported
from rlaif.ledger import Ledger
from rlaif.models import Models
from rlaif.types import Choice, Request

ASKED = Request(({"role": "user", "content": "Why?"},), temperature=1.0, max_tokens=9)


def session(
    room: Room, directory: Path, work: Callable[[Client], Awaitable[Any]], *, role: str = "policy"
) -> tuple[Any, Tally]:
    """One process's worth of calls; returns what `work` returned and the tally."""

    async def run() -> Any:
        ledger, models, tally = Ledger.open(directory), Models(concurrency=8, timeout_s=10.0), Tally()
        try:
            return await work(Client(models.open(room.model()), ledger, tally, role=role)), tally
        finally:
            await models.close()
            ledger.close()

    found: tuple[Any, Tally] = asyncio.run(run())
    return found


def texts(choices: list[Choice | CallFailed]) -> list[str]:
    return [c.text for c in choices if isinstance(c, Choice)]


async def draw(client: Client, n: int, *, prompt_id: str = "p", seed: int = 0, request: Request = ASKED) -> list[str]:
    return texts(await client.samples(request, prompt_id=prompt_id, n=n, run_seed=seed))


def test_one_response_fills_n_keys_and_is_never_bought_again(room: Room, tmp_path: Path) -> None:
    first, tally = session(room, tmp_path, lambda client: draw(client, 4))
    assert (len(set(first)), room.count(), tally.policy, tally.reused) == (4, 1, 1, 0)
    again, tally = session(room, tmp_path, lambda client: draw(client, 4))
    assert (again, room.count(), tally.policy, tally.reused) == (first, 1, 0, 1)
    more, tally = session(room, tmp_path, lambda client: draw(client, 6))
    assert (more[:4], room.count(), tally.policy) == (first, 2, 1)
    assert room.log()[1]["body"]["n"] == 2 and len(set(more)) == 6


def test_more_samples_than_a_response_holds(room: Room, tmp_path: Path) -> None:
    found, _ = session(room, tmp_path, lambda client: draw(client, 300))
    assert sorted(e["body"]["n"] for e in room.log()) == [44, 128, 128]
    assert len(set(found)) == 300
    assert session(room, tmp_path, lambda client: draw(client, 300))[0] == found and room.count() == 3


def test_the_seed_of_a_request_depends_on_run_prompt_and_first_index(room: Room, tmp_path: Path) -> None:
    async def work(client: Client) -> None:
        await draw(client, 1, prompt_id="p")
        await draw(client, 2, prompt_id="p")
        await draw(client, 1, prompt_id="q")

    session(room, tmp_path / "a", work)
    seeds = [e["body"]["seed"] for e in room.log()]
    assert len(set(seeds)) == 3 and all(0 <= s < 2**31 for s in seeds)
    session(room, tmp_path / "b", work)
    assert [e["body"]["seed"] for e in room.log()[3:]] == seeds
    session(room, tmp_path / "c", lambda client: draw(client, 1, seed=1))
    assert room.log()[-1]["body"]["seed"] not in seeds


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.5},
        {"max_tokens": 10},
        {"logprobs": 5},
        {"choices": ("A",)},
        {"messages": ({"role": "user", "content": "Why"},)},
        {"messages": ({"role": "system", "content": "Why?"}, *ASKED.messages)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_setting_is_another_call(room: Room, tmp_path: Path, changed: dict[str, Any]) -> None:
    async def work(client: Client) -> None:
        await client.answer(ASKED)
        await client.answer(replace(ASKED, **changed))
        await client.answer(ASKED)

    session(room, tmp_path, work)
    assert room.count() == 2


def test_equal_requests_at_once_share_one_call(room: Room, tmp_path: Path) -> None:
    async def work(client: Client) -> list[Choice]:
        return await asyncio.gather(*(client.answer(ASKED) for _ in range(5)))

    room.set(latency_s=0.05)
    found, tally = session(room, tmp_path, work)
    assert len({c.text for c in found}) == 1 and (room.count(), tally.policy) == (1, 1)


@pytest.mark.parametrize(("leaves", "calls"), [(0, 2), (1, 1), (2, 1)], ids=["buyer", "waiter", "last"])
def test_one_who_gives_up_leaves_the_call_to_the_others(room: Room, tmp_path: Path, leaves: int, calls: int) -> None:
    """If it is the one who buys, the next one who waits buys anew, once."""

    async def work(client: Client) -> list[Choice]:
        asking = [asyncio.ensure_future(client.answer(ASKED)) for _ in range(3)]
        await asyncio.sleep(0.05)
        asking.pop(leaves).cancel()
        return await asyncio.gather(*asking)

    room.set(latency_s=0.2)
    found, tally = session(room, tmp_path, work)
    assert len(found) == 2 and found[0].text and found[0] == found[1]
    assert (room.count(), tally.policy) == (calls, 1)


def test_those_who_give_up_together_buy_nothing_more(room: Room, tmp_path: Path) -> None:
    """Those who share the call of one who waits in line, and all are cancelled in one turn, as at the end of a run."""

    async def work(client: Client) -> list[Choice | BaseException]:
        busy = [asyncio.ensure_future(client.answer(replace(ASKED, temperature=k / 10))) for k in range(8)]
        asking = [asyncio.ensure_future(client.answer(ASKED)) for _ in range(3)]
        await asyncio.sleep(0.05)
        for task in asking:
            task.cancel()
        ended = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 5)
        await asyncio.gather(*busy)
        return ended

    room.set(latency_s=0.2)
    ended, _ = session(room, tmp_path, work)
    assert [type(e) for e in ended] == [asyncio.CancelledError] * 3 and room.count() == 8


def test_nothing_is_bought_when_all_give_up_together(room: Room, tmp_path: Path) -> None:
    async def work(client: Client) -> list[Any]:
        asking = [asyncio.ensure_future(client.answer(ASKED)) for _ in range(3)]
        await asyncio.sleep(0.05)
        for one in asking:
            one.cancel()
        found = await asyncio.gather(*asking, return_exceptions=True)
        await asyncio.sleep(0.1)
        return found

    room.set(latency_s=0.2)
    found, tally = session(room, tmp_path, work)
    assert [type(one) for one in found] == [asyncio.CancelledError] * 3
    assert (room.count(), tally.policy) == (1, 0)


def test_a_failure_is_everybodys_who_shares_the_call(room: Room, tmp_path: Path) -> None:
    async def work(client: Client) -> list[Any]:
        return await asyncio.gather(*(client.answer(ASKED) for _ in range(3)), return_exceptions=True)

    room.set(failure="too_long", latency_s=0.05)
    found, _ = session(room, tmp_path, work)
    assert [getattr(one, "kind", one) for one in found] == ["too_long"] * 3 and room.count() == 1


def test_the_delimiter_is_no_part_of_a_calls_key(room: Room, tmp_path: Path) -> None:
    async def work(client: Client) -> None:
        for mark in ("0a1b2c", "ffffff"):
            messages = ({"role": "user", "content": f"[{mark} request] Why? [{mark} end]"},)
            await client.answer(Request(messages, mark=mark))

    session(room, tmp_path, work)
    assert room.count() == 1


def test_a_failed_call_is_stored_and_final(room: Room, tmp_path: Path) -> None:
    room.set(failure="too_long")

    async def work(client: Client) -> tuple[str, list[str]]:
        with pytest.raises(CallFailed) as failed:
            await client.answer(ASKED)
        found = await client.samples(ASKED, prompt_id="p", n=2, run_seed=0)
        return failed.value.kind, [f.kind for f in found if isinstance(f, CallFailed)]

    assert session(room, tmp_path, work)[0] == ("too_long", ["too_long"] * 2)
    room.set()
    assert session(room, tmp_path, work)[0] == ("too_long", ["too_long"] * 2)
    assert room.count() == 2


def test_a_stop_is_not_stored(room: Room, tmp_path: Path) -> None:
    async def stopped(client: Client) -> None:
        with pytest.raises(StopRun):
            await client.samples(ASKED, prompt_id="p", n=2, run_seed=0)

    room.set(failure="auth")
    session(room, tmp_path, stopped)
    assert room.count() == 2, "a refused key is asked once more"
    room.set()
    assert len(session(room, tmp_path, lambda client: draw(client, 2))[0]) == 2


def test_refused_logprobs_are_the_callers_to_handle_and_not_stored(room: Room, tmp_path: Path) -> None:
    request = replace(ASKED, logprobs=5)

    async def refused(client: Client) -> None:
        for _ in range(2):
            with pytest.raises(Unsupported) as unsupported:
                await client.answer(request)
            assert unsupported.value.kind == "logprobs"

    room.set(refuses="logprobs")
    session(room, tmp_path, refused, role="judge")
    assert room.count() == 1
    room.set()
    assert session(room, tmp_path, lambda client: client.answer(request), role="judge")[0].first_token


@pytest.mark.timeout(60)
def test_an_endpoint_may_say_what_is_no_text(room: Room, tmp_path: Path) -> None:
    room.set(failure="surrogate")

    async def refused(client: Client) -> tuple[str, str]:
        with pytest.raises(CallFailed) as failed:
            await client.answer(ASKED)
        return failed.value.kind, str(failed.value).encode("utf-8", "replace").decode()

    first, _ = session(room, tmp_path, refused)
    assert first[0] == "bad_request" and "no text: ?" in first[1]
    assert session(room, tmp_path, refused)[0] == first and room.count() == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("usage", ["missing", "huge"])
def test_tokens_that_are_no_count_are_unknown(room: Room, tmp_path: Path, usage: str) -> None:
    room.set(usage=usage)
    found, tally = session(room, tmp_path, lambda client: draw(client, 3))
    assert len(found) == 3 and (tally.prompt_tokens, tally.completion_tokens) == (0, 0)
    with closing(Ledger.read(tmp_path)) as ledger:
        (spend,) = ledger.spend()
    assert (spend.calls, spend.uncounted, spend.prompt_tokens, spend.completion_tokens) == (1, 1, 0, 0)
    assert spend.guessed_prompt_tokens > 0 and spend.guessed_completion_tokens > 0


# What a 400 teaches


def test_a_refusal_of_another_field_costs_no_temperature(room: Room, tmp_path: Path) -> None:
    room.set(refuses="messages", refusal="Unknown role: temperature is a word that we do not support.")

    async def twice(client: Client) -> tuple[list[str], list[str]]:
        refused = await draw(client, 2, prompt_id="p")
        room.set()
        return refused, await draw(client, 2, prompt_id="q")

    (refused, fine), _ = session(room, tmp_path, twice)
    assert (len(refused), len(fine), room.count()) == (0, 2, 2)
    assert [e["body"]["temperature"] for e in room.log()] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("max_tokens", "This field is not supported here."),
        ("n", "One answer only, please."),
        ("temperature", "Unsupported value: only the default is allowed."),
        ("seed", "Extra inputs are not permitted."),
    ],
)
def test_a_refusal_that_names_its_field_is_learned_whatever_it_says(room: Room, tmp_path: Path, name: str, words: str) -> None:
    room.set(refuses=name, refusal=words)
    assert len(session(room, tmp_path, lambda client: draw(client, 2))[0]) == 2
    assert [name in e["body"] for e in room.log()] == [True] + [False] * (2 if name == "n" else 1)
    if name == "max_tokens":
        assert room.log()[1]["body"]["max_completion_tokens"] == 9


@pytest.mark.timeout(60)
@pytest.mark.parametrize("named", ["model", "max_tokens", "max_completion_tokens", "n", "temperature", "seed", "logprobs"])
@pytest.mark.parametrize("words", ["", "'n' and max_completion_tokens are unknown here."])
def test_a_refusal_that_nothing_helps_against_is_a_failure(room: Room, tmp_path: Path, named: str, words: str) -> None:
    room.set(refuses="model", refusal_param=named, refusal=words)
    assert session(room, tmp_path, lambda client: draw(client, 2))[0] == []
    assert room.count() <= 3


def test_a_body_that_is_no_answer_is_kept_counted_and_asked_again(room: Room, tmp_path: Path) -> None:
    room.set(fault_first=1, faults="no_choices")
    found, tally = session(room, tmp_path, lambda client: draw(client, 2))
    assert (len(found), room.count(), tally.policy, tally.faults) == (2, 2, 1, 1)
    assert session(room, tmp_path, lambda client: draw(client, 2))[0] == found and room.count() == 2
    with closing(Ledger.read(tmp_path)) as ledger:
        assert (ledger.faults(), ledger.maybe_lost()) == ({"bad_body": 1}, 1)


def test_more_choices_than_asked_for_do_no_harm(room: Room, tmp_path: Path) -> None:
    room.set(missing_choices=-2)
    found, _ = session(room, tmp_path, lambda client: draw(client, 3))
    assert (len(found), room.count()) == (3, 1)
    assert session(room, tmp_path, lambda client: draw(client, 3))[0] == found


@given(st.sets(st.integers(0, 40)), st.integers(1, 7))
def test_runs_are_neighbours_in_order_and_no_longer_than_allowed(chosen: set[int], longest: int) -> None:
    runs = _runs(sorted(chosen), longest)
    assert [k for run in runs for k in run] == sorted(chosen)
    assert all(run == list(range(run[0], run[0] + len(run))) and len(run) <= longest for run in runs)
    assert all(b[0] != a[-1] + 1 or len(a) == longest for a, b in pairwise(runs))
