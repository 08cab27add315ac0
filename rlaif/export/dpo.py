"""DPO for TRL, conversational and as texts, with how sure each label is."""

from __future__ import annotations

from rlaif.export import number
from rlaif.export.parts import Row, check, labels, plain_text, tools_of
from rlaif.types import PreferencePair


def row(pair: PreferencePair) -> Row:
    """One line of dpo.jsonl, keys in a fixed order. Raises ValueError if the pair is none: equal or empty texts.

    Written out in full, as a million of them are made: calls of the shared parts take a quarter longer.
    """
    check(pair)
    prompt = pair.prompt
    made = {
        "id": prompt.id,
        "prompt": list(prompt.messages),
        "chosen": [{"role": "assistant", "content": pair.chosen.text}],
        "rejected": [{"role": "assistant", "content": pair.rejected.text}],
        "score_chosen": number(pair.score_chosen),
        "score_rejected": number(pair.score_rejected),
        "p_chosen": number(pair.p_chosen),
        "p_source": pair.p_source,
        "judge": pair.judge,
        "flip": pair.flip,
    }
    if prompt.fields:
        made |= tools_of(prompt)
    return made


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
