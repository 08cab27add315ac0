"""What a perfect endpoint says: a completion is a function of the behaviour and the request alone.

Answers are hashed from the model, the messages, the seed and the choice's index, and hold a hidden number ("quality 0.731").
Requests with log-probabilities or `[[A]]`, `[[1]]` or `[[B > A` in the last message are judge calls: the oracle compares the
last two qualities in the message, rates by the last one, or ranks by those of all answers.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, NamedTuple

from chaos.behaviour import Behaviour

QUALITY = re.compile(r"quality (\d\.\d+)")
_OPTION = re.compile(r"^ \([AB]\) (.+)$", re.MULTILINE)
_ANSWER = re.compile(r"^\[\w+ (?:answer(?: [A-Z])?|end)\]\n", re.MULTILINE)
THINKING = "Perhaps [[A]], or rather [[B]]; my first draft had quality 0.999."
_sorted_json = json.JSONEncoder(sort_keys=True).encode


class Asked:
    """A request, written as JSON once: `id` is the hash of all of it, whatever the order of its keys."""

    __slots__ = ("_mark", "_seed", "body", "id", "judge")

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        messages, model = _sorted_json(body["messages"]), _sorted_json(body["model"])
        rest = _sorted_json({name: value for name, value in body.items() if name != "messages"})
        self.id = hashlib.sha256(f"{messages}{rest}".encode()).hexdigest()[:24]
        text = text_of(body["messages"][-1])
        self.judge = bool(body.get("logprobs")) or any(mark in text for mark in ("[[A]]", "[[1]]", "[[B > A"))
        self._mark = hashlib.sha256(f"[{model}, {messages}, [".encode())
        self._seed = _sorted_json(body.get("seed"))

    def mark(self, index: int | None) -> str:
        """The hash of what choice `index` depends on; without the index and the seed for None."""
        mark = self._mark.copy()
        mark.update(b"]]" if index is None else f"{self._seed}, {index}]]".encode())
        return mark.hexdigest()


def text_of(message: dict[str, Any]) -> str:
    """What a message says: its content is a text, or a list of parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def answer(how: Behaviour, asked: Asked, more: int = 0) -> dict[str, Any]:
    """The completion of a request, with `more` choices than the behaviour says."""
    body = asked.body
    n = body.get("n", 1)
    n = min(n if n == 1 else max(1, n - how.missing_choices), how.most_choices)
    verdict = _verdict(how, body) if asked.judge else None
    choices = [_choice(how, asked, index, verdict) for index in range(max(1, n + more))]
    prompt = sum(len(text_of(m).split()) for m in body["messages"])
    said = sum(len((c["message"]["content"] or "").split()) for c in choices)
    usage = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
    return {"id": asked.id, "object": "chat.completion", "model": body["model"], "choices": choices, "usage": usage}


def _choice(how: Behaviour, asked: Asked, index: int, verdict: _Verdict | str | None) -> dict[str, Any]:
    scored = asked.body.get("logprobs")
    finish, logprobs = "stop", None
    if verdict is None:
        text, quality = _answer_text(how, asked, index)
        finish = "length" if quality > how.truncated_above else "stop"
    elif isinstance(verdict, str):
        text = verdict
    elif scored:
        held = any(name in asked.body for name in ("structured_outputs", "regex", "grammar"))
        text = "The" if how.logprobs == "vague" and not held else max(verdict.likely, key=lambda t: verdict.likely[t])
    else:
        text = f"I compared them. {verdict.text}"
    if scored and how.logprobs != "ignored":
        vague = not isinstance(verdict, _Verdict) or how.logprobs == "vague"
        logprobs = _logprobs({"I": 0.9, "We": 0.1} if vague else verdict.likely)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if how.thinking == "field":
        message["reasoning_content"] = THINKING
    elif how.thinking:
        message["content"] = ("<think>" if how.thinking == "block" else "") + f"\n{THINKING}\n</think>\n\n{text}"
    return {"index": index, "message": message, "finish_reason": finish, "logprobs": logprobs}


