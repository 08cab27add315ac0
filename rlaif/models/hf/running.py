"""Continuous batching: prompts are read together, and their rows generate together, a token each a step.

What comes later joins between two steps, a row that has ended leaves at once. When memory runs out in a step, half of the
rows go back into the line, with what they have said, and are read again later. Where it runs out over a single row, that
one is tried once more with nothing else in memory, and fails if it does not fit then.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rlaif.errors import CallFailed
from rlaif.keys import seed_of
from rlaif.models.hf import pick
from rlaif.models.hf.memory import attempt
from rlaif.models.hf.network import Network
from rlaif.models.hf.prefixes import State, Tokens, tokens_of
from rlaif.models.hf.reading import Read, Reader
from rlaif.models.hf.slots import Slots
from rlaif.models.hf.worker import Job
from rlaif.types import Request

CPU_ROWS, GPU_ROWS = 32, 256
_NARROW_AT = 64


@dataclass(eq=False)
class Row:
    """One answer in the making: at most `limit` tokens after the prompt, ended by `finish`.

    `alone`: memory ran out over it, and it has the memory to itself now, or will have when its turn comes.
    """

    ask: Ask
    index: int
    limit: int
    numbers: pick.Numbers
    made: list[int] = field(default_factory=list)
    finish: str | None = None
    alone: bool = False
    first: list[dict[str, Any]] | None = None

    @property
    def tokens(self) -> Tokens:
        """All that has been said: the prompt and the answer so far."""
        return tokens_of([*self.ask.prompt, *self.made]) if self.made else self.ask.tokens


@dataclass(eq=False)
class Ask:
    """One request: its prompt's tokens, its rows, and what they may say."""

    job: Job
    request: Request
    prompt: list[int]
    options: list[list[int]]
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = tokens_of(self.prompt)


@dataclass(frozen=True, slots=True)
class Answered:
    """A request's choices, as a chat completion lists them, and the tokens that it took."""

    choices: list[dict[str, Any]]
    prompt_tokens: int
    completion_tokens: int


