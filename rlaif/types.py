"""The nouns: Prompt -> Candidates -> Verdicts -> Record || Ranking -> PreferencePair.

A verdict scores the candidates it was shown, in the order shown. One shown is a rating, two a comparison, k a ranking;
showing two in the other order is a second verdict; a tie is equal scores. A judge that failed is a verdict without
scores and with an error: never a tie, a zero or a win. Verdicts name candidates by id, never by position.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rlaif.errors import StopRun

Message = dict[str, Any]
"""A chat message, `{"role": ..., "content": ...}`, as OpenAI-compatible endpoints and trainers read it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy is asked. `fields` keeps the input row's other columns, `ordinal` is its place in the input, from 0."""

    id: str
    messages: tuple[Message, ...]
    reference: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    ordinal: int = 0

    @property
    def text(self) -> str:
        """The conversation as one text: a lone user message as it is, anything else with its roles."""
        if len(self.messages) == 1 and self.messages[0]["role"] == "user":
            return str(self.messages[0]["content"])
        return "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in self.messages)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer to a prompt. `id` is unique within the prompt; `error` says why there is no text.

    `degenerate` is the kind of fault that rules found in its words (`rlaif.degenerate`), None for none or not looked at.
    """

    id: str
    text: str
    model: str = ""
    finish: str | None = None
    thinking: str | None = None
    error: str | None = None
    score: float | None = None
    degenerate: str | None = None

    @property
    def truncated(self) -> bool:
        """True if the answer was cut at the token limit."""
        return self.finish == "length"

    @property
    def empty(self) -> bool:
        """True if there is nothing to read, because of an error or because the model said nothing."""
        return self.error is not None or not self.text.strip()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of the candidates it was shown.

    `shown` holds candidate ids in the order shown, `scores` one number for each of them, or None with `error` set.
    `scale` says what the scores are: "probability" (each one's probability of being the best shown; they sum to 1),
    "vote" (a named winner, or a tie: only the order counts) or "rating" (any real numbers, higher is better).
    `principle` is the id of the one principle it was given under, None for a whole constitution or none; `weight` is how
    much it counts beside other verdicts on the same candidates. `calls` is how many calls of a model it took.
    """

    judge: str
    shown: tuple[str, ...]
    scores: tuple[float, ...] | None
    scale: Literal["probability", "vote", "rating"] = "rating"
    error: str | None = None
    reason: str | None = None
    principle: str | None = None
    weight: float = 1.0
    calls: int = 1

    @property
    def cause(self) -> str | None:
        """Why it could not be read: the first word of its error; None where it has scores."""
        return None if self.scores is not None else (self.error or "no_verdict").partition(":")[0]

    @property
    def winner(self) -> str | None:
        """The id with the highest score, None for a tie at the top or a failed verdict."""
        if self.scores is None:
            return None
        top = max(self.scores)
        best = [c for c, s in zip(self.shown, self.scores, strict=True) if s == top]
        return best[0] if len(best) == 1 else None


@dataclass(frozen=True, slots=True)
class Record:
    """All that was bought for one prompt."""

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    verdicts: tuple[Verdict, ...] = ()

    @property
    def ordinal(self) -> int:
        """The prompt's place in the input."""
        return self.prompt.ordinal


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates of one prompt on one scale.

    `ids` and `strengths` are aligned; strengths are posterior means of Bradley-Terry log-strengths, mean 0. `scores` are what
    an export shows: the mean rating where one rating judge scored every candidate, the strengths otherwise. `wins[i][j]` is
    the posterior probability that i is better than j: it says how sure the strengths are, wins[j][i] is 1 less it.
    """

    ids: tuple[str, ...]
    strengths: tuple[float, ...]
    scores: tuple[float, ...]
    wins: tuple[tuple[float, ...], ...] = ()

    def p(self, one: int, other: int) -> float:
        """The probability that the candidate at place `one` of `ids` is better than that at `other`.

        Where there are no `wins`, the strengths are taken as known log-odds: 1 / (1 + exp(strength_other - strength_one)).
        """
        if self.wins:
            return self.wins[one][other]
        return 0.5 * (1.0 + math.tanh(0.5 * (self.strengths[one] - self.strengths[other])))


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Chosen and rejected for one prompt, and how sure the label is.

    `p_chosen` (0.5..1) is the probability that chosen is better, `p_source` where it comes from, `flip` whether the two
    orders of this pair named different winners (None unless both were judged readably).
    """

    prompt: Prompt
    chosen: Candidate
    rejected: Candidate
    score_chosen: float
    score_rejected: float
    p_chosen: float
    judge: str
    flip: bool | None = None
    p_source: str = "judge"


