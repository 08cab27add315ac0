"""Which schedule of judge calls is worth its tokens: what a run's judge would ask for by each, what that costs and keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlaif import forecast, worth
from rlaif.config import RunConfig
from rlaif.judges import JudgePlan
from rlaif.ranking.adaptive import Adaptive
from rlaif.ranking.schedule import Elimination, Every, RandomPair, Swiss
from rlaif.tables import aligned
from rlaif.types import Schedule


def planned(config: RunConfig, sizes: Counter[int], plans: Sequence[JudgePlan], work: forecast.Work) -> dict[str, Any] | None:
    """What the first LLM judge would ask for by each schedule, at the most frequent number of candidates, `n`.

    None without such a judge. `rows` have, for each: judge `calls` and `tokens` a prompt, the whole run's `cost_usd` (None:
    unknown), the share `kept` of the gap that all pairs in both orders reach (`worth.kept`), whether the run `fits` its
    budgets (None without one), and whether it is the one `chosen`. `sizes` has the prompts by their candidates.
    """
    plan = next((plan for plan in plans if plan.model), None)
    n = max(sizes, key=lambda count: (sizes[count], count), default=0)
    if plan is None or n < 2 or (own := worth.name_of(plan.schedule)) is None:
        return None
    schedules: dict[str, Schedule] = {
        "random-pair": RandomPair(),
        "listwise": Every(4, 2),
        "pointwise": Every(1),
        "adaptive": Adaptive(rates=plan.letter),
        "elimination": Elimination(),
        "swiss": Swiss(),
        "pairwise": Every(2),
        own: plan.schedule,
    }
    return {
        "n": n,
        "rows": [
            {"judge": name, **_row(config, schedule, n, plan, work), "chosen": name == own}
            for name, schedule in schedules.items()
        ],
    }


def _row(config: RunConfig, schedule: Schedule, n: int, plan: JudgePlan, work: forecast.Work) -> dict[str, Any]:
    calls = schedule.calls(n)
    judges = [
        replace(work.judges[0], calls=float(count), shown=shown, letter=plan.letter and shown <= 2)
        for shown, count in calls.items()
    ]
    alone = forecast.forecast(replace(work, policies=[], judges=judges))["expected"]
    whole = forecast.forecast(replace(work, judges=judges))["expected"]
    share = worth.kept(schedule, n, soft=plan.letter)
    return {
        "calls": calls.total(),
        "tokens": round((alone["prompt_tokens"] + alone["completion_tokens"]) / max(1, work.prompts)),
        "cost_usd": whole["cost_usd"],
        "kept": None if share is None else round(share, 3),
        "fits": _fits(
            (config.budget_tokens, whole["prompt_tokens"] + whole["completion_tokens"]),
            (config.budget_usd, whole["cost_usd"]),
        ),
    }


def _fits(*limits: tuple[float | None, float | None]) -> bool | None:
    """Whether what is spent stays within each limit; None where there is none, or where it is not known."""
    known = [spent <= limit for limit, spent in limits if limit is not None and spent is not None]
    return all(known) if known else None


def lines(found: dict[str, Any] | None) -> list[str]:
    """The plan as a table that a person reads."""
    if found is None:
        return []
    budgeted = any(row["fits"] is not None for row in found["rows"])
    rows = [["judge", "calls", "tokens", "cost in USD", "gap kept", *(["in budget"] if budgeted else []), ""]]
    for row in found["rows"]:
        fits = {True: "yes", False: "no", None: "?"}[row["fits"]]
        kept = "?" if row["kept"] is None else f"{100 * row['kept']:.0f} %"
        shown = [row["judge"], f"{row['calls']:,}", f"{row['tokens']:,}", forecast.money(row["cost_usd"]), kept]
        rows.append([*shown, *([fits] if budgeted else []), "chosen" if row["chosen"] else ""])
    return [
        "",
        f"what a judge asks for {found['n']} candidates, calls and tokens a prompt at most:",
        *aligned(rows),
        "gap kept: of what all pairs in both orders reach between chosen and rejected, on simulated judges",
    ]
