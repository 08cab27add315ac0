"""From a declaration to the fields of a grammar: everything that can be wrong in it is refused here, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from rlaif.errors import InputError

MEANINGS = {"first": (1.0, 0.0), "second": (0.0, 1.0), "tie": (0.5, 0.5)}
OCCURRENCES = ("all", "first", "last", "listed")
STANDS = ("anywhere", "first", "last")
KEYS = (
    *("verdict", "occurrence", "stands", "means", "rating", "decimals", "ranking", "ties", "names", "refusal"),
    "about",
)
"""What a grammar's file may say; `about` is for those who read it."""

_WIDEST = 100
_DECLINES = (
    r"(?i)\bI(?:'m| am)? ?(?:sorry|apologi[sz]e),? but\b",
    r"(?i)\bI (?:really |simply |just )?(?:can't|cannot|can not|won't|will not|am not able to|am unable to|refuse to|decline to"
    r"|must decline|would rather not|'d rather not)\b",
    r"(?i)\bI(?:'m|’m) (?:not able|unable|not willing) to\b",
    r"(?i)\bI (?:can’t|won’t|do not feel comfortable|don't feel comfortable)\b",
    r"(?i)\bas an AI(?: language model)?,? I\b",
    r"我(?:无法|不能|拒绝|不便)|(?:很|非常)?抱歉",
)


_JUDGING = (
    r"(?: [a-z]{1,12}){0,2} (?:judg|compar|evaluat|assess|rat|rank|choos|decid|pick|help|assist|comply|fulfil|provid|respond"
    r"|engag|continu|do (?:that|this))"
)
OPENS_DECLINING = re.compile(
    r"\A[\s*_#>]{0,99}(?:(?:oh|well|hello|unfortunately)[,.!]? )?(?:"
    r"(?:(?:I(?:['’]m| am)? ?(?:very |so |really )?(?:sorry|afraid)|sorry|I apologi[sz]e|(?:my )?apologies"
    r"|as an AI[^.!?\n,]{0,40})(?:,|\.|:| but| that|\s){0,4})(?:I |we )?(?:really |simply |just )?"
    r"(?:can['’]?t|cannot|can not|won['’]t|will not|am (?:not able|unable) to|(?:['’]m) (?:not able|unable) to)"
    rf"{_JUDGING}"
    rf"|I (?:must |have to |respectfully ){{0,2}}(?:refuse|decline|would rather not)(?: to)?{_JUDGING}"
    r"|(?:很|非常)?抱歉[，,]?我(?:无法|不能)(?:判断|评判|比较|评价|选择))",
    re.IGNORECASE,
)
"""How a reply declines to judge: with its first words, so that answers that are quoted or described do not count. Two that it
cannot tell apart ("I cannot decide between them") are a tie, and no refusal."""
LONGEST_REFUSAL = 400
"""Characters of a reply that declines and does hardly anything else: a longer one goes on to judge after all."""


