"""A judge that replays verdicts from a file: what another judge said of the same pairs, at another time.

    rlaif.judge(candidates, judge=recorded.load("verdicts.jsonl.gz", judge="GPT-4", config="CoT"), out=...)

Rows join by id, never by place: `pair_id` is the prompt's id, `ID/0` is response_a and `ID/1` response_b. A row speaks for the
order in which it was recorded and for no other. What was not recorded, or could not be read, is a verdict without scores.

What a row says is taken in this order: with `grammar`, its `logprobs` (for a token grammar) or its `raw` text, read anew; else
`p_b`, the probability that B is better; else `scores`, in the order shown; else `verdict`, in terms of A and B.

Where the rows are pointwise (each answer rated alone, `scores` being [A's, B's]) the judge is shown one candidate at a time,
as the recorded one was: there is no order to flip.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from rlaif.errors import InputError
from rlaif.judges.parse import Grammar, Unreadable, load_grammar
from rlaif.keys import digest
from rlaif.types import Candidate, Prompt, Verdict

_VOTES = {"A": (1.0, 0.0), "B": (0.0, 1.0), "tie": (0.5, 0.5)}
_ORDERS = ("AB", "BA", "pointwise", None)
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class _Said:
    """What a row says of those shown, in the order shown; without scores, why. `named` is the winner in the row's own word."""

    scores: tuple[float, ...] | None
    scale: Literal["probability", "vote", "rating"] = "vote"
    error: str | None = None
    reason: str | None = None
    named: str | None = None

    def words(self) -> tuple[tuple[float, ...] | None, Literal["probability", "vote", "rating"], str | None, str | None]:
        """The same as a verdict's last fields."""
        return self.scores, self.scale, self.error, self.reason


class _Book:
    """What was said, by (pair, order); of pointwise rows by (pair, A or B)."""

    def __init__(self) -> None:
        self.said: dict[tuple[str, str | None], _Said] = {}
        self.pointwise: bool | None = None

    def add(self, where: str, pair: str, order: str | None, said: _Said) -> None:
        if (pair, order) in self.said:
            raise InputError(f"{where}: a second verdict on {pair!r} in the order {order!r} by the same judge and config")
        self.said[pair, order] = said

    def look_up(self, pair: str, order: str) -> _Said:
        if (pair, order) in self.said:
            return self.said[pair, order]
        orders = [other for of, other in ((pair, o) for o in _ORDERS) if (of, other) in self.said]
        if not orders:
            return _Said(None, error=f"not_recorded: there is no verdict on {pair!r}")
        if orders == [None]:
            return _Said(None, error=f"not_recorded: the verdict on {pair!r} does not say in which order the two were shown")
        return _Said(None, error=f"not_recorded: there is no verdict on {pair!r} in the order {order}")


class RecordedJudge:
    """A judge function: what was recorded of the candidates shown.

    `arity` is 2, or 1 for pointwise rows; `source` changes with the file's content, the selection and the grammar. `judge` and
    `config` are what the file calls it.
    """

    def __init__(self, chosen: tuple[str, str | None], book: _Book, source: str = "") -> None:
        self.judge, self.config = chosen
        self.__name__, self.source = ":".join(["recorded", *(part for part in chosen if part)]), source
        self.arity = 1 if book.pointwise else 2
        self._book = book

    def pairs(self) -> set[str]:
        """The ids of the pairs that it spoke of."""
        return {pair for pair, _ in self._book.said}

    def on(self, pair: str, ids: tuple[str, str]) -> list[tuple[str | None, Verdict, str | None]]:
        """All that was recorded on a pair whose answers are `ids`: (the order as the file has it, the verdict, the winner that
        the file names beside scores, if it does) of each row.

        Of an order that was not recorded (None) the verdict is written as if A had been shown first.
        """
        a, b = ids
        shown: dict[str | None, tuple[str, ...]] = {"AB": (a, b), "BA": (b, a), None: (a, b), "A": (a,), "B": (b,)}
        found = [(order, ids, self._book.said.get((pair, order))) for order, ids in shown.items()]
        return [
            (order if order not in ("A", "B") else "pointwise", Verdict(self.__name__, ids, *said.words()), said.named)
            for order, ids, said in found
            if said is not None
        ]

    def __call__(self, prompt: Prompt, candidates: Sequence[Candidate]) -> Verdict:
        """The recorded verdict on the candidates, in the order shown; without scores where there is none."""
        shown = tuple(c.id for c in candidates)
        letters = {f"{prompt.id}/0": "A", f"{prompt.id}/1": "B"}
        order = "".join(letters.get(candidate, "?") for candidate in shown)
        if "?" in order or len(shown) != self.arity:
            error = f"not_recorded: verdicts are about {' and '.join(letters)}, shown were {', '.join(shown)}"
            return Verdict(self.__name__, shown, None, error=error)
        said = self._book.look_up(prompt.id, order)
        return Verdict(self.__name__, shown, *said.words())


