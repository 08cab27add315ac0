"""What a run would ask for and cost, before it is begun."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlaif import forecast, planner
from rlaif.calls import billed_as
from rlaif.config import RunConfig
from rlaif.judges import JudgePlan
from rlaif.ledger import Ledger
from rlaif.parts import Opened, check_settings
from rlaif.prices import FREE, Price, Prices, guess_message_tokens, guess_tokens, spent
from rlaif.source import Source

if TYPE_CHECKING:
    from rlaif.jobs import Run


def dry_run(run: Run, source: Source, opened: Opened, probed: Callable[[], Run] | None) -> dict[str, Any]:
    """Counts of calls, and `forecast.forecast`'s figures; `probed` runs the first prompts for real, if it is given."""
    config, models, plans = run.config, opened.models, opened.plans
    prices = Prices(config.prices)
    # Rejection sampling: the most that it may take, every answer judged by itself.
    n = config.n if config.accept is None else config.max_samples // max(1, len(config.policy))
    sizes, prompt_tokens, answer_tokens = Counter[int](), 0, 0
    for prompt, given in source.read():
        sizes[len(given) if config.command == "judge" else n * len(config.policy)] += 1
        prompt_tokens += guess_message_tokens(prompt.messages)
        answer_tokens += sum(guess_tokens(candidate.text) for candidate in given)
    prompts, answers = sizes.total(), sum(size * count for size, count in sizes.items())
    plans = plans * 2 if config.against is not None else plans  # once more, by the other constitution
    calls = [_judge_calls(config, sizes, plan) for plan in plans]

    def known(name: str) -> tuple[str, Price | None]:
        model = models.open(name)
        return billed_as(model), FREE if model.free else prices.of_model(billed_as(model))

    work = forecast.Work(
        prompts,
        prompt_tokens,
        n,
        [forecast.PolicyWork(*known(name), min(config.n, models.open(name).max_n)) for name in config.policy],
        [
            forecast.JudgeWork(billed, count / prompts, price, plan.template_tokens, plan.letter and shown <= 2, shown)
            for plan, asked in zip(plans, calls, strict=True)
            if plan.model
            for billed, price in [known(plan.model)]
            for shown, count in sorted(asked.items())
        ],
        config.max_tokens,
        config.concurrency,
        config.rpm,
        config.tpm,
        answer_tokens / answers if config.command == "judge" and answers else None,
    )
    measured = _probe(probed()) if probed is not None else None
    finished, spent_usd = _on_file(run, opened, prices)
    found = forecast.forecast(work, measured, seed=config.seed)
    if config.checks and any(plan.check is not None for plan in plans):
        found["assumed"].append("planted checks of a judge come on top: some ten calls, and two for one prompt of a hundred")
    if config.accept is not None:
        least = replace(
            work,
            prompts=min(prompts, config.target or prompts),
            n=config.n,
            judges=[replace(judge, calls=config.n * len(config.policy)) for judge in work.judges],
        )
        if measured is None:
            found["low"] = forecast.forecast(least, seed=config.seed)["low"]
        found["assumed"].append(f"every prompt takes all of its {config.max_samples} samples; low: its first ones are accepted")
    planned = planner.planned(config, sizes, plans, work) if config.accept is None else None
    return {
        "prompts": prompts,
        "finished": finished,
        "spent_usd": spent_usd,
        "policy_calls": prompts * sum(math.ceil(n / policy.max_n) for policy in work.policies),
        "judge_calls": sum(asked.total() for asked in calls),
        "judges": len(plans),
        "schedules": planned,
    } | found


def _judge_calls(config: RunConfig, sizes: Counter[int], plan: JudgePlan) -> Counter[int]:
    """How many groups of each size a judge is shown at most, over all prompts; `sizes` has the prompts by their candidates."""
    found = Counter[int]()
    for size, prompts in sizes.items():
        for shown, count in ({1: size} if config.accept is not None else plan.schedule.calls(size)).items():
            found[shown] += count * prompts
    return found


def _on_file(run: Run, opened: Opened, prices: Prices) -> tuple[int, float | None]:
    """How many prompts are finished in the directory, and what it has cost. Raises InputError if it is another run's."""
    if not (run.directory / "run.sqlite").exists():
        return 0, 0.0
    with closing(Ledger.read(run.directory)) as ledger:
        check_settings(ledger, opened.facts(run.config))
        return ledger.finished(run.config.limit)[0], spent(ledger.spend(), prices.of_model).cost_usd


def _probe(run: Run) -> forecast.Probe:
    """What each call of the run's prompts used, and how long calls of its role took on average."""
    tally = run.progress.tally
    seconds = {role: sum(times) / len(times) for role, times in tally.seconds.items() if times}
    with closing(Ledger.read(run.directory)) as ledger:
        calls = [
            [forecast.ProbeCall(use.role, use.model, *use.tokens, seconds.get(use.role), use.cached) for use in uses]
            for uses in ledger.uses(run.config.limit)
        ]
    return forecast.Probe(calls)