def fields_of(front: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The fields of the grammar that `front` declares. Raises InputError that opens with `what`."""
    declared = [key for key in ("means", "rating", "ranking") if key in front]
    if "verdict" not in front or not declared or isinstance(front["verdict"], (bool, int, float)) or _empty(front, declared):
        raise InputError(f"{what}: it needs `verdict` and `means` (or `rating`, or `ranking`)")
    if len(declared) > 1:
        raise InputError(f"{what}: one of `means`, `rating` and `ranking` is enough, found {' and '.join(declared)}")
    found = {"means": _pairwise, "rating": _rating, "ranking": _ranking}[declared[0]](front, what)
    found["occurrence"] = _one_of(front, "occurrence", OCCURRENCES, what)
    found["stands"] = _one_of(front, "stands", STANDS, what)
    if found["occurrence"] == "listed" and found["kind"] != "pairwise":
        raise InputError(f"{what}: `occurrence: listed` goes by the order of `means`; a {found['kind']} has none")
    found["patterns"] = _patterns(front["verdict"], what, places=found.get("above") == "places")
    if not found["patterns"] and found["kind"] == "ranking":
        raise InputError(f"{what}: a ranking is no single token; `verdict` must be a regular expression")
    found["refusals"] = _patterns(front.get("refusal", list(_DECLINES)), what, key="refusal")
    return found


def _empty(front: Mapping[str, Any], declared: list[str]) -> bool:
    return not front["verdict"] or (declared == ["means"] and (not isinstance(front["means"], dict) or not front["means"]))


def _one_of(front: Mapping[str, Any], key: str, known: tuple[str, ...], what: str) -> str:
    said = str(front.get(key, known[0]))
    if said not in known:
        raise InputError(f"{what}: `{key}` may be {', '.join(known[:-1])} or {known[-1]}, not {said!r}")
    return said


def _pairwise(front: Mapping[str, Any], what: str) -> dict[str, Any]:
    means = front["means"]
    for option, meaning in means.items():
        if isinstance(option, bool) or option is None:
            raise InputError(f"{what}: YAML reads an option of `means` as {option!r}; put it in quotes")
        if not isinstance(meaning, str) or meaning not in MEANINGS:
            raise InputError(f"{what}: `means` may say {', '.join(MEANINGS)}, not {meaning!r}")
    return {"kind": "pairwise", "means": {str(k): MEANINGS[v] for k, v in means.items()}}


def _rating(front: Mapping[str, Any], what: str) -> dict[str, Any]:
    ends = front["rating"]
    if not isinstance(ends, list) or len(ends) != 2 or not all(type(e) in (int, float) for e in ends):
        raise InputError(f"{what}: `rating` must be the lowest and the highest number, such as [1, 9], not {ends!r}")
    low, high = float(ends[0]), float(ends[1])
    decimals = front.get("decimals", False)
    if not isinstance(decimals, bool):
        raise InputError(f"{what}: `decimals` may be true or false, not {decimals!r}")
    if not low < high or not (decimals or (low.is_integer() and high.is_integer())):
        raise InputError(f"{what}: `rating` must go from a lower to a higher whole number (or with `decimals`), not {ends!r}")
    if high - low > _WIDEST:
        raise InputError(f"{what}: the scale of `rating` {ends!r} is wider than {_WIDEST}")
    return {"kind": "rating", "scale": (low, high), "decimals": decimals}


def _ranking(front: Mapping[str, Any], what: str) -> dict[str, Any]:
    above, level = front["ranking"], front.get("ties")
    for key, mark in (("ranking", above), ("ties", level)):
        if not isinstance(mark, str | None) or (mark is not None and not mark.strip()):
            raise InputError(f"{what}: `{key}` must be the text between two names, such as '>', not {mark!r}")
    if above is None or above == level:
        raise InputError(f"{what}: `ranking` and `ties` must be two different texts, not {above!r} and {level!r}")
    names = front.get("names", list(ascii_uppercase))
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(n, str) and n.strip() == n != "" for n in names):
        raise InputError(f"{what}: `names` must be a list of what the shown are called, got {names!r}")
    if len(set(names)) < len(names):
        raise InputError(f"{what}: two of `names` are the same: {names!r}")
    return {
        "kind": "ranking",
        "above": above.strip(),
        "level": level.strip() if level else None,
        "names": tuple(names),
    }


def _patterns(said: Any, what: str, *, key: str = "verdict", places: bool = False) -> tuple[re.Pattern[str], ...]:
    if said == "token" and key == "verdict":
        return ()
    texts = said if isinstance(said, list) else [said]
    if not all(isinstance(text, str) for text in texts) or (key == "verdict" and not texts):
        raise InputError(f"{what}: `{key}` must be a regular expression or a list of them, not {said!r}")
    patterns = []
    for text in texts:
        try:
            pattern = re.compile(text, re.ASCII)
        except (re.error, ValueError, OverflowError, RecursionError) as error:
            raise InputError(f"{what}: `{key}` is no regular expression: {error}") from None
        if key == "verdict" and places and set(pattern.groupindex) != {"name", "place"}:
            raise InputError(f"{what}: with `ranking: places`, `verdict` needs the groups (?P<name>...) and (?P<place>...)")
        if key == "verdict" and not places and pattern.groups != 1:
            raise InputError(f"{what}: `verdict` needs exactly one group, the option")
        patterns.append(pattern)
    return tuple(patterns)
