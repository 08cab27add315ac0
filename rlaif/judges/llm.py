"""LLM judges: a model compares, rates or ranks answers under a constitution.

`pairwise` is shown two answers, `pointwise` one, `listwise` k in seeded orders. What a reply may say is declared by its
template. Where the endpoint gives log-probabilities, the first two ask for the bare letter or digit and read the
probabilities; where they are missing, or the options hold less than half of the mass, they ask for the verdict as text (or
for a constrained option, where the model can). If the first call about a prompt gives none, its other calls ask for text at
once, and those of no other prompt: what a prompt is asked depends on its own answers alone, in whatever order they come. The
question is built so that shared prefixes stay shared: constitution and instructions, then the user's prompt, then the answers.

Texts to be judged stand between delimiters made from a hash of all of them, special tokens in them are broken up, and so is
whatever the template's grammar would read as a verdict: a judge that quotes an answer quotes no verdict.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from rlaif.errors import CallFailed, InputError, StopRun, Unsupported
from rlaif.judges.parse import Grammar, Unreadable
from rlaif.judges.specials import Disarm
from rlaif.keys import digest, seed_of
from rlaif.ranking.schedule import Every
from rlaif.templates import Constitution, Principle, Template, load_template
from rlaif.types import Answers, Candidate, Choice, Prompt, Request, Schedule, Verdict

log = logging.getLogger("rlaif")

_TOP_LOGPROBS = 20
_MASS_NEEDED = 0.5
_REMEMBERED = 10_000
LETTERS = string.ascii_uppercase

Kind = Literal["pairwise", "pointwise", "listwise"]
Scale = Literal["probability", "vote", "rating"]
KINDS: dict[str, tuple[str, tuple[str, ...], Scale]] = {
    "pairwise": ("pairwise", ("a", "b"), "vote"),
    "pointwise": ("rating", ("a",), "rating"),
    "listwise": ("ranking", ("answers",), "vote"),
}
"""Of each kind: what its verdicts are, the placeholders that only its templates have, the scale of a verdict as text."""

_Found = tuple[tuple[float, ...], Scale]

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Forms:
    """The two ways in which a kind of judge asks: for a bare option, if it can, and for a text."""

    kind: Kind
    token: Template | None
    text: Template

    @classmethod
    def load(cls, kind: Kind, token: str | None, text: str, *, reference: bool = False) -> Forms:
        """The named templates. Raises InputError if one of them does not fit the kind."""
        needs = ("constitution", "prompt", "mark", *KINDS[kind][1], *(("reference",) if reference else ()))
        forms = cls(kind, load_template(token, needs=needs) if token else None, load_template(text, needs=needs))
        for template in (forms.token, forms.text):
            if template is not None and (found := Grammar.of(template.front, template.name).kind) != KINDS[kind][0]:
                raise InputError(
                    f"template {template.name!r} asks for a {found} verdict; a {kind} judge needs {KINDS[kind][0]}"
                )
        return forms

    @property
    def digests(self) -> list[str | None]:
        """Those of the two templates, None for one that there is not."""
        return [template.digest if template else None for template in (self.token, self.text)]


class LlmJudge:
    """Asks a model. `name` is KIND:MODEL, and #PRINCIPLE if it judges by one principle alone.

    `principles` "sampled" draws one principle for all verdicts on the same candidates; the draw depends on `seed`.
    """

    def __init__(
        self,
        model: Answers,
        constitution: Constitution,
        forms: Forms,
        *,
        name: str,
        principle: Principle | None = None,
        sampled: bool = False,
        seed: int = 0,
        shown: int | None = None,
        schedule: Schedule | None = None,
        reference: bool = False,
        max_tokens: int = 2048,
        beside: LlmJudge | None = None,
    ) -> None:
        self.name = f"{name}:{model.name}" + (f"#{principle.id}" if principle else "")
        self.arity: int | None = {"pairwise": 2, "pointwise": 1}.get(forms.kind, shown)
        self.schedule = schedule or Every(self.arity)
        self._seed = seed if sampled else None
        settings = [principle and principle.id, self._seed, repr(self.schedule), reference, max_tokens]
        self.digest = digest([forms.kind, dict(model.identity), constitution.digest, forms.digests, settings])
        self._model, self._constitution, self._principle = model, constitution, principle
        self._forms, self._reference, self._max_tokens = forms, reference, max_tokens
        self._token_grammar = Grammar.of(forms.token.front, forms.token.name) if forms.token else None
        self._text_grammar = Grammar.of(forms.text.front, forms.text.name)
        self._scale = KINDS[forms.kind][2]
        self._disarm = Disarm(model.specials)
        self._memory: _Memory = _Memory() if beside is None else beside._memory
        self._told = False
        self.given = self.missing_in_a_row = 0  # replies with log-probabilities, and the last ones without

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict:
        """One verdict on the candidates in the order shown; a reply that cannot be read is a verdict without scores."""
        verdict = await self._verdict(prompt, shown, among, as_text=True)
        assert verdict is not None, "what cannot be read as text is a verdict without scores"
        return verdict

    async def option(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict | None:
        """The verdict by the options' probabilities, None where they cannot be had: then nothing is asked as text."""
        return await self._verdict(prompt, shown, among, as_text=False)

    async def _verdict(
        self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate], *, as_text: bool
    ) -> Verdict | None:
        ids = tuple([c.id for c in shown])
        ask = self._question(prompt, shown, among)
        known = Verdict(self.name, ids, None, principle=ask.principle.id if ask.principle else None, weight=self._weight)
        try:
            found = await self._by_token(ask) if self._token_grammar is not None and self._memory.logprobs else None
            if found is not None:
                return replace(known, scores=found[0], scale=found[1], calls=ask.calls)
            if not as_text:
                return None
            request = ask.request(self._forms.text, self._text_grammar, temperature=0.0, max_tokens=self._max_tokens)
            choice = await self._model.answer(request)
        except CallFailed as error:
            return replace(known, error=f"{error.kind}: {error}", calls=ask.calls)
        known = replace(known, calls=ask.calls)
        try:
            if choice.error:
                raise Unreadable("refusal", choice.error)
            scores = self._text_grammar.read(choice.text, shown=len(ids), finish=choice.finish)
        except Unreadable as unread:
            return replace(known, error=f"{unread.kind}: {unread}", reason=choice.text or None)
        return replace(known, scores=scores, scale=self._scale, reason=choice.text)

    def stop(self, reason: StopRun) -> None:
        """Nothing waits here: the model is told."""

    async def close(self) -> None:
        """Nothing to free."""

    @property
    def _weight(self) -> float:
        return self._constitution.share(self._principle) if self._principle else 1.0

    # The question

    def _question(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> _Question:
        mark, principle = self._mark(prompt, among), self._principle_for(prompt, shown)
        constitution = self._constitution.alone(principle) if principle else self._constitution
        texts = {letter: c.text for letter, c in zip(LETTERS, shown, strict=False)}
        values = {letter.lower(): text for letter, text in texts.items()}
        if self._forms.kind == "listwise":
            letters = list(texts)
            values = {f"answer {letter}": text for letter, text in texts.items()}
            example = " > ".join([*letters[1:2], *letters[:1], *letters[2:]])
            fixed = {"letters": ", ".join(letters), "example": example}
        else:
            fixed = {}
        if self._reference and prompt.reference is not None:
            values["reference"] = prompt.reference
        values["prompt"] = _conversation(prompt, mark)
        return _Question(prompt.ordinal, mark, constitution.text, principle, values, fixed, self._disarm)

    def _principle_for(self, prompt: Prompt, shown: Sequence[Candidate]) -> Principle | None:
        """The one principle to judge by: the same for all verdicts that are set against each other."""
        if self._seed is None:
            return self._principle
        together = sorted(c.id for c in shown) if len(shown) > 1 else []
        return self._constitution.pick(seed_of("principle", self._seed, prompt.id, together))

    def _mark(self, prompt: Prompt, among: Sequence[Candidate]) -> str:
        """The prompt's delimiter, made once."""
        known: tuple[int | str, ...] = (prompt.ordinal, prompt.id, *(c.id for c in among))
        marks = self._memory.marks
        if known not in marks:
            _remember(marks, known, mark_for(prompt, among))
        return marks[known]

    # The bare option

    async def _by_token(self, ask: _Question) -> _Found | None:
        """The scores by the options' probabilities, None where they cannot be had."""
        about, first = (ask.ordinal, ask.mark), self._memory.first
        is_first = about not in first
        if is_first:
            _remember(first, about, None)
        elif first.get(about) is False:
            return None
        try:
            choice = await self._option(ask, choices=())
        except Unsupported as error:
            if error.kind != "logprobs":
                raise
            self._memory.logprobs = False  # refused once is refused for every call
            ask.calls -= 1  # what is refused is no call: how many there were would depend on when
            self._fall_back(str(error))
            return None
        except CallFailed as error:
            if error.kind != "bad_request":
                raise
            self._fall_back(f"{self._model.name} refuses the question for a bare verdict ({error})")
            return None
        if choice.error:
            return None
        if choice.first_token is None:
            if is_first:
                _remember(first, about, False)
            self.missing_in_a_row += 1
            self._fall_back(f"{self._model.name} gives no log-probabilities")
            return None
        self.given, self.missing_in_a_row = self.given + 1, 0
        found = self._read(choice, _MASS_NEEDED)
        if found is None and await self._model.can_constrain():
            found = await self._constrained(ask, choice)
        if is_first:
            _remember(first, about, found is not None)
        if found is None:
            self._fall_back(f"{self._model.name} does not answer with the bare verdict")
        return found

    async def _constrained(self, ask: _Question, choice: Choice) -> _Found | None:
        """The scores by the probabilities under the constraint: these here over their sum, where each option is listed.

        Only where one is too unlikely to be listed does the model have to be asked. A server that lists probabilities as
        they were before the constraint gives the option that it chose, as a vote.
        """
        assert self._token_grammar is not None
        if self._token_grammar.lists_all(choice.first_token or {}):
            return self._read(choice, 0.0)
        choice = await self._option(ask, choices=self._token_grammar.options)
        if choice.error:
            return None
        if self._token_grammar.lists_all(choice.first_token or {}):
            return self._read(choice, 0.0)
        try:
            return self._token_grammar.read(choice.text), self._scale
        except Unreadable:
            return None

    def _read(self, choice: Choice, mass_needed: float) -> _Found | None:
        assert self._token_grammar is not None
        try:
            scores, mass = self._token_grammar.read_token(choice.first_token or {})
        except Unreadable:
            return None
        if mass < mass_needed:
            return None
        return scores, "probability" if self._scale == "vote" else self._scale

    async def _option(self, ask: _Question, *, choices: tuple[str, ...]) -> Choice:
        template, grammar = self._forms.token, self._token_grammar
        assert template is not None and grammar is not None
        return await self._model.answer(
            ask.request(template, grammar, temperature=1.0, max_tokens=1, logprobs=_TOP_LOGPROBS, choices=choices)
        )

    def _fall_back(self, why: str) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "%s: the judge falls back to verdicts as text (`logprobs: false` in its spec asks for them at once)", why
            )


