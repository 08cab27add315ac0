"""Rows that say the same as another: repeats, and contradictions, where the same answers have opposite labels.

Texts are told apart as `rlaif.pairs.normalised` does. Of pairs the key does not know which side is which, so that a pair and
its reverse meet under one key; of answers with a label the key does not know the label.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlaif.check.columns import Column, groups, key
from rlaif.check.formats import Example, words
from rlaif.pairs import normalised


class Duplicates:
    """What every row says, on disk. `add` each row, then go through `repeats` and `shared_ids`."""

    def __init__(self, folder: Path) -> None:
        self._keys, self._places = Column(folder, "keys", "u8"), Column(folder, "places", "u8")
        self._sides = Column(folder, "sides", "u1")
        self._ids, self._prompts = Column(folder, "ids", "u8"), Column(folder, "prompts", "u8")

    def add(self, place: int, example: Example) -> int:
        """Notes a row, and returns the key of what it says."""
        prompt = normalised(_shown(example.prompt))
        said = [normalised(_shown(answer)) for _, answer in example.answers]
        found = key(prompt, *sorted(said))
        self._keys.add(found)
        self._places.add(place)
        label = example.row.get("label") if example.format.kind == "unpaired" else False
        self._sides.add(int(said[0] < said[1]) if example.is_pair else int(label is True))
        name = example.row.get("id")
        self._ids.add(key(str(name)) if isinstance(name, (str, int)) and not isinstance(name, bool) else 0)
        self._prompts.add(key(prompt))
        return found

    def repeats(self) -> Iterator[tuple[str, int, str]]:
        """(code, place, detail) of repeats and of contradictions, both sides of these."""
        for rows in groups(self._keys):
            sides = [int(self._sides.at(row)[0]) for row in rows]
            places = [int(self._places.at(row)[0]) for row in rows]
            if len(set(sides)) == 2:
                first = [places[sides.index(side)] for side in (0, 1)]
                for side, place in zip(sides, places, strict=True):
                    other = first[1 - side]
                    yield "contradiction", place, f"row {other} has the opposite label"
                continue
            for place in places[1:]:
                yield "duplicate", place, f"repeats row {places[0]}"

    def shared_ids(self) -> Iterator[tuple[str, int, str]]:
        """(code, place, detail) of ids that stand for different prompts."""
        for rows in groups(self._ids):
            first = int(self._prompts.at(rows[0])[0])
            for row in rows[1:]:
                if int(self._prompts.at(row)[0]) != first:
                    place = int(self._places.at(row)[0])
                    yield "ids", place, f"row {int(self._places.at(rows[0])[0])} has the same id and another prompt"

    def close(self) -> None:
        """Closes the files."""
        for column in (self._keys, self._places, self._sides, self._ids, self._prompts):
            column.close()


def _shown(said: object) -> str:
    """What is said, with its roles where there are several messages, and its calls of tools."""
    if not isinstance(said, list):
        return str(said or "")
    if len(said) == 1 and not said[0].get("tool_calls"):
        return words(said)
    return "\n\n".join(f"[{m['role']}]\n{m.get('content') or ''}{m.get('tool_calls') or ''}" for m in said)