def load(
    path: str | Path, *, judge: str | None = None, config: str | None = None, grammar: str | Grammar | None = None
) -> RecordedJudge:
    """The judge that says what `judge` in its `config` said in this file (.jsonl, or gzip of it).

    Either may be left out where the file has one only. With `grammar`, a Grammar or the name of one, the replies are read
    anew instead of taking the file's word. Raises InputError: for a wrong row by file and line, for a choice that is still
    open with what there is to choose from.
    """
    reading = load_grammar(grammar) if isinstance(grammar, str) else grammar
    hasher = hashlib.sha256()
    rows = list(_rows(Path(path), hasher))
    chosen = _chosen(str(path), [_of(row) for _, row in rows], judge, config)
    book = _Book()
    for where, row in rows:
        if _of(row) == chosen:
            _enter(book, where, row, reading)
    source = digest([hasher.hexdigest(), *chosen, reading.digest if reading else None])
    return RecordedJudge(chosen, book, source)


def load_all(paths: Sequence[str | Path]) -> list[RecordedJudge]:
    """Every judge in every config of these files, in the order in which they come; what several files say is put together.

    Raises InputError for a wrong row by file and line, a second verdict on a pair in the same order among them.
    """
    books: dict[tuple[str, str | None], _Book] = {}
    for path in paths:
        empty = True
        for where, row in _rows(Path(path), hashlib.sha256()):
            _enter(books.setdefault(_of(row), _Book()), where, row, None)
            empty = False
        if empty:
            raise InputError(f"{str(path)!r} holds no verdicts")
    return [RecordedJudge(named, book) for named, book in books.items()]


# The file


def _rows(path: Path, hasher: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, the row) of each line, checked as far as every row has it."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                hasher.update(line)
                if line.strip():
                    yield f"{path}:{number}", _checked(f"{path}:{number}", line)
    except FileNotFoundError:
        raise InputError(f"no file at {str(path)!r}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {str(path)!r} after line {number}: {error}") from None
    except ValueError:  # a name with a null byte
        raise InputError(f"no file at {str(path)!r}") from None


def _checked(where: str, line: bytes) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg}, at character {error.pos + 1}") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: a line must be a JSON object, got {line[:40].decode('utf-8', 'replace')!r}")
    if type(row.get("pair_id")) is int:  # as ids of prompts may be
        row["pair_id"] = str(row["pair_id"])
    for key in ("pair_id", "judge"):
        if not isinstance(row.get(key), str) or not row[key]:
            raise InputError(f"{where}: `{key}` must be a text, got {row.get(key)!r}")
    if not isinstance(row.get("config"), str | None):
        raise InputError(f"{where}: `config` must be a text, got {row['config']!r}")
    if "order" not in row or row["order"] not in _ORDERS:
        raise InputError(f"{where}: `order` must be AB, BA, pointwise or null, got {row.get('order', 'nothing')!r}")
    return row


def _of(row: Mapping[str, Any]) -> tuple[str, str | None]:
    return row["judge"], row.get("config")


def _chosen(
    path: str, found: Sequence[tuple[str, str | None]], judge: str | None, config: str | None
) -> tuple[str, str | None]:
    """The one judge and config that are meant."""
    known = list(dict.fromkeys(found))
    if not known:
        raise InputError(f"{path!r} holds no verdicts")
    meant = [(j, c) for j, c in known if judge in (None, j) and config in (None, c)]
    if len(meant) == 1:
        return meant[0]
    asked = " and ".join(f"{key} {value!r}" for key, value in (("judge", judge), ("config", config)) if value is not None)
    listed = ", ".join(j if c is None else f"{j} / {c}" for j, c in (meant or known)[:_SHOWN])
    more = f", and {len(meant or known) - _SHOWN} more" if len(meant or known) > _SHOWN else ""
    if not meant:
        raise InputError(f"{path!r} has no verdicts of {asked}; there are (judge / config): {listed}{more}")
    raise InputError(f"{path!r} has verdicts of several judges or configs; choose one of (judge / config): {listed}{more}")


