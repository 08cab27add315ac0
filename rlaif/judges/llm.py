"""The pairwise LLM judge: a model compares two answers under a constitution.

Where the endpoint gives log-probabilities, the judge asks for the bare letter and reads the probabilities; where they
are missing, or the letters hold less than half of the mass, it asks for `[[A]]`, `[[B]]` or `[[C]]` as text (or for a
constrained letter, where the model can). The first reply without them turns the other calls of the same prompt to text,
and of no other prompt: what a prompt is asked depends on its own answers alone. The prompt is built so that shared
prefixes stay shared: constitution and instructions, then the user's prompt, then the answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rlaif.errors import CallFailed, Unsupported
from rlaif.judges.parse import Grammar, Unreadable
from rlaif.keys import digest
from rlaif.templates import Constitution, Template
from rlaif.types import Answers, Candidate, Choice, Prompt, Request, Verdict

log = logging.getLogger("rlaif")

_TOP_LOGPROBS = 20
_MASS_NEEDED = 0.5
_REMEMBERED = 10_000

K = TypeVar("K")
V = TypeVar("V")


class PairwiseJudge:
    """Compares two candidates. `name` is KIND:MODEL."""

    arity: int | None = 2

    def __init__(
        self,
        model: Answers,
        constitution: Constitution,
        *,
        token: Template,
        text: Template,
        name: str = "pairwise",
        logprobs: bool = True,
        max_tokens: int = 2048,
    ) -> None:
        self.name = f"{name}:{model.name}"
        self.digest = digest(
            [
                "pairwise",
                dict(model.identity),
                constitution.digest,
                token.digest,
                text.digest,
                logprobs,
                max_tokens,
            ]
        )
        self._model, self._constitution, self._max_tokens = model, constitution, max_tokens
        self._token, self._text = token, text
        self._token_grammar, self._text_grammar = Grammar.of(token.front, token.name), Grammar.of(text.front, text.name)
        self._logprobs, self._told = logprobs, False
        self._without: dict[str, None] = {}
        self._marks: dict[tuple[int | str, ...], str] = {}

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict:
        """One verdict on two candidates in the order shown; a reply that cannot be read is a verdict without scores."""
        ids = tuple(c.id for c in shown)
        ask = _Question(
            prompt.ordinal,
            self._mark(prompt, among),
            {
                "constitution": self._constitution.text,
                "prompt": prompt.text,
                "a": shown[0].text,
                "b": shown[1].text,
            },
        )
        try:
            scores = await self._by_token(ask) if self._logprobs and ask.mark not in self._without else None
            if scores is not None:
                return Verdict(self.name, ids, scores, scale="probability")
            return await self._by_text(ids, ask)
        except CallFailed as error:
            return Verdict(self.name, ids, None, error=f"{error.kind}: {error}")

    async def _by_token(self, ask: _Question) -> tuple[float, ...] | None:
        """The probabilities of the two letters, None where they cannot be had."""
        try:
            choice = await self._letter(ask, choices=())
        except Unsupported as error:
            if error.kind != "logprobs":
                raise
            self._logprobs = False  # refused once is refused for every call
            self._fall_back(str(error))
            return None
        except CallFailed as error:
            if error.kind != "bad_request":
                raise
            self._fall_back(f"{self._model.name} refuses the question for a letter ({error})")
            return None
        if choice.error:
            return None
        if choice.first_token is None:
            self._fall_back(f"{self._model.name} gives no log-probabilities")
            _remember(self._without, ask.mark, None)
            return None
        scores = self._read(choice, _MASS_NEEDED)
        if scores is None and self._model.constrains:
            # Constrained to the letters, the model's probabilities are these ones over their sum: only where a letter
            # is too unlikely to be listed does it have to be asked.
            if not self._token_grammar.lists_all(choice.first_token):
                choice = await self._letter(ask, choices=self._token_grammar.options)
            scores = self._read(choice, 0.0)
        if scores is None:
            self._fall_back(f"{self._model.name} does not answer with the bare letter")
        return scores

    def _read(self, choice: Choice, mass_needed: float) -> tuple[float, ...] | None:
        try:
            scores, mass = self._token_grammar.read_token(choice.first_token or {})
        except Unreadable:
            return None
        return scores if mass >= mass_needed else None

    async def _by_text(self, ids: tuple[str, ...], ask: _Question) -> Verdict:
        choice = await self._model.answer(ask.request(self._text, temperature=0.0, max_tokens=self._max_tokens))
        try:
            if choice.error:
                raise Unreadable(choice.error)
            scores = self._text_grammar.read_text(choice.text)
        except Unreadable as error:
            cut = " (the reply was cut at its token limit)" if choice.finish == "length" else ""
            return Verdict(self.name, ids, None, error=f"unreadable: {error}{cut}", reason=choice.text or None)
        return Verdict(self.name, ids, scores, scale="vote", reason=choice.text)

    async def _letter(self, ask: _Question, *, choices: tuple[str, ...]) -> Choice:
        return await self._model.answer(
            ask.request(self._token, temperature=1.0, max_tokens=1, logprobs=_TOP_LOGPROBS, choices=choices)
        )

    def _mark(self, prompt: Prompt, among: Sequence[Candidate]) -> str:
        """The prompt's delimiter, made once."""
        known: tuple[int | str, ...] = (prompt.ordinal, *(c.id for c in among))
        if known not in self._marks:
            _remember(self._marks, known, mark_for(prompt, among))
        return self._marks[known]

    def _fall_back(self, why: str) -> None:
        if not self._told:
            self._told = True
            log.warning("%s: the judge falls back to verdicts as text (--judge pairwise-text asks for them at once)", why)


def mark_for(prompt: Prompt, candidates: Sequence[Candidate]) -> str:
    """A delimiter that stands in none of the texts: a hash of the prompt and the candidates, whatever their order."""
    texts = sorted(c.text for c in candidates)
    salt = 0
    while True:
        mark = digest([prompt.text, texts, salt], 6)
        if not any(mark in text for text in (prompt.text, *texts)):
            return mark
        salt += 1


@dataclass(frozen=True, slots=True)
class _Question:
    """What a judge asks about two answers, before it has the form of a template."""

    ordinal: int
    mark: str
    values: Mapping[str, str]

    def request(self, template: Template, **settings: Any) -> Request:
        text = template.fill(**self.values, mark=self.mark)
        return Request(({"role": "user", "content": text},), mark=self.mark, ordinal=self.ordinal, **settings)


def _remember(memory: dict[K, V], key: K, value: V) -> None:
    """Adds to a memory of bounded size; the oldest goes."""
    memory[key] = value
    if len(memory) > _REMEMBERED:
        del memory[next(iter(memory))]
