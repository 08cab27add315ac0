"""What a run is about: the user's prompts, with their candidates where these are given, as the ledger keeps them.

They are read and checked once, on their way into the ledger; the work reads them there. A file that has not changed is not
read again: its digest says so. An earlier prompt that has changed is refused, and how it changed is said.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlaif import accept, data, records
from rlaif.config import RunConfig
from rlaif.errors import InputError
from rlaif.export.parts import tools_of
from rlaif.keys import digest
from rlaif.ledger import PromptRow
from rlaif.types import Candidate, Prompt

_SHOWN = 120
_VERSION = 3
_COLUMNS = {
    "prompt_field": "prompt",
    "reference_field": "reference",
    "id_field": "id",
    "candidates_field": "candidates",
    "response_field": "responses",
}


class Source:
    """The prompts of a run: those that `config` names, or Python values given instead.

    Once they are read, `left_out` counts the rows that became no prompt, by reason, and `labelled` the prompts with
    candidates that the input itself prefers to others.
    """

    def __init__(self, config: RunConfig, given: str | Path | Iterable[Any] | None = None) -> None:
        self._config = config
        self.left_out, self.labelled = Counter[str](), 0
        self._from: str | list[Any] = config.prompts if given is None or isinstance(given, (str, Path)) else list(given)

    def read(self) -> Iterator[tuple[Prompt, Sequence[Candidate]]]:
        """Each prompt with its candidates (none where they are to be sampled), in order. Raises InputError."""
        config = self._config
        self.left_out, self.labelled = Counter[str](), 0
        named = {name: getattr(config, setting) for setting, name in _COLUMNS.items()}
        how: dict[str, Any] = {name: getattr(config, name) for name in ("system", "limit", "dedupe", "replace")}
        how |= {"columns": data.Columns(**named | {"responses": tuple(named["responses"])}), "left_out": self.left_out}
        if config.command != "judge":
            return ((self._for_sampling(prompt), ()) for prompt in data.read_prompts(self._from, **how))
        return self._labels_counted(data.read_candidates(self._from, **how))

    @property
    def _needs_reference(self) -> bool:
        return self._config.accept is not None and accept.parse(self._config.accept).needs_reference

    def _for_sampling(self, prompt: Prompt) -> Prompt:
        """The prompt, if it can be sampled: its tools would stand in the exports, and no policy has been shown them."""
        named = f"prompt {prompt.ordinal + 1} ({prompt.id!r})"
        if self._needs_reference and prompt.reference is None:
            raise InputError(f"{named} has no `reference` for --accept correct: --reference-field names its column")
        _has_no_images(prompt)
        if tools_of(prompt):
            raise InputError(
                f"{named} has `tools`, and policies are sent messages only: drop the column, or judge answers that were"
                " made with the tools (rlaif judge)"
            )
        return prompt

    def _labels_counted(
        self, found: Iterable[tuple[Prompt, Sequence[Candidate]]]
    ) -> Iterator[tuple[Prompt, Sequence[Candidate]]]:
        for prompt, candidates in found:
            tools_of(prompt)  # raises if no export could hold them
            _has_no_images(prompt)
            self.labelled += len({c.score for c in candidates if c.score is not None}) > 1
            yield prompt, candidates
        self.check_labels(self.labelled)

    def check_labels(self, labelled: int) -> None:
        """Raises InputError if labels are to be compared and no prompt has any."""
        if self._config.compare_labels and not labelled:
            raise InputError(
                f"--compare-labels: no row of {self._config.prompts!r} prefers one of its answers: labels are `chosen` and"
                " `rejected`, `gold`, ranks, ratings, or candidates with a `score`"
            )

    def reading(self, fingerprint: str | None) -> str:
        """What was found in reading, to be kept with the ledger: `read_before` knows it by the fingerprint."""
        return json.dumps({"source": fingerprint, "left_out": self.left_out, "labelled": self.labelled})

    def read_before(self, fingerprint: str | None, reading: str | None) -> bool:
        """Whether `reading` is of this very source: then it need not be read again. Raises InputError as reading would."""
        known = json.loads(reading) if reading and fingerprint else {}
        if not known or known["source"] != fingerprint:
            return False
        self.left_out, self.labelled = Counter(known["left_out"]), known["labelled"]
        self.check_labels(self.labelled)
        return True

    def rows(self) -> Iterator[PromptRow]:
        """The same as the ledger keeps them."""
        for prompt, candidates in self.read():
            yield PromptRow(prompt.ordinal, prompt.id, records.dump_prompt(prompt, candidates))

    def fingerprint(self) -> str | None:
        """Changes with the file's content and with how it is read; None where that cannot be told cheaply."""
        path = data.file_of(self._from)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "blake2b").hexdigest()
        except OSError:
            return None
        config = self._config
        how = config.system, config.limit, config.dedupe, config.replace, *(getattr(config, name) for name in _COLUMNS)
        needs = [True] if self._needs_reference else []
        return digest([_VERSION, content, path.suffixes, config.command == "judge", *how, *needs])

    def changed(self, before: PromptRow | None, now: PromptRow | None, *, earlier: str | None = None) -> None:
        """Accepts a prompt whose other columns have changed. Raises InputError with the difference otherwise.

        `earlier` is the configuration of the run that made `before`, as YAML.
        """
        assert before is not None
        if now is None:
            if self._config.limit is None or before.ordinal < self._config.limit:
                raise InputError(
                    f"prompt {before.ordinal + 1} ({before.id!r}) of the earlier run is gone from the input; put it back"
                    + self._read_otherwise(earlier)
                )
            return
        marks = _marks(before), _marks(now)
        if marks[0] == marks[1]:
            return
        raise InputError(
            f"prompt {before.ordinal + 1} ({before.id!r}) has changed since the earlier run in {self._config.out!r}:"
            f" {'; '.join(changes('', *marks))}. Add new prompts at the end, or choose another directory"
            + self._read_otherwise(earlier)
        )

    def _read_otherwise(self, earlier: str | None) -> str:
        """In words, how the reading differs from the earlier run's: that may be the whole reason."""
        was = yaml.safe_load(earlier or "") or {}
        said = []
        for name in ("dedupe", "replace", *_COLUMNS):
            before, now = was.get(name) or None, getattr(self._config, name) or None
            if before != now:
                option = f"--{name.replace('_', '-')}"
                value = " " + " ".join([before] if isinstance(before, str) else before) if name in _COLUMNS and before else ""
                said.append(f" (the earlier run was made {'with' if before else 'without'} {option}{value})")
        return "".join(said)