# What a row says


def _enter(book: _Book, where: str, row: Mapping[str, Any], grammar: Grammar | None) -> None:
    pair, order = row["pair_id"], row["order"]
    pointwise = order == "pointwise"
    if book.pointwise not in (None, pointwise):
        raise InputError(f"{where}: some verdicts of this judge and config are pointwise, and some are on two")
    book.pointwise = pointwise
    if not pointwise:
        book.add(where, pair, order, _of_two(where, row, grammar))
        return
    for letter, said in zip("AB", _of_each(where, row, grammar), strict=True):
        book.add(where, pair, letter, said)


def _of_two(where: str, row: Mapping[str, Any], grammar: Grammar | None) -> _Said:
    swapped = row["order"] == "BA"
    if grammar is not None:
        return _reread(where, row, row.get("raw"), grammar, shown=2)
    reason = row.get("raw") if isinstance(row.get("raw"), str) else None
    named = _named(row)
    if row.get("p_b") is not None:
        p_b = _number(where, "p_b", row["p_b"])
        if not 0.0 <= p_b <= 1.0:
            raise InputError(f"{where}: `p_b` must be a probability, got {p_b!r}")
        return _Said((p_b, 1.0 - p_b) if swapped else (1.0 - p_b, p_b), "probability", reason=reason, named=named)
    if row.get("scores") is not None:
        scores = tuple(_number(where, "scores", score) for score in _two(where, "scores", row["scores"]))
        return _Said(scores, "rating", reason=reason, named=named)
    if "verdict" not in row or not isinstance(row["verdict"], str | None) or row["verdict"] not in (*_VOTES, None):
        raise InputError(f"{where}: `verdict` must be A, B, tie or null, got {row.get('verdict', 'nothing')!r}")
    if row["verdict"] is None:
        return _Said(None, error=_why_none(row.get("finish")), reason=reason)
    votes = _VOTES[row["verdict"]]
    return _Said(votes[::-1] if swapped else votes, "vote", reason=reason)


def _named(row: Mapping[str, Any]) -> str | None:
    verdict = row.get("verdict")
    return verdict if isinstance(verdict, str) and verdict in _VOTES else None


def _why_none(finish: Any) -> str:
    """Why there is no verdict in a reply, as far as the file says how the reply ended."""
    if finish == "length":
        return "truncated: the reply was cut off before a verdict"
    if isinstance(finish, str) and "content" in finish:
        return f"content_filter: the endpoint withheld the reply ({finish})"
    return "no_verdict: the file has a reply of the judge, and no verdict was read from it"


def _of_each(where: str, row: Mapping[str, Any], grammar: Grammar | None) -> list[_Said]:
    """What a pointwise row says of A, and of B."""
    if grammar is not None:
        return [_reread(where, row, raw, grammar, shown=1) for raw in _two(where, "raws", row.get("raws"))]
    scores = _two(where, "scores", row.get("scores"))
    none = _Said(None, "rating", error="no_verdict: the file has no score of this answer")
    named = _named(row)
    return [none if score is None else _Said((_number(where, "scores", score),), "rating", named=named) for score in scores]


def _reread(where: str, row: Mapping[str, Any], raw: Any, grammar: Grammar, *, shown: int) -> _Said:
    if (grammar.kind == "rating") != (shown == 1):
        raise InputError(f"{where}: the verdict is on {shown}, a {grammar.kind} grammar cannot read it")
    try:
        if not grammar.patterns and isinstance(row.get("logprobs"), dict) and row["logprobs"]:
            tokens = {token: math.exp(min(_number(where, "logprobs", p), 0.0)) for token, p in row["logprobs"].items()}
            return _Said(grammar.read_token(tokens)[0], "rating" if shown == 1 else "probability")
        if not isinstance(raw, str):
            return _Said(None, error="not_recorded: the file does not have the judge's reply")
        scores = grammar.read(raw, shown, row.get("finish"))
    except Unreadable as error:
        return _Said(None, error=f"{error.kind}: {error}", reason=raw if isinstance(raw, str) else None)
    return _Said(scores, "rating" if shown == 1 else "vote", reason=raw)


def _two(where: str, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(f"{where}: `{key}` must be a list of two, got {json.dumps(value)[:80]}")
    return value


def _number(where: str, key: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{where}: `{key}` must be a number, got {value!r}")
    return float(value)
