"""What can be wrong with a finished file: a code each, how bad it is, and what to do.

An *error* makes the training wrong, or loses the row. A *warning* is for a person to judge. A *note* is worth knowing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that can be wrong: `says` is what, `advice` what to do about it."""

    code: str
    severity: Severity
    says: str
    advice: str


_TABLE: tuple[tuple[Severity, str, str, str], ...] = (
    ("error", "unreadable", "lines that are no row", "mend them, or write the file anew"),
    ("error", "no_rows", "there is no row in the file", "look at what wrote it"),
    (
        "error",
        "unknown_columns",
        "rows without the columns of any known format",
        "rename the columns: prompt, chosen, rejected",
    ),
    ("error", "mixed_formats", "rows of another format than most", "trainers look at the first row alone: make all rows alike"),
    ("error", "missing_column", "rows without a column of their format", "fill it in, or leave the rows out"),
    ("error", "wrong_type", "columns or messages of another type", "a text, or a list of {role, content} with texts"),
    ("error", "object_answer", "answers that are one message, not a list", "put the message into a list (--fix does)"),
    ("error", "from_value", "messages with from/value", "trainers read role/content (--fix renames them)"),
    ("error", "prompt_elsewhere", "the prompt is in a column that trainers ignore", "rename it: `prompt`"),
    ("error", "prompt_repeated", "answers that begin with the prompt again", "cut it off: it would be read twice (--fix does)"),
    ("error", "empty", "empty prompts or answers", "leave the rows out"),
    ("error", "equal", "chosen says the same as rejected", "leave the rows out: they teach nothing"),
    (
        "error",
        "implicit_prompt",
        "implicit prompts that split at the wrong place",
        "write the `prompt` as its own column (--fix does where it can)",
    ),
    (
        "error",
        "roles",
        "roles out of order",
        "user and assistant in turn after one system message at most; LLaMA-Factory skips others",
    ),
    ("error", "wrong_label", "a `label` that is not true or false", "write true or false (--fix turns 1 and 0 into them)"),
    ("error", "wrong_steps", "step labels that do not fit the steps", "one true or false a step"),
    ("error", "wrong_number", "numbers that are none", "write a finite number"),
    ("error", "p_chosen", "p_chosen outside 0.5..1", "leave uncertain pairs out; do not swap them"),
    ("error", "scores_reversed", "chosen has the lower score", "find out which of the two is right: label or score"),
    ("error", "contradiction", "the same answers with opposite labels", "leave both rows out"),
    ("error", "contaminated", "texts of a test set in the rows", "leave the rows out, or the test result means nothing"),
    ("error", "dropped", "rows that the trainer drops silently", "raise --max-length, or leave the rows out knowingly"),
    ("error", "equal_cut", "chosen equals rejected once cut", "raise --max-length: such a pair has no gradient"),
    ("error", "template", "the chat template does not go with the row", "use the template of the model that is trained"),
    ("error", "content_lost", "answers that the chat template changes", "what is trained on is not what the row says"),
    ("warning", "dialect", "a format of LLaMA-Factory", "its own reader takes it; for others use prompt, chosen, rejected"),
    ("warning", "duplicate", "rows that repeat an earlier one", "--fix keeps the first"),
    ("warning", "near_duplicate", "rows that are nearly an earlier one", "look whether they were meant"),
    ("warning", "ids", "one id for different prompts", "give each prompt its own"),
    (
        "warning",
        "mixed_types",
        "columns that change their type",
        "loaders of datasets refuse such a file, or turn it into texts",
    ),
    ("warning", "empty_system", "empty system messages", "leave them out"),
    ("warning", "truncated", "chosen answers that break off", "sample with more tokens, or leave the rows out"),
    ("warning", "refusal", "chosen answers that refuse without a reason", "look whether that is what is to be taught"),
    ("warning", "degenerate", "chosen answers that loop, echo or change language", "leave the rows out"),
    ("warning", "cut", "answers whose end is cut off at the length", "raise --max-length: the end token is lost, too"),
    ("warning", "boundary", "tokens that merge across the end of the prompt", "end prompts where a token ends"),
    ("warning", "prompt_changed", "prompts that the chat template changes", "look whether the template drops what matters"),
    ("warning", "special_tokens", "control tokens of the tokenizer within texts", "they are read as control: take them out"),
    ("warning", "longer_chosen", "chosen is the longer one too often", "length may be what is taught: match lengths"),
    ("warning", "reversed", "the labels smell reversed", "read twenty pairs before training"),
    ("warning", "unbalanced", "labels are mostly on one side", "set the weights of the two sides, as KTO asks for"),
    ("note", "uneven_columns", "columns that some rows lack", "loaders fill them with null"),
    ("note", "not_done", "checks that were left out", "see there"),
)
RULES = {code: Rule(code, severity, says, advice) for severity, code, says, advice in _TABLE}
"""By code, in the order in which they are shown within their severity."""
