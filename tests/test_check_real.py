"""`rlaif check` on real pairs with gold labels, where the folder that holds them stands beside the checkout."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import write_rows
from test_check import codes, said, user

from rlaif.check.run import Report, check

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
pytestmark = [pytest.mark.skipif(not DATA.is_dir(), reason=f"no evaluation data at {DATA}"), pytest.mark.slow]
NONE = [pytest.param(None, marks=pytest.mark.skip(reason="no evaluation data"))]
FILES = [pytest.param(path, id=path.name) for path in sorted((DATA / "pairs").glob("*.jsonl.gz"))] or NONE
SMELLS = {"autoj", "pandalm", "rmbench"}
"""Of the ten reversed files those that it shows in: the others are balanced for length and have no worthless answers."""


def gold(path: Path) -> list[tuple[str, str, str]]:
    """(prompt, better answer, worse answer) of the pairs that are no ties."""
    with gzip.open(path, "rb") as file:
        rows = [json.loads(line) for line in file]
    better = {"A": ("response_a", "response_b"), "B": ("response_b", "response_a")}
    return [(row["prompt"], *(row[name] for name in better[row["gold"]])) for row in rows if row["gold"] != "tie"]


def in_format(form: str, prompt: str, chosen: str, rejected: str) -> list[dict[str, Any]]:
    """A pair as rows of a trainer's format."""
    made: dict[str, list[dict[str, Any]]] = {
        "messages": [{"prompt": user(prompt), "chosen": said(chosen), "rejected": said(rejected)}],
        "text": [{"prompt": prompt + "\n", "chosen": chosen, "rejected": rejected}],
        "implicit": [{"chosen": user(prompt) + said(chosen), "rejected": user(prompt) + said(rejected)}],
        "kto": [{"prompt": user(prompt), "completion": said(a), "label": a is chosen} for a in (chosen, rejected)],
        "sft": [{"messages": user(prompt) + said(chosen)}],
        "completion": [{"prompt": prompt, "completion": chosen}],
    }
    return made[form]


def examined(tmp_path: Path, rows: list[dict[str, Any]], **more: Any) -> Report:
    return check(write_rows(tmp_path / "rows.jsonl", rows), **more)


@pytest.mark.parametrize("form", ["messages", "text", "implicit", "kto", "sft", "completion"])
@pytest.mark.parametrize("path", FILES)
def test_real_pairs_have_no_errors_but_their_own(tmp_path, path, form):
    pairs = gold(path)
    rows = [row for pair in pairs for row in in_format(form, *pair)]
    found = codes(examined(tmp_path, rows, fix=tmp_path / "out.jsonl"))
    empty = [row for row in rows if '"content": ""' in json.dumps(row) or "" in row.values()]
    same = [pair for pair in pairs if "".join(pair[1].split()) == "".join(pair[2].split())]
    errors = found.get("empty", 0), found.get("equal", 0)
    assert errors[0] == len(empty) and errors[1] <= len(same)
    kinds = ("empty", "equal", "contradiction", "duplicate", "near_duplicate", "truncated", "refusal", "degenerate")
    assert set(found) <= {*kinds, "longer_chosen", "unbalanced"}
    assert "contradiction" not in found or form == "kto"  # one answer may be the better one here and the worse there
    assert check(tmp_path / "out.jsonl").count("error") == 0


@pytest.mark.parametrize("path", FILES)
def test_only_reversed_labels_smell(tmp_path, path):
    pairs = gold(path)
    right = [{"prompt": prompt, "chosen": better, "rejected": worse} for prompt, better, worse in pairs]
    wrong = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in right]
    assert "reversed" not in codes(examined(tmp_path, right))
    assert ("reversed" in codes(examined(tmp_path, wrong))) == (path.name.removesuffix(".jsonl.gz") in SMELLS)
