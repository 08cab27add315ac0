"""kill -9 at any instant, then the same command: nothing that was acknowledged is lost or bought twice, and no byte differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Room
from killing import kills

pytestmark = pytest.mark.slow


@pytest.mark.timeout(280)
@pytest.mark.parametrize(("count", "seed"), [(5, 1), pytest.param(12, 2, marks=pytest.mark.slow)])
def test_kills_at_random_moments(new_room: Callable[[], Room], tmp_path: Path, count: int, seed: int) -> None:
    concurrency = 8
    found = kills(count, seed, room=new_room(), whole=new_room(), folder=tmp_path, concurrency=concurrency)
    assert found["kills"] == count
    assert (found["asked_again"], found["gone"]) == (0, 0), "an acknowledged answer was asked for again, or is gone"
    assert found["most_lost"] <= concurrency, "a kill costs more than the calls in flight"
    assert found["calls"] == found["needed"] and found["lost"] <= found["maybe_lost"]
    assert found["calls"] <= found["billed"] <= found["calls"] + found["maybe_lost"]
    assert found["maybe_lost"] <= count * concurrency + found["requests"] - found["needed"]
    assert (found["torn"], found["duplicates"], found["left_over"]) == (0, 0, [])
    assert found["same"], "the pairs are not those of a run that nobody killed"
    assert found["same_tokens"] and found["sound"]
    assert found["phases"]["buying"]["kills"] >= count / 4 and found["billed"] > found["calls"], "it was never killed at work"