def _has_no_images(prompt: Prompt) -> None:
    """Raises InputError for a prompt that is about pictures: neither policies nor judges would see them."""
    for name in ("images", "image"):
        if prompt.fields.get(name):
            raise InputError(
                f"prompt {prompt.ordinal + 1} ({prompt.id!r}) has a column `{name}`, and only texts are shown to models:"
                " drop the column if the prompt can do without"
            )


def _marks(row: PromptRow) -> dict[str, Any]:
    """What may not change of a row, part by part: the beginning of the text as it is, the rest as digests."""
    prompt, candidates = records.load_prompt(row.ordinal, row.id, row.body)
    given = [[c.text, c.model, c.score] for c in candidates]
    parts = {"messages": list(prompt.messages), "reference": prompt.reference, "candidates": given}
    return {"id": row.id, "text": prompt.text[:_SHOWN]} | {name: digest(part, 8) for name, part in parts.items()}


def changes(name: str, before: Any, now: Any) -> Iterator[str]:
    """Where two JSON values differ, in words; digests are not shown."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        for key in before:
            yield from changes(f"{name} {key}".strip(), before[key], now[key])
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (one, other) in enumerate(zip(before, now, strict=True), 1):
            yield from changes(f"{name} {place}" if len(now) > 1 else name, one, other)
    elif before != now:
        hidden = name in ("messages", "reference", "candidates")
        yield f"{name} changed" if hidden else f"{name} was {_short(before)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:300] + "..."