def mark_for(prompt: Prompt, candidates: Sequence[Candidate]) -> str:
    """A delimiter that stands in none of the texts: a hash of the prompt and the candidates, whatever their order."""
    texts = sorted(c.text for c in candidates)
    salt = 0
    while True:
        mark = digest([prompt.text, texts, salt], 6)
        if not any(mark in text for text in (prompt.text, prompt.reference or "", *texts)):
            return mark
        salt += 1


def _conversation(prompt: Prompt, mark: str) -> str:
    """The prompt as the judge reads it: who says what stands behind the mark, which no turn can forge."""
    if len(prompt.messages) == 1 and prompt.messages[0]["role"] == "user":
        return prompt.text
    return "\n\n".join(f"[{mark} {m['role']}]\n{m['content']}" for m in prompt.messages)


@dataclass(slots=True)
class _Memory:
    """What is known of the model and of the prompts, lately: whether their first call had the options' probabilities."""

    logprobs: bool = True
    first: dict[tuple[int, str], bool | None] = field(default_factory=dict)
    marks: dict[tuple[int | str, ...], str] = field(default_factory=dict)


@dataclass(slots=True)
class _Question:
    """What a judge asks about some answers, before it has the form of a template. `texts` are to be judged.

    `calls` is how often it has been put into a form and not been refused: each is asked.
    """

    ordinal: int
    mark: str
    constitution: str
    principle: Principle | None
    texts: Mapping[str, str]
    fixed: Mapping[str, str]
    disarm: Disarm
    calls: int = 0

    def request(self, template: Template, grammar: Grammar, **settings: Any) -> Request:
        self.calls += 1
        texts = {name: grammar.disarm(self.disarm(text)) for name, text in self.texts.items()}
        reference = texts.get("reference")
        about = f"\n[{self.mark} reference: a right answer, to check the others by]\n{reference}" if reference else ""
        answers = "\n".join(f"[{self.mark} {name}]\n{text}" for name, text in texts.items() if name.startswith("answer "))
        given = {**texts, **self.fixed, "reference": about, "answers": answers, "constitution": self.constitution}
        text = template.fill(**given, mark=self.mark)
        return Request(({"role": "user", "content": text},), mark=self.mark, ordinal=self.ordinal, **settings)


def _remember(memory: dict[K, V], key: K, value: V) -> None:
    """Adds to a memory of bounded size; the oldest goes."""
    memory[key] = value
    if len(memory) > _REMEMBERED:
        del memory[next(iter(memory))]
