"""Which comparisons are worth their tokens: what each schedule keeps of what all pairs in both orders reach.

Simulated judges of known truth. A candidate has a quality q; the judge prefers i to j, shown first, with the logit

    slope (q_i - q_j) + e_ij + bonus,    e_ij ~ N(0, pair_sd), fixed for the pair,

rates a candidate low + step q + N(0, rating_sd), fixed for the candidate, on 1 to 9, and ranks several by such a rating with
an error of its own, as much again by half for each order, and the bonus, in points, from the last to the first. Verdicts are

    soft    probabilities, and expected ratings with their fractions
    hard    the likelier answer is named, ratings are whole
    drawn   the named answer is drawn with the probability, ratings are whole

and in `hard` and `drawn` the judge gives no probabilities, so that `adaptive` ranks all together twice; `adaptive, rated` is
what it would do with whole ratings. `stated` is the setting by which the figures of the README are meant; no constant of the
schedule was chosen by any of the settings. The recorded ones have the lengths of real candidates, and as quality their scores:
from 0 for the worst to 1 for the best of the prompt, or `by rank`, the share of the file's candidates that score less, by which
the answers of a prompt may be much alike (gsm8k: right or wrong).

Columns: the calls and tokens of a prompt, in share of all pairs in both orders; gap, the mean true quality of chosen less that
of rejected, and what share of all pairs' gap that is, with its standard error; right, how often chosen is better than rejected,
in points more than with all pairs; regret, the quality of the best candidate less that of chosen.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from _server import ROOT, show, table

from rlaif.data import read_candidates
from rlaif.pairs import compared
from rlaif.prices import guess_tokens
from rlaif.ranking.adaptive import Adaptive, default_calls
from rlaif.ranking.bradley_terry import rank
from rlaif.ranking.schedule import Elimination, Every, RandomPair, Swiss
from rlaif.types import Candidate, Group, Prompt, Record, Schedule, Verdict

DATA = ROOT.parent / "shared" / "data" / "candidates"
QUESTION, ANSWER, SAID = 350, 250, {"soft": 1, "hard": 6, "drawn": 6}
"""Tokens of template, constitution and prompt; of an answer; of a verdict."""
FORMS = ("soft", "hard", "drawn")
LOOKS = {
    "all pairs": ("s", "#000000"),
    "adaptive": ("*", "#0072B2"),
    "pointwise": ("D", "#E69F00"),
    "listwise": ("^", "#56B4E9"),
    "all listed twice": ("v", "#56B4E9"),
    "swiss": ("P", "#D55E00"),
    "elimination": ("X", "#009E73"),
    "random pair": ("o", "#CC79A7"),
}
CAPS = (1.25, 1.5, 2.0, 3.0, 4.0)
COLUMNS = ("setting", "n", "verdicts", "schedule", "calls", "tokens %", "gap", "kept %", "+-", "right", "regret")


@dataclass(frozen=True)
class Setting:
    """A judge's noise, and how qualities are spread: uniformly, or by a normal distribution of this sd around 1/2."""

    name: str
    slope: float = 6.0
    pair_sd: float = 1.0
    bonus: float = 0.7
    low: float = 1.0
    step: float = 8.0
    rating_sd: float = 1.1
    quality_sd: float | None = None

    def qualities(self, draw: np.random.Generator, n: int) -> np.ndarray[Any, Any]:
        if self.quality_sd is None:
            return draw.random(n)
        return np.clip(0.5 + self.quality_sd * draw.standard_normal(n), 0.0, 1.0)


SETTINGS = (
    Setting("stated"),
    Setting("noisy", slope=4.0, pair_sd=1.5, bonus=1.5, rating_sd=1.8),
    Setting("sharp, lenient", slope=12.0, pair_sd=2.0, bonus=2.0, low=5.0, step=4.0, rating_sd=0.7),
    Setting("alike", quality_sd=0.2),
)


