"""DPO for TRL, conversational and as texts, with how sure each label is."""

from __future__ import annotations

from rlaif.export.parts import Row, answer, check, labels, plain_text, tools_of
from rlaif.types import PreferencePair


def row(pair: PreferencePair) -> Row:
    """One line of dpo.jsonl, keys in a fixed order. Raises ValueError if the pair is none: equal or empty texts."""
    check(pair)
    return {
        "id": pair.prompt.id,
        "prompt": list(pair.prompt.messages),
        "chosen": answer(pair.chosen.text),
        "rejected": answer(pair.rejected.text),
        **labels(pair),
        **tools_of(pair.prompt),
    }


def text_row(pair: PreferencePair) -> Row:
    """The pair as texts: the trainer joins prompt and answer as they stand, by no chat template, and appends the end token.

    So that question and answer do not run into each other, the prompt ends in a line break, unless it ends in white space
    already or both answers begin with some (" blue." after "The sky is"). Raises InputError, naming the prompt, if it is more
    than one user message or has tools; ValueError if the pair is none.
    """
    check(pair)
    asked, chosen, rejected = plain_text(pair.prompt, "dpo-text"), pair.chosen.text, pair.rejected.text
    apart = asked[-1:].isspace() or (chosen[0].isspace() and rejected[0].isspace())
    return {
        "id": pair.prompt.id,
        "prompt": asked if apart else asked + "\n",
        "chosen": chosen,
        "rejected": rejected,
        **labels(pair),
    }