class Chat:
    """The engine of a chat model. `tokenise` turns a request into token ids, and may raise CallFailed."""

    def __init__(
        self,
        network: Network,
        tokenise: Callable[[Request], list[int]],
        *,
        filters: pick.Filters | None = None,
        reuse: bool = True,
        rows: int | None = None,
    ) -> None:
        self._network, self._tokenise, self._filters = network, tokenise, filters or pick.Filters()
        self._reader = Reader(network, reuse=reuse)
        self._slots = Slots(network.layers)
        self._rows: list[Row] = []
        self._starts: list[int] = []
        self._line: list[Row] = []
        self.most_rows = rows or (GPU_ROWS if network.device.type == "cuda" else CPU_ROWS)
        self._wanted_rows = self.most_rows

    def take(self, jobs: list[Job]) -> None:
        """Puts the rows of new requests into the line."""
        for job in jobs:
            try:
                self._line += self._asked(job).rows
            except CallFailed as error:
                job.fail(error)

    def step(self) -> bool:
        """Reads the prompts that there is room for, and has every running row say a token."""
        with torch.inference_mode():
            return self._step()

    def _step(self) -> bool:
        self._line = [row for row in self._line if not row.ask.job.dropped]
        for place in reversed(range(len(self._rows))):
            if self._rows[place].ask.job.dropped:
                self._leave(place)
        self._admit()
        if self._rows:
            self._generate()
        return bool(self._rows or self._line)

    # Requests

    def _asked(self, job: Job) -> Ask:
        request: Request = job.work
        prompt = self._tokenise(request)
        window = self._network.window
        if window is not None and len(prompt) >= window:
            raise CallFailed("too_long", f"the prompt has {len(prompt)} tokens; the model reads {window}, with its answer")
        ask = Ask(job, request, prompt, self._options(request))
        left = window - len(prompt) if window is not None else None
        limit = min(value for value in (request.max_tokens, left, 2**31) if value is not None)
        seed = request.seed if request.seed is not None else secrets.randbits(31)
        ask.rows = [Row(ask, i, limit, pick.Numbers(seed_of(seed, i))) for i in range(request.n)]
        return ask

    def _options(self, request: Request) -> list[list[int]]:
        options = [list(self._network.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in request.choices]
        firsts = [option[0] for option in options if option]
        if len(firsts) < len(options) or (request.max_tokens == 1 and len(set(firsts)) < len(firsts)):
            raise CallFailed("bad_request", f"the choices {request.choices!r} cannot be told apart by their first tokens")
        return options

    # Reading

    def _admit(self) -> None:
        """Reads prompts from the line, and begins their answers."""
        batch = self._next()
        if not batch:
            return
        chosen = set(batch)
        self._line = [row for row in self._line if row not in chosen]
        groups: dict[bytes, list[Row]] = {}
        for row in batch:
            row.ask.job.begun = True
            groups.setdefault(row.tokens.tobytes(), []).append(row)
        same = list(groups.values())
        marks = ["" if rows[0].alone else rows[0].ask.request.mark for rows in same]
        for read in self._reader.read([rows[0].tokens for rows in same], marks):
            if isinstance(read, Read):
                self._begin(same[read.place], read.logits, read.state)
            else:
                for row in same[read]:
                    self._set_back(row)

    def _next(self) -> list[Row]:
        """What is read now: all that want one token alone, and others while there is room for their rows.

        A row that is to be alone comes before them, and those that run make way for it.
        """
        lone = next((row for row in self._line if row.alone), None)
        if lone is not None:
            self._clear()
            return [lone]
        batch, rows, full = list[Row](), list(self._rows), False
        for row in self._line:
            if row.limit - len(row.made) > 1:
                full = full or not self._has_room(rows, row)
                if full:  # also for a shorter one behind it: else the long one might never come in
                    continue
                rows.append(row)
            batch.append(row)
        if batch:
            for row in self._rows:
                row.alone = False
        return batch

    def _has_room(self, rows: Sequence[Row], row: Row) -> bool:
        """True if the row can run beside the others to its end; one alone always may."""
        if not rows:
            return True
        longest = max(len(one.ask.prompt) + min(one.limit, 2**20) for one in (*rows, row))
        return len(rows) < self.most_rows and (len(rows) + 1) * longest <= self._network.room_tokens

    def _begin(self, rows: Sequence[Row], logits: torch.Tensor, state: State) -> None:
        """Rows with one prompt, after which are `logits` [vocabulary], say their first token; those that go on get a place."""
        fitted, said = attempt(lambda: self._choose(logits.expand(len(rows), -1), rows))
        if fitted and said is not None:
            for row, token in zip(rows, said, strict=True):
                self._say(row, token)
                if row.finish is None:
                    self._join(row, state)
        elif len(rows) > 1:
            half = len(rows) // 2
            self._begin(rows[:half], logits, state)
            self._begin(rows[half:], logits, state)
        else:
            self._set_back(rows[0])

    def _join(self, row: Row, state: State) -> None:
        """Gives the row a place among those that run. Where memory runs out, all go back into the line."""
        tokens, before = state[0][0].shape[1], self._slots.length
        fitted, _ = attempt(lambda: self._slots.put(len(self._rows), state))
        if not fitted:
            self._set_back(row)
            return
        self._starts = [start + self._slots.length - before for start in self._starts]
        self._rows.append(row)
        self._starts.append(self._slots.length - tokens)

    # Generating

    def _generate(self) -> None:
        """Every running row says a token."""
        rows, columns = list(self._rows), self._slots.length

        def act() -> list[int]:
            ids = torch.tensor([[row.made[-1]] for row in rows], device=self._network.device)
            starts = torch.tensor(self._starts, device=self._network.device)
            return self._choose(self._network.forward(ids, starts, self._slots), rows)

        fitted, said = attempt(act)
        if not fitted or said is None:
            self._slots.back_to(columns)
            self._shrink()
            return
        for row, token in zip(rows, said, strict=True):
            self._say(row, token)
        for place in reversed(range(len(rows))):
            if rows[place].finish is not None:
                self._leave(place)
        spare = min(self._starts, default=0)
        if spare >= _NARROW_AT:
            self._slots.narrow(spare)
            self._starts = [start - spare for start in self._starts]

    def _choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        if self._filters.repetition_penalty != 1.0:
            logits = self._filters.penalise(logits, [row.tokens.tolist() for row in rows])
        bound = [place for place, row in enumerate(rows) if row.ask.options]
        if bound:
            logits = logits.clone()
            for place in bound:
                allowed = pick.next_of(rows[place].ask.options, rows[place].made, self._stop)
                logits[place] = pick.only(logits[place], allowed)
        for place, row in enumerate(rows):
            if row.ask.request.logprobs and not row.made:
                row.first = pick.top(logits[place], row.ask.request.logprobs, self._network.tokenizer)
        heat = [1.0 if t is None else t for t in (row.ask.request.temperature for row in rows)]
        return pick.draw(logits, heat, [row.numbers.at(len(row.made)) for row in rows], self._filters)

    @property
    def _stop(self) -> int | None:
        return min(self._network.stops, default=None)

    def _say(self, row: Row, token: int) -> None:
        if token in self._network.stops:
            row.finish = "stop"
        row.made.append(token)
        options = row.ask.options
        if row.finish is None and options and not pick.next_of(options, row.made, self._stop):
            row.finish = "stop"
        if row.finish is None and len(row.made) >= row.limit:
            row.finish = "length"
        if row.finish is not None and all(one.finish for one in row.ask.rows):
            row.ask.job.finish(self._answered(row.ask))

    def _answered(self, ask: Ask) -> Answered:
        choices = []
        for row in ask.rows:
            ids = row.made[:-1] if row.made[-1] in self._network.stops else row.made
            text = self._network.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": row.finish}
            if row.first is not None:
                said = self._network.tokenizer.decode(row.made[:1])
                logprob = next((one["logprob"] for one in row.first if one["token"] == said), row.first[-1]["logprob"])
                choice["logprobs"] = {"content": [{"token": said, "logprob": logprob, "top_logprobs": row.first}]}
            choices.append(choice)
        return Answered(choices, len(ask.prompt), sum(len(row.made) for row in ask.rows))

    # Leaving

    def _leave(self, place: int) -> None:
        """Takes a row out; the last one gets its place."""
        last = len(self._rows) - 1
        if place != last:
            self._slots.move(last, place)
            self._rows[place], self._starts[place] = self._rows[last], self._starts[last]
        del self._rows[last], self._starts[last]
        if not self._rows:
            self._slots = Slots(self._network.layers)

    def _shrink(self) -> None:
        """Memory has run out over the rows that run: half of them go back into the line, and so many run from now on."""
        keep = len(self._rows) // 2
        if not keep:
            self._set_back(self._rows[0])
            return
        self._reader.held.clear()
        self.most_rows = keep
        self._line = self._rows[keep:] + self._line
        self._rows, self._starts = self._rows[:keep], self._starts[:keep]

    def _set_back(self, row: Row) -> None:
        """Memory has run out over this row: it goes back into the line to be tried alone, or fails if it was alone."""
        if row.alone:
            self._fail(row)
            return
        others = len(self._rows) - (row in self._rows)
        if others:
            self.most_rows = min(self.most_rows, max(1, (others + 1) // 2))
        self._clear()
        row.alone = True
        if row not in self._line:
            self._line.insert(0, row)

    def _clear(self) -> None:
        """Puts all that runs back into the line and frees what is held."""
        for row in self._rows:
            row.alone = False
        self._line = self._rows + self._line
        self._rows, self._starts, self._slots = [], [], Slots(self._network.layers)
        self._reader.held.clear()

    def _fail(self, row: Row) -> None:
        """The row does not fit into memory, not even alone: its request fails, and others are no longer few for its sake."""
        ask = row.ask
        size = len(ask.prompt) + max(len(one.made) for one in ask.rows)
        ask.job.fail(CallFailed("too_long", f"{size} tokens do not fit into the memory of {self._network.device.type}"))
        self.most_rows = self._wanted_rows
        self._line = [one for one in self._line if one.ask is not ask]
        for place in reversed(range(len(self._rows))):
            if self._rows[place].ask is ask:
                self._leave(place)
