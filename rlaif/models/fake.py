"""`fake/...`: scripted models with known answers and verdicts, for tests of your own and first steps.

`fake/oracle`      answers carry a quality ("quality 0.73"); as a judge it prefers the higher one, with log-probabilities
                   (it compares two, rates one, or ranks several, as it is asked)
`fake/oracle-text` the same, without log-probabilities: it writes [[A]], [[B]] or [[C]]
`fake/first`       as a judge always prefers the answer shown first
`fake/tie`         as a judge finds all answers equal
`fake/unreadable`  as a judge never gives a verdict
`fake/FILE.yaml`   a script: a list of {when: REGEX, say: TEXT or [TEXT, ...], logprobs: {TOKEN: PROBABILITY}}; the first
                   entry whose `when` is found in the last message answers, the i-th choice with the i-th text, round and round

All five names write the same answers when they are used as a policy; nothing here is random.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.errors import CallFailed, InputError, StopRun
from rlaif.keys import digest, seed_of
from rlaif.models import chat
from rlaif.templates import read_yaml
from rlaif.types import Message, Purchase, Reply, Request

_QUALITY = re.compile(r"quality (\d\.\d+)")
_STEEPNESS = 6.0
_UNREADABLE = "I would rather not say."
_OPENINGS = ("Here is what matters", "In short", "Let us see", "A fair answer", "To begin with", "The point is")


class Fake:
    """A scripted model: `say(messages, request)` gives one choice for each sample."""

    max_n = 128
    window = 64
    free = True
    specials: Sequence[str] = ()

    def __init__(self, name: str, identity: Mapping[str, Any], say: Callable[[Request], list[dict[str, Any]]]) -> None:
        self.name, self.identity, self._say = name, identity, say
        self._stopped: StopRun | None = None

    async def send(self, request: Request, purchase: Purchase) -> Reply:
        """One kept response."""
        if self._stopped is not None:
            raise self._stopped
        purchase.begin()
        choices = self._say(request)
        words = sum(len(str(m["content"]).split()) for m in request.messages)
        said = sum(len(str(c["message"]["content"]).split()) for c in choices)
        body = chat.write(self.name, choices, prompt_tokens=words, completion_tokens=said)
        await purchase.keep(body)
        return self.read(body)

    def read(self, body: bytes) -> Reply:
        """The parsed response."""
        return chat.read(body)

    async def can_constrain(self) -> bool:
        """False."""
        return False

    def stop(self, reason: StopRun) -> None:
        """Lets no further call out."""
        self._stopped = reason

    async def close(self) -> None:
        """Nothing to free."""


def make(name: str) -> Fake:
    """The scripted model `fake/NAME`. Raises InputError for an unknown one."""
    if name in _VERDICTS:
        return Fake(f"fake/{name}", {"fake": name, "version": 2}, lambda request: _scripted(name, request))
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"no script at {name!r} for 'fake/{name}'")
        entries = _entries(path)
        identity = {"fake": digest([[e.when.pattern, list(e.say), dict(e.logprobs)] for e in entries])}
        return Fake(f"fake/{path.stem}", identity, lambda request: _from_script(entries, request))
    raise InputError(f"'fake/{name}' is unknown; there are {', '.join('fake/' + n for n in _VERDICTS)} and fake/FILE.yaml")


@dataclass(frozen=True, slots=True)
class _Entry:
    when: re.Pattern[str]
    say: tuple[str, ...]
    logprobs: Mapping[str, float]


def _entries(path: Path) -> list[_Entry]:
    raw = read_yaml(path)
    entries = []
    for place, item in enumerate(raw if isinstance(raw, list) else [raw], 1):
        try:
            say = item["say"]
            texts = (say,) if isinstance(say, str) else tuple(str(text) for text in say)
            logprobs = {str(token): float(p) for token, p in dict(item.get("logprobs", {})).items()}
            entries.append(_Entry(re.compile(str(item.get("when", ""))), texts, logprobs))
        except (TypeError, KeyError, ValueError, AttributeError, re.error) as error:
            raise InputError(f"{path}: entry {place} needs `say` and may have `when` and `logprobs`: {error!r}") from None
        if not texts:
            raise InputError(f"{path}: entry {place} has nothing to say")
    return entries


def _from_script(entries: list[_Entry], request: Request) -> list[dict[str, Any]]:
    text = str(request.messages[-1]["content"])
    for entry in entries:
        if entry.when.search(text):
            says = [entry.say[i % len(entry.say)] for i in range(request.n)]
            return [_choice(said, entry.logprobs if request.logprobs else None) for said in says]
    raise CallFailed("no_script", f"no entry of the script answers {text[:80]!r}")


def _scripted(name: str, request: Request) -> list[dict[str, Any]]:
    text = str(request.messages[-1]["content"])
    shown = _shown_qualities(text, request.mark)
    with_logprobs = request.logprobs and name != "oracle-text"
    if "[[1]]" in text or (request.logprobs and "one digit" in text):
        return [_rating(name, shown, bool(with_logprobs))]
    if "[[B > A" in text:
        return [_choice(_ranking(name, shown), None)]
    if "[[A]]" in text or request.logprobs:
        p = _VERDICTS[name](shown)
        if p is None:
            return [_choice(_UNREADABLE, {"I": 0.9, "The": 0.1} if request.logprobs else None)]
        if with_logprobs:
            return [_choice("A" if p >= 0.5 else "B", {"A": p, "B": 1.0 - p})]
        return [_choice("[[C]]" if p == 0.5 else "[[A]]" if p > 0.5 else "[[B]]", None)]
    return [_choice(_answer(request, index), None) for index in range(request.n)]


def _rating(name: str, shown: Sequence[float], with_logprobs: bool) -> dict[str, Any]:
    """1 to 9 by the quality; between two digits by their probabilities."""
    if name == "unreadable":
        return _choice(_UNREADABLE, {"I": 0.9, "The": 0.1} if with_logprobs else None)
    quality = shown[-1] if name.startswith("oracle") and shown else 0.5
    below, part = divmod(1.0 + 8.0 * min(quality, 1.0), 1.0)
    if with_logprobs:
        return _choice(f"{below + round(part):.0f}", {f"{below:.0f}": 1.0 - part, f"{below + 1:.0f}": part})
    return _choice(f"[[{below + round(part):.0f}]]", None)


def _ranking(name: str, shown: Sequence[float]) -> str:
    letters = [chr(ord("A") + place) for place in range(len(shown))]
    if name == "unreadable":
        return _UNREADABLE
    if name.startswith("oracle"):
        letters.sort(key=lambda letter: -shown[ord(letter) - ord("A")])
    return f"[[{(' = ' if name == 'tie' else ' > ').join(letters)}]]"


def _answer(request: Request, index: int) -> str:
    mark = seed_of([dict(m) for m in request.messages], request.seed, index)
    quality = (mark % 1000) / 1000
    return f"{_OPENINGS[mark // 1000 % len(_OPENINGS)]}: an answer of quality {quality:.3f}."


def _shown_qualities(text: str, mark: str) -> list[float]:
    """The qualities of the answers shown: of one that names none, 0.5 if it ends like a sentence, else 0.

    In a question that marks its answers otherwise, the last two that are named.
    """
    head = rf"^\[{re.escape(mark)} (?:answer(?: [A-Z])?|end)\]\n" if mark else "$^"
    sections = re.split(head, text, flags=re.MULTILINE)[1:-1]
    if not sections:
        return [float(found) for found in _QUALITY.findall(text)][-2:]
    named = [_QUALITY.findall(section) for section in sections]
    plain = [0.5 if section.rstrip().endswith((".", "。")) and "###" not in section else 0.0 for section in sections]
    return [float(found[-1]) if found else otherwise for found, otherwise in zip(named, plain, strict=True)]


def _by_quality(shown: list[float]) -> float | None:
    return None if len(shown) < 2 else 1.0 / (1.0 + math.exp(_STEEPNESS * (shown[1] - shown[0])))


_VERDICTS: dict[str, Callable[[list[float]], float | None]] = {
    "oracle": _by_quality,
    "oracle-text": _by_quality,
    "first": lambda shown: 0.9,
    "tie": lambda shown: 0.5,
    "unreadable": lambda shown: None,
}
NAMES = tuple(_VERDICTS)


def _choice(text: str, probabilities: Mapping[str, float] | None) -> dict[str, Any]:
    message: Message = {"role": "assistant", "content": text}
    choice: dict[str, Any] = {"message": message, "finish_reason": "stop"}
    if probabilities:
        top = [{"token": t, "logprob": math.log(p)} for t, p in probabilities.items() if p > 0]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": top}]}
    return choice
