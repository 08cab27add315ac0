"""SFT in TRL's conversational prompt-completion format: the best of n answers."""

from __future__ import annotations

from typing import Any

from rlaif.export import number
from rlaif.pairs import Best, judge_name


def row(best: Best) -> dict[str, Any]:
    """One line of sft.jsonl, keys in a fixed order. `p_win` is the winner's mean probability against another of the n."""
    return {
        "id": best.record.prompt.id,
        "prompt": list(best.record.prompt.messages),
        "completion": [{"role": "assistant", "content": best.winner.text}],
        "score": number(best.score),
        "p_win": None if best.p_win is None else number(best.p_win),
        "n": best.n,
        "model": best.winner.model,
        "judge": judge_name(best.record),
    }
