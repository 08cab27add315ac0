"""What a row is, told by its columns as trainers tell it, and its texts in one form whatever the format.

Trainers look at the first row alone; here every row is looked at. The formats are those of TRL (explicit and implicit
prompts, conversations and plain texts) and two of LLaMA-Factory (ShareGPT, Alpaca).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlaif.check.findings import Fault
from rlaif.data.messages import SPEAKERS
from rlaif.rows import kind_of
from rlaif.types import Message

Kind = Literal["preference", "unpaired", "completion", "messages", "text", "stepwise", "ranked", "prompt", "unknown"]
Form = Literal["messages", "text", "both"]
Said = str | list[Message]
"""A text, or messages."""

_NAMES: dict[Kind, str] = {
    "preference": "preference pairs",
    "unpaired": "answers with a label (KTO)",
    "completion": "prompt and completion (SFT)",
    "messages": "conversations (SFT)",
    "text": "plain texts (SFT)",
    "stepwise": "steps with labels (PRM)",
    "ranked": "prompts with several answers, to be ranked",
    "prompt": "prompts alone",
    "unknown": "no known format",
}
_NEEDED: dict[Kind, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
    "stepwise": ("prompt", "completions", "labels"),
    "ranked": (),
    "prompt": ("prompt",),
    "unknown": (),
}
_ELSEWHERE = ("question", "query", "instruction", "input")
MARK = "\n\nAssistant:"
"""Where the answer begins in a transcript, as in the files of Anthropic's HH-RLHF."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format: `prompt` is "explicit", "implicit" (within chosen and rejected) or "" where there is none."""

    kind: Kind
    form: Form
    prompt: str = ""
    dialect: str = ""

    def __str__(self) -> str:
        if self.kind == "unknown":
            return _NAMES["unknown"]
        form = {"messages": "as messages", "text": "as plain text", "both": "partly messages, partly plain text"}[self.form]
        parts = [_NAMES[self.kind], f"{self.prompt} prompt" if self.prompt else "", form if self.kind != "text" else ""]
        return ", ".join(filter(None, parts)) + (f" ({self.dialect})" if self.dialect else "")


@dataclass(frozen=True, slots=True)
class Example:
    """A row of a known format. `prompt` is None where there is none; `answers` are (column, what is said there).

    Implicit prompts are split off, so that the answers are answers alone. `texts` are the answers' words, `asked` the prompt's.
    """

    row: Mapping[str, Any]
    format: Format
    prompt: Said | None
    answers: tuple[tuple[str, Said], ...]
    texts: tuple[str, ...] = field(init=False, default=())
    asked: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(words(said) for _, said in self.answers))
        object.__setattr__(self, "asked", words(self.prompt))

    @property
    def is_pair(self) -> bool:
        """Whether there are chosen and rejected."""
        return self.format.kind == "preference"


def words(said: Said | None) -> str:
    """What is said as one text: of messages, their contents."""
    if isinstance(said, str):
        return said
    if not said:
        return ""
    if len(said) == 1:
        return str(said[0].get("content") or "")
    return "\n\n".join(str(message.get("content") or "") for message in said)


def format_of(row: Mapping[str, Any]) -> Format:
    """The row's format, by its columns: a column that is null is none."""
    has = {name for name, value in row.items() if value is not None}
    kind, prompt, dialect = _kind(has)
    if kind in ("messages", "prompt") and not dialect and _several(row) is not None:
        kind = "ranked"
    forms = {_form(row.get(name)) for name in ("prompt", "chosen", "rejected", "completion", "messages")} - {None}
    form: Form = "messages" if dialect else "both" if len(forms) == 2 else "messages" if "messages" in forms else "text"
    return Format(kind, "text" if kind in ("text", "stepwise") else form, prompt, dialect)


def _form(value: Any) -> Form | None:
    if isinstance(value, list) and (not value or isinstance(value[0], dict)):
        return "messages"
    return "text" if isinstance(value, str) else None