@dataclass(frozen=True, slots=True)
class Request:
    """One model call for the prompt at `ordinal`.

    `logprobs` asks for that many alternatives of each token. `choices` asks for an answer from this list alone, where
    the model can constrain. `mark` is the delimiter in the messages of one prompt's judge calls: calls with the same
    mark share a long prefix, and a call is known without it, so that more candidates leave old comparisons valid.
    """

    messages: tuple[Message, ...]
    n: int = 1
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    logprobs: int = 0
    choices: tuple[str, ...] = ()
    mark: str = ""
    ordinal: int = 0

    @property
    def characters(self) -> int:
        """The length of all messages' texts."""
        return sum(len(m["content"]) for m in self.messages)


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of a model. `first_token` maps the alternatives of the first answer token to probabilities."""

    text: str
    finish: str | None = None
    thinking: str | None = None
    first_token: Mapping[str, float] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's response: its choices in order, the tokens it counted, its id and the model it names (None where not said)."""

    choices: tuple[Choice, ...]
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    id: str | None = None
    model: str | None = None

    @property
    def tokens(self) -> int | None:
        """All tokens counted."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


class Purchase(Protocol):
    """One call's entry in the books; a model tells it of each attempt."""

    def begin(self) -> None:
        """An attempt is about to be sent. Raises StopRun where nothing more may be bought."""

    async def keep(self, body: bytes) -> None:
        """Stores the body of a response with status 200 durably, before anybody parses it. Raises StopRun."""

    async def fault(self, kind: str, status: int | None, body: bytes) -> None:
        """Stores what came of an attempt that gave no answer: an error's body, the beginning of a broken one."""


class Model(Protocol):
    """Something that answers chat requests.

    `identity` is what the ledger's keys know it by, `max_n` the most choices in a response, `window` how many prompts at
    once keep it busy; `free` says that its calls cost no money. `specials` are
    texts that it reads as more than text, as far as they are known beyond those that chat models commonly use.
    """

    name: str
    identity: Mapping[str, Any]
    max_n: int
    window: int
    free: bool
    specials: Sequence[str]

    async def send(self, request: Request, purchase: Purchase) -> Reply:
        """Buys one response, keeps it and parses it. Raises CallFailed, Unsupported or StopRun."""

    async def can_constrain(self) -> bool | None:
        """Whether it honours `Request.choices`; None where that cannot be found out now."""

    def read(self, body: bytes) -> Reply:
        """Parses a kept body, purely. Raises CallFailed if it is no answer."""

    def stop(self, reason: StopRun) -> None:
        """Lets no further call out: `send` raises `reason`; calls in flight go on to their end."""

    async def close(self) -> None:
        """Frees connections and memory."""


class Answers(Protocol):
    """A model as judges see it: an answer already bought is not bought again."""

    name: str
    specials: Sequence[str]
    identity: Mapping[str, Any]

    async def can_constrain(self) -> bool:
        """Whether the model honours `Request.choices`."""

    async def answer(self, request: Request) -> Choice:
        """The one answer to `request`. Raises CallFailed, Unsupported or StopRun."""


Group = tuple[int, ...]
"""Places of the candidates that a judge is shown together, in the order shown."""
Said = Sequence[Verdict | None]
Rounds = Generator[list[Group], Said, None]
"""Yields the groups to be asked about at once, and is sent what was said of each, in the same order."""


class Schedule(Protocol):
    """Which candidates a judge is shown together, in which order, and after which verdicts."""

    def rounds(self, ids: Sequence[str], seed: int) -> Rounds:
        """What to ask about the candidates `ids`, two or more (of a judge that is shown one: one or more)."""

    def calls(self, count: int) -> Counter[int]:
        """At most how many groups of each size are asked about, of `count` candidates, if what is said of them can be read.

        Fewer than two need none.
        """


class Judge(Protocol):
    """Scores the candidates it is shown. `arity` is how many at a time, None for all at once.

    `schedule` says which it is shown together, and when. `digest` changes whenever its verdicts could.
    """

    name: str
    arity: int | None
    schedule: Schedule
    digest: str

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict | None:
        """One verdict on `shown`, in that order; `among` are all candidates of the prompt. Raises StopRun only.

        None where it cannot be asked about so many at a time, which its schedule then goes round.
        """

    def stop(self, reason: StopRun) -> None:
        """Lets no further call begin: those that wait for their turn raise `reason`."""

    async def close(self) -> None:
        """Frees what the judge holds."""


class Propose(Protocol):
    """Gives the candidates of a prompt: sampled from policies, or read from a file."""

    async def __call__(self, prompt: Prompt, have: int = 0) -> list[Candidate]:
        """Candidates of the prompt after the first `have`, in a fixed order, failed ones with their error; empty if no more."""
