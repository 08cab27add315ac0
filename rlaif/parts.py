"""What a run works with: models, clients, judges, planted checks; and what may not change between two runs in a directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif import calibration
from rlaif.calls import Client, Tally
from rlaif.config import RunConfig
from rlaif.errors import InputError, StopRun
from rlaif.judges import JudgeLike, JudgePlan, resolve
from rlaif.judges.checks import Checks, Planted, planted_gold
from rlaif.keys import digest
from rlaif.ledger import Ledger
from rlaif.models import Models
from rlaif.prices import Budget
from rlaif.source import changes
from rlaif.templates import load_constitution
from rlaif.types import Judge


@dataclass(frozen=True)
class Opened:
    """The models and judges of a configuration, known to be usable; nothing is sent yet."""

    models: Models
    plans: list[JudgePlan]
    gold: list[Planted]

    @classmethod
    def of(cls, config: RunConfig, judges: Sequence[JudgeLike | JudgePlan]) -> Opened:
        """Those that `config` and `judges` name. Raises InputError."""
        plans: list[JudgePlan] = []
        for judge in judges:
            plans.extend([judge] if isinstance(judge, JudgePlan) else _resolve(judge, config))
        if not plans:
            raise InputError("no judge: give --judge")
        if config.against is not None:
            load_constitution(config.against)
            if not any(plan.constitution for plan in plans):
                raise InputError("--against compares constitutions, and no judge here reads one")
        if config.accept is not None:
            for plan in plans:
                if plan.arity not in (1, None):
                    raise InputError(
                        "--accept needs a judge that rates each answer by itself: pointwise, reward, rules or a function"
                    )
        gold = planted_gold(config.check_gold) if config.check_gold and config.checks else []
        models = Models(
            concurrency=config.concurrency,
            timeout_s=config.timeout_s,
            transport=config.transport,
            extra_body=config.extra_body,
            rpm=config.rpm,
            tpm=config.tpm,
            max_wait_s=config.max_wait_s,
            strict_model=config.strict_model,
        )
        for name in [*config.policy, *(plan.model for plan in plans if plan.model)]:
            models.open(name)
        policies = [models.open(name).identity for name in config.policy]
        if any(one in policies[:place] for place, one in enumerate(policies)):
            raise InputError("the same policy is named twice: raise -n for more samples of it")
        return cls(models, plans, gold)

    def facts(self, config: RunConfig) -> dict[str, Any]:
        """What may not change between two runs in one directory."""
        if config.command == "judge":
            return {"candidates": "given", "system": config.system}
        return {
            "candidates": "sampled",
            "policy": [dict(self.models.open(name).identity) for name in config.policy],
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "system": config.system,
            "seed": config.seed,
        }


def _resolve(judge: JudgeLike, config: RunConfig) -> list[JudgePlan]:
    return resolve(
        judge,
        model=config.judge_model,
        policy=next(iter(config.policy), None),
        constitution=config.constitution,
        principles=config.principles,
        seed=config.seed,
        timeout_s=config.judge_timeout_s,
        calls=config.judge_calls,
        aim="best" if config.aims_at_best else "gap",
    )


@dataclass(frozen=True)
class Parts:
    """What a run works with: `window` prompts at once keep it busy. `checks` are by the name of their report in the
    ledger, `check_tally` counts what they buy. `constitution` is the name of the one that the judges go by, if any does,
    and `rubric` a digest of all that they are told of how to judge.
    """

    policies: list[Client]
    judges: list[Judge]
    clients: list[Client]
    window: int
    checks: dict[str, Checks]
    check_tally: Tally
    constitution: str | None
    rubric: str | None

    def check_calibration(self, file: str | None) -> None:
        """Raises InputError if the calibration, where there is one, is not of these judges."""
        if file is not None:
            name = "+".join(dict.fromkeys(judge.name.partition("#")[0] for judge in self.judges))
            calibration.load(file).slope(name, self.rubric)

    def degenerate(self) -> StopRun | None:
        """Why the run should not go on with its judges."""
        for check in self.checks.values():
            if check.degenerate is not None:
                return StopRun(
                    "judge_degenerate",
                    f"the judge {check.name!r} is of no use: {check.degenerate}. Choose another --judge-model or --judge,"
                    " or go on all the same with --accept-judge",
                )
        return None

    def checked(self) -> dict[str, Any]:
        """What planted checks bought and showed, for the summary."""
        calls = {"judge": self.check_tally.judge, "reused": self.check_tally.reused}
        return {"calls": calls, "judges": [check.report() for check in self.checks.values()]}


def compose(opened: Opened, config: RunConfig, ledger: Ledger, tally: Tally, budget: Budget) -> Parts:
    """The parts of a run on the ledger."""
    models, plans = opened.models, opened.plans
    policies = [Client(models.open(name), ledger, tally, role="policy", budget=budget) for name in config.policy]
    drivers = {p.model: Client(models.open(p.model), ledger, tally, role="judge", budget=budget) for p in plans if p.model}
    judges = [p.build(drivers[p.model] if p.model else None, ledger, tally) for p in plans]
    _name_apart(judges)
    clients = [*policies, *drivers.values()]
    window = max((client.window for client in clients), default=config.concurrency)
    checks, checked = dict[str, Checks](), Tally()
    for plan, judge in zip(plans, judges, strict=True) if config.checks else ():
        if plan.check is not None:
            asked = Client(models.open(plan.model), ledger, checked, role="judge", budget=budget) if plan.model else None
            checks[f"checks {judge.digest}"] = Checks(
                judge, plan.check(asked, ledger, checked), opened.gold, rates_in_points=plan.model is not None
            )
    constitution = next((plan.constitution for plan in plans if plan.constitution), None)
    rubrics = sorted({plan.rubric for plan in plans if plan.rubric})
    return Parts(policies, judges, clients, window, checks, checked, constitution, digest(rubrics) if rubrics else None)


def _name_apart(judges: Sequence[Judge]) -> None:
    """Gives judges of one name -2, -3, ...: verdicts are told apart by it."""
    seen: set[str] = set()
    for judge in judges:
        name, number = judge.name, 1
        while judge.name in seen:
            number += 1
            judge.name = f"{name}-{number}"
        seen.add(judge.name)


def spend(budget: Budget, clients: Sequence[Client]) -> dict[str, Any]:
    """What the directory's calls have used, for the summary: None if there are calls and none says what it used.

    The cost is unknown where a price is, whatever came of the calls.
    """
    spent, rows = budget.spent(), budget.rows()
    calls = sum(row.calls for row in rows)
    counted = calls == 0 or spent.uncounted < calls
    tokens = {
        "prompt": spent.prompt_tokens if counted else None,
        "completion": spent.completion_tokens if counted else None,
    }
    if spent.uncounted:
        tokens["calls_without_a_count"] = spent.uncounted
    priced = not budget.unpriced(client.billed for client in clients if not client.free)
    summary: dict[str, Any] = {"tokens": tokens, "cost_usd": spent.cost_usd if priced else None}
    if priced and spent.cost_usd is None and spent.cost_usd_guessed is not None:
        summary["cost_usd_guessed"] = spent.cost_usd_guessed
    return summary


def check_settings(ledger: Ledger, facts: dict[str, Any]) -> None:
    """Raises InputError with the difference if the directory's earlier run cannot be continued by this one."""
    for name, value in facts.items():
        text = ledger.meta(name)
        before = value if text is None else json.loads(text)
        if before != value:
            differences = "; ".join(changes(name, before, value))
            raise InputError(
                f"{str(ledger.directory)!r} was made with other settings: {differences}."
                " Set it back or choose another directory"
            )