def _answer_text(how: Behaviour, asked: Asked, index: int) -> tuple[str, float]:
    if how.twins:
        options = _OPTION.findall(text_of(asked.body["messages"][-1]))
        if how.twins == "both":
            return "Some would say (A), others (B).", 0.0
        return f"({'AB'[_favourite(how, text_of(asked.body['messages'][-1]), options)]})", 0.0
    if how.answers in ("empty", "blank"):
        return ("" if how.answers == "empty" else " \n\t"), 0.0
    mark = asked.mark(index if how.answers == "varied" else None)
    quality = int(mark[:6], 16) % 1000 / 1000
    return f"Answer {mark[6:12]}{' and more' * (int(mark[12], 16) % 8)}, of quality {quality:.3f}.", quality


class _Verdict(NamedTuple):
    """A verdict as text, and the probabilities of the bare options (none for a ranking)."""

    text: str
    likely: dict[str, float]


def _verdict(how: Behaviour, body: dict[str, Any]) -> _Verdict | str:
    """What is asked for, or a reply that is no clear verdict."""
    if how.judge in ("unreadable", "contradictory"):
        return "I would rather not say." if how.judge == "unreadable" else "At first [[A]], but then [[B]]."
    text = text_of(body["messages"][-1])
    if "[[B > A" in text:
        return _Verdict(f"[[{_ranking(how, text)}]]", {})
    if how.twins:
        return "I see two." if how.twins == "both" else _of_two(0.9 - 0.8 * _favourite(how, text, _ANSWER.split(text)[1:-1]))
    rates = "[[1]]" in text or "one digit" in text
    shown = [float(q) for q in QUALITY.findall(text)][-1 if rates else -2 :]
    if len(shown) < 2 - rates:  # none of its own answers: one that ends like a sentence is the better one
        shown = [0.5 if a.rstrip().endswith(".") and "###" not in a else 0.0 for a in _ANSWER.split(text)[1:-1]]
    if rates:
        return _rating(shown[-1] if shown and how.judge == "oracle" else 0.5)
    if how.judge in ("first", "tie"):
        return _of_two(0.9 if how.judge == "first" else 0.5)
    return _of_two(1.0 / (1.0 + math.exp(6.0 * (shown[1] - shown[0])))) if len(shown) == 2 else "I see no two answers."


def _of_two(p: float) -> _Verdict:
    """The first one shown is the better one with this probability."""
    return _Verdict("[[C]]" if p == 0.5 else "[[A]]" if p > 0.5 else "[[B]]", {"A": p, "B": 1.0 - p})


def _rating(quality: float) -> _Verdict:
    """1 to 9 by the quality, between two digits by their probabilities."""
    below, part = divmod(1.0 + 8.0 * quality, 1.0)
    likely = {f"{below:.0f}": 1.0 - part, f"{below + 1:.0f}": part}
    return _Verdict(f"[[{below + round(part):.0f}]]", {token: p for token, p in likely.items() if p > 0.0})


def _ranking(how: Behaviour, text: str) -> str:
    """The letters of the answers shown, by their qualities; as they are shown, for a judge that likes the first."""
    found = [QUALITY.findall(section) for section in _ANSWER.split(text)[1:-1]]
    shown = [float(qualities[-1]) if qualities else 0.0 for qualities in found]
    letters = [chr(ord("A") + place) for place in range(len(shown))]
    if how.judge == "oracle":
        letters.sort(key=lambda letter: -shown[ord(letter) - ord("A")])
    return (" = " if how.judge == "tie" else " > ").join(letters)


def _favourite(how: Behaviour, text: str, options: list[str]) -> int:
    """The place of the option that is named to one who says in `text` which of them he likes."""
    likes, said = re.findall(r"I like (\w+)", text)[-1], [option.strip() for option in options]
    if how.twins == "same":
        return said.index(min(said))
    return said.index(likes) if how.twins == "follow" else 1 - said.index(likes)


def _logprobs(likely: dict[str, float]) -> dict[str, Any]:
    listed: list[dict[str, Any]] = [
        {"token": token, "logprob": math.log(p), "bytes": list(token.encode())} for token, p in likely.items()
    ]
    return {"content": [listed[0] | {"top_logprobs": sorted(listed, key=lambda t: -t["logprob"])}]}
