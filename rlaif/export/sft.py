"""SFT for TRL: the best of n answers, as prompt and completion or as one conversation."""

from __future__ import annotations

from rlaif.export import number
from rlaif.export.parts import Row, answer, tools_of
from rlaif.pairs import Best


def row(best: Best) -> Row:
    """One line of sft.jsonl, keys in a fixed order. `p_win` is the winner's mean probability against another of the n."""
    prompt = best.record.prompt
    return {
        "id": prompt.id,
        "prompt": list(prompt.messages),
        "completion": answer(best.winner.text),
        **_origin(best),
        **tools_of(prompt),
    }


def messages_row(best: Best) -> Row:
    """The prompt and the best answer as one conversation, `messages`."""
    prompt = best.record.prompt
    return {
        "id": prompt.id,
        "messages": [*prompt.messages, *answer(best.winner.text)],
        **_origin(best),
        **tools_of(prompt),
    }


def _origin(best: Best) -> Row:
    return {
        "score": number(best.score),
        "p_win": None if best.p_win is None else number(best.p_win),
        "n": best.n,
        "model": best.winner.model,
        "judge": best.judge,
    }