def _kind(has: set[str]) -> tuple[Kind, str, str]:
    """(kind, where the prompt is, dialect) of a row with these columns."""
    if "chosen" in has or "rejected" in has:
        if "prompt" not in has and "conversations" in has:
            return "preference", "explicit", "ShareGPT"
        if "prompt" not in has and "instruction" in has:
            return "preference", "explicit", "Alpaca"
        return "preference", "explicit" if "prompt" in has else "implicit", ""
    if "completions" in has and "labels" in has:
        return "stepwise", "explicit", ""
    if "completion" in has:
        return ("unpaired" if "label" in has else "completion"), "explicit", ""
    if "messages" in has:
        return "messages", "", ""
    if "conversations" in has:
        return ("unpaired", "explicit", "ShareGPT") if "kto_tag" in has else ("messages", "", "ShareGPT")
    if "text" in has:
        return "text", "", ""
    if "instruction" in has and "output" in has:
        return "completion", "explicit", "Alpaca"
    return ("prompt" if "prompt" in has else "unknown"), "", ""


def read(row: Mapping[str, Any], form: Format) -> tuple[Example | None, list[Fault]]:
    """(the row in one form, what keeps it from being used as it is). The example is None where something is missing."""
    faults: list[Fault] = []
    if form.dialect:
        if form.dialect == "ShareGPT" and form.kind == "preference":
            lists = (name for name in ("chosen", "rejected") if isinstance(row.get(name), list))
            faults = [("wrong_type", f"`{name}` is a list: LLaMA-Factory takes such a row for SFT") for name in lists]
        row = _translated(row, form)
    if form.kind == "unknown":
        return None, [("unknown_columns", f"columns: {', '.join(map(str, list(row)[:12])) or 'none'}")]
    faults += [("missing_column", f"no `{name}`") for name in _NEEDED[form.kind] if row.get(name) is None]
    if form.form == "both":
        faults.append(("mixed_formats", "one row with messages and plain texts: trainers take either, by chance"))
    prompts = ("prompt",) if form.prompt == "explicit" else ("prompt", "messages") if form.kind == "ranked" else ()
    for name in _NEEDED[form.kind] + prompts:
        if name not in ("label", "labels", "completions") and row.get(name) is not None:
            why = _why_not(row[name], texts=name != "messages", messages=name != "text")
            if why:
                faults.append(("empty" if why == "is empty" else "wrong_type", f"`{name}` {why}"))
    faults += _label_faults(row, form)
    if faults:
        return None, list(dict.fromkeys(faults))
    return _example(row, form), []


def _example(row: Mapping[str, Any], form: Format) -> Example:
    kind = form.kind
    if kind == "preference":
        prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
        if form.prompt == "implicit":
            prompt, chosen, rejected = split(chosen, rejected)
        return Example(row, form, prompt, (("chosen", chosen), ("rejected", rejected)))
    if kind in ("unpaired", "completion"):
        return Example(row, form, row["prompt"], (("completion", row["completion"]),))
    if kind == "ranked":
        asked = row["prompt"] if row.get("prompt") is not None else row["messages"]
        return Example(row, form, asked, tuple(("answers", _said(answer)) for answer in _several(row) or ()))
    if kind == "messages":
        messages = row["messages"]
        last = len(messages) - 1 if messages[-1].get("role") == "assistant" else len(messages)
        return Example(row, form, messages[:last], (("messages", messages[last:]),))
    if kind == "stepwise":
        return Example(row, form, row["prompt"], (("completions", "\n".join(row["completions"])),))
    return Example(row, form, row["prompt"] if kind == "prompt" else None, (("text", row["text"]),) if kind == "text" else ())


def _several(row: Mapping[str, Any]) -> list[Any] | None:
    """The answers of a row with several of them, None for another."""
    return next((row[name] for name in ("answers", "candidates") if isinstance(row.get(name), list)), None)


def _said(answer: Any) -> str:
    """The text of one of several answers: a text, or an object as in Nectar's rows and in records."""
    if isinstance(answer, dict):
        answer = next((answer[name] for name in ("answer", "response", "text") if answer.get(name) is not None), "")
    return str(answer)


