"""DPO in TRL's conversational format, with how sure each label is."""

from __future__ import annotations

from typing import Any

from rlaif.export import number
from rlaif.types import PreferencePair


def row(pair: PreferencePair) -> dict[str, Any]:
    """One line of dpo.jsonl, keys in a fixed order. Raises ValueError if the pair is none: equal or empty texts."""
    chosen, rejected = pair.chosen.text, pair.rejected.text
    if not chosen.strip() or not rejected.strip() or chosen == rejected:
        raise ValueError(f"prompt {pair.prompt.id!r}: chosen and rejected are equal or empty")
    return {
        "id": pair.prompt.id,
        "prompt": list(pair.prompt.messages),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "score_chosen": number(pair.score_chosen),
        "score_rejected": number(pair.score_rejected),
        "p_chosen": number(pair.p_chosen),
        "p_source": pair.p_source,
        "judge": pair.judge,
        "flip": pair.flip,
    }