class SimulatedJudge:
    """What a judge of the setting says of one prompt's candidates: asked again, the same."""

    def __init__(self, setting: Setting, qualities: Sequence[float], form: str, draw: np.random.Generator) -> None:
        n = len(qualities)
        errors = setting.pair_sd * draw.standard_normal((n, n))
        q = np.array(qualities)
        logit = setting.slope * (q[:, None] - q) + np.triu(errors, 1) - np.triu(errors, 1).T + setting.bonus
        self.p = 1.0 / (1.0 + np.exp(-logit))  # [first shown, second shown]
        self.first_wins = draw.random((n, n)) < self.p if form == "drawn" else self.p > 0.5
        level, noise = setting.low + setting.step * q, setting.rating_sd * draw.standard_normal((4, n))
        rated = level + noise[0]
        self.rating = np.clip(rated if form == "soft" else np.rint(rated), 1.0, 9.0)
        self._listed, self._calls, self._form = level + noise[1], 0.5 * noise[2:], form
        self._place = setting.bonus / setting.slope * setting.step
        self.ids = [str(k) for k in range(n)]

    def __call__(self, group: Group) -> Verdict | None:
        """The verdict on the candidates at these places, in this order."""
        shown = tuple(self.ids[place] for place in group)
        if len(group) == 1:
            return Verdict("judge", shown, (float(self.rating[group[0]]),))
        if len(group) > 2:
            places, early = list(group), self._place * np.linspace(1.0, 0.0, len(group))
            values = self._listed[places] + self._calls[int(group[0] > group[-1])][places] + early
            return Verdict("judge", shown, tuple(values.tolist()), "vote")
        p = float(self.p[group])
        if self._form == "soft":
            return Verdict("judge", shown, (p, 1.0 - p), "probability")
        first = bool(self.first_wins[group])
        return Verdict("judge", shown, (float(first), float(not first)), "vote")


@dataclass(frozen=True)
class Work:
    """Prompts of one number of candidates: their qualities, what the judge would say, the tokens of their texts."""

    setting: str
    qualities: list[np.ndarray[Any, Any]]
    judges: dict[str, list[SimulatedJudge]]
    question: list[float]
    answers: list[list[float]]

    @property
    def n(self) -> int:
        return len(self.qualities[0])


def simulated(setting: Setting, n: int, prompts: int, seed: int) -> Work:
    draw = np.random.default_rng([seed, n])
    qualities = [setting.qualities(draw, n) for _ in range(prompts)]
    sizes = [[float(ANSWER)] * n] * prompts
    return Work(setting.name, qualities, _judges(setting, qualities, seed), [float(QUESTION)] * prompts, sizes)


def recorded(name: str, most: int, seed: int, *, within: bool) -> Work:
    """A file of real candidates: as qualities their scores, from 0 to 1 `within` a prompt or by their rank in the file."""
    rows = list(read_candidates(str(DATA / f"{name}.jsonl.gz")))[:most]
    width = max(len(candidates) for _, candidates in rows)
    rows = [(prompt, candidates) for prompt, candidates in rows if len(candidates) == width]
    scores = np.array([[float(c.score or 0.0) for c in candidates] for _, candidates in rows])
    if within:
        lowest, highest = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
        scores = (scores - lowest) / np.where(highest > lowest, highest - lowest, 1.0)
    else:
        scores = np.searchsorted(np.sort(scores, axis=None), scores) / (scores.size - 1)
    qualities = list(scores)
    question = [250.0 + guess_tokens(prompt.text) for prompt, _ in rows]
    answers = [[float(guess_tokens(c.text)) for c in candidates] for _, candidates in rows]
    return Work(name if within else f"{name}, by rank", qualities, _judges(SETTINGS[0], qualities, seed), question, answers)


def _judges(setting: Setting, qualities: Sequence[Any], seed: int) -> dict[str, list[SimulatedJudge]]:
    """The same errors for each form of verdicts."""
    return {
        form: [SimulatedJudge(setting, q, form, np.random.default_rng([seed, 1, k])) for k, q in enumerate(qualities)]
        for form in FORMS
    }


@dataclass(frozen=True)
class Outcome:
    """By prompt: calls, tokens, the true gap of the pair, whether chosen is better, the regret of chosen."""

    calls: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    gap: np.ndarray[Any, Any]
    right: np.ndarray[Any, Any]
    regret: np.ndarray[Any, Any]


