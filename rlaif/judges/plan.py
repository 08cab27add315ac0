"""A judge that is known to be usable, and how it is built; a judge that counts more or less than others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rlaif.calls import Tally
from rlaif.errors import StopRun
from rlaif.ledger import Ledger
from rlaif.types import Answers, Candidate, Judge, Prompt, Schedule, Verdict

Build = Callable[[Answers | None, Ledger, Tally], Judge]


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """A judge that is known to be usable: `model` is the chat model it needs, if any, `arity` and `schedule` as of `Judge`.

    `constitution` is the name of the one that it reads; `rubric` is a digest of all that it is told of how to judge: that
    constitution's text, how much of it a call has, and the templates. Both are None for a judge that reads none. `check` builds
    the judge that planted checks ask in its stead, None where there are none for it. For a forecast: about how many tokens its
    own words are, and whether it asks for a bare option with log-probabilities.
    """

    model: str | None
    arity: int | None
    schedule: Schedule
    build: Build
    template_tokens: int = 0
    letter: bool = False
    check: Build | None = None
    constitution: str | None = None
    rubric: str | None = None

    def weighted(self, weight: float) -> JudgePlan:
        """The plan of the same judge, whose verdicts count `weight` times."""

        def build(answers: Answers | None, ledger: Ledger, tally: Tally) -> Judge:
            return Weighted(self.build(answers, ledger, tally), weight)

        return self if weight == 1.0 else replace(self, build=build)


class Weighted:
    """A judge whose verdicts count `weight` times."""

    def __init__(self, judge: Judge, weight: float) -> None:
        self.inner, self._weight = judge, weight
        self.arity, self.schedule = judge.arity, judge.schedule
        self.digest = f"{judge.digest}*{weight:g}"

    @property
    def name(self) -> str:
        """The judge's own."""
        return self.inner.name

    @name.setter
    def name(self, name: str) -> None:
        self.inner.name = name

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict | None:
        """The judge's verdict, with the weight."""
        said = await self.inner(prompt, shown, among)
        return said and replace(said, weight=said.weight * self._weight)

    def stop(self, reason: StopRun) -> None:
        """Stops the judge."""
        self.inner.stop(reason)

    async def close(self) -> None:
        """Closes the judge."""
        await self.inner.close()
