"""Texts that judges are made of: where they are found, how they are filled, what they hash to.

A name is looked up among the shipped files (in the wheel under `rlaif/_data`, in a checkout beside the package); anything
with a slash or a suffix is a path. Templates are filled in one pass over their declared placeholders: a candidate that
contains `{prompt}` stays as it is. A template opens with YAML front matter between two `---` lines.
"""

from __future__ import annotations

import math
import os
import random
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rlaif.errors import InputError
from rlaif.keys import digest

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


@cache
def data_dir() -> Path:
    """The folder that holds `prompts/` and `judges/`: inside the installed package, else the source checkout."""
    packaged = Path(__file__).parent / "_data"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent


def find(folder: str, name: str, *suffixes: str) -> Path:
    """The file that `name` means: a bare name is a shipped file of `folder` first, else a path. Raises InputError."""
    path, shipped = _home(name), data_dir() / folder
    places = [path]
    if path.name == name:
        places = [shipped / (name + suffix) for suffix in (*suffixes, "")] + places
    elif path.parts[:1] in (("judges",), ("prompts",)) and ".." not in path.parts:
        places.append(data_dir() / path)  # `judges/shortest.py` names the shipped file from anywhere, as in a checkout
    for place in places:
        if is_file(place):
            return place
    known = sorted({p.stem for s in suffixes for p in shipped.glob("*" + s) if not p.name.startswith("_")})
    shown = name if len(name) <= 80 else name[:80] + "..."
    raise InputError(f"{shown!r} is neither a file nor one of the shipped {folder}: {', '.join(known)}")


def _home(name: str) -> Path:
    """The path, `~` resolved where that can be done."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def is_file(path: Path) -> bool:
    """Whether there is a file; a name that can be none is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return False


def example(name: str) -> Path:
    """The file of prompts that `name` means: a path, or a shipped example (`demo`, `prompts/examples/demo.jsonl`)."""
    path = _home(name)
    if os.path.exists(path) and (path.name != name or path.suffix):  # a bare name is a shipped one first
        return path
    for shipped in (data_dir() / name, data_dir() / "prompts" / "examples" / f"{name}.jsonl"):
        if not path.is_absolute() and ".." not in path.parts and is_file(shipped):
            return shipped
    return path


def read_yaml(path: Path) -> Any:
    """The parsed YAML file. Raises InputError naming the file and the place."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


@dataclass(frozen=True, slots=True)
class Template:
    """A text with placeholders, and its front matter."""

    name: str
    text: str
    front: dict[str, Any]

    @property
    def digest(self) -> str:
        """Changes with the text and the front matter."""
        return digest([self.text, self.front])

    def fill(self, **values: str) -> str:
        """The text with every declared placeholder replaced in one pass; values are never scanned again."""
        return _PLACEHOLDER.sub(lambda m: values[m[1]] if m[1] in values else m[0], self.text)


def load_template(name: str, *, needs: tuple[str, ...]) -> Template:
    """The named template. Raises InputError if it lacks one of the placeholders in `needs`."""
    path = find("prompts/templates", name, ".txt")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from None
    front: dict[str, Any] = {}
    if text.startswith("---\n") and "\n---\n" in text:
        head, text = text[4:].split("\n---\n", 1)
        try:
            front = yaml.safe_load(head) or {}
        except yaml.YAMLError as error:
            raise InputError(f"{path}: its front matter is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(front, dict):
            raise InputError(f"{path}: its front matter must hold settings, one `name: value` a line")
    missing = sorted(set(needs) - set(_PLACEHOLDER.findall(text)))
    if missing:
        raise InputError(f"{path}: the template lacks {', '.join('{' + m + '}' for m in missing)}")
    return Template(name=path.stem, text=text.strip(), front=front)


@dataclass(frozen=True, slots=True)
class Principle:
    """One sentence of a constitution; `weight` is how much it counts beside the others."""

    id: str
    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Constitution:
    """What a judge is to prefer: principles with ids."""

    id: str
    principles: tuple[Principle, ...]

    @property
    def text(self) -> str:
        """The principles as the judge reads them, one a line; unequal weights are told."""
        if len({p.weight for p in self.principles}) == 1:
            return "\n".join(f"- {p.text}" for p in self.principles)
        return "\n".join(f"- (weight {p.weight:g}) {p.text}" for p in self.principles)

    @property
    def digest(self) -> str:
        """Changes with any id, text or weight."""
        weighted = [[p.id, p.text] if p.weight == 1.0 else [p.id, p.text, p.weight] for p in self.principles]
        return digest([self.id, weighted])

    def share(self, principle: Principle) -> float:
        """The principle's part of all weights, 0..1."""
        return principle.weight / sum(p.weight for p in self.principles)

    def alone(self, principle: Principle) -> Constitution:
        """The constitution that consists of one of its principles."""
        return Constitution(self.id, (replace(principle, weight=1.0),))

    def pick(self, seed: int) -> Principle:
        """One principle, drawn by the weights."""
        return random.Random(seed).choices(self.principles, [p.weight for p in self.principles])[0]


def load_constitution(name: str) -> Constitution:
    """The named constitution. Raises InputError naming the file and what is wrong with it."""
    path = find("prompts/constitutions", name, ".yaml")
    raw = read_yaml(path)
    if isinstance(raw, dict):
        raw_principles, title = raw.get("principles"), str(raw.get("id", path.stem))
    else:
        raw_principles, title = raw, path.stem
    if not isinstance(raw_principles, list) or not raw_principles:
        raise InputError(f"{path}: `principles` must be a list with at least one principle")
    principles = []
    for place, item in enumerate(raw_principles, 1):
        entry = {"text": item} if isinstance(item, str) else item
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not entry["text"].strip():
            raise InputError(f"{path}: principle {place} needs a `text`, got {item!r}")
        weight = entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0.0 < weight < math.inf:
            raise InputError(f"{path}: principle {place} has the weight {weight!r}; it must be a positive number")
        if unknown := sorted(set(entry) - {"id", "text", "weight"}):
            raise InputError(f"{path}: principle {place} has the unknown key {unknown[0]!r}; there are id, text and weight")
        principles.append(Principle(id=str(entry.get("id", place)), text=entry["text"].strip(), weight=float(weight)))
    if len({p.id for p in principles}) < len(principles):
        raise InputError(f"{path}: two principles have the same id")
    return Constitution(id=title, principles=tuple(principles))