def outcome(work: Work, form: str, schedule: Schedule) -> Outcome:
    """What the pair of best and worst is worth when the judge is asked by the schedule, and the fit is that of an export."""
    records, calls, tokens = [], [], []
    for k, judge in enumerate(work.judges[form]):
        verdicts, groups = ask(judge, schedule, seed=k)
        records.append(Record(Prompt(str(k), (), ordinal=k), tuple(Candidate(c, c) for c in judge.ids), tuple(verdicts)))
        calls.append(len(groups))
        tokens.append(sum(work.question[k] + SAID[form] + sum(work.answers[k][p] for p in group) for group in groups))
    found = []
    for q, record, ranking in zip(work.qualities, records, rank(records, [j.ids for j in work.judges[form]]), strict=True):
        known = compared(record.verdicts)
        order = sorted((-s, k) for k, (c, s) in enumerate(zip(ranking.ids, ranking.strengths, strict=True)) if c in known)
        best, worst = order[0][1], order[-1][1]
        found.append((q[best] - q[worst], q[best] > q[worst], q.max() - q[best]))
    gap, right, regret = np.array(found, dtype=float).T
    return Outcome(np.array(calls), np.array(tokens), gap, right, regret)


def ask(judge: SimulatedJudge, schedule: Schedule, seed: int) -> tuple[list[Verdict], list[Group]]:
    """The judge's verdicts, and the groups that it was shown."""
    rounds, verdicts, asked = schedule.rounds(judge.ids, seed), list[Verdict](), list[Group]()
    groups = next(rounds, None)
    while groups:
        asked += groups
        said = [judge(group) for group in groups]
        verdicts += filter(None, said)
        try:
            groups = rounds.send(said)
        except StopIteration:
            break
    return verdicts, asked


def schedules(n: int, form: str, *, curves: bool) -> dict[str, Schedule]:
    """All that are compared, `all pairs` first; with `curves`, some by numbers of calls."""
    rates = form == "soft"
    found: dict[str, Schedule] = {"all pairs": Every(2)}
    if rates:
        found["pointwise"] = Every(1)
    found |= {"listwise": Every(4, 2), "all listed twice": Every(n, 2), "adaptive": Adaptive(rates=rates)}
    if not rates:
        found["adaptive, rated"] = Adaptive()
    caps = sorted({2, n, default_calls(n)} | {round(n * times) for times in CAPS})  # 2: ranked together only
    found |= {f"adaptive, {k} calls": Adaptive(k, rates=rates) for k in caps if curves and k < n * (n - 1)}
    found |= {f"some pairs, {k} calls": Every(2, most=k) for k in (2, n, 2 * n, 4 * n) if curves and k < n * (n - 1)}
    return found | {"swiss": Swiss(), "elimination": Elimination(), "random pair": RandomPair()}


def kept(found: Outcome, of: Outcome) -> tuple[float, float]:
    """The share of the mean gap, and its standard error (of a ratio of means over the same prompts; Cochran 1977)."""
    share = found.gap.mean() / of.gap.mean()
    rest = found.gap - share * of.gap
    return float(share), float(rest.std(ddof=1) / math.sqrt(len(rest)) / of.gap.mean())


def rows(works: Sequence[Work], only: str | None) -> Iterator[tuple[dict[str, Any], tuple[Any, ...]]]:
    """(the figures of a row, the row as shown)."""
    for work in works:
        for form in FORMS:
            reference: Outcome | None = None
            for name, schedule in schedules(work.n, form, curves=work.setting == SETTINGS[0].name and form != "drawn").items():
                if only and name != "all pairs" and only not in name:
                    continue
                found = outcome(work, form, schedule)
                reference = reference or found
                share, error = kept(found, reference)
                tokens = found.tokens.sum() / reference.tokens.sum()
                right = 100.0 * (found.right.mean() - reference.right.mean())
                figures = {"setting": work.setting, "n": work.n, "form": form, "schedule": name}
                figures |= {"calls": found.calls.mean(), "tokens": tokens, "kept": share, "regret": found.regret.mean()}
                shown = (
                    *(work.setting, work.n, form, name, f"{found.calls.mean():.1f}", f"{100 * tokens:.1f}"),
                    *(f"{found.gap.mean():.4f}", f"{100 * share:.1f}", f"{100 * error:.1f}", f"{right:+.1f}"),
                    f"{found.regret.mean():.4f}",
                )
                yield figures, shown


