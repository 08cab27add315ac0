"""The judge that asks where it matters: one model under one constitution, in three forms (`rlaif.ranking.adaptive`).

Shown one candidate it rates, by the probabilities of the digits alone; shown two it compares; shown more it ranks. All verdicts
bear its one name: the fit tells the forms apart by how many were shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlaif.errors import StopRun
from rlaif.judges.llm import LlmJudge
from rlaif.keys import digest
from rlaif.types import Candidate, Prompt, Schedule, Verdict


class AdaptiveJudge:
    """Rates, compares or ranks what its schedule says. `duel`, `rate` and `rank` ask the same model, beside each other."""

    arity: int | None = 2

    def __init__(self, schedule: Schedule, *, duel: LlmJudge, rate: LlmJudge, rank: LlmJudge) -> None:
        self.name, self.schedule = duel.name, schedule
        self.digest = digest([repr(schedule), duel.digest, rate.digest, rank.digest])
        self.duel, self.rate, self.rank = duel, rate, rank

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict | None:
        """The verdict; None where one is shown and the model gives no probabilities of the ratings."""
        if len(shown) == 1:
            verdict = await self.rate.option(prompt, shown, among)
        else:
            verdict = await (self.duel if len(shown) == 2 else self.rank)(prompt, shown, among)
        return verdict and replace(verdict, judge=self.name)

    @property
    def given(self) -> int:
        """Replies with log-probabilities so far."""
        return self.duel.given + self.rate.given

    @property
    def missing_in_a_row(self) -> int:
        """The last replies that had none, of the form that lacks them longest."""
        return max(self.duel.missing_in_a_row, self.rate.missing_in_a_row)

    def stop(self, reason: StopRun) -> None:
        """Nothing waits here: the model is told."""

    async def close(self) -> None:
        """Nothing to free."""
