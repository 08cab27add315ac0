"""rlaif: four answers a prompt, judged, and dpo.jsonl.

    python with_rlaif.py URL PROMPTS OUT IN_FLIGHT [JUDGE]

JUDGE is a judge's name as for --judge, or "one": one call a prompt that shows all its answers. What is measured is
`run.wait()`, all of it: opening the ledger, the calls and their commits, the ranking, the export. Imports are not; the
process as a whole shows them.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence

import aiohttp  # noqa: F401  (it would be imported at the first request)

from rlaif.calls import Tally
from rlaif.config import make_config
from rlaif.errors import CallFailed, StopRun
from rlaif.jobs import Run
from rlaif.judges import JudgePlan
from rlaif.judges.llm import mark_for
from rlaif.ledger import Ledger
from rlaif.ranking.schedule import Every
from rlaif.types import Answers, Candidate, Judge, Prompt, Request, Verdict

_VERDICT = re.compile(r"\[\[([ABC])\]\]")


class OneCall:
    """Shows all candidates in one call, and has the last two of them compared: the test server's oracle reads these."""

    arity: int | None = None
    schedule = Every(None)
    name = digest = "one"

    def __init__(self, model: Answers) -> None:
        self._model = model

    def stop(self, reason: StopRun) -> None:
        """The model is told."""

    async def close(self) -> None:
        """Nothing to free."""

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict:
        """The better one of the last two has 1, all others have 0."""
        ids, mark = tuple(c.id for c in shown), mark_for(prompt, among)
        texts = [f"<{mark}>\n{part}\n</{mark}>" for part in (prompt.text, *(c.text for c in shown))]
        ask = "Of the last two answers, is the first one better [[A]], or the second [[B]]? [[C]] is a tie."
        message = {"role": "user", "content": "\n\n".join([*texts, ask])}
        request = Request((message,), temperature=0.0, max_tokens=64, mark=mark, ordinal=prompt.ordinal)
        try:
            said = _VERDICT.findall((await self._model.answer(request)).text)
        except CallFailed as error:
            return Verdict(self.name, ids, None, error=f"{error.kind}: {error}")
        if not said:
            return Verdict(self.name, ids, None, error="unreadable")
        best = {"A": ids[-2:-1], "B": ids[-1:], "C": ids[-2:]}[said[-1]]
        return Verdict(self.name, ids, tuple(float(name in best) for name in ids), scale="vote")


def one_call(model: str) -> JudgePlan:
    """The judge of one call a prompt."""

    def build(answers: Answers | None, ledger: Ledger, tally: Tally) -> Judge:
        assert answers is not None
        return OneCall(answers)

    return JudgePlan(model, None, Every(None), build)


def new_run(url: str, prompts: str, out: str, in_flight: int, judge: str = "one") -> Run:
    """The run that is measured; `url` is the endpoint's base URL."""
    model = f"openai/m@{url}"
    settings = {"policy": model, "judge": judge, "n": 4, "concurrency": in_flight, "checks": False}
    config = make_config({"prompts": prompts, "out": out, **settings})
    return Run(config, judges=[one_call(model)] if judge == "one" else None)


def main() -> None:
    url, prompts, out, in_flight, *judge = sys.argv[1:]
    run = new_run(url, prompts, out, int(in_flight), *judge)
    cpu, wall = time.process_time(), time.perf_counter()
    summary = run.wait()
    took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    print(json.dumps(took | {name: summary[name] for name in ("prompts", "pairs", "calls", "faults", "failures")}))


if __name__ == "__main__":
    main()