def write_curves(figures: Sequence[dict[str, Any]], file: Path) -> None:
    """What `rlaif.worth` reads: by schedule, form and number of candidates, [calls, share kept] of the stated setting."""
    found: dict[str, dict[str, dict[int, list[list[float]]]]] = {}
    for f in figures:
        head, _, calls = f["schedule"].partition(", ")
        name = {"some pairs": "pairwise", "random pair": "random-pair"}.get(head, head)
        wanted = name not in ("all pairs", "all listed twice", "adaptive") or (name == "adaptive" and calls.endswith("calls"))
        if f["setting"] == "stated" and f["form"] != "drawn" and wanted:
            points = found.setdefault(name, {}).setdefault(f["form"], {}).setdefault(f["n"], [])
            points.append([round(float(f["calls"]), 1), round(float(f["kept"]), 3)])
    for forms in found.values():
        for curves in forms.values():
            for points in curves.values():
                points.sort()
    head = (
        "# Made by benchmarks/ranking.py --curves: [judge calls a prompt, share of all pairs' gap kept], see rlaif/worth.py.\n"
    )
    file.write_text(head + yaml.safe_dump(found, sort_keys=True, default_flow_style=None, width=120), encoding="utf-8")


def draw_curves(figures: Sequence[dict[str, Any]], file: Path) -> None:
    """Gap kept and top-1 regret against judge tokens, of the stated setting."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "ranking", "svg.fonttype": "none"})
    from matplotlib import pyplot

    places = [(n, form) for n in (8, 16) for form in ("soft", "hard")]
    page, axes = pyplot.subplots(2, len(places), figsize=(4.2 * len(places), 7.0), sharex=True, sharey="row")
    for column, (n, form) in enumerate(places):
        here = [f for f in figures if (f["setting"], f["n"], f["form"]) == ("stated", n, form)]
        for axis, value in zip(axes[:, column], ("kept", "regret"), strict=True):
            for head, color in (("adaptive", "#0072B2"), ("some pairs", "#999999")):
                line = sorted(
                    (100 * f["tokens"], f[value])
                    for f in here
                    if f["schedule"].startswith(f"{head}, ") and "calls" in f["schedule"]
                )
                axis.plot([x for x, _ in line], [y for _, y in line], "-o", color=color, ms=4, lw=1, label=f"{head}, by calls")
            for f in here:
                if f["schedule"] in LOOKS:
                    marker, color = LOOKS[f["schedule"]]
                    axis.plot(100 * f["tokens"], f[value], marker, color=color, ms=8, label=f["schedule"])
            axis.set_xscale("log")
            axis.grid(alpha=0.3)
        axes[0, column].set_title(f"n = {n}, {form} verdicts")
        axes[1, column].set_xlabel("judge tokens, % of all pairs in both orders")
    axes[0, 0].set_ylabel("true gap kept, share of all pairs'")
    axes[1, 0].set_ylabel("top-1 regret, in quality")
    axes[0, 0].legend(fontsize=8, loc="lower right")
    page.tight_layout()
    page.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000, help="simulated prompts of a setting; recorded ones at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--setting", help="this one only, by the beginning of its name")
    parser.add_argument("--schedule", help="those with this in their names only")
    parser.add_argument("--n", type=int, nargs="*", default=[8, 16])
    parser.add_argument("--plot", type=Path, help="draw the curves of the stated setting to this file (.svg)")
    parser.add_argument("--curves", type=Path, help="write what rlaif.worth reads (with --setting stated --n 4 8 16 32)")
    given = parser.parse_args()
    works = [
        simulated(s, n, given.prompts, given.seed) for s in SETTINGS for n in given.n if s.name.startswith(given.setting or "")
    ]
    if DATA.is_dir():
        files = [name for name in ("alpacaeval", "cai_samples", "gsm8k") if name.startswith(given.setting or "")]
        works += [
            recorded(name, given.prompts, given.seed, within=within)
            for name in files
            for within in ((True,) if name == "gsm8k" else (True, False))
        ]
    found = list(rows(works, given.schedule))
    show(table(COLUMNS, [shown for _, shown in found], names=4))
    if given.curves:
        write_curves([figures for figures, _ in found], given.curves)
    if given.plot:
        draw_curves([figures for figures, _ in found], given.plot)


if __name__ == "__main__":
    main()