def split(chosen: Said, rejected: Said) -> tuple[Said, Said, Said]:
    """(prompt, chosen, rejected) of an implicit pair: at the last mark of a transcript, else as TRL splits it."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        mark = _mark(chosen, rejected)
        if mark:
            return chosen[:mark], chosen[mark:], rejected[mark:]
    at = split_point(chosen, rejected)
    return chosen[:at], chosen[at:], rejected[at:]


def _mark(chosen: str, rejected: str) -> int:
    """Where the answers of a transcript begin: behind the last mark that both share; 0 where there is none."""
    at = chosen.rfind(MARK) + len(MARK)
    if at < len(MARK) or rejected[:at] != chosen[:at]:
        at = shared(chosen, rejected)
        at = chosen.rfind(MARK, 0, at) + len(MARK)
    return at if at >= len(MARK) else 0


def shared(first: Said, second: Said) -> int:
    """How many characters or messages the two begin with in common."""
    least = min(len(first), len(second))
    if isinstance(first, str) and isinstance(second, str):
        low, high = 0, least  # the largest length of a common beginning, by bisection: comparing slices is fast
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
        return low
    return next((at for at in range(least) if first[at] != second[at]), least)


def split_point(chosen: Said, rejected: Said) -> int:
    """Where TRL's `extract_prompt` splits: at the first difference, one earlier if a space stands before it.

    Where one is the beginning of the other, it splits before the last that they share. Where they differ at once, it looks at
    the last character of `chosen` for the space, and splits there. Both as in TRL 1.16.0.
    """
    at, least = shared(chosen, rejected), min(len(chosen), len(rejected))
    if at == least:
        return max(0, least - 1)
    return at - 1 if isinstance(chosen, str) and chosen[at - 1] == " " else at


def _why_not(value: Any, *, texts: bool, messages: bool) -> str:
    """Why a value is neither a text nor messages, as far as these may stand there; "" if it is."""
    if isinstance(value, str) and texts:
        return ""
    if not isinstance(value, list) or not messages:
        return f"is {kind_of(value)}, not {'a text' * texts}{' or ' * (texts and messages)}{'messages' * messages}"
    if not value:
        return "is empty"
    for place, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"has no `role` in message {place}"
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            return f"has {kind_of(content)} as the content of message {place}, not a text"
    return ""


def _label_faults(row: Mapping[str, Any], form: Format) -> Iterator[Fault]:
    if form.kind == "unpaired" and row.get("label") is not None and not isinstance(row["label"], bool):
        yield "wrong_label", f"`label` is {kind_of(row['label'])}: {row['label']!r}"
    if form.kind == "stepwise":
        steps, labels = row["completions"], row["labels"]
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            yield "wrong_type", "`completions` is not a list of texts"
        elif not isinstance(labels, list) or not all(isinstance(label, bool) for label in labels):
            yield "wrong_steps", "`labels` is not a list of true and false"
        elif len(steps) != len(labels) or not steps:
            yield "wrong_steps", f"{len(steps)} steps and {len(labels)} labels"


def _translated(row: Mapping[str, Any], form: Format) -> dict[str, Any]:
    """A row of LLaMA-Factory with the columns of TRL."""
    found = {str(name): value for name, value in row.items()}
    if form.dialect == "Alpaca":
        asked = [str(row[name]) for name in ("instruction", "input") if row.get(name)]
        found["prompt"] = [{"role": "user", "content": "\n".join(asked)}]
        answers = {"completion": "output"} if form.kind == "completion" else {"chosen": "chosen", "rejected": "rejected"}
        for name, there in answers.items():
            if isinstance(row.get(there), str):
                found[name] = [{"role": "assistant", "content": row[there]}]
        return found
    for name in ("conversations", "chosen", "rejected"):
        if row.get(name) is not None:
            found[name] = chatml([row[name]] if isinstance(row[name], dict) else row[name])
    talk = found["conversations"]
    if form.kind == "unpaired" and isinstance(talk, list) and talk:
        found |= {"prompt": talk[:-1], "completion": talk[-1:], "label": row["kto_tag"]}
    else:
        found["prompt" if form.kind == "preference" else "messages"] = talk
    return found


def chatml(messages: Any) -> Any:
    """Messages with role/content instead of from/value, and the roles of ChatML; what are none stays."""
    if not isinstance(messages, list):
        return messages
    return [_renamed(message) if has_speaker(message) else message for message in messages]


def has_speaker(message: Any) -> bool:
    """Whether a message says whose it is by `from`. Tables have all keys in every message, with null for none."""
    return isinstance(message, dict) and message.get("from") is not None


def _renamed(message: dict[str, Any]) -> dict[str, Any]:
    names = {"from": "role", "value": "content"}
    found = {names.get(name, name): value for name, value in message.items() if value is not None}
    if isinstance(found["role"], str):
        found["role"] = SPEAKERS.get(found["role"], found["role"])
    return found


def elsewhere(row: Mapping[str, Any], form: Format) -> str | None:
    """The column that seems to hold the prompt of a pair whose prompt is taken to be implicit."""
    if form.kind != "preference" or form.prompt != "implicit":
        return None
    return next((name for name in _ELSEWHERE if isinstance(row.get(name), str) and row[name].strip()), None)
